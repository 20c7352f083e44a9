"""Whose turn it is, tried by simulation."""

from __future__ import annotations

import random
from collections import Counter, deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hlo.generation.shares import Shares

Flow = tuple[str, str]


def serve(shares: Shares[Flow], turns: int, cost: dict[Flow, int]) -> Counter[Flow]:
    """What one slot does in so many turns, when whoever was served comes again at once."""
    done: Counter[Flow] = Counter()
    for _ in range(turns):
        flow = shares.next()
        shares.start(*flow, 0)
        shares.end(*flow, cost[flow])
        shares.arrive(*flow, flow)
        done[flow] += cost[flow]
    return done


def arrived(waiting: dict[Flow, int]) -> Shares[Flow]:
    """So many tickets of each flow wait."""
    shares: Shares[Flow] = Shares()
    for flow, number in waiting.items():
        for _ in range(number):
            shares.arrive(*flow, flow)
    return shares


def test_alone_one_has_all() -> None:
    """Where one key asks one specialty, its tickets come up in the order in which they came."""
    shares: Shares[int] = Shares()
    for number in range(5):
        shares.arrive("a", "heart", number)
    assert [shares.next() for _ in range(5)] == [0, 1, 2, 3, 4]
    assert shares.waiting == 0


@pytest.mark.parametrize("many", [2, 10, 500])
def test_keys_have_equal_shares(many: int) -> None:
    """Two keys are served as many tokens, however many tickets one has waiting and however long its answers are."""
    hot, calm = ("hot", "heart"), ("calm", "heart")
    done = serve(arrived({hot: many, calm: 2}), 1000, {hot: 300, calm: 10})
    assert abs(done[hot] - done[calm]) <= 2 * 300


def test_specialties_share_what_their_key_has() -> None:
    """A key that asks many specialties has no more than one that asks one; among themselves they are equal."""
    wide = [("wide", name) for name in ("heart", "brain", "skin", "lung")]
    one = ("narrow", "heart")
    done = serve(arrived(dict.fromkeys(wide, 20) | {one: 20}), 4000, dict.fromkeys([*wide, one], 50))
    assert abs(sum(done[flow] for flow in wide) - done[one]) <= 200
    assert max(done[flow] for flow in wide) - min(done[flow] for flow in wide) <= 200


def test_one_that_comes_late_is_next() -> None:
    """Who comes to a long line of others' has the next turn, and is given no turns for the time it did not ask."""
    hot, calm = ("hot", "heart"), ("calm", "brain")
    shares = arrived({hot: 100})
    serve(shares, 1000, {hot: 100})
    shares.start(*shares.next(), 100)  # it has the engine
    for _ in range(50):
        shares.arrive(*calm, calm)
    first = [shares.next()]
    shares.start(*first[0], 0)
    assert first == [calm]
    done: Counter[Flow] = Counter()
    for _ in range(20):
        flow = shares.next()
        shares.start(*flow, 100)
        done[flow] += 1
    assert abs(done[hot] - done[calm]) <= 2


def test_what_was_had_when_nobody_waited_is_not_held_against_one() -> None:
    """Work that kept nobody waiting is no debt: when others come, all begin alike."""
    hot, calm = ("hot", "heart"), ("calm", "heart")
    shares: Shares[Flow] = Shares()
    shares.start(*hot, 10**6)  # the engine had room, and nobody else asked
    shares.start(*hot, 10**6)
    for _ in range(10):
        shares.arrive(*hot, hot)
        shares.arrive(*calm, calm)
    served = []
    for _ in range(10):
        served.append(shares.next())
        shares.start(*served[-1], 100)
    assert abs(served.count(hot) - served.count(calm)) <= 1


def test_a_ticket_that_is_given_up_is_gone() -> None:
    """A ticket that is given up never comes up, and the others stay in order."""
    shares: Shares[int] = Shares()
    for number in range(4):
        shares.arrive("a", "heart", number)
    shares.give_up("a", "heart", 1)
    assert shares.waiting == shares.waiting_of("a", "heart") == 3
    assert [shares.next() for _ in range(3)] == [0, 2, 3]


@settings(max_examples=200)
@given(st.integers(0, 2**32), st.integers(1, 6))
def test_whatever_happens_all_come_up_and_nothing_is_kept(seed: int, slots: int) -> None:
    """Every ticket that is not given up comes up once, no key or specialty waits for ever, and in the end all is empty.

    A key that waits is passed over by no other more than a few times in a row.
    """
    chance = random.Random(seed)
    shares: Shares[int] = Shares()
    flows = [(key, specialty) for key in "abc" for specialty in ("heart", "brain")]
    waiting: dict[int, Flow] = {}
    running: deque[Flow] = deque()
    passed: Counter[str] = Counter()
    number = 0
    for step in range(400):
        if step < 200 and chance.random() < 0.7:
            number, flow = number + 1, chance.choice(flows if chance.random() < 0.3 else flows[:1])
            shares.arrive(*flow, number)
            waiting[number] = flow
        if waiting and chance.random() < 0.1:
            gone = chance.choice(list(waiting))
            shares.give_up(*waiting.pop(gone), gone)
        if running and (len(running) == slots or chance.random() < 0.3):
            shares.end(*running.popleft(), chance.choice([10, 20]))
        if shares.waiting and len(running) < slots:
            others = {key for key, _ in waiting.values()}
            flow = waiting.pop(shares.next())
            shares.start(*flow, 10)
            running.append(flow)
            for key in others:
                passed[key] = 0 if key == flow[0] else passed[key] + 1
                assert passed[key] <= 3 * (slots + 2) * 3
        assert shares.waiting == len(waiting)
    while shares.waiting:
        flow = waiting.pop(shares.next())
        shares.start(*flow, 1)
        running.append(flow)
    while running:
        shares.end(*running.popleft(), 1)
    assert not waiting
    assert not shares._flows
    assert not shares._tickets
    assert not shares._keys.members
