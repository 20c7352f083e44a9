"""Why a question goes where it goes: the threshold that decided, and the examples that came nearest."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct

from hlo.records import Route
from hlo.routing.bank import Bank
from hlo.routing.decision import Thresholds

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Neighbour(Struct, frozen=True):
    """An example: its cosine with the question, its group, its place there, and its words where the author gave them.

    `background`: the group stands for what no specialty answers.
    """

    cosine: float
    group: str
    place: int
    text: str
    background: bool


def nearest(bank: Bank, question: NDArray[np.float32], most: int) -> tuple[Neighbour, ...]:
    """The `most` examples of all groups that are nearest to a unit vector, shape (dimension,), the nearest first."""
    found = [
        Neighbour(float(cosine), group.name, place, group.texts[place] if group.texts else "", background)
        for groups, background in ((bank.specialties, False), (bank.background, True))
        for group in groups
        for place, cosine in enumerate(group.examples @ question)
    ]
    return tuple(sorted(found, key=lambda one: (-one.cosine, one.group, one.place))[:most])


def reason(route: Route, thresholds: Thresholds) -> str:
    """Which threshold made the route what it is, and by how much, in one or two sentences."""
    if not route.scores:
        return "Out of scope: there is no specialty to go to."
    inside, best = 1 - route.out_of_scope, route.scores[0]
    scope = f"That any specialty fits has probability {inside:.3f}"
    if route.status == "out_of_scope":
        return (
            f"Out of scope: {scope[0].lower()}{scope[1:]}, {_apart(inside, thresholds.min_in_scope, 'min_in_scope')}."
        )
    scope = f"{scope}, {_apart(inside, thresholds.min_in_scope, 'min_in_scope')}."
    if len(route.scores) == 1:
        return f"{scope} Routed: there is no other specialty."
    verdict = "Ambiguous" if route.status == "ambiguous" else "Routed"
    apart = _apart(best.probability, thresholds.min_probability, "min_probability")
    return f"{scope} {verdict}: that {best.specialty} fits has {best.probability:.3f}, {apart}."


def _apart(value: float, threshold: float, name: str) -> str:
    if value < threshold:
        return f"{threshold - value:.3f} below {name} ({threshold:g})"
    return f"{value - threshold:.3f} above {name} ({threshold:g})"
