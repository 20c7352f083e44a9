"""The one line in front of the engine: bounded, fair (`hlo.generation.shares`), and free while the engine has room.

An engine's own queue is first come, first served, so no more goes there than it computes at once, and a little, so that
it never runs dry. What does not fit waits here, where the next is chosen when there is room for it.
"""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from hlo.errors import Overloaded
from hlo.generation.shares import OUT_WEIGHT, Shares

_SHARE = 4
"""How many places one key, or one specialty of a key, may hold for each that is free: four fifths of the line alone.

So a place is left for those who come next, however many one sends (Choudhury and Hahne, "Dynamic queue length
thresholds for shared-memory packet switches", IEEE/ACM Transactions on Networking 1998).
"""
_NOBODY = ""


class Line:
    """Lets at most `room` requests into the engine at once, and at most `most_waiting` others in."""

    def __init__(self, room: int = sys.maxsize, most_waiting: int = sys.maxsize) -> None:
        self._room = room
        self._most_waiting = most_waiting
        self._shares: Shares[Place] = Shares()
        self._coming: Counter[str] = Counter()  # requests by key that are inside, and not yet in the engine
        self._running = 0

    @classmethod
    def before(cls, batch: int | None, most_waiting: int) -> Line:
        """The line before an engine that computes `batch` requests at once; None: it does not tell."""
        return cls(most_waiting if batch is None else batch + max(1, batch // 8), most_waiting)

    @property
    def waiting(self) -> int:
        """How many requests wait for room in the engine."""
        return self._shares.waiting

    @contextmanager
    def enter(self, key: str | None) -> Iterator[Place]:
        """A request of that key's comes in, and has left when the block ends. Raises `Overloaded`, at once."""
        inside = self._coming.total()
        free = self._most_waiting + max(self._room - self._running, 0) - inside
        if free <= 0:
            raise _overloaded("As many requests wait as may (HLO_MAX_QUEUED_REQUESTS).")
        if key is not None and self._coming[key] >= _SHARE * free:
            raise _overloaded(f"The key {key} has nearly all of the places in the line.")
        place = Place(self, key or _NOBODY)
        self._coming[place.key] += 1
        try:
            yield place
        finally:
            self._leave(place)

    def join(self, place: Place) -> None:
        """Line up for the engine, or go to it at once where there is room. Raises `Overloaded`."""
        if self._running < self._room and not self._shares.waiting:
            self._start(place)
            return
        free = self._most_waiting - self._shares.waiting
        if self._shares.waiting_of(place.key, place.specialty) >= _SHARE * free:
            raise _overloaded(f"`{place.specialty}` has nearly all of the places in the line.")
        place.turn = asyncio.get_running_loop().create_future()
        place.state = "waiting"
        self._shares.arrive(place.key, place.specialty, place)

    def _start(self, place: Place) -> None:
        self._out(place)
        place.state = "running"
        self._running += 1
        self._shares.start(place.key, place.specialty, place.tokens)

    def _leave(self, place: Place) -> None:
        state, place.state = place.state, "gone"
        if state == "coming":
            self._out(place)
        elif state == "waiting":
            self._out(place)
            self._shares.give_up(place.key, place.specialty, place)
        elif state == "running":
            self._running -= 1
            self._shares.end(place.key, place.specialty, OUT_WEIGHT * place.written)
            while self._shares.waiting and self._running < self._room:
                chosen = self._shares.next()
                self._start(chosen)
                if chosen.turn is not None and not chosen.turn.done():  # else it leaves, and gives the room back
                    chosen.turn.set_result(None)

    def _out(self, place: Place) -> None:
        self._coming[place.key] -= 1
        if not self._coming[place.key]:
            del self._coming[place.key]


class Place:
    """A request's place: on its way to the line, in it, or in the engine. `written` are its answer's tokens so far."""

    __slots__ = ("_line", "key", "specialty", "state", "tokens", "turn", "written")

    def __init__(self, line: Line, key: str) -> None:
        self.key = key
        self.specialty = ""
        self.tokens = 0
        self.written = 0
        self.turn: asyncio.Future[None] | None = None
        self.state: Literal["coming", "waiting", "running", "gone"] = "coming"
        self._line = line

    def join(self, specialty: str, tokens: int) -> None:
        """Line up with a prompt of that many tokens. Raises `Overloaded`, at once."""
        self.specialty, self.tokens = specialty, tokens
        self._line.join(self)

    async def come_up(self) -> float:
        """Wait until there is room; for how many seconds that was."""
        if self.turn is None:
            return 0.0
        loop = asyncio.get_running_loop()
        since = loop.time()
        await self.turn
        return loop.time() - since


def _overloaded(message: str) -> Overloaded:
    return Overloaded(message, remedy="Ask again in a few seconds.")
