"""Int8 checkpoints: what bitsandbytes itself would write, whole or not at all, and what they cost."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from hlo.errors import ModelError, SettingsError
from hlo.generation import base_model
from hlo.generation.quantize import checkpoint, evaluation, making
from hlo.generation.quantize.evaluation import Fit

if TYPE_CHECKING:
    from hlo.generation.base_model import BaseModel
    from hlo.generation.quantize.making import Report

TEXT = "what is the heart rate of a patient with chest pain? " * 8
Make = Callable[..., "Report"]


@pytest.fixture
def make(tiny_model: BaseModel) -> Make:
    """Make a checkpoint of the tiny model, with nothing measured unless told to."""

    def make(out: Path, model: BaseModel = tiny_model, **given: Any) -> Report:
        whole: dict[str, Any] = {
            "text": None,
            "tolerance": None,
            "device": "cpu",
            "dtype": "float32",
            "force": False,
            "progress": lambda done, total: None,
            "report": lambda what: None,
        }
        return making.make(model, out, **whole | given)

    return make


def shard(folder: Path, out: Path) -> BaseModel:
    """The model with its weights in two files and an index."""
    shutil.copytree(folder, out)
    tensors = load_file(out / "model.safetensors")
    (out / "model.safetensors").unlink()
    index = {}
    for number, names in enumerate((sorted(tensors)[:7], sorted(tensors)[7:])):
        file = f"model-{number}.safetensors"
        save_file({name: tensors[name] for name in names}, out / file)
        index.update(dict.fromkeys(names, file))
    (out / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return base_model.find(str(out))


def test_it_is_what_transformers_and_bitsandbytes_write(tiny_model: BaseModel, make: Make, tmp_path: Path) -> None:
    """Every int8 weight, its scales and the configuration are bit for bit those of transformers' own checkpoint."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    theirs = AutoModelForCausalLM.from_pretrained(
        tiny_model.folder, quantization_config=BitsAndBytesConfig(load_in_8bit=True), dtype=torch.float32
    )
    theirs.save_pretrained(tmp_path / "theirs")
    told: list[tuple[int, int]] = []
    make(tmp_path / "ours", progress=lambda done, total: told.append((done, total)))
    wanted, found = (load_file(tmp_path / name / "model.safetensors") for name in ("theirs", "ours"))
    assert wanted.keys() == found.keys()
    for name, tensor in wanted.items():
        if tensor.dtype == torch.float32 and not name.endswith(".SCB"):  # theirs stays in 32 bit, as it was
            tensor = tensor.to(torch.bfloat16)
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape), name
        assert torch.equal(found[name], tensor), name
    configs = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("theirs", "ours")]
    assert configs[0]["quantization_config"] == configs[1]["quantization_config"]
    assert configs[1]["dtype"] == "bfloat16"
    assert told == [(number, 14) for number in range(1, 15)]


def test_files_stay_apart(tiny_model: BaseModel, make: Make, tmp_path: Path) -> None:
    """A model in several files becomes one in as many, with the same tensors as from one file."""
    make(tmp_path / "one")
    make(tmp_path / "two", shard(tiny_model.folder, tmp_path / "sharded"))
    parts = [load_file(file) for file in checkpoint.weight_files(tmp_path / "two")]
    assert len(parts) == 2
    whole = load_file(tmp_path / "one" / "model.safetensors")
    assert {name for part in parts for name in part} == whole.keys()
    assert all(torch.equal(tensor, whole[name]) for part in parts for name, tensor in part.items())


def test_the_report_is_kept_beside_the_weights(make: Make, tmp_path: Path) -> None:
    """The checkpoint is found by its original's name, says what is in 8 bit and how to serve it, and is smaller."""
    told = make(tmp_path / "int8", text=TEXT, tolerance=0.5)
    found = base_model.find(str(tmp_path / "int8"))
    assert found.name == told.base == "tiny"
    read = checkpoint.read(found.folder)
    assert len(read.layers) == told.layers == 14
    assert sorted(read.kept) == list(told.kept) == ["lm_head", "model.embed_tokens"]
    assert read.size == told.size_after < told.size_before
    assert read.serve_as == told.serve_as == "int8"
    assert checkpoint.saved_in_int8(found.folder)
    assert not list(tmp_path.glob(".*"))


def test_it_is_measured(tiny_model: BaseModel, make: Make, tmp_path: Path) -> None:
    """16 bit differs from itself by nothing; rounded weights do, and rounded activations by more."""
    told = make(tmp_path / "int8", text=TEXT)
    by_name = {fit.quantization: fit for fit in told.fits}
    assert list(by_name) == ["none", "int8_weight_only", "int8"]
    assert (by_name["none"].logit_error, by_name["none"].same) == (0, 1)
    assert 0 < by_name["int8_weight_only"].logit_error < by_name["int8"].logit_error < 0.1
    assert told.tokens > 50
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokens = AutoTokenizer.from_pretrained(tiny_model.folder)(TEXT, return_tensors="pt")["input_ids"]
    plain = AutoModelForCausalLM.from_pretrained(tiny_model.folder, dtype=torch.float32)
    loss = plain(tokens[:, : tiny_model.context], labels=tokens[:, : tiny_model.context]).loss
    assert by_name["none"].perplexity == pytest.approx(loss.exp().item(), rel=1e-4)


def test_what_the_weights_stand_for_is_near_the_original(tiny_model: BaseModel, make: Make, tmp_path: Path) -> None:
    """No weight is further from its original than half a step of its row, and a tenth for float16's own rounding."""
    make(tmp_path / "int8")
    original = load_file(tiny_model.folder / "model.safetensors")
    for name, weight in evaluation.stand_for(checkpoint.read(tmp_path / "int8")):
        before = original[f"{name}.weight"].float()
        step = before.abs().amax(1, keepdim=True) / 127
        assert ((weight - before).abs() <= 0.6 * step).all()


FITS = (Fit("none", 10.0, 0, 1), Fit("int8_weight_only", 10.1, 0.01, 1), Fit("int8", 10.4, 0.1, 0.9))


@pytest.mark.parametrize(("tolerance", "way"), [(None, "int8"), (0.05, "int8"), (0.02, "int8_weight_only")])
def test_the_tolerance_decides_how_it_is_served(tolerance: float | None, way: str) -> None:
    """The fastest way within the tolerance is taken; without one, the fastest."""
    assert making.serve_as(FITS, tolerance) == way


def test_a_tolerance_that_nothing_keeps_leaves_nothing(make: Make, tmp_path: Path) -> None:
    """When even weights alone cost too much perplexity, that is said, and no checkpoint is written."""
    with pytest.raises(ModelError, match=r"tolerated 0\.50%"):
        making.serve_as(FITS, 0.005)
    with pytest.raises(ModelError, match="something to measure"):
        make(tmp_path / "int8", tolerance=0.1)
    assert not list(tmp_path.iterdir())


def test_what_is_there_is_not_overwritten(make: Make, tmp_path: Path) -> None:
    """A folder with something in it is refused; --force replaces a model, and nothing else."""
    make(tmp_path / "int8")
    (tmp_path / "int8" / "old").touch()
    with pytest.raises(ModelError, match="exists already") as caught:
        make(tmp_path / "int8")
    assert "--force" in caught.value.remedy
    make(tmp_path / "int8", force=True)
    assert not (tmp_path / "int8" / "old").exists()
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "one.txt").touch()
    with pytest.raises(ModelError, match="is no model"):
        make(tmp_path / "letters", force=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["int8", "letters"]


def test_the_original_is_never_replaced(tiny_model: BaseModel, make: Make) -> None:
    """Writing a model over itself is refused, even by force."""
    with pytest.raises(ModelError, match="is the original"):
        make(tiny_model.folder, force=True)


def test_a_model_that_can_not_be_rounded(tiny_model: BaseModel, make: Make, tmp_path: Path) -> None:
    """One in int8 already, one without a layer's weights, and one beyond float16 are refused by name."""
    make(tmp_path / "int8")
    with pytest.raises(ModelError, match="in int8 already"):
        make(tmp_path / "again", base_model.find(str(tmp_path / "int8")))
    name = "model.layers.1.mlp.up_proj.weight"
    for change, said in (({}, f"lacks .*{name}"), ({name: torch.full((128, 64), 1e6)}, "not finite in float16")):
        broken = tmp_path / f"broken-{len(change)}"
        shutil.copytree(tiny_model.folder, broken)
        tensors = load_file(broken / "model.safetensors")
        del tensors[name]
        save_file(tensors | change, broken / "model.safetensors")
        with pytest.raises(ModelError, match=said):
            make(tmp_path / "again", base_model.find(str(broken)))
    assert not (tmp_path / "again").exists()


def test_without_bitsandbytes_there_is_a_remedy(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the package is missing, that is said before anything is read."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SettingsError, match="not installed") as caught:
        make(tmp_path / "int8")
    assert "hlo[bnb]" in caught.value.remedy


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"SCB": None}, "lacks its weights or their scales"),
        ({"weight_format": torch.tensor(1, dtype=torch.uint8)}, "order for one kind of GPU"),
        ({"weight": torch.zeros(32, 62, dtype=torch.int8)}, "no multiple of four"),
    ],
    ids=str,
)
def test_a_checkpoint_that_can_not_be_served(change: dict[str, Any], said: str, make: Make, tmp_path: Path) -> None:
    """A checkpoint without scales, with its rows in another order or of a strange length is refused by its layer."""
    make(tmp_path / "int8")
    tensors = load_file(tmp_path / "int8" / "model.safetensors")
    for kind, value in change.items():
        name = f"model.layers.0.self_attn.k_proj.{kind}"
        del tensors[name]
        tensors |= {} if value is None else {name: value}
    save_file(tensors, tmp_path / "int8" / "model.safetensors")
    with pytest.raises(ModelError, match=said) as caught:
        checkpoint.read(tmp_path / "int8")
    assert "k_proj" in caught.value.message


def test_a_model_without_weights_is_no_checkpoint(tmp_path: Path) -> None:
    """A folder without safetensors, or with an index that names absent files, is told as such."""
    with pytest.raises(ModelError, match="lacks its weights"):
        checkpoint.read(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "absent.safetensors"}}')
    with pytest.raises(ModelError, match="lacks its weights"):
        checkpoint.read(tmp_path)
    with pytest.raises(ModelError, match=r"config\.json"):
        checkpoint.saved_in_int8(tmp_path)
