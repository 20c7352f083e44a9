"""Which server, or copy of the model, gets a request: always the same for one adapter, up to its share. Pure.

An adapter that stays on one server is read there once, keeps its place on the device, and finds its prompts' common
beginning computed. When a server goes, only its own adapters move (rendezvous hashing; Thaler and Ravishankar 1998),
and a hot adapter spills over to its next server in order (bounded loads; Mirrokni et al. 2018, arXiv:1608.01350).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Mapping

SHARE = 1.25
"""A server takes requests of its own adapters up to this multiple of the mean."""

FREE = 8
"""So few at a time are never too many: they fit one batch, and to move them would cost more than it brings."""


def preference(key: str, servers: Collection[str]) -> list[str]:
    """The servers in the order in which `key` wants them."""
    return sorted(servers, key=lambda server: hashlib.sha256(f"{server}\n{key}".encode()).digest(), reverse=True)


def owner(key: str | None, running: Mapping[str, int]) -> str:
    """The server that `key` belongs to, whatever runs there."""
    return preference(key or "", running)[0]


def choose(key: str | None, running: Mapping[str, int]) -> str:
    """The server for one more request: of those in `running`, which tells how many requests each has.

    A request without a key goes where least runs.
    """
    least = min(running, key=lambda server: running[server])
    if key is None:
        return least
    limit = max(FREE, math.ceil(SHARE * (sum(running.values()) + 1) / len(running)))
    return next((server for server in preference(key, running) if running[server] < limit), least)
