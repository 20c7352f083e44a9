"""Looks at the weights that vLLM has loaded, and refuses what was not asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import Struct

from hlo.errors import EngineError
from hlo.generation.vllm_engine.quantized import Plan

# Bits of an 8-bit weight with its share of the scales: above and below these it is something else. In a layer with 32
# inputs a float32 scale for each row adds a bit.
_LEAST, _MOST = 7.5, 9.5


class Weights(Struct, frozen=True):
    """The model's weights, in bytes on all devices together; the linear layers' dtype, and bits for each of them."""

    size: int
    dtype: str
    bits: float


def verify(workers: Sequence[Mapping[str, Any]], plan: Plan) -> Weights:
    """What `HloWorker.hlo_weights` found on each device, when it is what was asked for. Raises `EngineError`."""
    found = [_verify(worker["linear"], plan) for worker in workers]
    dtype, bits = max(found, key=lambda one: one[1])
    return Weights(sum(worker["bytes"] for worker in workers), dtype, round(bits, 2))


def _verify(linear: Mapping[str, Mapping[str, int]], plan: Plan) -> tuple[str, float]:
    """The dtype that most of one device's linear layers are in, and bits for each of their weights."""
    wanted = {dtype: row for dtype, row in linear.items() if dtype in plan.dtypes or not plan.dtypes}
    bits = 8 * sum(row["bytes"] for row in wanted.values()) / max(1, sum(row["values"] for row in wanted.values()))
    if plan.dtypes:
        other = sum(row["values"] for dtype, row in linear.items() if dtype not in wanted)
        if not wanted or other > plan.kept:
            told = ", ".join(f"{row['layers']} in {dtype}" for dtype, row in linear.items()) or "none"
            raise _wrong(plan, f"vLLM has these linear layers: {told}")
        if not _LEAST <= bits <= _MOST:
            raise _wrong(plan, f"vLLM keeps a weight of its linear layers in {bits:.1f} bits")
    return max(wanted, key=lambda dtype: wanted[dtype]["bytes"], default="none"), bits


def _wrong(plan: Plan, found: str) -> EngineError:
    return EngineError(
        f"HLO_QUANTIZATION={plan.quantization} was to give linear layers in {' or '.join(plan.dtypes)}, but {found}.",
        remedy="Nothing is served, since it would not be what was asked for: choose another HLO_QUANTIZATION, or "
        "another version of vLLM.",
    )
