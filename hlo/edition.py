"""An edition: the specialties that are served from one reload to the next."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager

from hlo.catalog import Catalog
from hlo.plugins.calls import HookCalls
from hlo.routing.expected import expected
from hlo.routing.router import Router
from hlo.telemetry.metrics import Metrics

logger = logging.getLogger("hlo")


class Edition:
    """Who answers, where questions go, and which hooks see them; never changed, and counted by who uses it.

    A request uses the edition that it began with to its end, so that a reload changes nothing for it.
    """

    def __init__(self, catalog: Catalog, router: Router, hooks: HookCalls) -> None:
        self.catalog = catalog
        self.router = router
        self.hooks = hooks
        self.expected = expected(router)
        self._users = 0
        self._unused = asyncio.Event()
        self._unused.set()

    def announce(self, metrics: Metrics) -> None:
        """Log what was refused, and say which confidences are expected of what is served."""
        for refusal in self.catalog.refusals:
            logger.warning("refused %s: %s %s", refusal.specialty or refusal.plugin, refusal.reason, refusal.remedy)
        metrics.drifts.expect(self.expected.basis, self.expected.histograms)

    @contextmanager
    def use(self) -> Iterator[Edition]:
        """Hold the edition as long as the block lasts."""
        self._users += 1
        self._unused.clear()
        try:
            yield self
        finally:
            self._users -= 1
            if not self._users:
                self._unused.set()

    async def drained(self) -> None:
        """Return when nobody uses it."""
        await self._unused.wait()
