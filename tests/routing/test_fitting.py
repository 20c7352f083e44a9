"""Fitting: a scale, and thresholds whose promises hold."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from hlo.errors import CalibrationError
from hlo.records import Score
from hlo.routing.bank import CONCENTRATION, Comparison, ranked
from hlo.routing.decision import Scale, Thresholds, decide, probabilities
from hlo.routing.fitting import GRID, Told, calibrate, conformal_floor, fit_scale, passing
from hlo.routing.labelled import Labelled

if TYPE_CHECKING:
    from numpy.typing import NDArray

NAMES = ("cardiology", "neurology", "oncology")


class Drawn:
    """Questions of a known make: three specialties, and a fifth of questions that belong to none.

    `scores` has shape (questions, 3), `background` (questions,), and `labels` holds 0 to 2, or 3 for none.
    """

    def __init__(self, random_: np.random.Generator, questions: int, spread: float = 0.055) -> None:
        self.labels = random_.choice(4, questions, p=(0.3, 0.3, 0.2, 0.2))
        near = np.full((questions, 4), 0.36)
        near[np.arange(questions), self.labels] = 0.5
        near += random_.normal(0, spread, near.shape)
        self.scores, self.background = near[:, :3], near[:, 3]

    def rows(self, prefix: str = "") -> tuple[list[Comparison], list[Labelled]]:
        """The same as comparisons and labels, each question with words of its own."""
        comparisons = [
            Comparison(
                ranked(Score(name, float(score)) for name, score in zip(NAMES, line, strict=True)), float(background)
            )
            for line, background in zip(self.scores, self.background, strict=True)
        ]
        labels = [
            Labelled(f"{prefix} question {number}", NAMES[label] if label < 3 else None)
            for number, label in enumerate(self.labels.tolist())
        ]
        return comparisons, labels

    def decided(self, scale: Scale) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
        """By the definition of `Scale`: that any specialty fits, that the best one does, and whether that is wrong."""
        steepness = scale.gain * CONCENTRATION
        inside = np.exp(steepness * self.scores)
        outside = np.exp(steepness * (self.background + scale.handicap)) + math.exp(steepness * scale.floor)
        total = inside.sum(axis=1) + outside
        best = inside.argmax(axis=1)
        return inside.sum(axis=1) / total, inside.max(axis=1) / total, best != self.labels


def test_the_same_questions_give_the_same() -> None:
    """A calibration depends on the questions, and not on their order."""
    comparisons, labels = Drawn(np.random.default_rng(1), 500).rows()
    first = calibrate(comparisons, labels, NAMES)
    mixed = list(zip(comparisons, labels, strict=True))
    random.Random(1).shuffle(mixed)
    assert calibrate([one for one, _ in mixed], [label for _, label in mixed], NAMES) == first


def test_what_is_told_is_counted() -> None:
    """The counts are those of the split, and the results and histograms those of the questions left to decide."""
    comparisons, labels = Drawn(np.random.default_rng(2), 600).rows()
    found = calibrate(comparisons, labels, NAMES)
    counts, results = found.counts, found.results
    setting = counts.in_scope + counts.out_of_scope
    assert counts.fitting + setting == 600
    assert counts.fitting == pytest.approx(200, abs=40)
    assert (results.routed.of, results.ambiguous.of) == (setting, setting)
    assert (results.kept.of, results.rejected.of) == (counts.in_scope, counts.out_of_scope)
    assert results.errors.of == results.routed.count
    assert results.errors_at_most <= 0.05
    assert set(found.histograms) == set(NAMES)
    assert sum(map(sum, found.histograms.values())) == setting
    highest = math.ceil(found.thresholds.min_probability * 10)
    assert sum(sum(row[highest:]) for row in found.histograms.values()) <= results.routed.count


def test_at_most_so_many_are_rejected() -> None:
    """Among n questions that have a specialty, floor((n + 1) epsilon) - 1 are below the threshold."""
    comparisons, labels = Drawn(np.random.default_rng(3), 600).rows()
    for epsilon in (0.01, 0.03, 0.05):
        found = calibrate(comparisons, labels, NAMES, epsilon=epsilon)
        lost = found.results.kept.of - found.results.kept.count
        assert lost == math.floor((found.results.kept.of + 1) * epsilon) - 1


def test_fewer_are_rejected_where_the_thresholds_would_cross() -> None:
    """Where `min_in_scope` would be above every threshold that passed, it is lowered to the highest of them."""
    comparisons, labels = Drawn(np.random.default_rng(3), 600).rows()
    found = calibrate(comparisons, labels, NAMES, epsilon=0.3)
    assert found.thresholds.min_in_scope == found.thresholds.min_probability
    assert found.results.kept.count > 0.7 * found.results.kept.of
    assert found.results.errors_at_most <= 0.05


@given(
    scores=st.lists(st.floats(-1, 1), min_size=2, max_size=6),
    background=st.none() | st.floats(-1, 1),
    limits=st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
def test_the_higher_threshold_decides_alone(
    scores: list[float], background: float | None, limits: tuple[float, float]
) -> None:
    """With `min_probability` no lower than `min_in_scope`, a question is routed exactly if its best one reaches it."""
    found = Comparison(ranked(Score(str(number), score) for number, score in enumerate(scores)), background)
    thresholds = Thresholds(min(limits), max(limits))
    best, outside = probabilities(found, Scale())
    if abs(1 - outside - thresholds.min_in_scope) > 1e-9:
        routed = decide(found, Scale(), thresholds).status == "routed"
        assert routed == (best[0].probability >= thresholds.min_probability)


@pytest.mark.parametrize("seed", range(5))
def test_the_thresholds_are_in_order(seed: int) -> None:
    """`min_probability` is never below `min_in_scope`, also where all questions are told apart with ease."""
    for spread in (0.01, 0.05):
        comparisons, labels = Drawn(np.random.default_rng(seed), 700, spread).rows()
        thresholds = calibrate(comparisons, labels, NAMES).thresholds
        assert 0 <= thresholds.min_in_scope <= thresholds.min_probability <= 0.99


def test_more_errors_tolerated_route_more() -> None:
    """Who tolerates more errors gets more questions routed."""
    comparisons, labels = Drawn(np.random.default_rng(5), 2000, 0.07).rows()
    routed = [calibrate(comparisons, labels, NAMES, alpha=alpha).results.routed.count for alpha in (0.05, 0.1, 0.2)]
    assert routed == sorted(set(routed))


# The promises, by simulation.

RUNS, ALPHA, DELTA = 400, 0.05, 0.05
MOST = int(stats.binom.ppf(0.999, RUNS, DELTA))


class Steps:
    """A world in which probabilities lie evenly between 0 and 1, and errors depend on them in steps.

    `levels` are (from, to, share of errors there).
    """

    def __init__(self, *levels: tuple[float, float, float]) -> None:
        self.levels = levels

    def drawn(self, random_: np.random.Generator, questions: int) -> Told:
        """Questions of this world."""
        probability = random_.random(questions)
        share = sum((low <= probability) * (probability < high) * level for low, high, level in self.levels)
        return Told(probability, random_.random(questions) < share)

    def error(self, threshold: float) -> float:
        """The true share of errors from a threshold on; 0 from 1 on, where nothing is routed."""
        if threshold >= 1:
            return 0.0
        return sum(max(high - max(low, threshold), 0) * level for low, high, level in self.levels) / (1 - threshold)


EASY = Steps((0.5, 1.0, 0.01), (0.0, 0.5, 0.3))
STEEP = Steps((0.4, 1.0, 0.0), (0.0, 0.4, 0.9))
RISING = Steps((0.8, 1.0, 0.058), (0.6, 0.8, 0.01), (0.0, 0.6, 0.2))  # worse again where the router is surest


@pytest.mark.parametrize(
    ("world", "questions", "often"),
    [(EASY, 600, 0.6), (EASY, 2000, 0.95), (STEEP, 300, 0.6), (STEEP, 1000, 0.95), (RISING, 900, 0)],
    ids=["easy", "easy and many", "steep", "steep and many", "rising"],
)
def test_the_tolerated_error_is_kept(world: Steps, questions: int, often: float) -> None:
    """The true error is above alpha in at most a share delta of calibrations; the naive choice is so in far more."""
    random_ = np.random.default_rng(6)
    broken = naive = found = 0
    for _ in range(RUNS):
        fitting = world.drawn(random_, questions // 3)
        setting = world.drawn(random_, questions - questions // 3)
        try:
            chosen = min(passing(fitting, setting, ALPHA, DELTA))
        except CalibrationError:
            chosen = 1.0
        found += chosen < 1
        broken += world.error(chosen) > ALPHA
        counted = [(one, *setting.above(one)) for one in GRID]
        low = [one for one, wrong, routed in counted if routed and wrong / routed <= ALPHA]
        naive += world.error(min(low, default=1.0)) > ALPHA
    assert broken <= MOST
    assert naive > 2 * MOST
    assert found >= often * RUNS


@pytest.mark.parametrize(("questions", "epsilon"), [(19, 0.05), (50, 0.05), (200, 0.1), (9, 0.1)])
def test_the_share_that_is_rejected_is_kept_on_average(questions: int, epsilon: float) -> None:
    """A new question is below the conformal threshold with a probability of at most epsilon, and hardly less."""
    random_ = np.random.default_rng(8)
    # Even between 0 and 1, the threshold itself is the probability to be below it.
    floors = [conformal_floor(random_.random(questions), epsilon) for _ in range(4000)]
    error = 4 * float(np.std(floors)) / math.sqrt(len(floors))
    assert np.mean(floors) <= epsilon + error
    assert np.mean(floors) >= epsilon - 1 / (questions + 1) - error


def test_both_promises_hold_together() -> None:
    """Calibrations from end to end err and reject as promised on the whole population that they were drawn from."""
    random_ = np.random.default_rng(9)
    population = Drawn(random_, 40_000, 0.06)
    runs, broken = 60, 0
    rejected: list[float] = []
    routed: list[float] = []
    for run in range(runs):
        try:
            found = calibrate(*Drawn(random_, 700, 0.06).rows(str(run)), NAMES, alpha=ALPHA, delta=DELTA)
        except CalibrationError:
            continue  # nothing is promised
        inside, best, wrong = population.decided(found.scale)
        chosen = (best >= found.thresholds.min_probability) & (inside >= found.thresholds.min_in_scope)
        broken += bool(wrong[chosen].mean() > ALPHA)
        rejected.append((inside[population.labels < 3] < found.thresholds.min_in_scope).mean())
        routed.append(chosen.mean())
    assert len(routed) > 0.8 * runs
    assert np.mean(routed) > 0.3
    assert broken <= stats.binom.ppf(0.999, runs, DELTA)
    assert 0.03 < np.mean(rejected) <= 0.05 + 4 * np.std(rejected) / math.sqrt(len(rejected))


# The scale.


def test_probabilities_come_to_mean_what_they_say() -> None:
    """Scores whose probabilities are too shy are scaled until the likelihood of the labels is that of the truth."""
    truth = Scale(gain=2.0, handicap=0.04, floor=0.25)
    random_ = np.random.default_rng(10)
    scores, background = random_.normal(0.3, 0.08, (3000, 3)), random_.normal(0.25, 0.08, 3000)
    comparisons, labels = [], []
    for number, (line, other) in enumerate(zip(scores, background, strict=True)):
        one = Comparison(ranked(Score(name, float(score)) for name, score in zip(NAMES, line, strict=True)), other)
        chances, outside = probabilities(one, truth)
        places = [*(score.specialty for score in chances), None]
        drawn = random_.choice(4, p=[*(score.probability for score in chances), outside])
        comparisons.append(one)
        labels.append(Labelled(str(number), places[drawn]))
    found = fit_scale(comparisons, labels)
    assert found.gain == pytest.approx(truth.gain, rel=0.1)
    assert found.handicap == pytest.approx(truth.handicap, abs=0.03)
    assert found.floor == pytest.approx(truth.floor, abs=0.05)


def test_no_questions_leave_the_default() -> None:
    """Without questions, the scale is the default."""
    assert fit_scale([], []) == Scale()


@pytest.mark.parametrize("seed", range(4))
def test_few_questions_stay_near_the_default(seed: int) -> None:
    """Ten questions, and even ten that are all of one kind, lead to a scale that makes sense."""
    drawn = Drawn(np.random.default_rng(seed), 200)
    comparisons, labels = drawn.rows()
    for kind in (None, 0, 3):
        rows = [(c, q) for c, q, k in zip(comparisons, labels, drawn.labels, strict=True) if kind in (None, k)][:10]
        found = fit_scale([one for one, _ in rows], [label for _, label in rows])
        assert 0.5 <= found.gain <= 3
        assert abs(found.handicap) <= 0.25
        assert abs(found.floor - Scale().floor) <= 0.25


def test_whatever_is_right_counts() -> None:
    """A question to which two specialties are right is no reason to tell these two apart more sharply."""
    one = Comparison((Score("a", 0.5), Score("b", 0.4)), 0.1)
    apart = fit_scale([one] * 40, [Labelled(str(number), "a") for number in range(40)])
    together = fit_scale([one] * 40, [Labelled(str(number), "a", ("b",)) for number in range(40)])
    assert apart.gain > together.gain


def test_a_label_that_was_not_compared_does_no_harm() -> None:
    """Where the label is not even among the nearest specialties, the fit is finite."""
    found = fit_scale([Comparison((Score("a", 0.5), Score("b", 0.3)))] * 5, [Labelled("q", "c")] * 5)
    assert all(math.isfinite(one) for one in (found.gain, found.handicap, found.floor))


# What can not be calibrated.


def test_too_few_questions_for_the_rejected_share() -> None:
    """Too few questions with a specialty are refused with how many are needed."""
    comparisons, labels = Drawn(np.random.default_rng(11), 24).rows()
    with pytest.raises(CalibrationError, match=r"takes 19\.") as caught:
        calibrate(comparisons, labels, NAMES)
    assert "31 questions" in caught.value.remedy
    with pytest.raises(CalibrationError, match=r"takes 99\."):
        conformal_floor(np.ones(98), 0.01)
    assert conformal_floor(np.ones(99), 0.01) == 1


def untold(questions: int) -> tuple[Sequence[Comparison], Sequence[Labelled]]:
    """Questions whose scores say nothing."""
    drawn = Drawn(np.random.default_rng(12), questions, 0.5)
    np.random.default_rng(13).shuffle(drawn.labels)
    return drawn.rows()


def test_specialties_that_are_told_apart_too_badly() -> None:
    """Where no threshold passes, the error says how close it came, and what to do."""
    with pytest.raises(CalibrationError, match=r"below 5\.0% with 95% confidence") as caught:
        calibrate(*untold(600), NAMES)
    assert "most promising" in caught.value.message
    assert "59 routed questions" in caught.value.message
    assert "--tolerate" in caught.value.remedy
    assert "question 1" not in str(caught.value)


def test_fewer_questions_than_could_pass() -> None:
    """Where all are right, but there are too few, the error says how many it takes."""
    comparisons, labels = Drawn(np.random.default_rng(13), 70, 0.01).rows()
    with pytest.raises(CalibrationError, match=r"It would take 59 routed questions"):
        calibrate(comparisons, labels, NAMES)


@pytest.mark.parametrize("names", [(), ("cardiology",)])
def test_one_specialty_is_not_calibrated(names: tuple[str, ...]) -> None:
    """With fewer than two specialties nothing is ambiguous, and there is nothing to calibrate."""
    with pytest.raises(CalibrationError, match=f"among {len(names)} specialties"):
        calibrate([], [], names)
