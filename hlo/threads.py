"""Threads for what may hang: they can be waited for from an event loop, and given up."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable
from typing import Any


class DaemonThread:
    """Does one thing after the other. One that hangs can not keep the process from ending."""

    def __init__(self, name: str, most_waiting: int = 0) -> None:
        self._work: queue.Queue[Callable[[], None] | None] = queue.Queue(most_waiting)
        self._busy_since: float | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def busy_s(self) -> float:
        """How long it has been at what it does now, in seconds; 0 when it waits."""
        since = self._busy_since
        return time.monotonic() - since if since is not None else 0.0

    def put(self, work: Callable[[], None]) -> None:
        """Do `work` later. Raises `queue.Full`."""
        self._work.put_nowait(work)

    async def call(self, function: Callable[[], Any]) -> Any:
        """Do `function` and return what it returns, or raise what it raises."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Any] = loop.create_future()

        def tell(result: Any, error: BaseException | None) -> None:
            if done.done():  # given up by then
                return
            if error is not None:
                done.set_exception(error)
            else:
                done.set_result(result)

        def work() -> None:
            if done.cancelled():
                return
            result, failed = None, None
            try:
                result = function()
            except BaseException as error:  # also SystemExit: it must reach who waits, not end this thread
                plain = isinstance(error, Exception) and not isinstance(error, StopIteration)
                failed = error if plain else RuntimeError(type(error).__name__)
            if not loop.is_closed():
                loop.call_soon_threadsafe(tell, result, failed)

        self.put(work)
        return await done

    def stop(self, grace_s: float) -> None:
        """Take no more work; wait `grace_s` seconds at most for what is waiting."""
        deadline = time.monotonic() + grace_s
        try:
            self._work.put(None, timeout=max(grace_s, 0.01))
        except queue.Full:
            return
        self._thread.join(max(deadline - time.monotonic(), 0))

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            self._busy_since = time.monotonic()
            work()
            self._busy_since = None
