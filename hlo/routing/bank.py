"""The bank: every specialty's examples as unit vectors, and how close a question comes to each specialty.

A specialty's score is the log of a kernel density, put back on the scale of a cosine: with the question's vector q, the
examples' vectors x_1 … x_n and the concentration K, it is log(mean(exp(K q·x_i))) / K. That is the density of a mixture
of von Mises-Fisher distributions, one around each example (Hall, Watson, Cabrera, "Kernel density estimation with
spherical data", Biometrika 1987): near examples count most, and no single one decides.

So that many specialties cost little, only the `SHORTLIST` whose mean examples are nearest to the question are scored
that way. The shortlist is exact: every specialty's mean is compared.

Where there are neither few examples nor very many, questions are compared with all of them at once, in 8 bits
(`hlo.routing.fixed_point`), and with those that come near, in float32. The others' cosines are some 7e-4 off, and they
count little: with HLO's examples, scores that come close to the best are right to 1e-4. They are to 1e-3 where none of
a specialty's examples is near, or where too many are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from msgspec import Struct

from hlo.contracts import Encoder
from hlo.errors import HLOError, PluginError
from hlo.records import Score, Specialty
from hlo.routing.fixed_point import FixedPoint

if TYPE_CHECKING:
    from numpy.typing import NDArray

CONCENTRATION = 28.0
"""K: how fast an example's say falls with its distance from the question. Chosen by `nox -s bench -- routing`."""

SHORTLIST = 16
"""How many specialties are scored by their examples."""

_SELF = 0.9999  # a cosine from which on a vector counts as the same example
_CHUNK = 32  # questions compared at once
_SMALL_CHUNK = 8  # in fixed point
_NEAR = 0.2  # within how much of the nearest example's cosine others count: beyond, one has 0.4 % of its say at most
_MOST_NEAR = 512  # and how many of them at most
_MANY = 2_000  # examples from which on fixed point is faster
_TOO_MANY = 32_768  # and from which on it is not known to be


class Group(Struct, frozen=True, eq=False):
    """Examples that belong together: unit vectors, shape (examples, dimension), and the direction of their mean.

    `texts` are their words, row by row; empty where an author gave embeddings alone. `digest` is a SHA-256 of what the
    vectors were made from.
    """

    name: str
    examples: NDArray[np.float32]
    mean: NDArray[np.float32]
    texts: tuple[str, ...] = ()
    digest: str = ""


class Comparison(Struct, frozen=True):
    """How close one question came: to specialties, best first, and to what no specialty answers (None: not compared).

    All are cosine-like, in [-1, 1]. A route can be decided from this alone, so it can be kept and decided again.
    """

    scores: tuple[Score, ...]
    background: float | None = None


class Bank(Struct, frozen=True, eq=False):
    """The groups of the specialties, then those of the background, and their vectors beneath each other.

    `examples` has shape (all examples, dimension); those of group g, `sizes[g]` of them, begin at row `starts[g]`.
    `means` has shape (groups, dimension). `quick` has the examples once more; None where these are few, or very many.
    """

    specialties: tuple[Group, ...]
    background: tuple[Group, ...]
    examples: NDArray[np.float32]
    starts: NDArray[np.int64]
    sizes: NDArray[np.int64]
    means: NDArray[np.float32]
    quick: FixedPoint | None = None

    @classmethod
    def of(cls, specialties: Sequence[Group], background: Sequence[Group] = (), *, dimension: int) -> Bank:
        """Put groups together; theirs become views of the bank's vectors, so that nothing is kept twice."""
        groups = (*specialties, *background)
        nothing = np.zeros((0, dimension), dtype=np.float32)
        examples = np.concatenate([nothing, *(group.examples for group in groups)])
        means = np.stack([group.mean for group in groups]) if groups else nothing
        sizes = np.array([len(group.examples) for group in groups], dtype=np.int64)
        starts = np.cumsum(sizes) - sizes
        views = tuple(
            Group(group.name, examples[start : start + size], group.mean, group.texts, group.digest)
            for group, start, size in zip(groups, starts.tolist(), sizes.tolist(), strict=True)
        )
        at_once = _MANY <= len(examples) < _TOO_MANY
        quick = FixedPoint(examples) if at_once else None
        return cls(views[: len(specialties)], views[len(specialties) :], examples, starts, sizes, means, quick)

    @property
    def names(self) -> tuple[str, ...]:
        """The specialties' names."""
        return tuple(group.name for group in self.specialties)

    def compare(self, questions: NDArray[np.float32], *, leave_out: bool = False) -> tuple[Comparison, ...]:
        """Compare unit vectors, shape (questions, dimension), with the groups nearest to each.

        `leave_out` ignores the question's own vector among the examples, for asking where an example itself would go.
        """
        quick = None if leave_out else self.quick  # a question among the examples is nearest to itself
        size = _CHUNK if quick is None else _SMALL_CHUNK
        pieces = (questions[start : start + size] for start in range(0, len(questions), size))
        return tuple(one for piece in pieces for one in self._compare(piece, quick, leave_out))

    def _compare(self, questions: NDArray[np.float32], quick: FixedPoint | None, leave_out: bool) -> list[Comparison]:
        border = len(self.specialties)
        nearness = questions @ self.means.T
        near, far = _nearest(nearness[:, :border], SHORTLIST), _nearest(nearness[:, border:], SHORTLIST) + border
        if quick is not None:
            scores = _densities(self._cosines(quick, questions), self.starts, self.sizes, False)
            rows = np.arange(len(questions))[:, None]
            inside, outside = scores[rows, near], scores[rows, far]
        elif len(questions) == 1:  # in one go: what is done once costs as much as the arithmetic
            both = self._scores(questions, np.concatenate([near, far], axis=1), leave_out)
            inside, outside = both[:, : near.shape[1]], both[:, near.shape[1] :]
        else:
            inside, outside = (self._scores_of_many(questions, some, leave_out) for some in (near, far))
        background = _log_sum(outside).tolist() if self.background else [None] * len(questions)
        return [
            Comparison(ranked(map(Score, (self.specialties[place].name for place in places), values)), behind)
            for places, values, behind in zip(near.tolist(), inside.tolist(), background, strict=True)
        ]

    def _cosines(self, quick: FixedPoint, questions: NDArray[np.float32]) -> NDArray[np.float32]:
        """The cosines of all examples; those of the nearest, of each question alone, in float32."""
        cosines = quick.products(questions)
        for row, question in zip(cosines, questions, strict=True):
            near = np.flatnonzero(row > row.max() - _NEAR)
            if len(near) > _MOST_NEAR:
                near = near[np.argpartition(row[near], -_MOST_NEAR)[-_MOST_NEAR:]]
            row[near] = self.examples[near] @ question
        return cosines

    def _scores_of_many(
        self, questions: NDArray[np.float32], groups: NDArray[np.int64], leave_out: bool
    ) -> NDArray[np.float64]:
        """The scores of each question's groups, shape of `groups`: together where the questions' groups are alike."""
        if np.unique(groups).size <= 2 * groups.shape[1]:
            return self._scores(questions, groups, leave_out)
        rows = [slice(row, row + 1) for row in range(len(questions))]
        return np.concatenate([self._scores(questions[row], groups[row], leave_out) for row in rows])

    def _scores(
        self, questions: NDArray[np.float32], groups: NDArray[np.int64], leave_out: bool
    ) -> NDArray[np.float64]:
        """The scores of each question's groups, of which it has a row; each question is compared with all of them."""
        if not groups.size:
            return np.zeros(groups.shape)
        wanted, groups = groups, np.unique(groups)
        sizes = self.sizes[groups]
        # Examples first: for a few questions, BLAS takes up to twice as long the other way round.
        cosines = np.concatenate([(self.examples[rows] @ questions.T).T for rows in self._runs(groups)], axis=1)
        scores = _densities(np.ascontiguousarray(cosines), np.cumsum(sizes) - sizes, sizes, leave_out)
        return np.asarray(np.take_along_axis(scores, np.searchsorted(groups, wanted), axis=1))

    def _runs(self, groups: NDArray[np.int64]) -> Iterable[slice]:
        """The rows of some groups: as few slices as there are runs of neighbours, since each costs a multiplication."""
        ends = np.flatnonzero(np.diff(groups) != 1)
        for first, last in zip(groups[[0, *(ends + 1)]], groups[[*ends, -1]], strict=True):
            yield slice(int(self.starts[first]), int(self.starts[last] + self.sizes[last]))


def ranked(scores: Iterable[Score]) -> tuple[Score, ...]:
    """Best first; equal scores by name, so that the same question always goes the same way."""
    return tuple(sorted(scores, key=lambda one: (-one.score, one.specialty)))


def group(specialty: Specialty, encoder: Encoder) -> Group:
    """A specialty's examples, embedded. Raises `PluginError` when it has none that can be, and `EncoderError`."""
    parts = given(specialty, encoder)
    if parts:
        examples = np.concatenate(parts)
        return _grouped(specialty.name, examples, (), hashlib.sha256(examples.tobytes()).hexdigest())
    texts = tuple(text for part in specialty.examples.values() for text in part)
    if not texts:
        raise PluginError(
            f"`{specialty.name}` has no routing examples.",
            remedy="Give `examples` or `embeddings`, or no question goes there.",
        )
    return embedded(specialty.name, texts, encoder)


def embedded(name: str, texts: tuple[str, ...], encoder: Encoder) -> Group:
    """A group of at least one text. Raises `EncoderError`."""
    return _grouped(name, encoder.encode(texts), texts, hashlib.sha256("\0".join(texts).encode()).hexdigest())


def only(groups: Iterable[Group], names: Collection[str]) -> tuple[Group, ...]:
    """The groups of `names` alone, in their order."""
    return tuple(one for one in groups if one.name in names)


def refuse_embeddings(specialties: Iterable[Specialty], encoder: Encoder) -> dict[str, HLOError]:
    """What is wrong with the embeddings that specialties bring, by name."""
    errors: dict[str, HLOError] = {}
    for specialty in specialties:
        try:
            given(specialty, encoder)
        except PluginError as error:
            errors[specialty.name] = error
    return errors


def given(specialty: Specialty, encoder: Encoder) -> list[NDArray[np.float32]]:
    """The embeddings that the author made, checked; an empty list when there are none."""
    if specialty.embeddings is None:
        return []
    if specialty.embeddings.fingerprint != encoder.fingerprint:
        raise PluginError(
            f"The embeddings of `{specialty.name}` were made by the encoder `{specialty.embeddings.fingerprint}`; "
            f"this one is `{encoder.fingerprint}`.",
            remedy="Embed the examples with this encoder, or declare `examples` and let HLO embed them.",
        )
    parts = []
    for name, rows in specialty.embeddings.parts.items():
        try:
            part = np.asarray(rows, dtype=np.float32)
        except (TypeError, ValueError) as error:
            raise PluginError(
                f"The embeddings `{name}` of `{specialty.name}` are no table of numbers: {error}",
                remedy="Save the encoder's vectors as they are.",
            ) from error
        if part.ndim != 2 or part.shape[0] == 0 or part.shape[1] != encoder.dimension or not np.isfinite(part).all():
            raise PluginError(
                f"The embeddings `{name}` of `{specialty.name}` have shape {part.shape}; "
                f"(examples, {encoder.dimension}) finite numbers were wanted.",
                remedy="Save the encoder's vectors as they are.",
            )
        parts.append(part / np.maximum(np.linalg.norm(part, axis=1, keepdims=True), 1e-12))
    return parts


def _grouped(name: str, examples: NDArray[np.float32], texts: tuple[str, ...], digest: str) -> Group:
    mean = examples.mean(axis=0)
    unit = np.asarray(mean / max(float(np.linalg.norm(mean)), 1e-12), dtype=np.float32)
    return Group(name, examples, unit, texts, digest)


def _densities(
    cosines: NDArray[np.float32], starts: NDArray[np.int64], sizes: NDArray[np.int64], leave_out: bool
) -> NDArray[np.float64]:
    """The scores of groups of so many examples, whose cosines begin at these columns: shape (questions, groups).

    The cosines are used up.
    """
    others = cosines < _SELF if leave_out else None
    weights = cosines
    weights -= 1
    weights *= CONCENTRATION
    np.exp(weights, out=weights)  # none overflows, and none vanishes
    if others is not None:
        weights *= others
        sizes = np.maximum(np.add.reduceat(others, starts, axis=1, dtype=np.int64), 1)
    means = np.add.reduceat(weights, starts, axis=1, dtype=np.float64) / sizes
    with np.errstate(divide="ignore"):  # a group whose only example was left out
        return np.asarray(np.maximum(1 + np.log(means) / CONCENTRATION, -1.0))


def _nearest(nearness: NDArray[np.float32], most: int) -> NDArray[np.int64]:
    """The columns of the largest values of each row, at most `most`, in no order."""
    if nearness.shape[1] <= most:
        return np.tile(np.arange(nearness.shape[1]), (len(nearness), 1))
    return np.asarray(np.argpartition(nearness, -most, axis=1)[:, -most:])


def _log_sum(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """The score of several groups as one: log(sum(exp(K s))) / K of each row."""
    highest = scores.max(axis=1, keepdims=True)
    total = np.exp(CONCENTRATION * (scores - highest)).sum(axis=1)
    return np.asarray(highest[:, 0] + np.log(total) / CONCENTRATION)
