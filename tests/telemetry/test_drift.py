"""Drift: how far the latest questions are from the expected ones, and what chance alone would do."""

from __future__ import annotations

import random

import pytest
from scipy import stats

from hlo import catalog
from hlo.catalog import BASE
from hlo.errors import PluginError
from hlo.records import Adapter, Specialty
from hlo.routing.evaluation import BINS, bin_of
from hlo.telemetry import drift
from hlo.telemetry.drift import ALL, ENOUGH, LATEST, Drifts, distance
from hlo.telemetry.metrics import UNKNOWN

EXPECTED = (0, 0, 0, 0, 0, 5, 10, 20, 40, 125)


def fill(drifts: Drifts, counts: tuple[int, ...], specialty: str = "a") -> None:
    """Let as many questions come in each bin."""
    for place, number in enumerate(counts):
        for _ in range(number):
            drifts.saw(specialty, place / BINS + 0.05)


def test_the_bins_are_those_of_a_calibration() -> None:
    """Drift and calibrations put a probability into the same bin, at the borders too."""
    for number in range(1001):
        drifts = Drifts()
        drifts.expect("calibration", {"a": EXPECTED})
        drifts.saw("a", number / 1000)
        assert drifts._latest["a"].counts.index(1) == bin_of(number / 1000)
    assert drift.BINS == BINS


@pytest.mark.parametrize(
    ("one", "other", "wanted"),
    [
        ((1, 0, 0), (3, 0, 0), 0.0),
        ((1, 0, 0), (0, 0, 1), 1.0),
        ((1, 1, 0), (0, 1, 1), 0.5),
        ((2, 1, 1), (1, 1, 2), 0.25),
    ],
)
def test_the_distance_is_the_largest_between_the_shares(
    one: tuple[int, ...], other: tuple[int, ...], wanted: float
) -> None:
    """Alike in shape is 0 whatever the numbers, nothing in common is 1, and it is the same both ways."""
    assert distance(one, other) == pytest.approx(wanted)
    assert distance(other, one) == pytest.approx(wanted)


def test_the_distance_is_scipys() -> None:
    """It is the statistic of scipy's two-sample Kolmogorov-Smirnov test on the bins."""
    generator = random.Random(0)
    for _ in range(50):
        one, other = ([generator.randrange(20) + 1 for _ in range(BINS)] for _ in range(2))
        spread = [[place for place, number in enumerate(counts) for _ in range(number)] for counts in (one, other)]
        assert distance(one, other) == pytest.approx(stats.ks_2samp(*spread).statistic)


def test_questions_like_the_expected_ones_do_not_drift() -> None:
    """Questions drawn as the expected ones were exceed what chance does at most once in a thousand."""
    generator = random.Random(1)
    loud = 0
    for _ in range(1000):
        drifts = Drifts()
        drifts.expect("calibration", {"a": EXPECTED})
        for place in generator.choices(range(BINS), EXPECTED, k=100):
            drifts.saw("a", place / BINS + 0.05)
        found, _ = drifts.drifts()
        loud += found.distance > found.chance
    assert loud <= 1


def test_questions_of_another_kind_drift() -> None:
    """When half of the sure ones become unsure, the distance is beyond chance within fifty questions."""
    drifts = Drifts()
    drifts.expect("calibration", {"a": EXPECTED})
    fill(drifts, (0, 0, 0, 0, 0, 15, 10, 5, 5, 15))
    found, _ = drifts.drifts()
    assert (found.specialty, found.basis) == ("a", "calibration")
    assert found.distance > found.chance


@pytest.mark.parametrize(("expected", "came"), [(ENOUGH - 1, ENOUGH), (ENOUGH, ENOUGH - 1)])
def test_few_questions_say_nothing(expected: int, came: int) -> None:
    """Where there are too few questions on either side, there is no drift to tell."""
    drifts = Drifts()
    drifts.expect("examples", {"a": (0,) * 9 + (expected,)})
    fill(drifts, (0,) * 9 + (came,))
    assert list(drifts.drifts()) == []
    assert drifts.questions() == (("a", came),)


def test_the_latest_count() -> None:
    """Only so many of the latest questions count: what was long ago is forgotten."""
    drifts = Drifts()
    drifts.expect("calibration", {"a": EXPECTED})
    fill(drifts, (LATEST, *(0,) * 9))
    found, _ = drifts.drifts()
    assert found.distance == 1
    fill(drifts, tuple(5 * count for count in EXPECTED))
    found, _ = drifts.drifts()
    assert found.distance == pytest.approx(0)
    assert drifts.questions() == (("a", LATEST),)


def test_what_nobody_expects_is_not_counted() -> None:
    """A specialty that nothing is expected of, gone or never there, has no series."""
    drifts = Drifts()
    fill(drifts, EXPECTED)
    drifts.expect("calibration", {"a": EXPECTED})
    fill(drifts, EXPECTED, "b")
    assert drifts.questions() == (("a", 0),)


def test_new_expectations_begin_anew() -> None:
    """Where something else is expected, from another basis too, the latest questions are forgotten; else they stay."""
    drifts = Drifts()
    drifts.expect("examples", {"a": EXPECTED, "b": EXPECTED})
    fill(drifts, EXPECTED)
    fill(drifts, EXPECTED, "b")
    drifts.expect("examples", {"a": EXPECTED, "b": EXPECTED[::-1]})
    assert drifts.questions() == (("a", 200), ("b", 0))
    drifts.expect("calibration", {"a": EXPECTED})
    assert dict(drifts.questions()).get("a", 0) == 0
    drifts.expect("calibration", {"c": EXPECTED})
    assert "a" not in dict(drifts.questions())


def test_all_together_are_told_too() -> None:
    """Beside each specialty stands the drift of all questions: what is too little for each alone may be enough."""
    drifts = Drifts()
    few = (0,) * 9 + (ENOUGH - 1,)
    drifts.expect("calibration", {"a": few, "b": few})
    fill(drifts, few, "a")
    fill(drifts, few[::-1], "b")
    (found,) = drifts.drifts()
    assert (found.specialty, found.distance) == ("all", 0.5)


def test_no_specialty_has_a_name_that_metrics_use() -> None:
    """The words that stand in the place of a specialty's name in metrics can be no specialty's."""
    for name in (ALL, BASE, UNKNOWN):
        with pytest.raises(PluginError, match="can not be a specialty's name"):
            catalog.check_declaration(Specialty(name, "X", Adapter("x"), examples={"p": ("x?",)}))
