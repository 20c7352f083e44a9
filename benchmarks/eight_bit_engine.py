"""An engine in a process of its own, for benchmarks/eight_bit.py: started at once, measured when told to."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from msgspec import Struct

from benchmarks.report import median
from benchmarks.shapes import GRAPHS
from hlo.generation.vllm_engine.lora_plugin import KEY
from hlo.generation.vllm_engine.quantized import DTYPES, Plan
from hlo.generation.vllm_engine.weights import verify

START_LIMIT_S = 300


class Load(Struct, frozen=True):
    """How many requests at once, their length and their answers' in tokens, and the tokens of one request alone."""

    requests: int
    prompt: int
    answer: int
    alone: int


class Answers(Struct, frozen=True):
    """For each prompt the tokens of a greedy answer, and the log-probabilities of the prompt's own tokens."""

    tokens: list[list[int]]
    own: list[list[float]]
    best: list[list[dict[int, float]]]


class Engine:
    """vLLM's offline engine in another process; `ready` waits for it."""

    def __init__(
        self,
        name: str,
        arguments: dict[str, Any],
        adapters: Sequence[Path],
        *,
        kv_bytes: int,
        gpu: bool,
        kernels: str = "engine",
    ) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_run, args=(theirs, name, arguments, list(adapters), kv_bytes, gpu, kernels)
        )
        self._process.start()
        theirs.close()

    def ready(self) -> dict[str, Any]:
        """Wait until it can answer; what its weights are. Raises `RuntimeError` with what went wrong."""
        return self._hear(START_LIMIT_S)  # type: ignore[no-any-return]

    def measure(self, load: Load) -> tuple[float, float]:
        """Tokens per second of many requests at once, and milliseconds per token of one alone."""
        self._pipe.send(("measure", load))
        return self._hear(START_LIMIT_S)  # type: ignore[no-any-return]

    def answer(self, prompts: list[list[int]], tokens: int) -> Answers:
        """Greedy answers to prompts, given as token ids."""
        self._pipe.send(("answer", prompts, tokens))
        return self._hear(START_LIMIT_S)  # type: ignore[no-any-return]

    def leave(self) -> None:
        """Tell it to end."""
        with suppress(OSError):  # it is gone already
            self._pipe.send(("stop",))

    def wait(self) -> None:
        """Wait until it has ended, but not for long."""
        self._process.join(20)
        self._process.kill()

    def _hear(self, limit_s: float) -> Any:
        try:
            if not self._pipe.poll(limit_s):
                raise RuntimeError(f"no answer in {limit_s:.0f} s")
            told = self._pipe.recv()
        except (EOFError, ConnectionResetError) as error:
            raise RuntimeError("the engine's process is gone; its log says why") from error
        if isinstance(told, str):
            raise RuntimeError(told)
        return told


def stop(engines: Iterable[Engine]) -> None:
    """End engines and their children, all at the same time."""
    chosen = list(engines)
    for engine in chosen:
        engine.leave()
    for engine in chosen:
        engine.wait()


def _run(
    pipe: Connection,
    name: str,
    arguments: dict[str, Any],
    adapters: list[Path],
    kv_bytes: int,
    gpu: bool,
    kernels: str,
) -> None:
    """What the process does."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    if kernels == "hlo":
        os.environ["VLLM_LORA_ENABLE_DUAL_STREAM"] = "1"

        arguments = arguments | {"additional_config": {KEY: []}}
    if not gpu:
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
        os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    try:
        clock = time.perf_counter()
        llm = _start(arguments, adapters, kv_bytes, gpu)
        (weights,) = llm.collective_rpc("hlo_weights")  # one device
        if gpu or name != "int8":  # on a CPU oneDNN keeps int8 weights where nobody sees them
            verify([weights], Plan(name, {}, DTYPES.get(name, ())))
    except Exception as error:  # whatever it is, the table says it
        pipe.send(f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:300])
        return
    pipe.send(weights | {"started_s": time.perf_counter() - clock})
    while (told := pipe.recv())[0] != "stop":
        pipe.send(_measure(llm, told[1], adapters) if told[0] == "measure" else _answer(llm, told[1], told[2]))
    llm.llm_engine.engine_core.shutdown()


def _start(arguments: dict[str, Any], adapters: list[Path], kv_bytes: int, gpu: bool) -> Any:
    from vllm import LLM

    lora = {
        "enable_lora": True,
        "max_loras": len(adapters),
        "max_lora_rank": 16,
        "lora_target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"],
    }
    common = {
        "dtype": "bfloat16",
        "max_model_len": 512,
        "max_num_seqs": 256,
        "enable_prefix_caching": False,
        "enforce_eager": not gpu,
        "kv_cache_memory_bytes": kv_bytes,
        "worker_extension_cls": "hlo.generation.vllm_engine.worker.HloWorker",
        # Several engines share the card: the cache's size is given above, and this only guards the start.
        "gpu_memory_utilization": 0.05,
    }
    if gpu:
        common["compilation_config"] = {"cudagraph_capture_sizes": GRAPHS}
    else:
        common.pop("gpu_memory_utilization")
    return LLM(**common | (lora if adapters else {}) | arguments)


def _measure(llm: Any, load: Load, adapters: list[Path]) -> tuple[float, float]:
    import numpy as np
    from vllm import SamplingParams
    from vllm.lora.request import LoRARequest

    chance = np.random.default_rng(0)
    loras = [LoRARequest(f"adapter-{i}", i + 1, str(path)) for i, path in enumerate(adapters)]

    def go(count: int, prompt: int, answer: int) -> float:
        prompts = [{"prompt_token_ids": chance.integers(10, 8000, prompt).tolist()} for _ in range(count)]
        parameters = SamplingParams(max_tokens=answer, temperature=0.0, ignore_eos=True, detokenize=False)
        clock = time.perf_counter()
        done = llm.generate(
            prompts, parameters, use_tqdm=False, lora_request=[loras[i % len(loras)] for i in range(count)]
        )
        taken = time.perf_counter() - clock
        assert all(len(one.outputs[0].token_ids) == answer for one in done)
        return taken

    rate = load.requests * load.answer / go(load.requests, load.prompt, load.answer)
    # The difference of a long and a short answer is decoding alone: prefill and the way in and out cancel.
    alone = []
    for _ in range(3):
        short = go(1, load.prompt, 1)
        alone.append((go(1, load.prompt, load.alone + 1) - short) / load.alone * 1000)
    return rate, median(alone)


def _answer(llm: Any, prompts: list[list[int]], tokens: int) -> Answers:
    from vllm import SamplingParams

    parameters = SamplingParams(max_tokens=tokens, temperature=0.0, ignore_eos=True, prompt_logprobs=20)
    done = llm.generate([{"prompt_token_ids": one} for one in prompts], parameters, use_tqdm=False)
    own, best = [], []
    for prompt, one in zip(prompts, done, strict=True):
        rows = one.prompt_logprobs[1:]
        own.append([row[token].logprob for token, row in zip(prompt[1:], rows, strict=True)])
        best.append([{token: value.logprob for token, value in row.items()} for row in rows])
    return Answers([list(one.outputs[0].token_ids) for one in done], own, best)
