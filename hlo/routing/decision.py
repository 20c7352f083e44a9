"""The decision. Pure: the same comparison, scale and thresholds always give the same route, so it can be replayed."""

from __future__ import annotations

import math

from msgspec import Struct

from hlo.records import Route, RouteStatus, Score
from hlo.routing.bank import CONCENTRATION, Comparison, ranked

# What speaks for staying with a conversation's specialty, cosine-like: added to its own score, and to the question's
# nearness to what people say when they go on with what they spoke of before.
_STAYING = 0.1
_FOLLOWING = 0.1
# The probability from which on another specialty, which the question by itself goes to, ends the staying.
_CLEARLY = 0.95

# Candidates of an ambiguous question: as few as hold this share of the specialties' probability, from two to five.
_CREDIBLE = 0.9
_FEWEST, _MOST = 2, 5


class Scale(Struct, frozen=True):
    """Turns scores into probabilities: a softmax over the specialties and one class for everything else.

    `gain` multiplies all logits (1: the densities are taken at their word). `handicap` is added to the background's
    score, and `floor` is the score of a question that is near to nothing; both are cosine-like. The defaults were
    chosen on HLO's own development questions with its own encoder; `hlo route calibrate` fits them to yours.
    """

    gain: float = 1.2
    handicap: float = -0.03
    floor: float = 0.33


class Thresholds(Struct, frozen=True):
    """Where decisions change; both are probabilities.

    Below `min_in_scope`, the probability that any specialty fits, a question is out of scope. Below `min_probability`,
    that of the best specialty, it is ambiguous.
    """

    min_in_scope: float
    min_probability: float


def decide(comparison: Comparison, scale: Scale, thresholds: Thresholds) -> Route:
    """Choose a specialty, or none.

    Out of scope names no specialty. Ambiguous names the first, and the candidates; with one specialty nothing is.
    """
    scores, outside = probabilities(comparison, scale)
    if not scores:
        return Route("out_of_scope", None, out_of_scope=1.0)
    best = scores[0]
    margin = best.score - scores[1].score if len(scores) > 1 else best.score
    if 1.0 - outside < thresholds.min_in_scope:
        return Route("out_of_scope", None, scores, margin, outside)
    unclear = len(scores) > 1 and best.probability < thresholds.min_probability
    status: RouteStatus = "ambiguous" if unclear else "routed"
    return Route(status, best.specialty, scores, margin, outside, _candidates(scores) if unclear else ())


def decide_later(
    comparison: Comparison, before: str, follow_up: float | None, scale: Scale, thresholds: Thresholds
) -> Route:
    """Choose for a later turn, `before` being the specialty of the turn before it; see `stay`."""
    alone = decide(comparison, scale, thresholds)
    if alone.specialty not in (None, before) and alone.scores[0].probability >= _CLEARLY:
        return alone
    return decide(stay(comparison, before, follow_up), scale, thresholds)


def stay(comparison: Comparison, specialty: str, follow_up: float | None) -> Comparison:
    """The comparison of a later turn: its conversation's specialty is as near as what was asked makes it, or nearer.

    `follow_up` is how near the question comes to what people say when they go on ("and at night?"); such a question
    says little of any specialty, and so belongs to the one before.
    """
    own = next((one.score for one in comparison.scores if one.specialty == specialty), -1.0) + _STAYING
    if follow_up is not None:
        nearer, farther = max(own, follow_up + _FOLLOWING), min(own, follow_up + _FOLLOWING)
        own = nearer + math.log1p(math.exp(CONCENTRATION * (farther - nearer))) / CONCENTRATION
    others = (one for one in comparison.scores if one.specialty != specialty)
    return Comparison(ranked([*others, Score(specialty, own)]), comparison.background)


def probabilities(comparison: Comparison, scale: Scale) -> tuple[tuple[Score, ...], float]:
    """The scores with their probabilities, in their order, and the probability that none of the specialties fits."""
    steepness = scale.gain * CONCENTRATION
    outside = [steepness * scale.floor]
    if comparison.background is not None:
        outside.append(steepness * (comparison.background + scale.handicap))
    logits = [steepness * one.score for one in comparison.scores]
    highest = max([*outside, *logits])
    weights = [math.exp(one - highest) for one in logits]
    rest = sum(math.exp(one - highest) for one in outside)
    total = sum(weights) + rest
    scores = tuple(
        Score(one.specialty, one.score, weight / total) for one, weight in zip(comparison.scores, weights, strict=True)
    )
    return scores, rest / total


def _candidates(scores: tuple[Score, ...]) -> tuple[str, ...]:
    wanted = _CREDIBLE * sum(one.probability for one in scores)
    found: list[str] = []
    held = 0.0
    for one in scores[:_MOST]:
        if held >= wanted and len(found) >= _FEWEST:
            break
        found.append(one.specialty)
        held += one.probability
    return tuple(found)
