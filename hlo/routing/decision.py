"""The decision. Pure: the same scores and thresholds always give the same route, so it can be replayed from a file."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import Struct

from hlo.records import Route, RouteStatus, Score


class Thresholds(Struct, frozen=True):
    """Where decisions change; both are cosine similarities (differences of them for `min_margin`)."""

    min_score: float
    min_margin: float


def decide(scores: Iterable[Score], thresholds: Thresholds) -> Route:
    """Choose a specialty.

    Below `min_score` the question is out of scope and the route names no specialty. With a lead smaller than
    `min_margin` over the second it is ambiguous, and the route names the first. Equal scores are ordered by name, so
    that the same question always goes the same way.
    """
    ranked = tuple(sorted(scores, key=lambda one: (-one.score, one.specialty)))
    if not ranked:
        return Route("out_of_scope", None)
    best = ranked[0]
    margin = best.score - ranked[1].score if len(ranked) > 1 else best.score
    if best.score < thresholds.min_score:
        return Route("out_of_scope", None, ranked, margin)
    status: RouteStatus = "ambiguous" if len(ranked) > 1 and margin < thresholds.min_margin else "routed"
    return Route(status, best.specialty, ranked, margin)
