"""The decision: pure, and the same for ever."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hlo.records import Route, Score
from hlo.routing.decision import Thresholds, decide

THRESHOLDS = Thresholds(min_score=0.25, min_margin=0.125)  # exact in binary
SCORES = st.dictionaries(st.text("abcdef", min_size=1, max_size=3), st.floats(-1, 1, allow_nan=False), max_size=8).map(
    lambda table: [Score(name, score) for name, score in table.items()]
)


@pytest.mark.parametrize(
    ("scores", "status", "specialty"),
    [
        ({}, "out_of_scope", None),
        ({"a": 0.9, "b": 0.1}, "routed", "a"),
        ({"a": 0.1, "b": 0.9}, "routed", "b"),
        ({"a": 0.25, "b": 0.0}, "routed", "a"),
        ({"a": 0.2499, "b": 0.0}, "out_of_scope", None),
        ({"a": 0.5, "b": 0.375}, "routed", "a"),
        ({"a": 0.5, "b": 0.376}, "ambiguous", "a"),
        ({"b": 0.5, "a": 0.5}, "ambiguous", "a"),
        ({"a": 0.2, "b": 0.2}, "out_of_scope", None),
        ({"a": 0.25}, "routed", "a"),
        ({"a": 0.1}, "out_of_scope", None),
        ({"a": -1.0, "b": -0.5}, "out_of_scope", None),
    ],
)
def test_decisions(scores: dict[str, float], status: str, specialty: str | None) -> None:
    """A score at its threshold is in scope, a lead at its threshold is clear, and equal scores go by name."""
    route = decide([Score(name, score) for name, score in scores.items()], THRESHOLDS)
    assert (route.status, route.specialty, route.pinned_by) == (status, specialty, None)


def test_no_margin_is_asked_for() -> None:
    """With a `min_margin` of zero nothing is ambiguous, not even equal scores."""
    assert decide([Score("b", 0.5), Score("a", 0.5)], Thresholds(0.25, 0.0)).status == "routed"


def test_a_lone_specialty_is_never_ambiguous() -> None:
    """Where there is no second specialty, the margin is the score itself and does not make the route ambiguous."""
    route = decide([Score("a", 0.3)], Thresholds(0.25, 2.0))
    assert (route.status, route.margin) == ("routed", 0.3)


@given(scores=SCORES)
def test_all_scores_are_told_best_first(scores: list[Score]) -> None:
    """A route holds every score, best first, and the margin is the lead of the first over the second."""
    route = decide(scores, THRESHOLDS)
    assert sorted(route.scores, key=lambda one: one.specialty) == sorted(scores, key=lambda one: one.specialty)
    values = [one.score for one in route.scores]
    assert values == sorted(values, reverse=True)
    if len(values) > 1:
        assert route.margin == values[0] - values[1]
    else:
        assert route.margin == (values[0] if values else 0.0)


@given(scores=SCORES, data=st.data())
def test_the_order_of_the_scores_does_not_matter(scores: list[Score], data: st.DataObject) -> None:
    """The same scores in another order give the same route."""
    assert decide(data.draw(st.permutations(scores)), THRESHOLDS) == decide(scores, THRESHOLDS)


@given(scores=SCORES)
def test_a_decision_can_be_replayed_from_a_file(scores: list[Score]) -> None:
    """A route that was written down as JSON gives itself again when its scores are decided anew."""
    route = decide(scores, THRESHOLDS)
    read = msgspec.json.decode(json.dumps(json.loads(msgspec.json.encode(route))), type=Route)
    assert decide(read.scores, THRESHOLDS) == read == route
