"""Deadlines: what is late is cut off, wherever it waits, and nothing else is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest

from hlo.deadline import Deadline, each_in_time, in_time
from hlo.errors import DeadlineExceeded


class Items:
    """Counts up for ever; waits for `forever` at number `hangs`. `closed` says whether it was closed."""

    def __init__(self, hangs: int = -1) -> None:
        self.closed = False
        self._hangs = hangs

    async def items(self) -> AsyncGenerator[int, None]:
        """The numbers."""
        number = 0
        try:
            while True:
                await (asyncio.Event().wait() if number == self._hangs else asyncio.sleep(0))
                yield number
                number += 1
        finally:
            self.closed = True


async def test_what_is_late_is_cut_off() -> None:
    """A wait that lasts beyond the deadline ends with the time that was granted; one that ends before does not."""
    async with in_time(Deadline.after(60)):
        await asyncio.sleep(0)
    with pytest.raises(DeadlineExceeded, match=r"within 0\.01 seconds"):
        async with in_time(Deadline.after(0.01)):
            await asyncio.Event().wait()


async def test_anothers_time_out_is_its_own() -> None:
    """A `TimeoutError` that comes from inside is no deadline's."""
    with pytest.raises(TimeoutError):
        async with in_time(Deadline.after(60)):
            raise TimeoutError


@pytest.mark.parametrize("deadline", [True, False])
async def test_items_in_time_all_come(deadline: bool) -> None:
    """Items that come in time come as they are; to stop listening closes their source."""
    made, seen = Items(), []
    async with aclosing(each_in_time(Deadline.after(60) if deadline else None, made.items())) as items:
        async for item in items:
            seen.append(item)
            if item == 3:
                break
    assert seen == [0, 1, 2, 3]
    assert made.closed


async def test_items_end_when_they_end() -> None:
    """Where the items end, nothing more happens."""

    async def two() -> AsyncGenerator[int, None]:
        yield 1
        yield 2

    assert [item async for item in each_in_time(Deadline.after(60), two())] == [1, 2]


async def test_an_item_that_is_late_closes_its_source() -> None:
    """What does not come before the deadline is given up, and its source is closed."""
    made, seen = Items(hangs=2), []

    async def listen() -> None:
        async for item in each_in_time(Deadline.after(0.05), made.items()):
            seen.append(item)

    with pytest.raises(DeadlineExceeded):
        await listen()
    assert seen == [0, 1]
    assert made.closed


async def test_a_source_that_never_waits_is_stopped_too() -> None:
    """Items that come without end are cut off at the deadline as well."""
    made = Items()
    with pytest.raises(DeadlineExceeded):
        async for _ in each_in_time(Deadline.after(0.01), made.items()):
            pass
    assert made.closed


async def test_time_that_the_listener_took_counts() -> None:
    """A deadline that passes while the listener is busy is noticed at the next item."""
    made = Items()
    items = each_in_time(Deadline.after(0.01), made.items())
    assert await anext(items) == 0
    await asyncio.sleep(0.02)
    with pytest.raises(DeadlineExceeded):
        await anext(items)
    assert made.closed
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_items_may_be_heard_in_several_tasks() -> None:
    """The first item may be awaited in one task and the others in another; the deadline holds in each."""
    made = Items(hangs=1)
    items = each_in_time(Deadline.after(0.05), made.items())
    assert await asyncio.create_task(anext(items)) == 0
    with pytest.raises(DeadlineExceeded):
        await asyncio.create_task(anext(items))
    assert made.closed


async def test_to_be_cancelled_is_no_deadline() -> None:
    """A listener that is cancelled from outside is cancelled, whatever its deadline."""
    made = Items(hangs=0)

    async def listen() -> None:
        async for _ in each_in_time(Deadline.after(60), made.items()):
            pass

    task = asyncio.create_task(listen())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert made.closed
