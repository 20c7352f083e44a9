"""How well questions are routed whose specialty is known: shares with intervals, reliability, who gets whose."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from msgspec import Struct

from hlo.records import Route
from hlo.routing.bank import Comparison
from hlo.routing.decision import Scale, Thresholds, decide
from hlo.routing.intervals import Share, share
from hlo.routing.labelled import Labelled

NOWHERE = "out_of_scope"
"""What stands in the place of a specialty's name for questions that go to none, and for those that none fits."""

BINS = 10


class Specialist(Struct, frozen=True):
    """One specialty. `recall`: of its questions, those that go there. `precision`: of what goes there, the right."""

    specialty: str
    recall: Share
    precision: Share


class Bin(Struct, frozen=True):
    """The questions whose best specialty has a probability from `low` up to `high`.

    `probability` is its mean (None where there are no questions), `right` how often that specialty is right.
    """

    low: float
    high: float
    probability: float | None
    right: Share


class Confusion(Struct, frozen=True):
    """How many questions of each row's specialty go to each column's."""

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]


class Evaluation(Struct, frozen=True):
    """What became of labelled questions. A question goes where its route says, ambiguous ones to the first candidate.

    `first` and `second`: of the questions that have a specialty, those where it is the best, or among the two best, by
    score alone; `first_also` and `second_also` are content with any specialty in `also`. `routed` and `ambiguous` are
    shares of all questions; `errors` of the routed ones, where the specialty is not right; `kept` of those that have a
    specialty, not told out of scope; `rejected` of those that have none, told out of scope. `calibration_error` is the
    expected difference between the best specialty's probability and how often it is right, over `reliability`'s bins
    (Naeini, Cooper, Hauskrecht, AAAI 2015).
    """

    questions: int
    in_scope: int
    first: Share
    first_also: Share
    second: Share
    second_also: Share
    routed: Share
    ambiguous: Share
    errors: Share
    kept: Share
    rejected: Share
    specialties: tuple[Specialist, ...]
    calibration_error: float
    reliability: tuple[Bin, ...]
    confusion: Confusion


def evaluate(
    comparisons: Sequence[Comparison],
    labels: Sequence[Labelled],
    scale: Scale,
    thresholds: Thresholds,
    specialties: Sequence[str] = (),
) -> Evaluation:
    """Decide every comparison and look at its label. `specialties` are all that exist, where not every one is named."""
    rows = [(decide(one, scale, thresholds), label) for one, label in zip(comparisons, labels, strict=True)]
    inside = [(route, label) for route, label in rows if label.specialty is not None]
    outside = [(route, label) for route, label in rows if label.specialty is None]
    routed = [(route, label) for route, label in rows if route.status == "routed"]
    named = {score.specialty for one in comparisons for score in one.scores}
    named |= {label.specialty for label in labels if label.specialty is not None}
    names = (*specialties, *sorted(named - set(specialties)))
    bins = reliability([_best(route) for route, _ in rows], [_best_is_right(route, label) for route, label in rows])
    return Evaluation(
        questions=len(rows),
        in_scope=len(inside),
        first=_among(inside, 1, also=False),
        first_also=_among(inside, 1, also=True),
        second=_among(inside, 2, also=False),
        second_also=_among(inside, 2, also=True),
        routed=share(len(routed), len(rows)),
        ambiguous=share(sum(route.status == "ambiguous" for route, _ in rows), len(rows)),
        errors=share(sum(is_wrong(route, label) for route, label in routed), len(routed)),
        kept=share(sum(route.status != "out_of_scope" for route, _ in inside), len(inside)),
        rejected=share(sum(route.status == "out_of_scope" for route, _ in outside), len(outside)),
        specialties=tuple(_specialist(name, rows) for name in names),
        calibration_error=expected_error(bins),
        reliability=bins,
        confusion=_confusion(rows, names),
    )


def is_wrong(route: Route, label: Labelled) -> bool:
    """Whether a route names a specialty that is not right; one that names none is not wrong."""
    return route.specialty is not None and not label.accepts(route.specialty)


def reliability(probabilities: Sequence[float], right: Sequence[bool]) -> tuple[Bin, ...]:
    """Predictions in ten bins of equal width, with how often they are right."""
    bins: list[list[tuple[float, bool]]] = [[] for _ in range(BINS)]
    for probability, hit in zip(probabilities, right, strict=True):
        bins[bin_of(probability)].append((probability, hit))
    return tuple(
        Bin(
            low=number / BINS,
            high=(number + 1) / BINS,
            probability=sum(probability for probability, _ in rows) / len(rows) if rows else None,
            right=share(sum(hit for _, hit in rows), len(rows)),
        )
        for number, rows in enumerate(bins)
    )


def bin_of(probability: float) -> int:
    """Which of the ten bins a probability falls into, from 0; the last one holds 1 as well."""
    return min(int(probability * BINS), BINS - 1)


def expected_error(bins: Sequence[Bin]) -> float:
    """The mean difference between probability and share of right ones, each bin weighted by its questions."""
    total = sum(one.right.of for one in bins)
    apart = sum(
        one.right.of * abs(one.probability - one.right.value)
        for one in bins
        if one.probability is not None and one.right.value is not None
    )
    return apart / total if total else 0.0


def _best(route: Route) -> float:
    return route.scores[0].probability if route.scores else 0.0


def _best_is_right(route: Route, label: Labelled) -> bool:
    return bool(route.scores) and label.accepts(route.scores[0].specialty)


def _among(rows: Sequence[tuple[Route, Labelled]], best: int, *, also: bool) -> Share:
    """Of questions that have a specialty, those with a right one among the `best`."""
    hits = sum(
        any(one.specialty == label.specialty or (also and label.accepts(one.specialty)) for one in route.scores[:best])
        for route, label in rows
    )
    return share(hits, len(rows))


def _specialist(name: str, rows: Sequence[tuple[Route, Labelled]]) -> Specialist:
    own = [route for route, label in rows if label.specialty == name]
    got = [label for route, label in rows if route.specialty == name]
    return Specialist(
        name,
        recall=share(sum(route.specialty == name for route in own), len(own)),
        precision=share(sum(label.accepts(name) for label in got), len(got)),
    )


def _confusion(rows: Sequence[tuple[Route, Labelled]], names: Sequence[str]) -> Confusion:
    counts = Counter((label.specialty or NOWHERE, route.specialty or NOWHERE) for route, label in rows)
    places = (*names, NOWHERE)
    return Confusion(places, places, tuple(tuple(counts[row, column] for column in places) for row in places))
