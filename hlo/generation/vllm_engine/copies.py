"""The copies of the model that vLLM runs side by side (data parallelism), and which of them gets a request."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from hlo.generation import affinity


class Copies:
    """So many copies. vLLM by itself would share requests out among them with no eye for adapters."""

    def __init__(self, count: int) -> None:
        self._running = {str(rank): 0 for rank in range(count)}

    @contextmanager
    def take(self, adapter: str | None) -> Iterator[int | None]:
        """The rank of the copy for a request that runs as long as the block; None where there is no choice."""
        if len(self._running) < 2:
            yield None
            return
        chosen = affinity.choose(adapter, self._running)
        self._running[chosen] += 1
        try:
            yield int(chosen)
        finally:
            self._running[chosen] -= 1
