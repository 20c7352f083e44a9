"""Runs the LoRA kernels on random mixes of adapters, and holds them against float32; prints JSON.

TRITON_INTERPRET=1 python -m tests.generation.lora_kernels.mixes        on a CPU, with Triton's interpreter
python -m tests.generation.lora_kernels.mixes                           on a GPU
"""

from __future__ import annotations

import json
import random
import sys

import numpy as np
import torch
from msgspec.structs import replace

from hlo.generation.lora_kernels import configs, ops
from hlo.generation.lora_kernels.batch import Batch
from hlo.generation.lora_kernels.tiles import NO_ADAPTER

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SIDE = torch.cuda.Stream() if DEVICE == "cuda" else None
# How much one rounding to the type can change, relative; Triton's interpreter cuts off.
ROUNDING = {torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}


def layer(
    slots: int, rank: int, outputs: tuple[int, ...], dtype: torch.dtype, inputs: int
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Stacked matrices of one layer; the adapter in slot 0 is empty, others have lower ranks, filled up with zeros."""
    a = [torch.randn(slots, 1, rank, inputs).mul(inputs**-0.5) for _ in outputs]
    b = [torch.randn(slots, 1, out, rank) for out in outputs]
    for slot in range(slots):
        own = 0 if slot == 0 else random.choice((rank, max(rank // 2, 1)))
        for one, other in zip(a, b, strict=True):
            one[slot, 0, own:] = 0
            other[slot, 0, :, own:] = 0
    return [one.to(DEVICE, dtype) for one in a], [one.to(DEVICE, dtype) for one in b]


def mix(kind: str, tokens: int, slots: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """The slot of each token's adapter."""
    chance = np.random.default_rng(tokens * slots)
    if kind == "none":
        return np.full(tokens, NO_ADAPTER)
    if kind == "one":
        return np.full(tokens, slots - 1)
    return chance.integers(NO_ADAPTER if kind == "some without" else 0, slots, tokens)


def difference(kind: str, tokens: int, slots: int, rank: int, dtype: torch.dtype, outputs: tuple[int, ...]) -> float:
    """The largest error of an output, in units of what rounding can explain."""
    inputs = 96 if DEVICE == "cpu" else 4096
    a, b = layer(slots, rank, outputs, dtype, inputs)
    chosen = mix(kind, tokens, slots)
    batch = Batch(max(tokens, 1) + 8, slots, DEVICE)
    assert batch.update(chosen) == (kind != "none" and tokens > 0)
    x = torch.randn(tokens + 3, inputs).to(DEVICE, dtype)  # a captured graph has more rows than there are tokens
    y = torch.randn(tokens + 3, sum(outputs)).to(DEVICE, dtype)
    wanted, slack = y.float().clone(), y.float().abs()
    for row, slot in enumerate(chosen):
        if slot != NO_ADAPTER:
            inner = [one[slot, 0].float() @ x[row].float() for one in a]
            wanted[row] += torch.cat([one[slot, 0].float() @ h for one, h in zip(b, inner, strict=True)])
            slack[row] += torch.cat([one[slot, 0].float().abs() @ h.abs() for one, h in zip(b, inner, strict=True)])
    config = configs.by_rule(ops.layer(a, b), tokens)
    if DEVICE == "cpu":
        config = replace(config, split=min(config.split, 2), block_k=32, block_n=32)
    errors = []
    for fork, run in ((False, 1), (True, 1), (False, 2), (True, 4)):
        made = ops.add_lora(y.clone, x, a, b, batch, replace(config, fork=fork, run=run), SIDE)
        errors.append((made.float() - wanted).abs() / (ROUNDING[dtype] * (slack + wanted.abs()) + 1e-6))
    return float(torch.stack(errors).max())


def main() -> None:
    """All mixes; the error of each."""
    torch.manual_seed(0)
    random.seed(0)
    found = {}
    for number, rank in enumerate((8, 16, 32, 64)):
        for dtype in ROUNDING:
            for kind in ("none", "one", "many", "some without"):
                outputs = ((64, 32, 32), (48,), (40, 24))[number % 3]
                name = f"{kind}, rank {rank}, {dtype}, outputs {outputs}"
                found[name] = difference(kind, 21, 6, rank, dtype, outputs)
    found["more slots than tokens"] = difference("many", 3, 40, 8, torch.bfloat16, (32,))
    found["large tiles"] = difference("some without", 600, 5, 8, torch.float16, (32,))
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main()
