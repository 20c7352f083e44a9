"""Which server a request goes to."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from hlo.generation.affinity import FREE, SHARE, choose, owner, preference

SERVERS = [f"http://gpu-{number}:8000" for number in range(5)]
KEYS = [f"adapter-{number}" for number in range(500)]


def test_a_key_stays_where_it_is() -> None:
    """Each key has one server while that is not full, whatever the order in which the servers are named."""
    idle = dict.fromkeys(SERVERS, 0)
    for key in KEYS:
        assert choose(key, idle) == choose(key, dict.fromkeys(reversed(SERVERS), 3)) == owner(key, idle)


def test_keys_are_spread() -> None:
    """Every server has its share of many keys, give or take a third."""
    counts = Counter(owner(key, dict.fromkeys(SERVERS, 0)) for key in KEYS)
    assert all(67 <= counts[server] <= 133 for server in SERVERS)


def test_only_the_keys_of_a_server_that_goes_move() -> None:
    """When a server goes, every key of the others stays, and its own go to several."""
    left = SERVERS[1:]
    moved = [key for key in KEYS if preference(key, SERVERS)[0] != preference(key, left)[0]]
    assert moved == [key for key in KEYS if preference(key, SERVERS)[0] == SERVERS[0]]
    assert len({preference(key, left)[0] for key in moved}) == len(left)


def test_a_hot_key_spills_over() -> None:
    """A key whose server has more than its share goes to the next in its order, and comes back."""
    first, second, *others = preference("hot", SERVERS)
    running = dict.fromkeys(SERVERS, 0)
    for _ in range(FREE):
        assert choose("hot", running) == first
        running[first] += 1
    assert choose("hot", running) == second
    running[first] -= 1
    assert choose("hot", running) == first
    assert others


def test_without_a_key_the_least_busy_is_taken() -> None:
    """A request for the base model goes where least runs."""
    assert choose(None, {"a": 3, "b": 1, "c": 2}) == "b"


@given(st.lists(st.sampled_from(KEYS[:7]), max_size=300), st.integers(1, 5))
def test_no_server_has_more_than_its_share(keys: list[str], count: int) -> None:
    """However keys come, no server gets more than its share of all that runs, or a few."""
    running = dict.fromkeys(SERVERS[:count], 0)
    for number, key in enumerate(keys, start=1):
        running[choose(key, running)] += 1
        assert max(running.values()) <= max(FREE, SHARE * number / count + 1)
