"""Embeddings kept on disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from hlo.routing.cache import CachedEncoder
from hlo.testing import HashingEncoder

if TYPE_CHECKING:
    from numpy.typing import NDArray

TEXTS = ("heart", "chest pain")


class Counting(HashingEncoder):
    """An encoder that counts what it is asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, ...]] = []

    def encode(self, questions: Sequence[str]) -> NDArray[np.float32]:
        """Remember, and encode."""
        self.asked.append(tuple(questions))
        return super().encode(questions)


def cached(folder: Path) -> tuple[CachedEncoder, Counting]:
    """A new encoder over what the folder holds."""
    counting = Counting()
    return CachedEncoder(counting, folder), counting


def test_a_second_start_encodes_nothing(tmp_path: Path) -> None:
    """What was encoded once is read from disk by the next process, to the last bit."""
    first, _ = cached(tmp_path / "deep" / "cache")
    wanted = first.encode(TEXTS)
    second, counting = cached(tmp_path / "deep" / "cache")
    assert np.array_equal(second.encode(TEXTS), wanted)
    assert np.array_equal(wanted, HashingEncoder().encode(TEXTS))
    assert counting.asked == []


@pytest.mark.parametrize(
    "texts",
    [("heart",), ("chest pain", "heart"), ("heart chest pain",), ("heartchest pain", ""), ("heart", "chest pain ")],
)
def test_other_texts_are_encoded(texts: tuple[str, ...], tmp_path: Path) -> None:
    """Other texts, in another order or cut otherwise, are other embeddings."""
    cached(tmp_path)[0].encode(TEXTS)
    encoder, counting = cached(tmp_path)
    encoder.encode(texts)
    assert counting.asked == [texts]


def test_another_encoder_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Embeddings of an encoder with another fingerprint are never taken."""
    cached(tmp_path)[0].encode(TEXTS)
    monkeypatch.setattr(HashingEncoder, "fingerprint", "other")
    encoder, counting = cached(tmp_path)
    encoder.encode(TEXTS)
    assert counting.asked == [TEXTS]


@pytest.mark.parametrize("spoil", [b"", b"\x93NUMPY", b"no array", None])
def test_what_is_damaged_is_made_again(spoil: bytes | None, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A file that is empty, cut, foreign, or of another shape is told in the log, and replaced."""
    cached(tmp_path)[0].encode(TEXTS)
    (path,) = tmp_path.iterdir()
    if spoil is None:
        np.save(path, np.zeros((3, 256), dtype=np.float32))
    else:
        path.write_bytes(spoil)
    encoder, counting = cached(tmp_path)
    assert np.array_equal(encoder.encode(TEXTS), HashingEncoder().encode(TEXTS))
    assert counting.asked == [TEXTS]
    assert "made again" in caplog.text
    again, silent = cached(tmp_path)
    again.encode(TEXTS)
    assert silent.asked == []


def test_a_folder_that_takes_nothing_is_no_failure(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Where nothing can be kept, the embeddings are made all the same, and the log says so."""
    (tmp_path / "file").write_text("")
    encoder, _ = cached(tmp_path / "file" / "cache")
    assert encoder.encode(TEXTS).shape == (2, 256)
    assert "can not be kept" in caplog.text
