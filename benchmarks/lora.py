"""What does it cost to serve many adapters at once? Throughput and time per token against the same model without LoRA.

    python -m benchmarks.lora --gpu      one GPU, Mistral-7B's shape, 256 requests at a time, 128 tokens in, 128 out
    python -m benchmarks.lora            the same in small, on a CPU

The engines are started side by side, each with its share of memory, and then measured one at a time in alternating
rounds, while the others idle. In each round an engine with adapters is asked without them, too. Ratios are medians of
the rounds.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from msgspec import Struct

from benchmarks.report import median, tell
from benchmarks.shapes import ALL_LINEAR, ATTENTION, GRAPHS, MISTRAL_7B, TINY, adapters, model
from hlo.generation.lora_kernels.configs import SHIPPED

TOKENS = 128  # in, and out


class Side(Struct, frozen=True):
    """One way to serve. `kinds` are the layers of the adapters; `all_layers` leaves it to vLLM which to prepare."""

    name: str
    adapters: int = 0
    kernels: str = "engine"
    kinds: tuple[str, ...] = ATTENTION
    rank: int = 16
    all_layers: bool = False
    limit: float | None = None

    def used(self, load: Load) -> int:
        """How many adapters are asked for."""
        return min(self.adapters, load.most_adapters)


SIDES = (
    Side("no LoRA"),
    Side("vLLM as it comes", 64, all_layers=True),
    Side("vLLM, target modules set", 64),
    Side("HLO", 64, "hlo", limit=0.95),
    Side("HLO, 256 adapters", 256, "hlo", limit=0.85),
    Side("HLO, all linear layers, rank 32", 64, "hlo", ALL_LINEAR, 32, limit=0.80),
)


class Load(Struct, frozen=True):
    """How much is asked: requests at a time and in all, rounds; the shape; where configurations of kernels are."""

    gpu: bool
    clients: int
    requests: int
    rounds: int
    most_adapters: int
    kv_gib: float
    config: dict[str, Any]
    configs: tuple[str, ...] = ()


def engine(side: Side, load: Load, folder: Path, wire: Connection) -> None:
    """Serve one side in this process: answers each message with what it measured."""
    os.environ["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"  # to ask the worker whose kernels it has
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    os.environ["VLLM_NO_USAGE_STATS"] = "1"
    if side.kernels == "hlo":
        os.environ["VLLM_LORA_ENABLE_DUAL_STREAM"] = "1"
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    from hlo.generation.vllm_engine.lora_plugin import KEY

    count = side.used(load)
    extra: dict[str, Any] = {}
    if count:
        extra = {"enable_lora": True, "max_loras": count, "max_cpu_loras": count, "max_lora_rank": side.rank}
        if not side.all_layers:
            extra["lora_target_modules"] = list(side.kinds)
        if side.kernels == "hlo":
            extra["additional_config"] = {KEY: list(load.configs)}
    if load.gpu:
        extra |= {"gpu_memory_utilization": 0.1, "kv_cache_memory_bytes": int(load.kv_gib * 2**30), "dtype": "bfloat16"}
        extra["compilation_config"] = {"cudagraph_capture_sizes": GRAPHS}
    else:
        extra |= {"enforce_eager": True, "dtype": "float32"}
    clock = time.perf_counter()
    llm = LLM(
        model=str(model(folder / side.name / "model", load.config)),
        load_format="dummy",
        max_model_len=1024,
        max_num_seqs=load.clients,
        enable_prefix_caching=False,
        seed=0,
        **extra,
    )
    made = adapters(
        folder / f"adapters-{side.rank}-{len(side.kinds)}", load.config, count, rank=side.rank, kinds=side.kinds
    )
    loras = [LoRARequest(one.name, number, str(one)) for number, one in enumerate(made, 1)]
    for lora in loras:
        llm.llm_engine.add_lora(lora)
    whose = llm.collective_rpc(_wrapper)[0] if count and load.gpu else ""
    wire.send({"seconds": time.perf_counter() - clock, "kernels": whose})
    chance = random.Random(0)
    while (asked := wire.recv()) is not None:
        requests, used = asked
        prompts = [
            {"prompt_token_ids": [chance.randrange(3, load.config["vocab_size"]) for _ in range(TOKENS)]}
            for _ in range(requests)
        ]
        sampling = SamplingParams(temperature=0, max_tokens=TOKENS, ignore_eos=True, detokenize=False)
        wanted = [loras[number % used] for number in range(requests)] if used else None
        clock = time.perf_counter()
        llm.generate(prompts, sampling, lora_request=wanted, use_tqdm=False)
        wire.send(requests * TOKENS / (time.perf_counter() - clock))
    llm.llm_engine.engine_core.shutdown()


def _wrapper(worker: Any) -> str:
    manager = worker.model_runner.lora_manager._adapter_manager
    return type(next(iter(manager.punica_wrapper_mapping.values()))).__name__


def start(sides: list[Side], load: Load, folder: Path) -> dict[str, Connection]:
    """Start engines side by side, and wait for all of them."""
    context = multiprocessing.get_context("spawn")
    wires = {}
    for side in sides:
        adapters(  # before the engines, since they share the files
            folder / f"adapters-{side.rank}-{len(side.kinds)}",
            load.config,
            side.used(load),
            rank=side.rank,
            kinds=side.kinds,
        )
        wire, theirs = context.Pipe()
        context.Process(target=engine, args=(side, load, folder, theirs)).start()
        theirs.close()
        wires[side.name] = wire
    for name, wire in wires.items():
        ready = wire.recv()
        print(f"{name}: ready after {ready['seconds']:.0f} s {ready['kernels']}", flush=True)
    return wires


def measure(sides: list[Side], load: Load, wires: dict[str, Connection]) -> list[dict[str, Any]]:
    """Alternating rounds; the median of each side."""
    rates: dict[str, list[float]] = {side.name: [] for side in sides}
    without: dict[str, list[float]] = {side.name: [] for side in sides}
    alone: dict[str, list[float]] = {side.name: [] for side in sides}

    def ask(side: Side, requests: int, used: int) -> float:
        wires[side.name].send((requests, used))
        return float(wires[side.name].recv())

    for side in sides:  # the first rounds after a start are slower, up to the third
        for used in (side.used(load), 0, side.used(load)):
            ask(side, load.requests, used)
        ask(side, 1, min(side.adapters, 1))
    for number in range(load.rounds):
        for side in sides:
            rates[side.name].append(ask(side, load.requests, side.used(load)))
            without[side.name].append(ask(side, load.requests, 0) if side.adapters else rates[side.name][-1])
            alone[side.name].append(1000 / ask(side, 1, min(side.adapters, 1)))
            both = f"{rates[side.name][-1]:,.0f} tokens/s, without adapters {without[side.name][-1]:,.0f}"
            print(f"round {number + 1}, {side.name}: {both}", flush=True)
    base = sides[0].name
    return [
        {
            "": side.name,
            "adapters": side.used(load),
            "tokens/s": median(rates[side.name]),
            "of no LoRA": ratio(rates[side.name], rates[base]),
            "of itself without": ratio(rates[side.name], without[side.name]),
            "wanted": side.limit or "",
            "alone, ms a token": median(alone[side.name]),
            "of no LoRA (<= 1.05)": ratio(alone[side.name], alone[base]),
            "spread": f"{min(rates[side.name]):,.0f} to {max(rates[side.name]):,.0f}",
        }
        for side in sides
    ]


def ratio(some: list[float], others: list[float]) -> float:
    """The median of the rounds' ratios."""
    return median([a / b for a, b in zip(some, others, strict=True)])


def stop(wires: dict[str, Connection]) -> None:
    """End the engines."""
    for wire in wires.values():
        wire.send(None)
    for process in multiprocessing.active_children():
        process.join(60)
        process.kill()


def main() -> None:
    """Measure, and tell."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--gpu", action="store_true", help="Mistral-7B's shape on a GPU, instead of a small one on a CPU."
    )
    parser.add_argument("--sides", default="", help="Only those whose numbers are named, with commas between: 0,3,4")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--layers", type=int, help="Fewer layers than the model has.")
    parser.add_argument(
        "--configs", default=[str(SHIPPED)], nargs="*", help="Folders with configurations of HLO's kernels."
    )
    given = parser.parse_args()
    chosen = [SIDES[int(one)] for one in given.sides.split(",")] if given.sides else list(SIDES)
    if given.gpu:
        config = MISTRAL_7B | ({"num_hidden_layers": given.layers} if given.layers else {})
        load = Load(True, 256, 512, given.rounds, 256, 9.5, config, tuple(given.configs))
    else:
        chosen = [side for side in chosen if side.kernels == "engine"]  # HLO's kernels are for GPUs
        load = Load(False, 8, 16, 1, 4, 1, TINY)
    with tempfile.TemporaryDirectory() as folder:
        wires = start(chosen, load, Path(folder))
        try:
            tell("lora", "What do many adapters cost?", measure(chosen, load, wires))
        finally:
            stop(wires)


if __name__ == "__main__":
    main()
