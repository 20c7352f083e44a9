"""Turns: which adapters may run now, where an engine has fewer slots than there are adapters. Pure: no clock, no task.

vLLM leaves a request whose adapter has no slot in its queue for as long as the adapters that have one are asked for
(no ageing; its priorities do not help). So requests are held here, in front of the engine, which never sees more
adapters at once than it has slots. An adapter that gets a slot keeps it for a `quantum` at least. When another one
waits after that, the adapter that has had its slot for longest takes no new request; once its last one has ended, the
adapter whose oldest request waits longest has the slot.

So with `slots` slots, the adapter that is number n in the queue waits for ceil(n / slots) turns at most, each no longer
than the quantum and the longest answer. No slot stays empty while an adapter waits, and where nobody waits nobody is
held.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class Turns(Generic[T]):
    """Hands out `slots` slots. Times are seconds of any clock that does not go back; tickets stand for requests.

    What `arrive`, `leave`, `give_up` and `look` return are the tickets that may start now, in order.
    """

    def __init__(self, slots: int, quantum_s: float) -> None:
        self._slots = slots
        self._quantum_s = quantum_s
        self._residents: dict[str, _Resident] = {}
        # The adapter whose oldest ticket waits longest comes first.
        self._waiting: dict[str, deque[T]] = {}
        self.turns: Counter[str] = Counter()  # how often each adapter was given a slot, and gave it up to another
        self.evictions: Counter[str] = Counter()

    @property
    def running(self) -> frozenset[str]:
        """The adapters that have started requests."""
        return frozenset(name for name, resident in self._residents.items() if resident.running)

    @property
    def held(self) -> int:
        """How many tickets wait."""
        return sum(map(len, self._waiting.values()))

    def arrive(self, adapter: str, ticket: T, now: float) -> list[T]:
        """A request for an adapter has come."""
        self._waiting.setdefault(adapter, deque()).append(ticket)
        return self.look(now)

    def leave(self, adapter: str, now: float) -> list[T]:
        """A started request has ended."""
        self._residents[adapter].running -= 1
        return self.look(now)

    def give_up(self, adapter: str, ticket: T, now: float) -> list[T]:
        """A ticket that waits will not be used."""
        tickets = self._waiting[adapter]
        tickets.remove(ticket)
        if not tickets:
            del self._waiting[adapter]
        return self.look(now)

    def look(self, now: float) -> list[T]:
        """The time has come that `next_look` gave."""
        return list(self._start(now))

    def next_look(self) -> float | None:
        """When a quantum ends for which somebody waits; None: when something arrives or ends."""
        if self._missing() <= 0:
            return None
        return min((one.since + self._quantum_s for one in self._residents.values() if not one.closed), default=None)

    def _start(self, now: float) -> Iterator[T]:
        self._vacate()
        for name in [name for name in self._waiting if name not in self._residents]:
            if len(self._residents) >= self._slots:
                break
            self._residents[name] = _Resident(now)
            self.turns[name] += 1
        self._reopen()
        for name in [name for name in self._waiting if name in self._residents and not self._residents[name].closed]:
            tickets = self._waiting.pop(name)
            self._residents[name].running += len(tickets)
            yield from tickets
        self._close(now)

    def _vacate(self) -> None:
        """Take slots back from adapters that run nothing, as many as are waited for; the first that came goes first."""
        wanted = len(self._outside()) - (self._slots - len(self._residents))
        idle = [
            name
            for name, one in self._residents.items()
            if not one.running and (one.closed or name not in self._waiting)
        ]
        for name in idle[: max(wanted, 0)]:
            del self._residents[name]
            self.evictions[name] += 1

    def _reopen(self) -> None:
        """Where nobody waits for a slot, nobody needs to give one up."""
        if not self._outside():
            for resident in self._residents.values():
                resident.closed = False

    def _close(self, now: float) -> None:
        """Let as many adapters end as others wait for a slot: those first that have had theirs for longest."""
        over = [one for one in self._residents.values() if not one.closed and now >= one.since + self._quantum_s]
        for resident in over[: max(self._missing(), 0)]:  # they stand in the order in which they came
            resident.closed = True

    def _missing(self) -> int:
        """How many adapters wait for which no other is about to end."""
        return len(self._outside()) - sum(one.closed for one in self._residents.values())

    def _outside(self) -> list[str]:
        return [name for name in self._waiting if name not in self._residents]


class _Resident:
    """An adapter that has a slot: since when, how many of its requests run, and whether it takes new ones."""

    __slots__ = ("closed", "running", "since")

    def __init__(self, since: float) -> None:
        self.since = since
        self.running = 0
        self.closed = False
