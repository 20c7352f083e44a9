"""Which confidences are to be expected of a router's questions, for later ones to be compared with.

Where a calibration holds, those of its questions. Else those of the specialties' own examples, each compared as if it
were none of the examples: what they say is "like the examples", which patients' own questions may never quite be.
What the router met since it was started would be no measure: each restart would call normal whatever comes then.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

import numpy as np
from msgspec import Struct

from hlo.routing.decision import probabilities
from hlo.routing.evaluation import BINS, bin_of

if TYPE_CHECKING:
    from hlo.routing.router import Router

_MOST = 64  # examples of a specialty that are compared, evenly spread; more would make the start slower, for little
_MOST_OF_ALL = 4_000  # of all specialties: a second's work or two


class Expected(Struct, frozen=True):
    """Questions in ten bins of their best specialty's probability, from 0 to 1, by specialty, and what they are."""

    basis: Literal["calibration", "examples"]
    histograms: Mapping[str, tuple[int, ...]]


def expected(router: Router) -> Expected:
    """What the router expects. Takes a second or two with hundreds of specialties: not for an event loop."""
    if router.calibrated is not None:
        return Expected("calibration", router.calibrated)
    groups = router.bank.specialties
    counts = {group.name: [0] * BINS for group in groups}
    most = max(min(_MOST, _MOST_OF_ALL // max(len(groups), 1)), 1)
    some = [group.examples[:: max(-(-len(group.examples) // most), 1)] for group in groups]
    if some:
        for comparison in router.bank.compare(np.concatenate(some), leave_out=True):
            best = probabilities(comparison, router.scale)[0][0]
            counts[best.specialty][bin_of(best.probability)] += 1
    return Expected("examples", {name: tuple(row) for name, row in counts.items()})
