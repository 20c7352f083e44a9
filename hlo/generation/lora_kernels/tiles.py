"""Which tokens of a batch are computed with which adapter: compact tiles of at most so many tokens of one slot each.

vLLM's kernels start a program for every (token block, adapter slot), and most of them exit at once. Here each program
is told what to do: tile t is `table[t] = (slot, first, count, 0)`, and its tokens are `order[first : first + count]`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

NO_ADAPTER = -1
BLOCKS = (8, 64)
"""Tokens a tile, for small and for large batches; there is a table of tiles for each."""
SMALL = 512
"""The most tokens of a batch that takes small tiles."""


class Plan(NamedTuple):
    """Token numbers sorted by slot, without those of no adapter; and for each of `BLOCKS` a table, shape (tiles, 4)."""

    order: NDArray[np.int32]
    tables: tuple[NDArray[np.int32], ...]


def plan(slots: NDArray[np.integer]) -> Plan:
    """Plan for tokens whose adapters are in these slots, shape (tokens,); `NO_ADAPTER` for a token without one."""
    slots = slots.astype(np.int16)  # numpy sorts these by radix
    counts = np.bincount(slots + 1)
    order = np.argsort(slots, kind="stable")[counts[0] if len(counts) else 0 :].astype(np.int32)
    counts = counts[1:]
    return Plan(order, tuple(_table(counts, block) for block in BLOCKS))


def slots_of(ids: NDArray[np.int64], slots: Sequence[int | None]) -> NDArray[np.int64]:
    """The slots of tokens' adapters, shape (tokens,), given the number of each token's adapter (0: none).

    `slots` are the numbers of the adapters in them. Raises ValueError for an adapter that is in none.
    """
    known = np.array([one or 0 for one in slots], dtype=np.int64)
    order = np.argsort(known)
    place = np.minimum(np.searchsorted(known, ids, sorter=order), len(known) - 1)
    found = np.where(ids > 0, order[place], NO_ADAPTER)
    strange = ids[(ids > 0) & (known[found] != ids)]
    if strange.size:
        raise ValueError(f"adapter {strange[0]} is in no slot")
    return found


def most_tiles(tokens: int, slots: int, block: int) -> int:
    """The most tiles that `tokens` tokens of at most `slots` slots can make, however they are mixed."""
    several = min(tokens, slots)
    return several + (tokens - several) // block


def _table(counts: NDArray[np.intp], block: int) -> NDArray[np.int32]:
    """The tiles of slots with so many tokens each."""
    pieces = -(-counts // block)
    slot = np.repeat(np.arange(len(counts)), pieces)
    done = (np.arange(len(slot)) - (np.cumsum(pieces) - pieces)[slot]) * block
    table = np.zeros((len(slot), 4), dtype=np.int32)
    table[:, 0] = slot
    table[:, 1] = (np.cumsum(counts) - counts)[slot] + done
    table[:, 2] = np.minimum(counts[slot] - done, block)
    return table
