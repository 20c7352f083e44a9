"""Notices that vLLM's process hangs, and ends it.

A process that dies is told of by vLLM. One that hangs, in a driver or in a deadlock, is not: all who ask wait for ever.
Here the engine's loop is asked something that it answers between two steps. When no answer comes, its process is ended,
and what follows is what follows any death.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from typing import Any

logger = logging.getLogger("hlo")

_PAUSE_S = 1.0  # between an answer and the next time it is asked


class Pulse:
    """The pulse of an `AsyncLLM`, whose loop may take `most_s` to answer: a step, or an adapter that vLLM reads."""

    def __init__(self, llm: Any, most_s: float) -> None:
        self._llm = llm
        self._most_s = most_s
        self._asked: asyncio.Task[Any] | None = None
        self._since = 0.0

    def feel(self) -> None:
        """Ask the loop, unless it is being asked or was just now; end its process when it has not answered in time."""
        if self._llm is None:
            return
        now = time.monotonic()
        waiting = self._asked is not None and not self._asked.done()
        if waiting and now - self._since >= self._most_s:
            logger.error("the engine has not moved for %.0f s: it is ended", now - self._since)
            processes = self._llm.engine_core.resources.engine_manager.processes
            self.stop()
            for process in processes:
                _kill(process.pid)
        elif not waiting and now - self._since >= _PAUSE_S:
            self._since = now
            self._asked = asyncio.create_task(self._ask())

    def stop(self) -> None:
        """Feel it no more."""
        self._llm = None
        if self._asked is not None:
            self._asked.cancel()

    async def _ask(self) -> None:
        with suppress(Exception):  # an engine that is dead says so elsewhere
            await self._llm.is_sleeping()


def _kill(pid: int) -> None:
    """End a process and its workers, which may hang as well."""
    import psutil

    with suppress(psutil.NoSuchProcess):
        core = psutil.Process(pid)
        for process in (*core.children(recursive=True), core):
            with suppress(psutil.NoSuchProcess):
                process.kill()
