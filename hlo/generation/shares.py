"""Whose turn it is: keys share the engine's work, and the specialties that a key asks share what it gets. Pure.

Work is counted in tokens (Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024): of those who wait, the
one that was served the fewest is next. Nobody saves up turns by not asking: who comes to a queue begins with the count
of the lowest there, and where nobody waits all are equal again. So one that asks rarely waits for one turn, however
many another has waiting, and one that waits alone has all of the engine.
"""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")

OUT_WEIGHT = 2  # of a written token, in read ones: it takes a step of its own, where a prompt takes one in all


class Shares(Generic[T]):
    """Those who wait, and what they and those who run were served, in read tokens or as many as weigh the same."""

    def __init__(self) -> None:
        self._keys = _Level()
        self._flows: dict[str, _Level] = {}
        self._tickets: dict[tuple[str, str], deque[T]] = {}

    @property
    def waiting(self) -> int:
        """How many tickets wait."""
        return self._keys.waiting

    def waiting_of(self, key: str, specialty: str) -> int:
        """How many tickets of a key wait for a specialty."""
        return len(self._tickets.get((key, specialty), ()))

    def arrive(self, key: str, specialty: str, ticket: T) -> None:
        """A ticket begins to wait."""
        self._keys.arrive(key)
        self._flows.setdefault(key, _Level()).arrive(specialty)
        self._tickets.setdefault((key, specialty), deque()).append(ticket)

    def give_up(self, key: str, specialty: str, ticket: T) -> None:
        """A ticket that waits will not be used."""
        self._tickets[key, specialty].remove(ticket)
        self._keys.give_up(key)
        self._flows[key].give_up(specialty)
        self._forget(key, specialty)

    def start(self, key: str, specialty: str, tokens: int) -> None:
        """Work of that many tokens begins: of a ticket that `next` gave, or of one that did not have to wait."""
        self._keys.start(key, tokens)
        self._flows.setdefault(key, _Level()).start(specialty, tokens)

    def end(self, key: str, specialty: str, tokens: int) -> None:
        """Work ends, having taken that many tokens more."""
        self._keys.end(key, tokens)
        self._flows[key].end(specialty, tokens)
        self._forget(key, specialty)

    def next(self) -> T:
        """The ticket whose turn it is, to be started now; there must be one."""
        key = self._keys.first()
        specialty = self._flows[key].first()
        self._keys.leave(key)
        self._flows[key].leave(specialty)
        return self._tickets[key, specialty].popleft()

    def _forget(self, key: str, specialty: str) -> None:
        """Keep nothing of what neither waits nor runs: what is kept is bounded by what is inside."""
        if not self._tickets.get((key, specialty)):
            self._tickets.pop((key, specialty), None)
        if key in self._flows and not self._flows[key].members:
            del self._flows[key]


class _Level:
    """Those who share: all keys, or the specialties of one key."""

    def __init__(self) -> None:
        self.members: dict[str, _Member] = {}
        self.waiting = 0

    def arrive(self, name: str) -> None:
        if not self.waiting:
            for one in self.members.values():
                one.count = 0.0
        member = self.members.setdefault(name, _Member())
        if self.waiting and not member.waiting:
            member.count = max(member.count, min(one.count for one in self.members.values() if one.waiting))
        member.waiting += 1
        self.waiting += 1

    def leave(self, name: str) -> None:
        self.waiting -= 1
        self.members[name].waiting -= 1

    def give_up(self, name: str) -> None:
        self.leave(name)
        self._drop(name)

    def start(self, name: str, tokens: int) -> None:
        member = self.members.setdefault(name, _Member())
        member.running += 1
        member.count += tokens

    def end(self, name: str, tokens: int) -> None:
        member = self.members[name]
        member.running -= 1
        member.count += tokens
        self._drop(name)

    def first(self) -> str:
        """Of those who wait, who was served least; of equals, who has less running, then who came first."""
        waiting = ((one.count, one.running, name) for name, one in self.members.items() if one.waiting)
        return min(waiting, key=lambda one: one[:2])[2]

    def _drop(self, name: str) -> None:
        member = self.members[name]
        if not member.waiting and not member.running:
            del self.members[name]


class _Member:
    """One that waits or runs: what it was served, and how many of its tickets do."""

    __slots__ = ("count", "running", "waiting")

    def __init__(self) -> None:
        self.count = 0.0
        self.running = 0
        self.waiting = 0
