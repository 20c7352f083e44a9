"""An encoder that remembers: what is looked at several times is embedded once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from hlo.contracts import Encoder

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Remembering:
    """An encoder that embeds each question once, and then knows it (`hlo.contracts.Encoder`)."""

    def __init__(self, encoder: Encoder) -> None:
        self.name = encoder.name
        self.fingerprint = encoder.fingerprint
        self.dimension = encoder.dimension
        self._encoder = encoder
        self._known: dict[str, NDArray[np.float32]] = {}

    def encode(self, questions: Sequence[str]) -> NDArray[np.float32]:
        """Unit vectors, shape (questions, dimension)."""
        unknown = list(dict.fromkeys(question for question in questions if question not in self._known))
        if unknown:
            self._known |= dict(zip(unknown, self._encoder.encode(unknown), strict=True))
        if not questions:
            return np.zeros((0, self.dimension), dtype=np.float32)
        return np.stack([self._known[question] for question in questions])
