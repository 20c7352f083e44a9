"""The base model: found, named, and measured without reading its weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from hlo.errors import HubError, ModelError
from hlo.generation import base_model
from hlo.generation.base_model import BaseModel
from hlo.hub import Lock, Locked, Reference
from tests.hub_stub import serving

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.hub_stub import StubHub


def test_a_folder_is_found(tiny_model: BaseModel) -> None:
    """A model's folder is found by its path, is named by its last part, and is not the embedded model."""
    assert tiny_model.folder.is_absolute()
    assert (tiny_model.name, tiny_model.embedded) == ("tiny", False)
    assert tiny_model.config["architectures"] == ["MistralForCausalLM"]


def test_linear_layers_are_those_of_the_decoder_blocks(tiny_model: BaseModel) -> None:
    """The linear layers and their (out, in) shapes are the decoder blocks' own; the output head is not among them."""
    block = {
        "self_attn.q_proj": (64, 64),
        "self_attn.k_proj": (32, 64),
        "self_attn.v_proj": (32, 64),
        "self_attn.o_proj": (64, 64),
        "mlp.gate_proj": (128, 64),
        "mlp.up_proj": (128, 64),
        "mlp.down_proj": (64, 128),
    }
    assert tiny_model.linears == {f"model.layers.{n}.{name}": shape for n in (0, 1) for name, shape in block.items()}


def test_parameters_are_counted(tiny_model: BaseModel) -> None:
    """All values of the model are counted, those outside the linear layers too."""
    linear = sum(out * into for out, into in tiny_model.linears.values())
    assert tiny_model.parameters == linear + 2 * 400 * 64 + 5 * 64  # embeddings, head, five norms


def test_no_weights_are_read(tiny_model: BaseModel, tmp_path: Path) -> None:
    """A folder with nothing but a configuration is measured like one with weights."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    (folder / "config.json").write_bytes((tiny_model.folder / "config.json").read_bytes())
    assert base_model.find(str(folder)).linears == tiny_model.linears


def test_the_name_can_be_chosen(tiny_model: BaseModel) -> None:
    """The operator can give the name by which adapters call the base."""
    assert base_model.find(str(tiny_model.folder), name="BioMistral-7B").name == "BioMistral-7B"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "holds no config.json"),
        ("{", "is not JSON"),
        ("[]", "names no architecture"),
        ("{}", "names no architecture"),
        (json.dumps({"architectures": ["X"], "model_type": "no-such-model"}), "describes no causal language model"),
        (json.dumps({"architectures": ["X"], "model_type": "vit"}), "describes no causal language model"),
        (json.dumps({"architectures": ["X"], "model_type": "mistral", "hidden_size": "x"}), "describes no causal"),
    ],
)
def test_a_folder_that_holds_no_model_is_refused(content: str | None, said: str, tmp_path: Path) -> None:
    """A folder without a causal language model's configuration is refused by its path, with what to do."""
    if content is not None:
        (tmp_path / "config.json").write_text(content, encoding="utf-8")
    with pytest.raises(ModelError) as caught:
        base_model.find(str(tmp_path))
    assert said in caught.value.message
    assert str(tmp_path) in caught.value.message
    assert caught.value.remedy


@pytest.mark.parametrize(
    "reference", ["./no/such/folder", "not a name", "a/b/c/d", "org/name@main", "name", "datasets/x"]
)
def test_what_is_neither_folder_nor_name_is_refused(reference: str) -> None:
    """A reference that is no folder and no hub's name is refused without asking any hub."""
    with pytest.raises(ModelError, match="is neither a folder nor a hub's `org/name`") as caught:
        base_model.find(reference)
    assert "misspelling" in caught.value.remedy


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[StubHub]:
    """A stub of a model hub, and an empty cache."""
    with serving(tmp_path / "cache") as stub:
        yield stub


@pytest.mark.parametrize(
    ("reference", "revision"),
    [("clinic/tiny", None), ("clinic/tiny", "main"), ("hf://clinic/tiny", None), ("hf://clinic/tiny@main", None)],
)
def test_a_hubs_model_is_fetched(reference: str, revision: str | None, hub: StubHub, tiny_model: BaseModel) -> None:
    """A model is had from a hub by each of its names, without pickles and second copies, and is called by its own."""
    files = {path.name: path.read_bytes() for path in tiny_model.folder.iterdir()}
    hub.push("clinic/tiny", files | {"pytorch_model.bin": b"pickle", "consolidated.safetensors": b"the same again"})
    for one in (hub.open(), None):
        found = base_model.find(reference, revision, hub=one)
        assert (found.name, found.embedded, found.linears) == ("tiny", False, tiny_model.linears)
        assert {path.name for path in found.folder.iterdir()} == set(files)


def test_an_unpinned_model_is_refused_in_production(hub: StubHub, tiny_model: BaseModel) -> None:
    """In production a hub's model needs a commit as its revision, or a place in the lock file."""
    commit = hub.push_folder("clinic/tiny", tiny_model.folder)
    with pytest.raises(HubError, match="hf://clinic/tiny@main is not pinned"):
        base_model.find("clinic/tiny", "main", hub=hub.open(production=True))
    assert base_model.find("clinic/tiny", commit, hub=hub.open(production=True)).name == "tiny"
    lock = Lock().having(Reference("clinic/tiny", "main"), Locked(commit, {}))
    assert base_model.find("clinic/tiny", "main", hub=hub.open(lock, production=True)).folder.name == commit


def test_a_model_that_can_not_be_fetched_is_refused(hub: StubHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub's model that is not in the cache is refused by name when there is no hub, with two ways out."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="someone/no-such-model is not in the cache") as caught:
        base_model.find("someone/no-such-model")
    assert "hlo models fetch" in caught.value.remedy
    assert "HF_HUB_OFFLINE" in caught.value.remedy
    assert hub.asked == []


@pytest.mark.parametrize(
    ("reference", "revision"), [("clinic/tiny", "a b"), ("hf://clinic/tiny@main", "v1"), ("hf://tiny", None)]
)
def test_a_malformed_revision_is_refused(reference: str, revision: str | None) -> None:
    """A revision that can be none, or that is given twice, is refused without asking any hub."""
    with pytest.raises(ModelError) as caught:
        base_model.find(reference, revision)
    assert "HLO_REVISION" in caught.value.remedy


def test_the_embedded_root_holds_models() -> None:
    """The folder of the demonstration's models is where HLO looks for it."""
    assert (base_model.embedded_root() / "models").is_dir()


def test_a_missing_embedded_model_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where the embedded model was not installed, the message names the folder and the setting to use."""
    monkeypatch.setattr(base_model, "embedded_root", lambda: tmp_path)
    with pytest.raises(ModelError, match=str(tmp_path)) as caught:
        base_model.find("")
    assert "HLO_MODEL" in caught.value.remedy


@pytest.mark.parametrize(
    ("config", "context"),
    [
        ({"max_position_embeddings": 256}, 256),
        ({"text_config": {"max_position_embeddings": 512}, "max_position_embeddings": 1}, 512),
        ({}, 4096),
        ({"max_position_embeddings": None}, 4096),
    ],
)
def test_the_context_is_the_configurations(config: dict[str, object], context: int) -> None:
    """The longest prompt plus answer is what the configuration says, that of its text part first."""
    assert BaseModel("m", Path("m"), config, {}, 0, embedded=False).context == context
