"""Holds requests back until their adapter's turn (`hlo.generation.fair`), on an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

from hlo.contracts import EngineActivity
from hlo.generation.fair import Turns


class Admission:
    """Lets requests of at most `slots` adapters run at once (None: of all)."""

    def __init__(self, slots: int | None, turn_s: float) -> None:
        self._unlimited = slots is None
        self._turns: Turns[_Ticket] = Turns(slots or 1, turn_s)
        self._timer: asyncio.TimerHandle | None = None

    @property
    def held(self) -> int:
        """How many requests wait for their adapter's turn."""
        return self._turns.held

    @property
    def activity(self) -> EngineActivity:
        """What came of it so far."""
        return EngineActivity(self.held, dict(self._turns.turns), dict(self._turns.evictions))

    @asynccontextmanager
    async def turn(self, adapter: str | None) -> AsyncIterator[None]:
        """Wait until a request for `adapter` may run, and run it inside the block; without an adapter, none waits."""
        if self._unlimited or adapter is None:
            yield
            return
        loop = asyncio.get_running_loop()
        ticket = _Ticket(loop.create_future())
        self._begin(self._turns.arrive(adapter, ticket, loop.time()))
        try:
            await ticket.turn
        except asyncio.CancelledError:
            if ticket.started:  # its turn came in the same moment
                self._begin(self._turns.leave(adapter, loop.time()))
            else:
                self._begin(self._turns.give_up(adapter, ticket, loop.time()))
            raise
        try:
            yield
        finally:
            self._begin(self._turns.leave(adapter, loop.time()))

    def _begin(self, tickets: Iterable[_Ticket]) -> None:
        """Let those go whose turn it is, and look again when the next turn can end."""
        for ticket in tickets:
            ticket.started = True
            if not ticket.turn.done():
                ticket.turn.set_result(None)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        at = self._turns.next_look()
        if at is not None:
            self._timer = asyncio.get_running_loop().call_at(at, self._look)

    def _look(self) -> None:
        self._timer = None
        self._begin(self._turns.look(asyncio.get_running_loop().time()))


class _Ticket:
    """A request: the future that ends its wait, and whether its turn has come."""

    __slots__ = ("started", "turn")

    def __init__(self, turn: asyncio.Future[None]) -> None:
        self.turn = turn
        self.started = False
