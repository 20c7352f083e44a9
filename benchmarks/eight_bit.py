"""What do 8-bit weights gain over 16-bit ones, with LoRA on top? Throughput, time per token, memory; and do they agree?

One engine for each row, each in a process of its own. They start side by side and are measured one at a time while the
others idle; rounds alternate between them, and the median round counts. The weights are random but for the part on
agreement, which quantises the demonstration model with bitsandbytes and asks every engine the same.

`python -m benchmarks.eight_bit --gpu` has Mistral-7B's shape (32 layers), 256 requests of 128 + 128 tokens and 4
adapters; without `--gpu` everything is small, for machines without one. `--rows int8,fp8_per_channel` chooses.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from benchmarks import shapes
from benchmarks.eight_bit_agreement import compare, make_checkpoint, prompts_of
from benchmarks.eight_bit_engine import Engine, Load, stop
from benchmarks.eight_bit_rows import LIMITS, ROWS, missing, prepare, random_int8
from benchmarks.report import median, tell

SLOW = ("bitsandbytes",)  # measured once, and for fewer tokens alone: it takes ten times as long as the others
BRIEF = Load(requests=8, prompt=16, answer=4, alone=4)
SIZES = {
    True: {"config": shapes.MISTRAL_7B, "load": Load(requests=256, prompt=128, answer=128, alone=128), "kv": 10 << 30},
    False: {"config": shapes.TINY, "load": Load(requests=8, prompt=16, answer=16, alone=16), "kv": 64 << 20},
}


def main() -> None:
    """Measure, and tell."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--gpu", action="store_true", help="Mistral-7B's shape; otherwise a tiny one")
    parser.add_argument("--rows", default=",".join(ROWS), help="which rows, with commas between")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--layers", type=int, default=None, help="fewer layers than the shape has")
    parser.add_argument("--loaded", action="store_true", help="int8 rows load the checkpoint of bitsandbytes' row")
    parser.add_argument("--kernels", choices=("hlo", "engine"), default="hlo", help="whose LoRA kernels, on a GPU")
    parser.add_argument("--part", choices=("speed", "agreement", "both"), default="both")
    given = parser.parse_args()
    names = given.rows.split(",")
    with tempfile.TemporaryDirectory() as place:
        if given.part != "agreement":
            kernels = given.kernels if given.gpu else "engine"
            chosen = {"rounds": given.rounds, "layers": given.layers, "loaded": given.loaded, "kernels": kernels}
            speed(Path(place) / "speed", names, gpu=given.gpu, **chosen)
        if given.part != "speed":
            agreement(Path(place) / "agreement", names, gpu=given.gpu)


def speed(
    folder: Path, names: list[str], *, gpu: bool, rounds: int, layers: int | None, loaded: bool, kernels: str
) -> None:
    """Throughput of many requests at once, time per token of one alone, and memory of the weights.

    With `loaded`, the int8 rows load the very checkpoint that bitsandbytes' row does, by HLO's loader.
    """
    size = SIZES[gpu]
    config: dict[str, Any] = size["config"] | ({"num_hidden_layers": layers} if layers else {})  # type: ignore[operator]
    load: Load = size["load"]  # type: ignore[assignment]
    adapters = shapes.adapters(folder / "adapters", config, 4, rank=16)
    needed = loaded or ("bitsandbytes" in names and not missing("bitsandbytes", gpu=gpu, lora=True))
    checkpoint = random_int8(folder / "checkpoint", config, gpu=gpu) if needed else None
    engines, absent = {}, {}
    for name in names:
        if reason := missing(name, gpu=gpu, lora=True):
            absent[name] = reason
        else:
            arguments = prepare(name, folder / name, config, checkpoint=checkpoint, loaded=loaded)
            engines[name] = Engine(name, arguments, adapters, kv_bytes=size["kv"], gpu=gpu, kernels=kernels)  # type: ignore[arg-type]
    try:
        weights = {}
        for name, engine in list(engines.items()):
            try:
                weights[name] = engine.ready()
            except RuntimeError as error:
                absent[name] = str(error)
                stop([engines.pop(name)])
        for name, engine in engines.items():
            engine.measure(BRIEF if name in SLOW else load)  # warm
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in engines}
        for number in range(rounds):
            for name, engine in engines.items():
                if name in SLOW and number:
                    continue
                found[name].append(engine.measure(replace(load, alone=min(load.alone, 16)) if name in SLOW else load))
                print(name, *(f"{one:.4g}" for one in found[name][-1]), flush=True)
    finally:
        stop(engines.values())
    print("started after", *(f"{name} {one['started_s']:.0f} s" for name, one in weights.items()), flush=True)
    rows = [_row(name, found, weights) if name in engines else _absent(name, absent[name]) for name in names]
    tell("eight_bit", f"8-bit weights, 4 adapters; limits: {LIMITS}", rows)


def _row(name: str, found: dict[str, list[tuple[float, float]]], weights: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """One row of the table; ratios are to bf16 of the same run."""
    rate, alone = (median([one[part] for one in found[name]]) for part in (0, 1))
    row: dict[str, Any] = {"weights": name, "tok/s": rate}
    base = found.get("bf16")
    row["of bf16"] = rate / median([one[0] for one in base]) if base else ""
    row["ms/token alone"] = alone
    row["alone, of bf16"] = median([one[1] for one in base]) / alone if base else ""
    size = weights[name]["bytes"]
    row["GiB"] = size / 2**30
    row["GiB, of bf16"] = size / weights["bf16"]["bytes"] if "bf16" in weights else ""
    row["linear layers"] = " ".join(
        f"{kind} {8 * one['bytes'] / one['values']:.2f} bit" for kind, one in weights[name]["linear"].items()
    )
    return row


def _absent(name: str, reason: str) -> dict[str, Any]:
    return {
        "weights": name,
        "tok/s": "",
        "of bf16": "",
        "ms/token alone": "",
        "alone, of bf16": "",
        "GiB": "",
        "GiB, of bf16": "",
        "linear layers": reason,
    }


def agreement(folder: Path, names: list[str], *, gpu: bool) -> None:
    """The demonstration model, quantised by bitsandbytes, in every engine: greedy answers and log-probabilities."""
    checkpoint = make_checkpoint(folder / "int8")
    prompts = prompts_of(12 if gpu else 4)
    engines, told = {}, {}
    for name in names:
        reason = missing(name, gpu=gpu, lora=False) or ("bitsandbytes is not installed" if checkpoint is None else "")
        if reason:
            print(f"{name}: {reason}", flush=True)
        else:
            arguments = prepare(name, folder / name, None, checkpoint=checkpoint)
            engines[name] = Engine(name, arguments, [], kv_bytes=256 << 20, gpu=gpu)
    try:
        for name, engine in engines.items():
            try:
                engine.ready()
                told[name] = engine.answer(prompts, 32)
            except RuntimeError as error:
                print(f"{name}: {error}", flush=True)
        if told:
            tell("eight_bit_agreement", "Do 8-bit weights say the same? The demonstration model", compare(told))
    finally:
        stop(engines.values())


if __name__ == "__main__":
    main()
