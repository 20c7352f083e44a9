"""Which encoder a name means."""

from __future__ import annotations

from pathlib import Path

import pytest

from hlo.errors import EncoderError
from hlo.hub import Reference
from hlo.routing import encoders
from hlo.routing.onnx_encoder import OnnxEncoder
from hlo.routing.sentence_encoder import SentenceEncoder
from tests.hub_stub import serving
from tests.tiny_encoder import exported, sentence_transformer


@pytest.fixture(scope="module")
def fast(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported encoder's folder."""
    return exported(tmp_path_factory.mktemp("exported"))


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sentence-transformers model's folder."""
    saved = tmp_path_factory.mktemp("saved")
    sentence_transformer(tmp_path_factory.mktemp("raw")).save(str(saved))
    return saved


@pytest.mark.parametrize("name", encoders.EMBEDDED)
def test_hlos_own_encoder(name: str, fast: Path) -> None:
    """HLO's own encoder is the folder that is given for it, called as it calls itself, and nothing to be fetched."""
    found = encoders.load(name, embedded=fast)
    assert isinstance(found, OnnxEncoder)
    assert found.name == "tiny"
    assert encoders.on_hub(name) is None


@pytest.mark.parametrize("name", encoders.EMBEDDED)
@pytest.mark.parametrize("given", [True, False])
def test_hlos_own_encoder_may_be_missing(name: str, given: bool, tmp_path: Path) -> None:
    """Where HLO's own encoder is not installed, that is said together with the setting that names another."""
    with pytest.raises(EncoderError) as caught:
        encoders.load(name, embedded=tmp_path if given else None)
    assert (str(tmp_path) in caught.value.message) == given
    assert "HLO_ENCODER" in caught.value.remedy


def test_a_folder_says_which_encoder_it_holds(fast: Path, slow: Path) -> None:
    """A folder is an exported encoder or a sentence-transformers model by what lies in it."""
    one, other = encoders.load(str(fast), threads=2), encoders.load(str(slow), embedded=fast)
    assert (type(one), one.name) == (OnnxEncoder, str(fast))
    assert (type(other), other.name) == (SentenceEncoder, str(slow))
    assert encoders.on_hub(str(fast)) is None


def test_a_hubs_exported_encoder_is_fetched(fast: Path, tmp_path: Path) -> None:
    """An exported encoder is had from a hub by its name; other libraries' graphs below the top stay there."""
    files = {path.name: path.read_bytes() for path in fast.iterdir()}
    with serving(tmp_path / "cache") as hub:
        hub.push("clinic/fast", files | {"onnx/model.onnx": b"other", "more/onnx/model_O3.onnx": b"other"})
        found = encoders.load("clinic/fast", hub=hub.open())
        assert sorted(hub.downloads()) == sorted(files)
    assert (type(found), found.name) == (OnnxEncoder, "clinic/fast")
    assert found.fingerprint == OnnxEncoder.load(fast).fingerprint
    assert encoders.on_hub("clinic/fast") == Reference.of_model("clinic/fast")


def test_what_is_no_name_is_refused() -> None:
    """What is neither a folder nor a hub's name is refused, when it is loaded and when it is looked up."""
    for use in (encoders.load, encoders.on_hub):
        with pytest.raises(EncoderError, match="is no folder"):
            use("./no/such/folder")
