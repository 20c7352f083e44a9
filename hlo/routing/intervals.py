"""What a count tells of the share behind it: exact binomial intervals (Clopper and Pearson, Biometrika 1934).

They hold for every number of questions, also for few, and are never too narrow.
"""

from __future__ import annotations

import math

from msgspec import Struct


class Share(Struct, frozen=True, forbid_unknown_fields=True):
    """`count` of `of`, as a share (None of nothing), between the ends of its 95 % Clopper-Pearson interval."""

    count: int
    of: int
    value: float | None
    low: float
    high: float

    def __str__(self) -> str:
        return "none" if self.value is None else f"{self.value:.1%} ({self.low:.1%} to {self.high:.1%})"


def share(count: int, of: int) -> Share:
    """`count` of `of`, with its 95 % interval."""
    low, high = interval(count, of)
    return Share(count, of, count / of if of else None, low, high)


def interval(count: int, of: int, confidence: float = 0.95) -> tuple[float, float]:
    """The two-sided Clopper-Pearson interval for the share behind `count` of `of`; (0, 1) of nothing."""
    from scipy import special  # here, because a server that reads a calibration needs none of it

    _check(count, of)
    tail = (1 - confidence) / 2
    low = float(special.betaincinv(count, of - count + 1, tail)) if count else 0.0
    return low, upper(count, of, 1 - tail)


def upper(count: int, of: int, confidence: float = 0.95) -> float:
    """The one-sided upper bound: the share behind is larger with a probability of at most 1 - `confidence`."""
    from scipy import special

    _check(count, of)
    return float(special.betaincinv(count + 1, of - count, confidence)) if count < of else 1.0


def p_value(count: int, of: int, tolerated: float) -> float:
    """The probability to count this few, or fewer, if the share behind were `tolerated`; 1 of nothing."""
    from scipy import special

    _check(count, of)
    return float(special.bdtr(count, of, tolerated))


def fewest(tolerated: float, level: float) -> int:
    """How many without a single error it takes for `p_value(0, …, tolerated)` to be at most `level`."""
    return math.ceil(math.log(level) / math.log1p(-tolerated))


def _check(count: int, of: int) -> None:
    if not 0 <= count <= of:
        raise ValueError(f"{count} of {of} is no share")
