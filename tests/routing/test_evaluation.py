"""What is said of labelled questions once they are routed."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hlo.records import Score
from hlo.routing.bank import Comparison
from hlo.routing.decision import Scale, Thresholds
from hlo.routing.evaluation import NOWHERE, bin_of, evaluate, expected_error, reliability
from hlo.routing.labelled import Labelled

NEVER = Thresholds(0.0, 0.0)  # nothing is ambiguous or out of scope
THRESHOLDS = Thresholds(0.5, 0.5)


def compared(background: float | None = None, **scores: float) -> Comparison:
    found = [Score(name, score) for name, score in scores.items()]
    return Comparison(tuple(sorted(found, key=lambda one: (-one.score, one.specialty))), background)


# Far apart, so that probabilities are 0 or 1 as near as makes no difference; and one question between two specialties.
ROWS = [
    (compared(a=1.0, b=0.0, c=-0.5), Labelled("1", "a")),
    (compared(a=1.0, b=0.5, c=0.0), Labelled("2", "b")),
    (compared(a=1.0, b=0.5, c=0.0), Labelled("3", "b", ("a",))),
    (compared(a=1.0, b=0.5, c=0.0), Labelled("4", "c")),
    (compared(a=0.0, b=1.0, c=1.0), Labelled("5", "c")),
    (compared(a=-1.0, b=-1.0, c=-1.0), Labelled("6", "a")),
    (compared(a=-1.0, b=-1.0, c=-1.0), Labelled("7", None)),
    (compared(a=1.0, b=0.0, c=0.0), Labelled("8", None)),
    (compared(a=1.0, b=0.0, c=0.0), Labelled("9", None, ("a",))),
    (compared(1.0, a=0.5, b=0.0, c=0.0), Labelled("10", None)),
]
COMPARISONS, LABELS = [one for one, _ in ROWS], [label for _, label in ROWS]


def test_shares() -> None:
    """Each share counts the questions that its description says."""
    done = evaluate(COMPARISONS, LABELS, Scale(), THRESHOLDS)
    assert (done.questions, done.in_scope) == (10, 6)
    counted = {
        name: (getattr(done, name).count, getattr(done, name).of)
        for name in (
            "first",
            "first_also",
            "second",
            "second_also",
            "routed",
            "ambiguous",
            "errors",
            "kept",
            "rejected",
        )
    }
    assert counted == {
        "first": (2, 6),  # 1, and 6 by the order of names
        "first_also": (3, 6),  # 3
        "second": (5, 6),  # 2, 3 and 5
        "second_also": (5, 6),
        "routed": (6, 10),  # 1, 2, 3, 4, 8, 9
        "ambiguous": (1, 10),  # 5
        "errors": (3, 6),  # 2, 4 and 8
        "kept": (5, 6),  # not 6
        "rejected": (2, 4),  # 7 and 10
    }


def test_specialties() -> None:
    """Recall counts a specialty's own questions that go there; precision those that go there and are right."""
    done = evaluate(COMPARISONS, LABELS, Scale(), THRESHOLDS, ["c", "a", "b", "d"])
    found = {
        one.specialty: (one.recall.count, one.recall.of, one.precision.count, one.precision.of)
        for one in done.specialties
    }
    assert list(found) == ["c", "a", "b", "d"]
    assert found == {"a": (1, 2, 3, 6), "b": (0, 2, 0, 1), "c": (0, 2, 0, 0), "d": (0, 0, 0, 0)}


def test_who_gets_whose() -> None:
    """Rows are the labels, columns where questions go; none is a place like the specialties."""
    confusion = evaluate(COMPARISONS, LABELS, Scale(), THRESHOLDS).confusion
    assert confusion.rows == confusion.columns == ("a", "b", "c", NOWHERE)
    assert confusion.counts == ((1, 0, 0, 1), (2, 0, 0, 0), (1, 1, 0, 0), (2, 0, 0, 2))


def test_reliability() -> None:
    """Bins hold what falls into them, the last one 1 too, and their distances are weighted by their questions."""
    bins = reliability([0.05, 0.2, 0.25, 1.0, 0.95, 0.9], [False, True, False, True, True, False])
    assert [one.right.of for one in bins] == [1, 0, 2, 0, 0, 0, 0, 0, 0, 3]
    assert [one.right.count for one in bins] == [0, 0, 1, 0, 0, 0, 0, 0, 0, 2]
    assert bins[2].probability == pytest.approx(0.225)
    assert bins[1].probability is None
    assert (bins[9].low, bins[9].high) == (0.9, 1.0)
    apart = (1 * 0.05 + 2 * (0.5 - 0.225) + 3 * (0.95 - 2 / 3)) / 6
    assert expected_error(bins) == pytest.approx(apart)
    assert expected_error(reliability([], [])) == 0


@given(probability=st.floats(0, 1))
def test_every_probability_has_a_bin(probability: float) -> None:
    """A probability falls into the bin between whose ends it lies."""
    place = bin_of(probability)
    assert 0 <= place <= 9
    assert place / 10 <= probability + 1e-9
    assert probability <= (place + 1) / 10 + 1e-9


def test_a_probability_that_is_as_sure_as_it_is_right_is_apart_by_nothing() -> None:
    """Where the best specialty is right exactly as often as it is probable, the calibration error is 0."""
    even = compared(a=0.5, b=0.5)
    labels = [Labelled("1", "a"), Labelled("2", "b")]
    done = evaluate([even, even], labels, Scale(floor=-1.0), NEVER)
    assert done.calibration_error == pytest.approx(0, abs=1e-6)


@given(
    rows=st.lists(
        st.tuples(
            st.dictionaries(st.sampled_from("abcd"), st.floats(-1, 1), min_size=2),
            st.none() | st.floats(-1, 1),
            st.none() | st.sampled_from("abcd"),
            st.lists(st.sampled_from("abcd"), max_size=2),
        ),
        max_size=20,
    )
)
def test_nothing_is_lost(rows: list[tuple[dict[str, float], float | None, str | None, list[str]]]) -> None:
    """Every question is counted once: among routes, bins and pairs; and an evaluation can be written as JSON."""
    comparisons = [compared(background, **scores) for scores, background, _, _ in rows]
    labels = [Labelled(str(number), label, tuple(also)) for number, (_, _, label, also) in enumerate(rows)]
    done = evaluate(comparisons, labels, Scale(), THRESHOLDS)
    assert sum(one.right.of for one in done.reliability) == len(rows)
    assert sum(map(sum, done.confusion.counts)) == len(rows)
    assert done.routed.count + done.ambiguous.count <= len(rows)
    assert done.kept.of + done.rejected.of == len(rows)
    assert done.first.count <= done.first_also.count <= done.second_also.count
    assert done.first.count <= done.second.count <= done.second_also.count
    assert 0 <= done.calibration_error <= 1
    assert json.loads(msgspec.json.encode(done))["questions"] == len(rows)
