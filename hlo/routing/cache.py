"""Embeddings of routing examples, kept on disk, so that a second start encodes nothing.

Only what plugins declare is kept here; no question that anybody asked ever is.
"""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hlo.contracts import Encoder

if TYPE_CHECKING:
    from numpy.typing import NDArray

logger = logging.getLogger("hlo")


class CachedEncoder:
    """An `Encoder` that looks on disk first, by the hash of the encoder's fingerprint and of all the texts."""

    def __init__(self, encoder: Encoder, folder: Path) -> None:
        self.name = encoder.name
        self.fingerprint = encoder.fingerprint
        self.dimension = encoder.dimension
        self._encoder = encoder
        self._folder = folder

    def encode(self, questions: Sequence[str]) -> NDArray[np.float32]:
        """Unit vectors, shape (questions, dimension). Raises `EncoderError`."""
        digest = hashlib.sha256(self.fingerprint.encode())
        for question in questions:
            digest.update(hashlib.sha256(question.encode(errors="surrogatepass")).digest())
        path = self._folder / f"{digest.hexdigest()}.npy"
        found = self._read(path, len(questions))
        if found is None:
            found = self._encoder.encode(questions)
            self._write(path, found)
        return found

    def _read(self, path: Path, rows: int) -> NDArray[np.float32] | None:
        """What is kept, or None: nothing, or a file that was cut or changed."""
        try:
            found = np.load(path, allow_pickle=False)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, EOFError) as error:
            logger.warning("embeddings in %s can not be read and are made again: %s", path, error)
            return None
        if found.shape != (rows, self.dimension) or found.dtype != np.float32 or not np.isfinite(found).all():
            logger.warning("embeddings in %s have another shape than they should, and are made again", path)
            return None
        return np.asarray(found, dtype=np.float32)

    def _write(self, path: Path, vectors: NDArray[np.float32]) -> None:
        """Keep them, whole or not at all; where that can not be, the next start takes longer."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            with tempfile.TemporaryDirectory(dir=self._folder, suffix=".incoming") as incoming:
                made = Path(incoming, path.name)
                with made.open("wb") as file:
                    np.save(file, vectors)
                os.replace(made, path)
        except OSError as error:
            logger.warning("embeddings can not be kept in %s: %s", self._folder, error)
