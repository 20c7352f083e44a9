"""The sentence encoder, on a tiny model of the same make as the real one."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from hlo.errors import EncoderError, HubError
from hlo.routing.sentence_encoder import SentenceEncoder
from tests.hub_stub import serving
from tests.tiny_encoder import sentence_transformer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.hub_stub import StubHub


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of one layer and hidden size 32 with mean pooling, saved by sentence-transformers."""
    saved = tmp_path_factory.mktemp("encoder")
    sentence_transformer(tmp_path_factory.mktemp("bert")).save(str(saved))
    return saved


@pytest.fixture(scope="module")
def encoder(folder: Path) -> SentenceEncoder:
    """The tiny encoder."""
    return SentenceEncoder.load(str(folder))


def test_vectors_are_unit_vectors(encoder: SentenceEncoder) -> None:
    """Questions become float32 unit vectors of the encoder's dimension, equal for equal questions."""
    vectors = encoder.encode(["heart pain", "brain", "heart pain"])
    assert vectors.shape == (3, encoder.dimension) == (3, 32)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(vectors[0], vectors[2], atol=1e-6)
    assert not np.allclose(vectors[0], vectors[1], atol=1e-3)


def test_a_long_question_is_cut(encoder: SentenceEncoder) -> None:
    """A question beyond the model's window is encoded by its beginning, and is no error."""
    assert encoder.encode(["heart " * 500]).shape == (1, 32)


def test_it_is_called_as_it_was_asked_for(encoder: SentenceEncoder, folder: Path) -> None:
    """An encoder's name is what the operator wrote."""
    assert encoder.name == str(folder)


def test_the_fingerprint_is_of_the_content(encoder: SentenceEncoder, folder: Path, tmp_path: Path) -> None:
    """A copy elsewhere has the same fingerprint, with another README too; other weights or pooling have another."""
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / "README.md").write_text("other", encoding="utf-8")
    assert SentenceEncoder.load(str(copy)).fingerprint == encoder.fingerprint
    pooling = next(copy.glob("*Pooling*/config.json"))
    pooling.write_text(pooling.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    assert SentenceEncoder.load(str(copy)).fingerprint != encoder.fingerprint


def test_a_folder_that_holds_no_encoder_is_refused(tmp_path: Path) -> None:
    """A folder without an encoder is refused by its path, with the setting to mend."""
    with pytest.raises(EncoderError) as caught:
        SentenceEncoder.load(str(tmp_path))
    assert str(tmp_path) in caught.value.message
    assert "HLO_ENCODER" in caught.value.remedy


@pytest.mark.parametrize("damaged", ["model.safetensors", "config.json", "modules.json", "tokenizer.json"])
def test_a_damaged_encoder_is_refused(damaged: str, folder: Path, tmp_path: Path) -> None:
    """An encoder with a damaged file is refused by its path."""
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / damaged).write_bytes(b"{")
    with pytest.raises(EncoderError, match=str(copy)):
        SentenceEncoder.load(str(copy))


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[StubHub]:
    """A stub of a model hub, and an empty cache."""
    with serving(tmp_path / "cache") as stub:
        yield stub


def test_a_hubs_encoder_is_fetched(hub: StubHub, encoder: SentenceEncoder, folder: Path) -> None:
    """An encoder is had from a hub by its name, without what other libraries need, and is the one in the folder."""
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    hub.push("clinic/encoder", files | {"onnx/config.json": b"{}", "pytorch_model.bin": b"pickle"})
    for one in (hub.open(), None):
        found = SentenceEncoder.load("clinic/encoder", hub=one)
        assert found.fingerprint == encoder.fingerprint
        assert found.name == "clinic/encoder"
    assert sorted(hub.downloads()) == sorted(Path(name).name for name in files if not name.endswith(".md"))


def test_an_unpinned_encoder_is_refused_in_production(hub: StubHub) -> None:
    """In production a hub's encoder must be pinned."""
    hub.push("clinic/encoder", {"modules.json": b"[]"})
    with pytest.raises(HubError, match="hf://clinic/encoder is not pinned"):
        SentenceEncoder.load("clinic/encoder", hub=hub.open(production=True))


def test_an_encoder_that_can_not_be_fetched_is_refused(hub: StubHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """An encoder that is neither a folder nor in the cache is refused by name when there is no hub."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="someone/no-such-encoder is not in the cache") as caught:
        SentenceEncoder.load("someone/no-such-encoder")
    assert "hlo[offline]" in caught.value.remedy
    assert hub.asked == []


def test_what_is_no_name_is_refused() -> None:
    """What is neither a folder nor a hub's name is refused without asking any hub."""
    with pytest.raises(EncoderError, match="is no folder"):
        SentenceEncoder.load("./no/such/folder")
