"""`hlo models export-encoder`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from hlo.cli.models_export_encoder import command
from hlo.errors import EncoderError
from hlo.routing import onnx_export
from hlo.routing.onnx_encoder import OnnxEncoder
from tests.tiny_encoder import sentence_transformer


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sentence-transformers model's folder."""
    saved = tmp_path_factory.mktemp("models") / "clinic"
    sentence_transformer(tmp_path_factory.mktemp("bert")).save(str(saved))
    return saved


def test_it_writes_an_encoder_and_says_how_near_it_is(model: Path, clean_environment: Path) -> None:
    """What is told is what was written: size, precision, and the cosines with the original."""
    done = CliRunner().invoke(command, [str(model), "out"], env={"COLUMNS": "200"}, catch_exceptions=False)
    assert done.exit_code == 0
    encoder = OnnxEncoder.load(Path("out"))
    assert encoder.name == "clinic-int8"
    for told in ("clinic-int8, from clinic", "quantization int8", "cosine with the original", encoder.fingerprint):
        assert told in done.stdout
    assert str(model.parent) not in (Path("out") / "encoder.json").read_text(encoding="utf-8")


def test_json(model: Path, clean_environment: Path) -> None:
    """`--json` has the same as JSON alone; `--no-quantize` and `--name` are heeded."""
    arguments = [str(model), "out", "--no-quantize", "--name", "exact", "--json"]
    done = CliRunner().invoke(command, arguments, catch_exceptions=False)
    told = json.loads(done.stdout)
    encoder = OnnxEncoder.load(Path("out"))
    assert told["fingerprint"] == encoder.fingerprint
    assert told["description"]["name"] == encoder.name == "exact"
    assert told["description"]["quantization"] == "none"
    assert told["mean_cosine"] > 0.9999
    assert told["folder"] == "out"


def test_what_is_no_model_is_refused(clean_environment: Path) -> None:
    """What is neither a folder nor a hub's name is refused, and nothing is written."""
    with pytest.raises(EncoderError, match="is no folder"):
        CliRunner().invoke(command, ["./no/such", "out"], catch_exceptions=False)
    assert not Path("out").exists()


def test_missing_packages_come_first(clean_environment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Packages that are missing are named before anything is fetched."""
    monkeypatch.setattr(onnx_export, "_NEEDED", ("no_such_package",))
    with pytest.raises(EncoderError, match="needs no_such_package") as caught:
        CliRunner().invoke(command, ["clinic/encoder", "out"], catch_exceptions=False)
    assert "hlo[export]" in caught.value.remedy
