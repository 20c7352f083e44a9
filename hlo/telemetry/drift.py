"""Whether questions still look like those that were expected: the confidences of the latest, by specialty.

Of each question that the router decides, be it routed in the end or not, the probability of its best specialty is put
into one of ten bins; what is kept are the bins of the latest questions, and no word of any. The drift is the
Kolmogorov-Smirnov distance between them and the expected ones: the largest difference between the two shares of
questions up to any bound (Massey, "The Kolmogorov-Smirnov test for goodness of fit", JASA 1951). Unlike the population
stability index it needs no invented counts for empty bins, and it is never above 1.

Beside it stands the distance that chance alone exceeds once in a thousand: sqrt(ln(2/0.001)/2 * (n+m)/(n m)) for n
latest and m expected questions (Smirnov 1948). In bins the true probability is smaller still (Noether, "Note on the
Kolmogorov statistic in the discrete case", Metrika 1963), so no alarm is louder than it should be.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate

from msgspec import Struct

BINS = 10
LATEST = 1000
"""How many questions of a specialty are compared at most."""

ENOUGH = 10
"""How many are compared at least, on either side. For few, the formula for chance is on the careful side."""

ALL = "all"
"""What stands in the place of a specialty's name for all of them together; none can have that name."""

_ONE_IN_A_THOUSAND = math.sqrt(math.log(2 / 0.001) / 2)


class Drift(Struct, frozen=True):
    """How far one specialty's latest questions are from the expected ones; `basis` says where those come from."""

    specialty: str
    basis: str
    distance: float
    chance: float


class Drifts:
    """The latest questions of each specialty, and what is expected of them."""

    def __init__(self) -> None:
        self._basis = ""
        self._expected: Mapping[str, tuple[int, ...]] = {}
        self._latest: dict[str, _Latest] = {}

    def expect(self, basis: str, expected: Mapping[str, Sequence[int]]) -> None:
        """Compare with these from now on: questions in ten bins of probability from 0 to 1, by specialty.

        Where they are others than before, the latest questions are forgotten: they were measured by another rule.
        """
        new = {name: tuple(counts) for name, counts in expected.items()}
        before = self._expected if basis == self._basis else {}
        self._latest = {name: self._latest[name] if before.get(name) == new[name] else _Latest() for name in new}
        self._basis, self._expected = basis, new

    def saw(self, specialty: str, probability: float) -> None:
        """Take in a question whose best specialty has this probability."""
        if (latest := self._latest.get(specialty)) is not None:
            latest.add(min(int(probability * BINS), BINS - 1))

    def questions(self) -> tuple[tuple[str, int], ...]:
        """How many of the latest questions are at hand, by specialty."""
        return tuple((name, len(one.bins)) for name, one in self._latest.items())

    def drifts(self) -> Iterator[Drift]:
        """The specialties for which there are questions enough, each with its drift; and all of them together.

        With so many questions more, the latter is the sharper one; but it moves with the mix of specialties too.
        """
        pairs: list[tuple[str, Sequence[int], Sequence[int]]] = [
            (name, one.counts, self._expected[name]) for name, one in self._latest.items()
        ]
        together = (ALL, _sum(one for _, one, _ in pairs), _sum(other for _, _, other in pairs))
        for name, one, other in (*pairs, together):
            n, m = sum(one), sum(other)
            if min(n, m) >= ENOUGH:
                chance = _ONE_IN_A_THOUSAND * math.sqrt((n + m) / (n * m))
                yield Drift(name, self._basis, distance(one, other), chance)


def distance(one: Sequence[int], other: Sequence[int]) -> float:
    """The Kolmogorov-Smirnov distance between two histograms over the same bins, neither of them empty."""
    n, m = sum(one), sum(other)
    return max(abs(a / n - b / m) for a, b in zip(accumulate(one), accumulate(other), strict=True))


def _sum(histograms: Iterable[Sequence[int]]) -> list[int]:
    return [sum(column) for column in zip(*histograms, strict=True)]


class _Latest:
    """The bins of the latest questions, and how many there are of each."""

    __slots__ = ("bins", "counts")

    def __init__(self) -> None:
        self.bins: deque[int] = deque(maxlen=LATEST)
        self.counts = [0] * BINS

    def add(self, place: int) -> None:
        if len(self.bins) == LATEST:
            self.counts[self.bins[0]] -= 1
        self.bins.append(place)
        self.counts[place] += 1
