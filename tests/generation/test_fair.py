"""Turns of adapters: who may run, who waits, and for how long at most."""

from __future__ import annotations

from typing import NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st

from hlo.generation.fair import Turns


class Call(NamedTuple):
    """A request of a simulation: when it comes, for which adapter, and how long its answer takes."""

    at: float
    adapter: str
    takes: float


class World:
    """Discrete events around `Turns`: requests come and end, and quanta run out. Checks what must hold at any time."""

    def __init__(self, slots: int, quantum_s: float) -> None:
        self.turns: Turns[int] = Turns(slots, quantum_s)
        self.slots = slots
        self.ends: dict[int, float] = {}
        self.began: dict[int, float] = {}
        self.order: list[int] = []

    def run(self, calls: list[Call]) -> list[float]:
        """The wait of each call."""
        coming = sorted(range(len(calls)), key=lambda number: (calls[number].at, number))
        waiting: set[int] = set()
        now = 0.0
        while coming or self.ends or waiting:
            looks = self.turns.next_look()
            times = [calls[coming[0]].at] if coming else []
            times += [*self.ends.values()] + ([] if looks is None else [looks])
            assert times, "somebody waits, and nothing will ever happen"
            now = max(now, min(times))
            if coming and calls[coming[0]].at <= now:
                number = coming.pop(0)
                waiting.add(number)
                started = self.turns.arrive(calls[number].adapter, number, now)
            elif ended := [number for number, at in self.ends.items() if at <= now]:
                del self.ends[ended[0]]
                started = self.turns.leave(calls[ended[0]].adapter, now)
            else:
                started = self.turns.look(now)
            for number in started:
                waiting.remove(number)  # each starts once, and only if it waits
                self.began[number] = now
                self.ends[number] = now + calls[number].takes
                self.order.append(number)
            self._check(calls, waiting, now)
        return [self.began[number] - call.at for number, call in enumerate(calls)]

    def _check(self, calls: list[Call], waiting: set[int], now: float) -> None:
        running = {calls[number].adapter for number in self.ends}
        assert running == self.turns.running
        assert len(running) <= self.slots
        assert self.turns.held == len(waiting)
        # Work-conserving: where an adapter waits, no slot is empty.
        assert not waiting or len(running) == self.slots


CALLS = st.lists(
    st.builds(
        Call,
        at=st.integers(0, 40).map(float),
        adapter=st.sampled_from("abcdefgh"),
        takes=st.integers(1, 10).map(float),
    ),
    max_size=40,
)


@settings(max_examples=300)
@given(calls=CALLS, slots=st.integers(1, 8), quantum_s=st.integers(0, 8).map(float))
def test_no_more_adapters_run_than_there_are_slots_and_none_stays_empty(
    calls: list[Call], slots: int, quantum_s: float
) -> None:
    """At any time at most `slots` adapters run; while one waits, all slots are in use; every request starts once."""
    waits = World(slots, quantum_s).run(calls)
    assert len(waits) == len(calls)
    assert min(waits, default=0.0) >= 0


@settings(max_examples=300)
@given(calls=CALLS, slots=st.integers(1, 8), quantum_s=st.integers(0, 8).map(float))
def test_a_wait_has_a_bound(calls: list[Call], slots: int, quantum_s: float) -> None:
    """A request waits for as many turns at most as it takes to serve every adapter that was asked for."""
    longest = max((call.takes for call in calls), default=0.0)
    adapters = len({call.adapter for call in calls})
    turns = -(-adapters // slots)
    assert max(World(slots, quantum_s).run(calls), default=0.0) <= turns * (quantum_s + 2 * longest)


@settings(max_examples=100)
@given(calls=CALLS, slots=st.integers(1, 8))
def test_where_all_have_a_slot_nobody_waits(calls: list[Call], slots: int) -> None:
    """With as many slots as adapters, every request starts when it comes."""
    few = [call for call in calls if call.adapter in "abcdefgh"[:slots]]
    assert set(World(slots, 1.0).run(few)) <= {0.0}


@settings(max_examples=100)
@given(calls=CALLS, slots=st.integers(1, 8), quantum_s=st.integers(0, 8).map(float))
def test_an_adapter_keeps_its_order(calls: list[Call], slots: int, quantum_s: float) -> None:
    """The requests of one adapter start in the order in which they came."""
    world = World(slots, quantum_s)
    world.run(calls)
    for adapter in "abcdefgh":
        own = [number for number in world.order if calls[number].adapter == adapter]
        assert own == sorted(own, key=lambda number: (calls[number].at, number))


def test_streams_that_overlap_do_not_keep_a_slot() -> None:
    """An adapter that is always asked for gives its slot up after its quantum and its last answer; then it comes back.

    This is what vLLM alone never does.
    """
    hot = [Call(float(at), "hot", 3.0) for at in range(60)]  # three overlap at any time
    waits = World(1, 4.0).run([*hot, Call(1.0, "rare", 2.0)])
    assert waits[-1] <= 4.0 + 3.0
    assert max(waits[:-1]) <= 3.0 + 2.0


def test_even_traffic_waits_evenly() -> None:
    """With 16 adapters on 8 slots, all asked for alike, the longest mean wait is at most five times the median one."""
    calls = [Call(second + adapter / 100, f"a{adapter}", 1.0) for second in range(40) for adapter in range(16)]
    waits = World(8, 0.5).run(calls)
    means = sorted(
        sum(wait for wait, call in zip(waits, calls, strict=True) if call.adapter == f"a{adapter}") / 40
        for adapter in range(16)
    )
    assert 0 < means[-1] <= 5 * (means[7] + means[8]) / 2


def test_a_ticket_that_is_given_up_is_not_waited_for() -> None:
    """When the only one that waits gives up, the adapter that was to give its slot up goes on."""
    turns: Turns[str] = Turns(1, 1.0)
    assert turns.arrive("a", "a1", 0.0) == ["a1"]
    assert turns.arrive("b", "b1", 2.0) == []
    assert turns.arrive("a", "a2", 3.0) == []
    assert turns.give_up("b", "b1", 4.0) == ["a2"]
    assert turns.held == 0


def test_a_quantum_that_ends_is_announced() -> None:
    """`next_look` is when the next slot can be asked for; None where nobody waits, and where one is about to end."""
    turns: Turns[str] = Turns(1, 5.0)
    turns.arrive("a", "a1", 10.0)
    assert turns.next_look() is None
    turns.arrive("b", "b1", 11.0)
    assert turns.next_look() == 15.0
    assert turns.arrive("a", "a2", 12.0) == ["a2"]
    assert turns.look(15.0) == []
    assert turns.next_look() is None
    assert turns.arrive("a", "a3", 16.0) == []
    assert turns.leave("a", 17.0) == []
    assert turns.leave("a", 18.0) == ["b1"]
