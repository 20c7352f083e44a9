"""Starts vLLM: what it takes from the environment, and its arguments."""

from __future__ import annotations

import asyncio
import inspect
import multiprocessing
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hlo.contracts import EngineOptions
from hlo.errors import ModelError, SettingsError
from hlo.generation.memory import padded_rank
from hlo.generation.vllm_engine import lora_plugin, orphan
from hlo.generation.vllm_engine.failures import causes, failure, wants_memory, watch
from hlo.generation.vllm_engine.installed import version

WORKER = "hlo.generation.vllm_engine.worker.HloWorker"


@contextmanager
def environment(options: EngineOptions) -> Iterator[None]:
    """While vLLM starts: what it takes from the environment only, and hands on to its own processes.

    What the operator has set there stays; what was not set is not set afterwards, for another engine may need another.
    """
    wanted = {
        # The child must not be forked from a process that has threads and perhaps a GPU context.
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        "VLLM_NO_USAGE_STATS": "1",
        orphan.KEY: "1",
        "VLLM_LOGGING_LEVEL": "WARNING" if options.log_level == "info" else options.log_level.upper(),
    }
    if options.device == "cpu":
        wanted["VLLM_CPU_KVCACHE_SPACE"] = str(options.cpu_kv_cache_gib)
    if options.lora_kernels == "hlo":
        wanted["VLLM_LORA_ENABLE_DUAL_STREAM"] = "1"
    if options.enforce_eager:  # a few helpers of vLLM compile themselves all the same, which needs a C++ compiler
        wanted["TORCHDYNAMO_DISABLE"] = "1"
    if _rounds_while_loading(options) and "PYTORCH_ALLOC_CONF" not in os.environ:
        wanted["PYTORCH_CUDA_ALLOC_CONF"] = "expandable_segments:True"
    wanted |= options.trace_environment  # and vLLM leaves the endpoint in the environment itself
    missing = {name: value for name, value in wanted.items() if name not in os.environ}
    os.environ.update(missing)
    try:
        yield
    finally:
        for name in missing:
            os.environ.pop(name, None)


def _rounds_while_loading(options: EngineOptions) -> bool:
    """Whether weights are rounded as they load, on one GPU.

    vLLM keeps PyTorch from splitting free blocks meanwhile (`_scoped_allocator_max_split`), so that rounded weights lie
    in larger blocks which 16-bit ones have left: 504 MiB too many for a 7B model, more than a card of 8 GB has to give.
    Expandable segments are split all the same; `holes` closes what stays free between. Several GPUs can not share what
    lies in them (vLLM's issue 42609).
    """
    one = options.tensor_parallel_size == 1
    return options.device == "cuda" and options.quantization == "fp8_per_channel" and one


async def abandon(building: asyncio.Future[None]) -> None:
    """End a start that nobody waits for any more: its thread can not be stopped, but it waits for a process that can.

    A large model takes minutes to load, and a server that is told to stop meanwhile has seconds.
    """
    while not building.done():
        for child in multiprocessing.active_children():
            if child.name.startswith("EngineCore"):
                child.kill()
        await asyncio.wait({building}, timeout=0.2)
    await asyncio.gather(building, return_exceptions=True)


def spans(options: EngineOptions) -> dict[str, Any]:
    """The argument with which vLLM makes spans of its own. Without statistics it would die of the first one."""
    endpoint = options.trace_environment.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    return {"otlp_traces_endpoint": endpoint} if endpoint and not options.arguments.get("disable_log_stats") else {}


def construct(options: EngineOptions, weights: Mapping[str, Any]) -> Any:
    """Build AsyncLLM; blocks until the engine process is up. `weights` says how the weights are to be kept."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.usage.usage_lib import UsageContext
    from vllm.v1.engine.async_llm import AsyncLLM

    adapters: dict[str, Any] = {}
    if options.slots:
        extra = int(options.null is not None)  # requests without an adapter wait for nobody's turn
        adapters = {
            "enable_lora": True,
            # With fewer slots than adapters vLLM lets a waiting adapter starve: `Admission` stands in front of it then.
            "max_loras": (options.resident or options.slots) + extra,
            # All of them, so that one that comes back to its slot is copied from memory, never read from a file.
            "max_cpu_loras": options.slots + extra,
            "max_lora_rank": padded_rank(options.rank),
            "lora_target_modules": list(options.kinds),
        }
        if options.lora_kernels == "hlo":
            adapters["additional_config"] = {lora_plugin.KEY: [str(one) for one in options.lora_configs]}
    arguments: dict[str, Any] = {
        "model": str(options.model),
        "served_model_name": options.name,
        "dtype": options.dtype,
        "max_model_len": options.max_model_len,
        "max_num_seqs": options.max_num_seqs,
        "max_num_batched_tokens": options.max_num_batched_tokens,
        "kv_cache_dtype": options.kv_cache_dtype,
        "gpu_memory_utilization": options.gpu_memory_utilization,
        "enforce_eager": options.enforce_eager,
        "tensor_parallel_size": options.tensor_parallel_size,
        "data_parallel_size": options.data_parallel_size,
        "shutdown_timeout": options.shutdown_grace_s,
        "seed": 0,
        "worker_extension_cls": WORKER,
        **spans(options),
        **weights,
        **adapters,
    }
    known = inspect.signature(AsyncEngineArgs).parameters
    if strange := sorted(set(options.arguments) - set(known)):
        raise SettingsError(
            f"HLO_ENGINE_ARGUMENTS: vLLM {version()} has no argument `{strange[0]}`.",
            remedy="The fields of vllm.engine.arg_utils.AsyncEngineArgs are what it takes.",
        )
    chosen = {name: value for name, value in arguments.items() if name in known} | dict(options.arguments)
    with tempfile.TemporaryDirectory(prefix="hlo-") as made:
        folder = Path(made)
        try:
            made_of = AsyncEngineArgs(**watch(folder, chosen, options.log_format), **chosen)
            # As a server: for one that only embeds it, vLLM takes 128 requests a batch where it takes 1024 for its own.
            return AsyncLLM.from_engine_args(made_of, usage_context=UsageContext.OPENAI_API_SERVER)
        except (ValueError, OSError) as error:
            if wants_memory(str(error)):
                raise failure(error, causes(folder), options) from None
            raise ModelError(f"vLLM can not serve `{options.model}`: {error}", remedy="`hlo doctor` helps.") from error
        except RuntimeError as error:
            raise failure(error, causes(folder), options) from error
