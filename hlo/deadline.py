"""On what terms a request is served; its deadline, kept wherever it waits: for encoder, turn and tokens."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import TypeVar

from msgspec import Struct

from hlo.errors import DeadlineExceeded

T = TypeVar("T")


class Deadline(Struct, frozen=True):
    """`at` is on the event loop's clock, which never jumps; `seconds` is what was granted in all."""

    at: float
    seconds: float

    @classmethod
    def after(cls, seconds: float) -> Deadline:
        """The deadline that many seconds from now."""
        return cls(asyncio.get_running_loop().time() + seconds, seconds)

    def exceeded(self) -> DeadlineExceeded:
        """The error that says so."""
        return DeadlineExceeded(
            f"The request was not done within {self.seconds:g} seconds.",
            remedy="Give it more (`timeout_s`, or the header `HLO-Timeout`), ask for fewer tokens, or ask again later.",
        )


class Terms(Struct, frozen=True):
    """Whose request it is (its key's id; None: no key was wanted), and when it must be done (None: whenever)."""

    key: str | None = None
    deadline: Deadline | None = None


@asynccontextmanager
async def in_time(deadline: Deadline | None) -> AsyncIterator[None]:
    """Cut what is awaited inside off at the deadline. Nothing may be yielded from inside. Raises `DeadlineExceeded`."""
    if deadline is None:
        yield
        return
    try:
        async with asyncio.timeout_at(deadline.at) as limit:
            yield
    except TimeoutError:
        if not limit.expired():
            raise
        raise deadline.exceeded() from None


async def each_in_time(deadline: Deadline | None, items: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
    """The items that come before the deadline. Closes `items` in any case. Raises `DeadlineExceeded`.

    One timer for all of them: one for each token would cost more than the rest of the server's work for it.
    """
    async with aclosing(items):
        if deadline is None:
            async for item in items:
                yield item
            return
        limit = _Limit()
        timer = asyncio.get_running_loop().call_at(deadline.at, limit.expire)
        try:
            while True:
                limit.waits()
                try:
                    item = await anext(items)
                except StopAsyncIteration:
                    return
                except asyncio.CancelledError:
                    if limit.is_why():
                        raise deadline.exceeded() from None
                    raise
                finally:
                    limit.task = None
                if limit.expired:
                    raise deadline.exceeded()
                yield item
        finally:
            timer.cancel()


class _Limit:
    """Cancels the task that waits when time is up: `asyncio.timeout` for what is awaited in one task after another."""

    __slots__ = ("_cancelling", "expired", "task")

    def __init__(self) -> None:
        self.expired = False
        self.task: asyncio.Task[object] | None = None
        self._cancelling = 0

    def waits(self) -> None:
        self.task = task = asyncio.current_task()
        if task is not None:
            self._cancelling = task.cancelling()
            if self.expired:  # while nobody waited
                task.cancel()

    def expire(self) -> None:
        self.expired = True
        if self.task is not None:
            self.task.cancel()

    def is_why(self) -> bool:
        """Whether the task was cancelled by this limit alone; takes that back."""
        return self.expired and self.task is not None and self.task.uncancel() <= self._cancelling
