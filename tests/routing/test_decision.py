"""The decision: pure, and the same for ever."""

from __future__ import annotations

import json
import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hlo.records import Route, Score
from hlo.routing.bank import CONCENTRATION, Comparison, ranked
from hlo.routing.decision import Scale, Thresholds, decide, decide_later, probabilities, stay

SCALE = Scale(gain=1.0, handicap=-0.03, floor=0.3)
THRESHOLDS = Thresholds(min_in_scope=0.25, min_probability=0.6)
COSINES = st.floats(-1, 1, allow_nan=False)
TABLES = st.dictionaries(st.text("abcdef", min_size=1, max_size=3), COSINES, max_size=8)
COMPARISONS = st.builds(
    lambda table, background: Comparison(ranked(Score(*pair) for pair in table.items()), background),
    TABLES,
    st.none() | COSINES,
)
SCALES = st.builds(Scale, st.floats(0.05, 4), st.floats(-0.5, 0.5), st.floats(-0.5, 0.9))


def compared(scores: dict[str, float], background: float | None = None) -> Comparison:
    return Comparison(ranked(Score(*pair) for pair in scores.items()), background)


def apart(odds: float) -> float:
    """How far apart two scores are, of which one is so many times as probable as the other."""
    return math.log(odds) / CONCENTRATION


@pytest.mark.parametrize(
    ("scores", "background", "status", "specialty"),
    [
        ({}, None, "out_of_scope", None),
        ({}, 0.5, "out_of_scope", None),
        ({"a": 0.9, "b": 0.1}, None, "routed", "a"),
        ({"a": 0.1, "b": 0.9}, None, "routed", "b"),
        ({"a": 0.9, "b": 0.1}, 0.92, "ambiguous", "a"),
        ({"a": 0.5, "b": 0.5}, 0.9, "out_of_scope", None),
        ({"b": 0.6, "a": 0.6}, None, "ambiguous", "a"),
        ({"a": 0.3 + apart(0.34), "b": -1.0}, None, "ambiguous", "a"),
        ({"a": 0.3 + apart(0.33), "b": -1.0}, None, "out_of_scope", None),
        ({"a": 0.9, "b": 0.9 - apart(1.6)}, None, "routed", "a"),
        ({"a": 0.9, "b": 0.9 - apart(1.4)}, None, "ambiguous", "a"),
        ({"a": 0.2}, None, "out_of_scope", None),
        ({"a": -1.0, "b": -0.5}, None, "out_of_scope", None),
    ],
)
def test_decisions(scores: dict[str, float], background: float | None, status: str, specialty: str | None) -> None:
    """Too little probability for any is out of scope, too little for the best is ambiguous; equal scores go by name."""
    route = decide(compared(scores, background), SCALE, THRESHOLDS)
    assert (route.status, route.specialty, route.pinned_by) == (status, specialty, None)


def test_thresholds_of_zero_decide_for_the_first() -> None:
    """Without thresholds nothing is out of scope or ambiguous, not even equal scores far from everything."""
    route = decide(compared({"b": -0.5, "a": -0.5}, 0.9), SCALE, Thresholds(0.0, 0.0))
    assert (route.status, route.specialty, route.candidates) == ("routed", "a", ())


def test_a_lone_specialty_is_never_ambiguous() -> None:
    """Where there is no second specialty, the margin is the score itself and the route is not ambiguous."""
    route = decide(compared({"a": 0.3}), SCALE, Thresholds(0.25, 1.0))
    assert (route.status, route.margin, route.candidates) == ("routed", 0.3, ())


def test_probabilities_by_hand() -> None:
    """The odds are those of the densities, with floor and background added up as what is out of scope."""
    top = 0.3 + apart(4)
    found, outside = probabilities(compared({"a": top, "b": 0.3}, 0.33), SCALE)
    # a 4, b 1, floor 1, background 1 (0.33 with the handicap)
    assert {one.specialty: one.probability for one in found} == pytest.approx({"a": 4 / 7, "b": 1 / 7})
    assert outside == pytest.approx(2 / 7)
    _, alone = probabilities(compared({"a": top, "b": 0.3}), SCALE)
    assert alone == pytest.approx(1 / 6)


def test_the_gain_sharpens() -> None:
    """A gain of two squares the odds."""
    scores = compared({"a": 0.3 + apart(3), "b": 0.3})
    (one, _), _ = probabilities(scores, Scale(2.0, 0.0, 0.3))
    assert one.probability == pytest.approx(9 / 11)


@given(comparison=COMPARISONS, scale=SCALES)
def test_probabilities_sum_to_one(comparison: Comparison, scale: Scale) -> None:
    """Whatever was compared, the probabilities of all specialties and of none sum to one, and each is one."""
    found, outside = probabilities(comparison, scale)
    assert outside + sum(one.probability for one in found) == pytest.approx(1)
    assert all(0 <= value <= 1 for value in (outside, *(one.probability for one in found)))
    assert [(one.specialty, one.score) for one in found] == [(one.specialty, one.score) for one in comparison.scores]
    values = [one.probability for one in found]
    assert values == sorted(values, reverse=True)


@given(
    comparison=COMPARISONS.filter(lambda one: bool(one.scores)), rise=st.floats(0, 0.5), scale=SCALES, data=st.data()
)
def test_a_higher_score_is_more_probable(
    comparison: Comparison, rise: float, scale: Scale, data: st.DataObject
) -> None:
    """When one score rises, its own probability does not fall, and no other rises, out of scope among them."""
    riser = data.draw(st.sampled_from([one.specialty for one in comparison.scores]))
    table = {one.specialty: one.score + (rise if one.specialty == riser else 0) for one in comparison.scores}
    before, outside_before = probabilities(comparison, scale)
    after, outside_after = probabilities(compared(table, comparison.background), scale)
    was = {one.specialty: one.probability for one in before}
    tolerance = 1e-9
    for one in after:
        if one.specialty == riser:
            assert one.probability >= was[riser] - tolerance
        else:
            assert one.probability <= was[one.specialty] + tolerance
    assert outside_after <= outside_before + tolerance


@given(comparison=COMPARISONS, rise=st.floats(0, 0.5))
def test_a_nearer_background_is_less_in_scope(comparison: Comparison, rise: float) -> None:
    """The nearer the background, the more probable is out of scope; without any it is least."""
    _, least = probabilities(Comparison(comparison.scores), SCALE)
    near = comparison.background or 0.0
    _, outside = probabilities(Comparison(comparison.scores, near), SCALE)
    _, more = probabilities(Comparison(comparison.scores, near + rise), SCALE)
    assert least <= outside + 1e-9
    assert outside <= more + 1e-9


@given(comparison=COMPARISONS)
def test_a_route_tells_all(comparison: Comparison) -> None:
    """A route holds every score, best first, the lead of the first over the second, and what is out of scope."""
    route = decide(comparison, SCALE, THRESHOLDS)
    found, outside = probabilities(comparison, SCALE)
    assert (route.scores, route.out_of_scope) == (found, outside if found else 1.0)
    values = [one.score for one in route.scores]
    if len(values) > 1:
        assert route.margin == values[0] - values[1]
    else:
        assert route.margin == (values[0] if values else 0.0)
    assert (route.specialty is None) == (route.status == "out_of_scope")


@given(comparison=COMPARISONS)
def test_candidates_of_what_is_ambiguous(comparison: Comparison) -> None:
    """Only what is ambiguous has candidates: the best two to five, as few as hold nine tenths of the probability."""
    route = decide(comparison, SCALE, THRESHOLDS)
    if route.status != "ambiguous":
        assert route.candidates == ()
        return
    count = len(route.candidates)
    assert 2 <= count <= min(5, len(route.scores))
    assert route.candidates == tuple(one.specialty for one in route.scores[:count])
    wanted = 0.9 * sum(one.probability for one in route.scores)
    held = [sum(one.probability for one in route.scores[:number]) for number in range(count + 1)]
    assert held[count] >= wanted or count == min(5, len(route.scores))
    assert count == 2 or held[count - 1] < wanted


@pytest.mark.parametrize(("alike", "count"), [(2, 2), (3, 3), (4, 4), (5, 5), (6, 5), (8, 5)])
def test_as_many_candidates_as_are_alike(alike: int, count: int) -> None:
    """Specialties that are equally near are candidates together, up to five."""
    scores = dict.fromkeys("abcdefgh"[:alike], 0.8) | {"z": 0.1}
    assert decide(compared(scores), SCALE, THRESHOLDS).candidates == tuple("abcde"[:count])


@given(comparison=COMPARISONS, scale=SCALES)
def test_a_decision_can_be_replayed_from_a_file(comparison: Comparison, scale: Scale) -> None:
    """A comparison that was written down as JSON gives the same route when it is decided anew; so reads the route."""
    route = decide(comparison, scale, THRESHOLDS)
    written = json.dumps(json.loads(msgspec.json.encode(comparison)))
    assert decide(msgspec.json.decode(written, type=Comparison), scale, THRESHOLDS) == route
    assert msgspec.json.decode(msgspec.json.encode(route), type=Route) == route


def test_staying_helps_the_conversations_specialty() -> None:
    """The specialty of a conversation comes nearer by the same for every question, the others stay, all are ranked."""
    before = compared({"a": 0.6, "b": 0.55, "c": 0.2}, 0.4)
    after = stay(before, "b", None)
    assert [one.specialty for one in after.scores] == ["b", "a", "c"]
    gain = after.scores[0].score - 0.55
    assert gain > 0
    assert {one.specialty: one.score for one in after.scores} == {"a": 0.6, "b": 0.55 + gain, "c": 0.2}
    assert after.background == 0.4
    assert stay(compared({"b": 0.1}), "b", None).scores[0].score == pytest.approx(0.1 + gain)


def test_a_specialty_outside_the_shortlist_can_stay() -> None:
    """Where the conversation's specialty is not among the nearest, a question that says "go on" goes to it still."""
    before = compared({"a": 0.3, "b": 0.2}, 0.4)
    assert stay(before, "z", None).scores[-1].specialty == "z"
    assert stay(before, "z", 0.9).scores[0].specialty == "z"


@given(
    comparison=COMPARISONS,
    specialty=st.sampled_from(["a", "b", "zz"]),
    follow_up=st.floats(-1, 1),
    rise=st.floats(0, 0.5),
)
def test_a_follow_up_stays(comparison: Comparison, specialty: str, follow_up: float, rise: float) -> None:
    """The more a question sounds like a follow-up, the nearer is the conversation's specialty; no other is moved."""
    found = [stay(comparison, specialty, near) for near in (None, follow_up, follow_up + rise)]
    own = [next(one.score for one in each.scores if one.specialty == specialty) for each in found]
    assert own == sorted(own)
    others = {one for one in comparison.scores if one.specialty != specialty}
    for each in found:
        assert {one for one in each.scores if one.specialty != specialty} == others
        assert each.scores == ranked(each.scores)
        assert each.background == comparison.background


@pytest.mark.parametrize(("other", "specialty"), [(0.9, "b"), (0.55, "a")])
def test_a_clear_new_topic_ends_the_staying(other: float, specialty: str) -> None:
    """A later turn leaves its conversation's specialty for one to which it clearly belongs, follow-up or not."""
    comparison = Comparison((Score("b", other), Score("a", 0.5)), None)
    found = decide_later(comparison, "a", 0.9 if other == 0.9 else None, Scale(), Thresholds(0.0, 0.0))
    assert found.specialty == specialty
    assert decide(comparison, Scale(), Thresholds(0.0, 0.0)).specialty == "b"
