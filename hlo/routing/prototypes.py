"""Prototypes: one unit vector per specialty, the mean of its parts' means.

Snell et al., "Prototypical Networks for Few-shot Learning" (NeurIPS 2017). Parts weigh the same however many examples
they hold, so that forty questions in patients' own words are not outvoted by a hundred names of diseases.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from msgspec import Struct

from hlo.contracts import Encoder
from hlo.errors import HLOError, PluginError
from hlo.records import Score, Specialty

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Prototypes(Struct, frozen=True):
    """The specialties' names and their prototypes, unit vectors of shape (specialties, dimension)."""

    names: tuple[str, ...]
    vectors: NDArray[np.float32]

    def scores(self, questions: NDArray[np.float32]) -> tuple[tuple[Score, ...], ...]:
        """Cosine similarities for each question; `questions` are unit vectors, shape (questions, dimension)."""
        table = questions @ self.vectors.T
        return tuple(
            tuple(Score(name, float(value)) for name, value in zip(self.names, row, strict=True)) for row in table
        )


def prototype(specialty: Specialty, encoder: Encoder) -> NDArray[np.float32]:
    """One specialty's prototype, shape (dimension,). Raises `PluginError` when it can not have one."""
    parts = given(specialty, encoder) or [
        encoder.encode(questions) for questions in specialty.examples.values() if questions
    ]
    if not parts:
        raise PluginError(
            f"`{specialty.name}` has no routing examples.",
            remedy="Give `examples` or `embeddings`, or no question goes there.",
        )
    return _unit(np.mean([_unit(part.mean(axis=0)) for part in parts], axis=0))


def stack(pairs: Sequence[tuple[str, NDArray[np.float32]]], dimension: int) -> Prototypes:
    """Put named prototypes together."""
    vectors = np.stack([vector for _, vector in pairs]) if pairs else np.zeros((0, dimension), dtype=np.float32)
    return Prototypes(tuple(name for name, _ in pairs), vectors)


def only(prototypes: Prototypes, names: Collection[str]) -> Prototypes:
    """The prototypes of `names` alone."""
    kept = [number for number, name in enumerate(prototypes.names) if name in names]
    return Prototypes(tuple(prototypes.names[number] for number in kept), prototypes.vectors[kept])


def join(first: Prototypes, second: Prototypes) -> Prototypes:
    """The prototypes of both."""
    return Prototypes(first.names + second.names, np.concatenate([first.vectors, second.vectors]))


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


def _unit(vector: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(vector / max(float(np.linalg.norm(vector)), 1e-12), dtype=np.float32)
