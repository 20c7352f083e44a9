"""Requests are held until their adapter's turn, on an event loop."""

from __future__ import annotations

import asyncio

from hlo.contracts import EngineActivity
from hlo.generation.admission import Admission


class Requests:
    """Requests that run until they are told to end."""

    def __init__(self, admission: Admission) -> None:
        self.running: list[str] = []
        self._admission = admission
        self._ends: dict[str, asyncio.Event] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def come(self, name: str) -> None:
        """A request comes; its adapter is its first letter, `-` none."""
        self._ends[name] = asyncio.Event()
        self._tasks[name] = asyncio.create_task(self._run(name))
        await self._settle()

    async def end(self, name: str) -> None:
        """A request's answer is whole."""
        self._ends[name].set()
        await self._tasks[name]
        await self._settle()

    async def cancel(self, *names: str) -> None:
        """Clients close their connections."""
        for name in names:
            self._tasks[name].cancel()
        await asyncio.gather(*(self._tasks[name] for name in names), return_exceptions=True)
        await self._settle()

    async def _run(self, name: str) -> None:
        async with self._admission.turn(None if name[0] == "-" else name[0]):
            self.running.append(name)
            try:
                await self._ends[name].wait()
            finally:
                self.running.remove(name)

    async def _settle(self) -> None:
        for _ in range(5):
            await asyncio.sleep(0)


async def test_with_a_slot_for_each_nobody_is_held() -> None:
    """Without a number of slots, every request runs at once."""
    requests = Requests(Admission(None, 1.0))
    for name in ("a1", "b1", "c1", "-1"):
        await requests.come(name)
    assert requests.running == ["a1", "b1", "c1", "-1"]
    await requests.cancel("a1", "b1", "c1", "-1")


async def test_an_adapter_without_a_slot_is_held_until_one_ends() -> None:
    """The adapter that waits for a slot starts when the one that has it has ended; requests without one never wait."""
    admission = Admission(1, 3600.0)
    requests = Requests(admission)
    for name in ("a1", "b1", "b2", "a2", "-1"):
        await requests.come(name)
    assert (requests.running, admission.held) == (["a1", "a2", "-1"], 2)
    await requests.end("a1")
    assert requests.running == ["a2", "-1"]
    await requests.end("a2")
    assert (requests.running, admission.held) == (["-1", "b1", "b2"], 0)
    await requests.cancel("-1", "b1", "b2")


async def test_a_turn_ends_by_itself() -> None:
    """Once a turn is over and another adapter waits, new requests for the one that has the slot are held."""
    admission = Admission(1, 0.01)
    requests = Requests(admission)
    await requests.come("a1")
    await requests.come("b1")
    await asyncio.sleep(0.05)
    await requests.come("a2")
    assert (requests.running, admission.held) == (["a1"], 2)
    await requests.end("a1")
    assert requests.running == ["b1"]
    await requests.end("b1")
    assert requests.running == ["a2"]
    await requests.end("a2")


async def test_a_client_that_leaves_is_not_waited_for() -> None:
    """A request that is cancelled while it is held, or while it runs, gives its place back."""
    admission = Admission(1, 3600.0)
    requests = Requests(admission)
    for name in ("a1", "b1", "c1"):
        await requests.come(name)
    await requests.cancel("b1")
    assert admission.held == 1
    await requests.cancel("a1")
    assert (requests.running, admission.held) == (["c1"], 0)
    await requests.end("c1")


async def test_a_client_that_leaves_as_its_turn_comes_gives_the_slot_on() -> None:
    """A request that is cancelled in the moment in which its turn comes leaves the slot to the next."""
    requests = Requests(Admission(1, 3600.0))
    for name in ("a1", "b1", "c1"):
        await requests.come(name)
    requests._ends["a1"].set()
    requests._tasks["b1"].cancel()  # both before the loop runs anything
    await requests.cancel("b1")
    assert requests.running == ["c1"]
    await requests.cancel("c1")


async def test_what_came_of_it_is_told() -> None:
    """How many are held, and how often each adapter was given a place and gave it up to another, is told."""
    admission = Admission(1, 0.0)
    requests = Requests(admission)
    for name in ("a1", "b1", "b2", "-1"):
        await requests.come(name)
    assert admission.activity == EngineActivity(2, {"a": 1}, {})
    await requests.end("a1")
    assert admission.activity == EngineActivity(0, {"a": 1, "b": 1}, {"a": 1})
    await requests.come("b3")
    assert admission.activity.turns == {"a": 1, "b": 1}
    await requests.cancel("b1", "b2", "b3", "-1")
