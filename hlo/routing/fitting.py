"""Fits a scale and thresholds to labelled questions, so that what they promise holds for more questions like them.

The questions are split once, by the hash of their words. A third fits the scale, so that probabilities mean what they
say. The others set the thresholds, with guarantees that need no assumption but that later questions are like these:

- `min_in_scope` by split conformal prediction (Vovk, Gammerman, Shafer, "Algorithmic Learning in a Random World", 2005;
  Angelopoulos and Bates, arXiv:2107.07511);
- `min_probability` by Learn then Test with fixed sequence testing (Angelopoulos, Bates, Candès, Jordan, Lei,
  arXiv:2110.01052).

As long as `min_probability` is no lower than `min_in_scope`, a question is routed if and only if its best specialty has
`min_probability`: the other threshold takes no part. So both can be set with the same questions, and neither promise
weakens the other.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from msgspec import Struct
from scipy import optimize, special

from hlo.errors import CalibrationError
from hlo.routing import intervals
from hlo.routing.bank import CONCENTRATION, Comparison
from hlo.routing.calibration import Counts, Results
from hlo.routing.decision import Scale, Thresholds, probabilities
from hlo.routing.evaluation import BINS, bin_of, evaluate
from hlo.routing.labelled import Labelled

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

GRID = tuple(round(1 - step / 100, 2) for step in range(1, 100))
"""The thresholds that are tried for `min_probability`, from 0.99 down to 0.01."""

# The prior's widths, one standard deviation: the gain's by its log, the others on the scale of a cosine. So weak that
# a hundred questions outweigh it, and strong enough that ten do not lead far from the defaults.
_WIDTHS = np.array([0.5, 0.1, 0.1])
_BOUNDS = ((-2.3, 2.3), (-0.5, 0.5), (-1.0, 1.0))
_LEAST_LOG = -20.0  # the log-probability that is reckoned for a label that was not even compared


class Fitted(Struct, frozen=True):
    """What `calibrate` found: see the fields of `Calibration` of the same names."""

    scale: Scale
    thresholds: Thresholds
    counts: Counts
    results: Results
    histograms: Mapping[str, tuple[int, ...]]


class Told(Struct, frozen=True, eq=False):
    """The probability of each question's best specialty, shape (questions,), and whether going there is wrong."""

    probability: NDArray[np.float64]
    wrong: NDArray[np.bool_]

    def above(self, threshold: float) -> tuple[int, int]:
        """How many are wrong, and how many there are, from this probability on."""
        routed = self.probability >= threshold
        return int((routed & self.wrong).sum()), int(routed.sum())


def calibrate(
    comparisons: Sequence[Comparison],
    labels: Sequence[Labelled],
    specialties: Sequence[str],
    *,
    alpha: float = 0.05,
    delta: float = 0.05,
    epsilon: float = 0.05,
) -> Fitted:
    """Fit to labelled questions; the same ones, in whatever order, always give the same.

    `alpha` is the tolerated share of errors among routed questions, `delta` the probability that it is larger all the
    same, `epsilon` the tolerated share of questions with a specialty that are told out of scope. Raises
    `CalibrationError` when there are too few questions, or the specialties are told apart too badly.
    """
    if len(specialties) < 2:
        raise CalibrationError(
            f"Routing among {len(specialties)} specialties can not be calibrated.",
            remedy="Install two at least; with one, set HLO_MIN_IN_SCOPE.",
        )
    rows = sorted(zip(labels, comparisons, strict=True), key=lambda row: row[0].text)
    fitting = [row for row in rows if _fits(row[0])]
    setting = [row for row in rows if not _fits(row[0])]
    scale = fit_scale([one for _, one in fitting], [label for label, _ in fitting])
    inside = np.array([1 - probabilities(one, scale)[1] for label, one in setting if label.specialty is not None])
    floor = conformal_floor(inside, epsilon)
    passed = passing(_told(fitting, scale), _told(setting, scale), alpha, delta)
    thresholds = _join(floor, passed)
    done = evaluate([one for _, one in setting], [label for label, _ in setting], scale, thresholds)
    return Fitted(
        scale=scale,
        thresholds=thresholds,
        counts=Counts(len(fitting), len(inside), len(setting) - len(inside)),
        results=Results(
            routed=done.routed,
            errors=done.errors,
            errors_at_most=intervals.upper(done.errors.count, done.errors.of, 1 - delta),
            ambiguous=done.ambiguous,
            kept=done.kept,
            rejected=done.rejected,
        ),
        histograms=_histograms([one for _, one in setting], scale, specialties),
    )


def fit_scale(comparisons: Sequence[Comparison], labels: Sequence[Labelled]) -> Scale:
    """The scale under which the labels are likeliest, drawn a little towards the default; without any, the default.

    A label's probability is the sum of those of all that is right.
    """
    default = Scale()
    names = sorted({score.specialty for one in comparisons for score in one.scores})
    places = {name: place for place, name in enumerate(names)}
    scores = np.full((len(comparisons), len(names)), -np.inf)
    right = np.zeros((len(comparisons), len(names)), dtype=np.bool_)
    background = np.full(len(comparisons), -np.inf)
    for row, (one, label) in enumerate(zip(comparisons, labels, strict=True)):
        for score in one.scores:
            scores[row, places[score.specialty]] = score.score
            right[row, places[score.specialty]] = label.accepts(score.specialty)
        if one.background is not None:
            background[row] = one.background
    none_right = np.array([label.accepts(None) for label in labels], dtype=np.bool_)
    start = np.array([math.log(default.gain), default.handicap, default.floor])

    def cost(parameters: NDArray[np.float64]) -> float:
        steepness = math.exp(parameters[0]) * CONCENTRATION
        logits = steepness * scores
        outside = np.logaddexp(steepness * (background + parameters[1]), steepness * parameters[2])
        everything = special.logsumexp(np.column_stack([logits, outside]), axis=1)
        wanted = np.column_stack([np.where(right, logits, -np.inf), np.where(none_right, outside, -np.inf)])
        likelihood = np.maximum(special.logsumexp(wanted, axis=1) - everything, _LEAST_LOG).sum()
        return float(-likelihood + 0.5 * (((parameters - start) / _WIDTHS) ** 2).sum())

    if not comparisons:
        return default
    found = optimize.minimize(cost, start, method="L-BFGS-B", bounds=_BOUNDS).x
    gain, handicap, floor = (round(float(one), 4) + 0.0 for one in (math.exp(found[0]), found[1], found[2]))  # no -0.0
    return Scale(gain, handicap, floor)


def conformal_floor(inside: NDArray[np.float64], epsilon: float) -> float:
    """The largest threshold that a later question is below with a probability of at most `epsilon`.

    `inside` are the probabilities that any specialty fits, of questions where one does, shape (questions,): the
    threshold is the floor((questions + 1) epsilon)-th smallest of them. Raises `CalibrationError`.
    """
    place = math.floor((len(inside) + 1) * epsilon * (1 + 1e-12))  # 20 * 0.05 is to be 1
    if place < 1:
        needed = math.ceil(1 / epsilon * (1 - 1e-12)) - 1
        raise CalibrationError(
            f"{len(inside)} questions with a specialty are left to set `min_in_scope`; to reject no more than "
            f"{epsilon:.1%} of such questions takes {needed}.",
            remedy=f"Give {math.ceil(needed * 1.6)} questions with a specialty, or more, or let it reject more.",
        )
    # Rounded down, so that the file is easy to read and fewer are rejected rather than more.
    return math.floor(float(np.sort(inside)[place - 1]) * 10_000) / 10_000


def passing(fitting: Told, setting: Told, alpha: float, delta: float) -> tuple[float, ...]:
    """The thresholds of the grid, highest first, at which at most `alpha` of the routed questions are wrong.

    With a probability of 1 - `delta` this is true of all of them. They are tested on `setting` from high to low, and
    the first that fails is the end. Where to begin is chosen with `fitting` alone: were it chosen with `setting`, even
    by mere counts, the promise would not be exact. Raises `CalibrationError` when not even the first passes.
    """
    found: list[float] = []
    start = _start(fitting, len(setting.wrong), alpha, delta)
    for threshold in GRID[start:]:
        if intervals.p_value(*setting.above(threshold), alpha) > delta:
            break
        found.append(threshold)
    if not found:
        raise _no_threshold(setting, GRID[start], alpha, delta)
    return tuple(found)


def _start(fitting: Told, questions: int, alpha: float, delta: float) -> int:
    """The place in the grid of the highest threshold that is very likely to pass with this many questions.

    Where none is, of the highest at which so many would be routed that it could pass if all were right.
    """
    ratio = questions / max(len(fitting.wrong), 1)
    expected = [(ratio * (wrong + 0.5), round(ratio * routed)) for wrong, routed in map(fitting.above, GRID)]
    for place, (wrong, routed) in enumerate(expected):
        if intervals.p_value(min(math.ceil(wrong), routed), routed, alpha) <= delta / 5:
            return place
    enough = 1.4 * intervals.fewest(alpha, delta)
    return next((place for place, (_, routed) in enumerate(expected) if routed >= enough), len(GRID) - 1)


def _join(floor: float, passed: Sequence[float]) -> Thresholds:
    """The lowest threshold that passed and is not below `floor`; where there is none, `floor` gives way.

    Each choice among those that passed keeps the promise, and a lower `floor` only rejects fewer.
    """
    high = [one for one in passed if one >= floor]
    chosen = min(high) if high else max(passed)
    return Thresholds(min(floor, chosen), chosen)


def _no_threshold(setting: Told, threshold: float, alpha: float, delta: float) -> CalibrationError:
    wrong, routed = setting.above(threshold)
    return CalibrationError(
        f"No threshold keeps the errors among routed questions below {alpha:.1%} with {1 - delta:.0%} confidence. The "
        f"most promising, {threshold:.2f}, routes {routed} of {len(setting.wrong)} questions, {wrong} of them wrongly: "
        f"that may be up to {intervals.upper(wrong, routed, 1 - delta):.1%}. It would take "
        f"{intervals.fewest(alpha, delta)} routed questions without an error, or more questions with few.",
        remedy="Give more labelled questions, tolerate more errors (--tolerate), or improve the specialties' examples.",
    )


def _fits(label: Labelled) -> bool:
    """Whether a question is of the third that fits the scale."""
    return int(hashlib.sha256(label.text.encode(errors="surrogatepass")).hexdigest()[:8], 16) % 3 == 0


def _told(rows: Sequence[tuple[Labelled, Comparison]], scale: Scale) -> Told:
    best = [(label, probabilities(one, scale)[0][0]) for label, one in rows]
    return Told(
        np.array([score.probability for _, score in best], dtype=np.float64),
        np.array([not label.accepts(score.specialty) for label, score in best], dtype=np.bool_),
    )


def _histograms(
    comparisons: Sequence[Comparison], scale: Scale, specialties: Sequence[str]
) -> Mapping[str, tuple[int, ...]]:
    counts = {name: [0] * BINS for name in specialties}
    for one in comparisons:
        best = probabilities(one, scale)[0][0]
        counts[best.specialty][bin_of(best.probability)] += 1
    return {name: tuple(row) for name, row in counts.items()}
