"""The engine: which one the settings and plugins name, and how it is to run with the adapters that are installed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Literal

import msgspec

from hlo.catalog import Catalog
from hlo.contracts import Engine, EngineOptions, Servers, StartEngine
from hlo.errors import SettingsError
from hlo.generation import adapters, room
from hlo.generation.base_model import BaseModel
from hlo.generation.lora_kernels import configs
from hlo.generation.supervised import Restarts, SupervisedEngine
from hlo.plugins import Hooks
from hlo.settings import Settings
from hlo.telemetry.tracing import NOBODY, Span, Tracing

logger = logging.getLogger("hlo")


def find(settings: Settings, hooks: Hooks) -> StartEngine:
    """The engine that the settings ask for, and a line in the log that says which. Raises `HLOError`."""
    from hlo.generation import openai_engine, transformers_engine, vllm_engine

    name, reason = settings.engine, "as HLO_ENGINE says"
    if settings.generates_elsewhere:
        logger.info("engine: openai, in front of %d servers", len(settings.servers))
        return openai_engine.OpenAIEngine.start
    if name == "auto":
        name = "vllm" if vllm_engine.version() else "transformers"
        reason = "" if name == "vllm" else "since vLLM is not installed: good for trying out, slow for many users"
    known: Mapping[str, tuple[StartEngine, str | None, str]] = {
        "vllm": (
            vllm_engine.VllmEngine.start,
            vllm_engine.version(),
            "`pip install 'hlo[gpu]'` on a GPU machine, `'hlo[cpu]'` elsewhere.",
        ),
        "transformers": (
            transformers_engine.TransformersEngine.start,
            transformers_engine.version(),
            "`pip install 'hlo[gpu]'` on a GPU machine, 'hlo[cpu]' or 'hlo[transformers]' elsewhere.",
        ),
    }
    if name in known:
        start, version, remedy = known[name]
        if version is None:
            missing = "vLLM" if name == "vllm" or settings.engine == "auto" else "peft, which the engine needs,"
            raise SettingsError(f"{missing} is not installed.", remedy=remedy)
        logger.info("engine: %s %s%s", name, version, f", {reason}" if reason else "")
        return start
    offered = hooks.find_engine(name)
    if offered is None:
        raise SettingsError(
            f"HLO_ENGINE={name} is no engine that HLO or an installed plugin has.",
            remedy="Take auto, vllm, openai or transformers, or install the plugin that offers it.",
        )
    logger.info("engine: %s, from a plugin", name)
    return offered


async def start(
    settings: Settings,
    model: BaseModel,
    found: Catalog,
    hooks: Hooks,
    tracing: Tracing = Tracing(),  # noqa: B008 - it makes nothing
    within: Span = NOBODY,
    begin: StartEngine | None = None,
    count: Callable[[str], None] = lambda _: None,
) -> SupervisedEngine:
    """Start the engine with room for every adapter at once, and for those to come. Raises `HLOError`.

    `begin` starts another than the one that the settings name, which runs on other machines. `count` hears the outcome
    of each restart, of which there are none until the engine is watched.
    """
    from hlo.generation import vllm_engine

    elsewhere = settings.generates_elsewhere or begin is not None
    begin = begin or find(settings, hooks)
    # Of servers elsewhere nobody tells whether they are CPUs: they are taken for some unless the operator says.
    here: Literal["cpu", "cuda"] = "cuda" if settings.device == "cuda" else "cpu"
    chosen = options(settings, model, found, here if elsewhere else device(settings))
    may_need_null = elsewhere or (begin == vllm_engine.VllmEngine.start and vllm_engine.needs_null(chosen.device))
    if chosen.slots and may_need_null and chosen.device == "cpu":
        kinds, store = frozenset(chosen.kinds), settings.cache_dir.expanduser()
        null = await asyncio.to_thread(adapters.null, model.linears, model.name, kinds, store)
        chosen = msgspec.structs.replace(chosen, null=null)
    logger.info("engine: %s", chosen.reason)

    async def run(what: str, caller: Span) -> Engine:
        with tracing.span(what, caller, {"gen_ai.request.model": model.name}) as span:
            return await begin(msgspec.structs.replace(chosen, trace_environment=tracing.environment(span)))

    restarts = Restarts(settings.engine_restarts, settings.engine_restart_backoff_s, settings.engine_restart_window_s)
    return SupervisedEngine(await run("start engine", within), partial(run, "restart engine", NOBODY), restarts, count)


def options(settings: Settings, model: BaseModel, found: Catalog, chosen: Literal["cpu", "cuda"]) -> EngineOptions:
    """How the engine is to run, derived from the settings and from the adapters that are installed."""
    versions = [entry.adapter for entry in found.entries.values()]
    kinds = {kind for version in versions for kind in version.modules}
    kinds = kinds or {name.rpartition(".")[2] for name in model.linears}
    slots = len(versions) + settings.spare_adapters
    made = EngineOptions(
        model=model.folder,
        name=model.name,
        device=chosen,
        dtype="float32" if settings.dtype == "auto" and chosen == "cpu" else settings.dtype,
        quantization=settings.effective_quantization,
        slots=slots,
        spare=settings.spare_adapters,
        resident=settings.adapter_slots if settings.adapter_slots and settings.adapter_slots < slots else None,
        turn_s=settings.adapter_turn_s,
        rank=max((version.rank for version in versions), default=settings.max_lora_rank),
        kinds=tuple(sorted(kinds)),
        max_model_len=settings.max_model_len,
        max_num_seqs=settings.max_num_seqs,
        max_num_batched_tokens=settings.max_num_batched_tokens,
        kv_cache_dtype=settings.kv_cache_dtype,
        gpu_memory_utilization=settings.gpu_memory_utilization,
        cpu_kv_cache_gib=settings.cpu_kv_cache_gib,
        enforce_eager=chosen == "cpu" if settings.enforce_eager is None else settings.enforce_eager,
        shutdown_grace_s=settings.shutdown_grace_s,
        stall_s=settings.engine_stall_s,
        log_level=settings.log_level,
        log_format=settings.log_format,
        lora_kernels=settings.lora_kernels if chosen == "cuda" else "engine",
        lora_configs=lora_configs(settings),
        tensor_parallel_size=_parallel(settings, "tensor_parallel_size"),
        data_parallel_size=_parallel(settings, "data_parallel_size"),
        arguments=settings.engine_arguments,
        servers=_servers(settings),
    )
    return msgspec.structs.replace(made, reason=room.describe(made, versions))


def _servers(settings: Settings) -> Servers | None:
    """The servers that generate, where the settings name some."""
    if not settings.servers:
        return None
    return Servers(settings.servers, settings.engine_key, settings.engine_timeout_s, settings.engine_wait_s)


def lora_configs(settings: Settings) -> tuple[Path, ...]:
    """The folders in which HLO's LoRA kernels find what was tuned: the operator's, then HLO's own."""
    return (settings.cache_dir.expanduser().absolute() / "lora-kernels", configs.SHIPPED)


def device(settings: Settings) -> Literal["cpu", "cuda"]:
    """Where the model is to run. Raises `SettingsError` when that is not there."""
    import torch

    available = torch.cuda.is_available()
    if settings.device == "cuda" and not available:
        raise SettingsError(
            "HLO_DEVICE=cuda, but no CUDA device is usable.",
            remedy="Check the driver with `nvidia-smi`, install 'hlo[gpu]', or set HLO_DEVICE=cpu.",
        )
    chosen: Literal["cpu", "cuda"] = "cuda" if available and settings.device != "cpu" else "cpu"
    parts, copies = _parallel(settings, "tensor_parallel_size"), _parallel(settings, "data_parallel_size")
    there = torch.cuda.device_count()
    if chosen == "cuda" and parts * copies > max(there, 1):
        raise SettingsError(
            f"HLO_TENSOR_PARALLEL_SIZE={parts} times HLO_DATA_PARALLEL_SIZE={copies} needs {parts * copies} GPUs, and "
            f"this machine has {there}.",
            remedy="Lower one of them, there or in HLO_ENGINE_ARGUMENTS, or let other machines generate: "
            "docs/scaling.md.",
        )
    return chosen


def _parallel(settings: Settings, name: Literal["tensor_parallel_size", "data_parallel_size"]) -> int:
    """In how many parts, or copies, a model runs; the engine's own argument comes first. Raises `SettingsError`."""
    given = settings.engine_arguments.get(name)
    if given is None:
        return int(getattr(settings, name))
    if not isinstance(given, int) or given < 1:
        raise SettingsError(
            f"HLO_ENGINE_ARGUMENTS: `{name}` is {given!r}; a whole number from 1 on was wanted.",
            remedy=f"Set HLO_{name.upper()}.",
        )
    return given
