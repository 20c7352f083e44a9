"""Does what HLO predicts of the device's memory agree with what vLLM reports?

    python -m benchmarks.memory            the tiny shape on a CPU: weights and adapters
    python -m benchmarks.memory --gpu      Mistral-7B's shape on a GPU, and its best configuration for an 8 GB card

For each row vLLM is started as HLO starts it, on random weights, and asked for what it measured: the bytes of weights
and adapter slots, the activation peak, CUDA graphs, and how many tokens its KV cache holds. `tokens` is predicted for
the very share that vLLM had. An 8 GB card is emulated by giving vLLM as much as such a card has left.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from pathlib import Path
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from benchmarks.report import tell
from benchmarks.shapes import ALL_LINEAR, ATTENTION, MISTRAL_7B, TINY, model
from hlo.contracts import EngineOptions
from hlo.generation import base_model
from hlo.generation.advice import Card, propose
from hlo.generation.base_model import BaseModel
from hlo.generation.memory import GIB, Demand, Prediction, predict
from hlo.generation.vllm_engine.worker import HloWorker

LIMIT = 0.10
MIB = 2**20
COLUMNS = ("setting", "what", "predicted", "reported", "error %", "limit %", "verdict")


class Row(Struct, frozen=True):
    """One setting: its name, and what it changes of the options."""

    name: str
    changes: dict[str, Any]
    card_gib: float | None = None


GPU_ROWS = (
    Row("bf16, 2 adapters", {"slots": 2, "enforce_eager": True}),
    Row("bf16, 64 adapters", {"slots": 64, "enforce_eager": True}),
    Row(
        "bf16, 8 of rank 32 on all, 8192 tokens",
        {"slots": 8, "rank": 32, "kinds": ALL_LINEAR, "max_num_batched_tokens": 8192, "enforce_eager": True},
    ),
    Row("bf16, no adapter, 1024 requests", {"max_num_seqs": 1024, "enforce_eager": True}),
    Row("bf16, 64 adapters, graphs", {"slots": 64, "max_num_seqs": 256}),
    Row("fp8, 2 adapters, graphs", {"slots": 2, "quantization": "fp8_per_channel"}),
    Row("7B on an 8 GB card, 2 adapters", {"slots": 2}, card_gib=8),
)
CPU_ROWS = (
    Row("float32, no adapter", {"dtype": "float32"}),
    Row("bf16, 2 adapters", {"dtype": "bfloat16", "slots": 2}),
    Row("bf16, 4 of rank 32 on all", {"dtype": "bfloat16", "slots": 4, "rank": 32, "kinds": ALL_LINEAR}),
    Row("bf16, 2 adapters on q alone", {"dtype": "bfloat16", "slots": 2, "kinds": ("q_proj",)}),
)


class Reporter(HloWorker):
    """What vLLM's worker is asked for; vLLM mixes this into its worker class."""

    def hlo_memory(self) -> dict[str, int]:
        """Bytes of weights and adapter slots as they lie there, and what the worker itself has measured."""
        worker: Any = self
        runner = worker.model_runner
        root = runner.get_model()
        slots: dict[int, int] = {}
        for module in root.modules():
            for name in ("lora_a_stacked", "lora_b_stacked"):
                for tensor in getattr(module, name, ()):
                    slots[tensor.data_ptr()] = tensor.nbytes
        weights = {tensor.data_ptr(): tensor.nbytes for tensor in (*root.parameters(), *root.buffers())}
        # On a CPU, a kernel can keep a layer's weights packed in a place of its own, and leave an empty tensor behind.
        packed = sum(
            module.input_size * module.output_size * module.weight.element_size()
            for module in root.modules()
            if hasattr(module, "output_size")
            and getattr(module, "weight", None) is not None
            and not module.weight.numel()
        )
        cache = worker.cache_config
        start = getattr(worker, "init_snapshot", None)
        return {
            "weights": packed + sum(size for place, size in weights.items() if place not in slots),
            "adapters": sum(slots.values()),
            "loaded": int(getattr(runner, "model_memory_usage", 0)),
            "consumed": int(getattr(worker, "total_consumed", 0)),
            "peak": int(getattr(worker, "peak_activation_memory", 0)),
            "graphs": int(getattr(worker, "cudagraph_memory_estimate", 0)),
            "share": int(getattr(worker, "requested_memory", 0)),
            "cache": int(getattr(worker, "available_kv_cache_memory_bytes", 0)),
            "tokens": int(cache.num_gpu_blocks or 0) * int(cache.block_size),
            "block_size": int(cache.block_size),
            "used_before": int(start.total_memory - start.free_memory) if start else 0,
            "total": int(start.total_memory) if start else 0,
        }


def options(folder: Path, row: Row, device: str, shape: BaseModel) -> EngineOptions:
    """HLO's options for a row; for a card that is not here, HLO's own first proposal, in as much as that card has."""
    chosen = EngineOptions(
        model=folder,
        name="shape",
        device="cuda" if device == "cuda" else "cpu",
        dtype="bfloat16",
        quantization="none",
        slots=0,
        rank=16,
        kinds=ATTENTION,
        enforce_eager=device == "cpu",
        lora_kernels="hlo" if device == "cuda" else "engine",
        shutdown_grace_s=5,
        arguments={"load_format": "dummy", "worker_extension_cls": "benchmarks.memory.Reporter"},
    )
    chosen = replace(chosen, **row.changes)
    if row.card_gib is None:
        return chosen
    import torch

    best = propose(shape, Demand.of(chosen, shape, int(row.card_gib * GIB)), Card(int(row.card_gib * GIB)))[0]
    print(f"{row.name}: {best}", flush=True)
    return replace(
        chosen,
        quantization=best.demand.quantization,
        kv_cache_dtype=best.demand.kv_cache_dtype,
        max_model_len=best.demand.max_model_len,
        max_num_seqs=best.demand.max_num_seqs,
        max_num_batched_tokens=best.demand.max_num_batched_tokens,
        enforce_eager=best.demand.eager,
        gpu_memory_utilization=best.share / torch.cuda.get_device_properties(0).total_memory,
    )


async def measure(chosen: EngineOptions) -> dict[str, int]:
    """Start vLLM as HLO does, and ask it."""
    from hlo.generation.vllm_engine import VllmEngine

    engine = await VllmEngine.start(chosen)
    try:
        (found,) = await engine._llm.collective_rpc("hlo_memory")
    finally:
        await engine.close()
    return dict(found)


def compare(name: str, found: dict[str, int], said: Prediction) -> list[dict[str, Any]]:
    """Predicted, reported and error, for each figure that vLLM has; zero means that it has none."""
    rows = []

    def add(what: str, predicted: int, reported: int, unit: int, *, limited: bool = True) -> None:
        if reported <= 0:
            return
        error = predicted / reported - 1
        verdict = "" if not limited else "ok" if abs(error) <= LIMIT else "OVER"
        rows.append(
            {
                "setting": name,
                "what": what,
                "predicted": round(predicted / unit, 1),
                "reported": round(reported / unit, 1),
                "error %": round(100 * error, 1),
                "limit %": 100 * LIMIT if limited else "",
                "verdict": verdict,
            }
        )

    add("weights, MiB", said.weights, found["weights"], MIB)
    add("adapters, MiB", said.adapters, found["adapters"], MIB)
    add("loaded, MiB", said.weights + said.adapters, found["loaded"], MIB)
    add("activation, MiB", said.activation, found["peak"] - found["graphs"], MIB)
    add("graphs, MiB", said.graphs, found["graphs"], MIB, limited=False)
    add("other, MiB", said.other, found["consumed"] - found["loaded"], MIB, limited=False)
    add("all but cache, MiB", said.fixed, found["consumed"] + found["peak"], MIB)
    if found["share"]:
        add("KV cache, tokens", said.tokens(found["share"]), found["tokens"], 1)
    return rows


def run(rows: tuple[Row, ...], folder: Path, device: str) -> None:
    """Measure every row, and tell."""
    shape: BaseModel = base_model.find(str(folder))
    told: list[dict[str, Any]] = []
    gpu = 0
    if device == "cuda":
        import torch

        gpu = torch.cuda.get_device_properties(0).total_memory
    for row in rows:
        clock = time.perf_counter()
        try:
            chosen = options(folder, row, device, shape)
            said = predict(shape, Demand.of(chosen, shape, gpu))
            found = asyncio.run(measure(chosen))
        except Exception as error:
            print(f"{row.name}: does not start: {error}", flush=True)
            told.append(dict.fromkeys(COLUMNS, "") | {"setting": row.name, "what": "starts", "reported": "no"})
            continue
        print(f"{row.name}: {found} in {time.perf_counter() - clock:.0f} s", flush=True)
        told += compare(row.name, found, said)
        if row.card_gib is not None:
            fits = found["tokens"] >= (chosen.max_model_len or 0)
            told.append(
                dict.fromkeys(COLUMNS, "") | {"setting": row.name, "what": "fits", "reported": "yes" if fits else "no"}
            )
    tell("memory", "Does HLO predict what vLLM reports of the device's memory?", told)


def main() -> None:
    """Choose the device."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu", action="store_true", help="Mistral-7B's shape on a GPU")
    parser.add_argument("--rows", default="", help="numbers of rows, with commas between; default: all")
    given = parser.parse_args()
    rows: tuple[Row, ...] = GPU_ROWS if given.gpu else CPU_ROWS
    if given.rows:
        rows = tuple(rows[int(number)] for number in given.rows.split(","))
    with tempfile.TemporaryDirectory() as made:
        folder = model(Path(made) / "shape", MISTRAL_7B if given.gpu else TINY)
        run(rows, folder, "cuda" if given.gpu else "cpu")


if __name__ == "__main__":
    main()
