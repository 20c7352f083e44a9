"""The line in front of the engine: bounded, in turn, and gone where there is room."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager

import pytest

from hlo.errors import Overloaded
from hlo.generation.line import Line, Place


class Requests:
    """Requests that come, wait in a task each, and end when they are told to. `began` are their names, in order."""

    def __init__(self, line: Line) -> None:
        self.line = line
        self.began: list[str] = []
        self.refused: list[str] = []
        self._ends: dict[str, asyncio.Event] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def come(self, name: str, key: str | None = None, specialty: str = "heart", tokens: int = 10) -> None:
        """One comes, and is in the line or in the engine."""
        self._ends[name] = asyncio.Event()
        self.tasks[name] = asyncio.create_task(self._run(name, key, specialty, tokens))
        await settle()

    async def end(self, name: str) -> None:
        """One that runs ends."""
        self._ends[name].set()
        await settle()

    async def _run(self, name: str, key: str | None, specialty: str, tokens: int) -> None:
        try:
            with self.line.enter(key) as place:
                place.join(specialty, tokens)
                await place.come_up()
                self.began.append(name)
                await self._ends[name].wait()
                place.written = 10
        except Overloaded:
            self.refused.append(name)


async def settle() -> None:
    """Let every task go as far as it can."""
    for _ in range(5):
        await asyncio.sleep(0)


@asynccontextmanager
async def requests(line: Line) -> AsyncIterator[Requests]:
    """Requests before a line, which all end with the block and must leave nothing in it."""
    made = Requests(line)
    try:
        yield made
    finally:
        for task in made.tasks.values():
            task.cancel()
        await asyncio.gather(*made.tasks.values(), return_exceptions=True)
    assert line.waiting == 0
    assert (line._running, line._coming.total(), line._shares._keys.members) == (0, 0, {})


async def test_where_there_is_room_nobody_waits() -> None:
    """A request that finds room has no turn to wait for, not even one round of the event loop."""
    line = Line(2, 2)
    with line.enter("a") as place:
        place.join("heart", 5)
        assert place.turn is None
        assert await place.come_up() == 0.0


async def test_no_more_run_than_there_is_room() -> None:
    """Beyond the engine's room requests wait, and each that ends lets one in."""
    async with requests(Line(2, 10)) as asked:
        for name in "abcd":
            await asked.come(name)
        assert asked.began == ["a", "b"]
        assert asked.line.waiting == 2
        await asked.end("b")
        assert asked.began == ["a", "b", "c"]


async def test_a_full_line_refuses_at_once() -> None:
    """When as many wait as may, the next is refused without having waited; once one has begun, another may wait."""
    async with requests(Line(1, 2)) as asked:
        for name in "abcd":
            await asked.come(name)
        assert (asked.began, asked.refused) == (["a"], ["d"])
        await asked.end("a")
        await asked.come("e")
        assert asked.refused == ["d"]


async def test_those_on_their_way_count() -> None:
    """Requests that are still being routed hold a place: no more come in than there will be room for."""
    line = Line(1, 2)
    with ExitStack() as inside:
        for _ in range(3):
            inside.enter_context(line.enter(None))
        with pytest.raises(Overloaded, match="HLO_MAX_QUEUED_REQUESTS"):
            inside.enter_context(line.enter(None))
    with line.enter(None):
        pass


async def test_a_hot_key_leaves_places_for_others() -> None:
    """However many one key sends, it is refused before the line is full, and others get in, ahead of most of it."""
    async with requests(Line(1, 20)) as asked:
        for number in range(40):
            await asked.come(f"hot {number}", "hot")
        assert 14 <= asked.line.waiting < 20
        assert asked.refused[0].startswith("hot")
        await asked.come("calm", "calm")
        assert "calm" not in asked.refused
        await asked.end("hot 0")
        assert asked.began == ["hot 0", "calm"]


async def test_a_hot_specialty_leaves_places_for_others() -> None:
    """The same between the specialties that one key asks, and where there are no keys."""
    async with requests(Line(1, 20)) as asked:
        for number in range(40):
            await asked.come(f"hot {number}", None, "heart")
        assert asked.line.waiting < 20
        await asked.come("calm", None, "brain")
        assert "calm" not in asked.refused
        await asked.end("hot 0")
        assert asked.began == ["hot 0", "calm"]


async def test_who_gives_up_loses_the_place() -> None:
    """A request that is cancelled while it waits leaves the line, and one that runs gives back its room."""
    async with requests(Line(1, 10)) as asked:
        for name in "abc":
            await asked.come(name)
        asked.tasks["b"].cancel()
        await settle()
        assert asked.line.waiting == 1
        asked.tasks["a"].cancel()
        await settle()
        assert asked.began == ["a", "c"]


async def test_a_turn_that_comes_as_one_gives_up_goes_to_the_next() -> None:
    """A request that is cancelled in the moment in which its turn comes passes the room on."""
    async with requests(Line(1, 10)) as asked:
        for name in "abc":
            await asked.come(name)
        asked._ends["a"].set()
        await asyncio.sleep(0)
        asked.tasks["b"].cancel()
        await settle()
        assert asked.began == ["a", "c"]


async def test_one_that_never_joins_takes_no_room() -> None:
    """A request that is refused on its way, or answered without the engine, holds nothing."""
    line = Line(1, 1)
    with pytest.raises(ValueError, match="no"), line.enter("a"):
        raise ValueError("no")
    with line.enter("a") as first, line.enter("b") as second:
        first.join("heart", 1)
        assert isinstance(second, Place)
        assert line.waiting == 0


@pytest.mark.parametrize(("batch", "room"), [(1, 2), (8, 9), (256, 288), (None, 7)])
async def test_room_is_what_the_engine_computes_and_a_little(batch: int | None, room: int) -> None:
    """The engine gets its batch and an eighth more; one that does not tell gets as many as may wait."""
    line = Line.before(batch, 7)
    async with requests(line) as asked:
        for number in range(room + 1):
            await asked.come(str(number))
        assert (len(asked.began), line.waiting) == (room, 1)
