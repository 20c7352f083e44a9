"""Looks for settings with which a model fits a GPU: the least change first. Sizes are in bytes, lengths in tokens."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from hlo.generation.base_model import BaseModel
from hlo.generation.memory import GIB, Demand, Prediction, predict

CONTEXT = int(0.45 * GIB)
"""What CUDA, the driver and a desktop take of a card before vLLM's share of it."""

USEFUL_TOKENS = 2048
"""A cache that holds less is of no use: two conversations of 1024 tokens at once."""

_SHORTEST = 1024  # a context below this cuts off questions with a template and an answer

_CARDS_GIB = (6, 8, 10, 11, 12, 16, 20, 24, 32, 40, 48, 80, 96, 141, 180, 288)


class Change(Struct, frozen=True):
    """A setting, its new value, and what it costs: 1 is about as bad as half the longest context."""

    setting: str
    value: str
    cost: float

    def __str__(self) -> str:
        return f"{self.setting}={self.value}"


class Proposal(Struct, frozen=True):
    """Changes after which the model fits; vLLM's share and what is predicted then; the KV cache's tokens."""

    changes: tuple[Change, ...]
    demand: Demand
    share: int
    prediction: Prediction
    tokens: int

    @property
    def cost(self) -> float:
        """The sum of the changes' costs."""
        return sum(change.cost for change in self.changes)

    def __str__(self) -> str:
        return f"{' '.join(map(str, self.changes))} (KV cache: {self.tokens:,} tokens)"


class Card(Struct, frozen=True):
    """A GPU's whole memory, vLLM's share of it (HLO_GPU_MEMORY_UTILIZATION), and what other processes hold."""

    total: int
    utilization: float = 0.9
    others: int = 0

    @property
    def share(self) -> int:
        """What vLLM may take."""
        return int(self.total * self.utilization)

    @property
    def largest_utilization(self) -> float:
        """The largest share, in hundredths, beside which the CUDA context and the other processes have room."""
        return max(0, int(100 * (self.total - CONTEXT - self.others) / self.total)) / 100


def fits(demand: Demand, tokens: int) -> bool:
    """Whether vLLM starts with such a cache (one request of full length must fit) and it is of use."""
    return tokens >= max(demand.max_model_len, USEFUL_TOKENS)


def propose(
    model: BaseModel, demand: Demand, card: Card, *, spare: int = 0, missing: int = 0, most: int = 3
) -> tuple[Proposal, ...]:
    """Up to `most` ways to fit, the least change first, none of them more of another; () when nothing helps.

    `spare` of the demand's slots are for adapters to come; `missing` bytes are known to be gone beside the prediction.
    """
    ways = []
    for changes, changed, share in _combinations(demand, card, spare):
        prediction = predict(model, changed)
        tokens = prediction.tokens(share - missing)
        if fits(changed, tokens):
            ways.append(Proposal(changes, changed, share, prediction, tokens))
    ways.sort(key=lambda way: (way.cost, -way.tokens))
    found: list[Proposal] = []
    for way in ways:
        settings = {change.setting for change in way.changes}
        if all(not {change.setting for change in other.changes} <= settings for other in found):
            found.append(way)
        if len(found) == most:
            break
    return tuple(found)


def remedy(model: BaseModel, demand: Demand, card: Card, *, spare: int = 0, failed: bool = False) -> str:
    """What to do, in words; "" when it fits as it is. `failed`: the engine has tried, so that it does not fit."""
    missing = 0
    if failed and not card.others:  # the prediction was too low by all the cache that it had left over, at least
        prediction = predict(model, demand)
        missing = max(0, prediction.tokens(card.share)) * prediction.per_token
    ways = propose(model, demand, card, spare=spare, missing=missing)
    larger = smallest_card(model, demand, above=card.total)
    bigger = f"a GPU of {larger} GiB" if larger else "several GPUs"
    if not ways:
        return (
            f"No setting makes `{model.name}` fit this GPU with a useful KV cache; take {bigger}, or a smaller model."
        )
    if not ways[0].changes:
        return ""
    return f"Set {'; or '.join(map(str, ways))}; or take {bigger}."


def smallest_card(model: BaseModel, demand: Demand, *, above: int = 0) -> int | None:
    """The size in GiB of the smallest usual card (of more than `above` bytes) on which this fits as it is, or None."""
    prediction = predict(model, demand)
    for gib in _CARDS_GIB:
        card = Card(gib * GIB)
        if card.total > above and fits(demand, prediction.tokens(int(card.total * card.largest_utilization))):
            return gib
    return None


def _combinations(demand: Demand, card: Card, spare: int) -> Iterator[tuple[tuple[Change, ...], Demand, int]]:
    """Every combination of changes, with the demand and vLLM's share after it."""
    for choice in itertools.product(*_axes(demand, card, spare)):
        changes: list[Change] = []
        fields: dict[str, Any] = {}
        for change, field in choice:
            if change is not None:
                changes.append(change)
                fields |= field
        share = int(card.total * fields.pop("utilization", card.utilization))
        yield tuple(changes), replace(demand, **fields), share


_Axis = list[tuple[Change | None, dict[str, Any]]]


def _axes(demand: Demand, card: Card, spare: int) -> list[_Axis]:
    """What can be changed of each setting; the first entry leaves it as it is."""
    axes: list[_Axis] = []

    def axis(setting: str, *choices: tuple[Any, float, dict[str, Any]]) -> None:
        axes.append([(None, {}), *((Change(setting, str(value), cost), fields) for value, cost, fields in choices)])

    largest = card.largest_utilization
    if largest < card.utilization:  # vLLM refuses a share that is not free
        axes.append([(Change("HLO_GPU_MEMORY_UTILIZATION", str(largest), 0.4), {"utilization": largest})])
    elif largest > card.utilization:
        axis("HLO_GPU_MEMORY_UTILIZATION", (largest, 0.4, {"utilization": largest}))
    if spare:
        axis("HLO_SPARE_ADAPTERS", (0, 0.5, {"slots": max(0, demand.slots - spare)}))
    if demand.quantization == "none":
        axis("HLO_QUANTIZATION", ("fp8_per_channel", 2.0, {"quantization": "fp8_per_channel"}))
    if demand.kv_cache_dtype == "auto":
        axis("HLO_KV_CACHE_DTYPE", ("fp8", 1.6, {"kv_cache_dtype": "fp8"}))
    if not demand.eager:
        axis("HLO_ENFORCE_EAGER", ("true", 3.0, {"eager": True}))
    axis(
        "HLO_MAX_NUM_BATCHED_TOKENS",
        *(
            (size, 0.5 * step, {"max_num_batched_tokens": size})
            for step, size in enumerate(_halves(demand.max_num_batched_tokens, 512), 1)
        ),
    )
    axis(
        "HLO_MAX_NUM_SEQS",
        *((size, 0.3 * step, {"max_num_seqs": size}) for step, size in enumerate(_halves(demand.max_num_seqs, 4), 1)),
    )
    axis(
        "HLO_MAX_MODEL_LEN",
        *(
            (size, 1.0 * step, {"max_model_len": size})
            for step, size in enumerate(_halves(demand.max_model_len, _SHORTEST), 1)
        ),
    )
    return axes


def _halves(size: int, least: int) -> Iterator[int]:
    """Half of it, a quarter, and so on, as powers of two, down to `least`."""
    half = 1 << ((size - 1).bit_length() - 1)
    while half >= least:
        yield half
        half //= 2
