"""Adapters: found where they may be, checked tensor by tensor, and kept under the hash of their content."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from hlo.errors import AdapterError, HubError
from hlo.generation import adapters
from hlo.generation.adapters import Located
from hlo.generation.base_model import BaseModel
from hlo.hub import Lock, Locked, LockedFile, Reference
from hlo.records import Adapter, AdapterVersion
from tests.hub_stub import serving

if TYPE_CHECKING:
    import torch

    from tests.conftest import MakeAdapter
    from tests.hub_stub import StubHub

CONFIG, WEIGHTS = adapters.CONFIG, adapters.WEIGHTS
Q0 = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Where checked copies are kept."""
    return tmp_path / "store"


@pytest.fixture
def check(tiny_model: BaseModel, store: Path) -> Callable[[Path], AdapterVersion]:
    """Check an adapter's folder against the tiny model."""

    def run(folder: Path) -> AdapterVersion:
        return adapters.check(Located.at(folder), "heart", tiny_model.linears, tiny_model.name, store)

    return run


Check = Callable[[Path], AdapterVersion]


def refused(check: Check, folder: Path) -> str:
    """Check a folder that must be refused with its own path and a remedy; return the reason."""
    with pytest.raises(AdapterError) as caught:
        check(folder)
    assert str(folder) in caught.value.message
    assert caught.value.remedy
    return caught.value.message


def pair(out: int = 64, into: int = 64, rank: int = 4, prefix: str = Q0) -> dict[str, torch.Tensor]:
    """Both matrices of one layer."""
    import torch

    return {f"{prefix}.lora_A.weight": torch.ones(rank, into), f"{prefix}.lora_B.weight": torch.ones(out, rank)}


def edit_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8")) | changes
    (folder / CONFIG).write_text(json.dumps(config), encoding="utf-8")


def test_a_good_adapter(check: Check, make_adapter: MakeAdapter, tmp_path: Path, store: Path) -> None:
    """A good adapter becomes a version that knows its name, hash, rank, kinds of layer, size, copy and source."""
    folder = make_adapter(tmp_path / "heart")
    version = check(folder)
    sha256 = adapters.content_hash(folder)
    size = (folder / WEIGHTS).stat().st_size
    kept = store / "adapters" / sha256
    assert version == AdapterVersion("heart", sha256, kept, 4, ("q_proj", "v_proj"), size, str(folder))
    assert sorted(file.name for file in version.path.iterdir()) == [CONFIG, WEIGHTS]


def test_every_linear_layer_can_be_adapted(check: Check, make_adapter: MakeAdapter, tmp_path: Path) -> None:
    """An adapter may touch every linear layer of the decoder blocks."""
    kinds = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    assert check(make_adapter(tmp_path / "heart", kinds=kinds)).modules == tuple(sorted(kinds))


@pytest.mark.parametrize(
    "config",
    [
        {"use_rslora": True},
        {"lora_alpha": 0.5},
        {"bias": "none", "use_dora": False, "modules_to_save": None, "lora_bias": False},
        {"target_modules": r".*\.(q|v)_proj"},
        {"target_modules": "all-linear"},
        {"init_lora_weights": "gaussian"},
        {"base_model_name_or_path": None},
        {"base_model_name_or_path": ""},
        {"base_model_name_or_path": "/home/someone/TINY/"},
        {"a_field_of_a_later_peft": {"x": 1}},
    ],
)
def test_harmless_configurations(
    config: dict[str, Any], check: Check, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    """What a plain LoRA may say of itself, and what changes nothing, is accepted."""
    assert check(make_adapter(tmp_path / "heart", config=config)).rank == 4


def test_ranks_may_differ_by_layer(check: Check, make_adapter: MakeAdapter, tmp_path: Path) -> None:
    """With `rank_pattern` each layer has its own rank, and the version's rank is the highest of them."""
    tensors = pair(rank=8) | pair(rank=4, prefix=Q0.replace("layers.0", "layers.1"))
    config = {"rank_pattern": {"layers.0.self_attn.q_proj": 8}}
    assert check(make_adapter(tmp_path / "heart", config=config, tensors=tensors)).rank == 8


def test_names_may_carry_default(check: Check, make_adapter: MakeAdapter, tmp_path: Path) -> None:
    """Tensor names with PEFT's adapter name `default` in them are understood."""
    tensors = {name.replace(".weight", ".default.weight"): tensor for name, tensor in pair().items()}
    assert check(make_adapter(tmp_path / "heart", tensors=tensors)).modules == ("q_proj",)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_every_float_is_taken(dtype: str, check: Check, make_adapter: MakeAdapter, tmp_path: Path) -> None:
    """Weights may have any usual precision."""
    import torch

    tensors = {name: tensor.to(getattr(torch, dtype)) for name, tensor in pair().items()}
    assert check(make_adapter(tmp_path / "heart", tensors=tensors)).rank == 4


@pytest.mark.parametrize("dtype", ["int8", "bool", "float8_e4m3fn"])
def test_other_numbers_are_refused(dtype: str, check: Check, make_adapter: MakeAdapter, tmp_path: Path) -> None:
    """Weights that are no ordinary floating-point numbers are refused, with the layer's name."""
    import torch

    tensors = {name: tensor.to(getattr(torch, dtype)) for name, tensor in pair().items()}
    assert "q_proj" in refused(check, make_adapter(tmp_path / "heart", tensors=tensors))


@pytest.mark.parametrize("filename", [CONFIG, WEIGHTS])
def test_a_missing_file_is_named(filename: str, check: Check, make_adapter: MakeAdapter, tmp_path: Path) -> None:
    """An adapter without one of its two files is refused, with the name of the missing one."""
    folder = make_adapter(tmp_path / "heart")
    (folder / filename).unlink()
    assert f"holds no `{filename}`." in refused(check, folder)


@pytest.mark.parametrize("pickle", ["adapter_model.bin", "adapter.pt"])
def test_a_pickle_is_refused(pickle: str, check: Check, make_adapter: MakeAdapter, tmp_path: Path) -> None:
    """An adapter that is only a pickle is refused, unread, with how to save it instead."""
    folder = make_adapter(tmp_path / "heart")
    (folder / WEIGHTS).unlink()
    (folder / pickle).write_bytes(b"not even a pickle")
    assert f"the pickle `{pickle}`" in refused(check, folder)


@pytest.mark.parametrize(
    "content",
    [b"", b"garbage", b"\xff" * 64, b"\x08\x00\x00\x00\x00\x00\x00\x00notjson!", b"\x02" + b"\x00" * 7 + b"{}"],
    ids=["empty", "garbage", "huge header", "no JSON", "no tensors"],
)
def test_corrupt_weights_are_refused(content: bytes, check: Check, make_adapter: MakeAdapter, tmp_path: Path) -> None:
    """Weights that are no safetensors are refused by the file's name."""
    folder = make_adapter(tmp_path / "heart")
    (folder / WEIGHTS).write_bytes(content)
    assert WEIGHTS in refused(check, folder)


@pytest.mark.parametrize("missing", [1, 100, 10_000])
def test_truncated_weights_are_refused(missing: int, check: Check, make_adapter: MakeAdapter, tmp_path: Path) -> None:
    """Weights whose last bytes are missing are refused as damaged."""
    folder = make_adapter(tmp_path / "heart")
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[:-missing])
    assert "is damaged" in refused(check, folder)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "is not JSON"),
        ("", "is not JSON"),
        ("\ud800", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "peft_type is 'list'"),
        ("{}", "peft_type is None"),
        ('{"peft_type": "PREFIX_TUNING"}', "peft_type is 'PREFIX_TUNING'"),
    ],
    ids=["cut", "empty", "no UTF-8", "too deep", "list", "empty object", "other kind"],
)
def test_a_configuration_of_no_lora_is_refused(
    content: str, said: str, check: Check, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    """A configuration that is no JSON, or describes no LoRA, is refused by the file's name."""
    folder = make_adapter(tmp_path / "heart")
    (folder / CONFIG).write_bytes(content.encode("utf-8", "surrogatepass"))
    reason = refused(check, folder)
    assert said in reason
    assert CONFIG in reason


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"r": 0}, "`r` must be a positive integer, not 0"),
        ({"r": -1}, "`r` must be a positive integer"),
        ({"r": True}, "`r` must be a positive integer"),
        ({"r": "4"}, "`r` must be a positive integer"),
        ({"r": None}, "`r` must be a positive integer"),
        ({"lora_alpha": "8"}, "`lora_alpha` must be a"),
        ({"lora_alpha": None}, "`lora_alpha` must be a"),
        ({"lora_alpha": float("nan")}, "`lora_alpha` must be a"),
        ({"lora_alpha": float("inf")}, "`lora_alpha` must be a"),
        ({"use_dora": True}, "`use_dora`"),
        ({"bias": "all"}, "`bias`"),
        ({"lora_bias": True}, "`lora_bias`"),
        ({"modules_to_save": ["lm_head"]}, "`modules_to_save`"),
        ({"init_lora_weights": "pissa"}, "`init_lora_weights=pissa`"),
        ({"layer_replication": [[0, 1]]}, "`layer_replication`"),
        ({"use_dora": True, "bias": "all"}, "`use_dora`, `bias`"),
        ({"target_modules": ["k_proj"]}, "`target_modules`"),
        ({"target_modules": None}, "`target_modules`"),
        ({"target_modules": r".*k_proj"}, "`target_modules`"),
        ({"target_modules": "("}, "`target_modules`"),
        ({"rank_pattern": {"(": 4}}, "`rank_pattern`"),
        ({"rank_pattern": {"q_proj": "x"}}, "`rank_pattern`"),
        ({"rank_pattern": ["q_proj"]}, "`rank_pattern`"),
        ({"base_model_name_or_path": 7}, "`base_model_name_or_path`"),
    ],
    ids=str,
)
def test_configurations_that_can_not_be_served_are_refused(
    config: dict[str, Any], said: str, check: Check, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    """A configuration with nonsense, or with a feature that changes what the matrices mean, is refused by that key."""
    assert said in refused(check, make_adapter(tmp_path / "heart", config=config))


def test_another_base_model_is_refused(check: Check, make_adapter: MakeAdapter, tmp_path: Path) -> None:
    """An adapter that names another base model is refused, with both names and the setting to use."""
    folder = make_adapter(tmp_path / "heart", config={"base_model_name_or_path": "mistralai/Mistral-7B-v0.1"})
    reason = refused(check, folder)
    assert "`Mistral-7B-v0.1`" in reason
    assert "`tiny`" in reason


@pytest.mark.parametrize(("out", "into"), [(128, 128), (32, 32), (64, 128), (128, 64), (64, 63)])
def test_shapes_of_another_base_are_refused(
    out: int, into: int, check: Check, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    """Matrices for a larger or smaller base model are refused, with both shapes."""
    reason = refused(check, make_adapter(tmp_path / "heart", tensors=pair(out, into)))
    assert "has shape" in reason
    assert str((4, 64)) in reason or str((64, 4)) in reason


@pytest.mark.parametrize("rank", [2, 8])
def test_a_rank_that_the_configuration_does_not_give_is_refused(
    rank: int, check: Check, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    """Matrices of another rank than the configuration says are refused, with the rank."""
    assert "rank 4 on this base model wants" in refused(
        check, make_adapter(tmp_path / "heart", tensors=pair(rank=rank))
    )


@pytest.mark.parametrize("dimensions", [1, 3])
def test_what_is_no_matrix_is_refused(dimensions: int, check: Check, make_adapter: MakeAdapter, tmp_path: Path) -> None:
    """A tensor with other than two dimensions is refused."""
    import torch

    tensors = pair() | {f"{Q0}.lora_A.weight": torch.ones((4,) * dimensions)}
    assert "has shape" in refused(check, make_adapter(tmp_path / "heart", tensors=tensors))


@pytest.mark.parametrize("layer", ["model.layers.9.self_attn.q_proj", "model.layers.0.attention.q_proj", "lm_head"])
def test_an_unknown_layer_is_refused(layer: str, check: Check, make_adapter: MakeAdapter, tmp_path: Path) -> None:
    """An adapter of a layer that the base model does not have, or that is its head, is refused by the layer's name."""
    tensors = pair() | pair(prefix=f"base_model.model.{layer}")
    assert f"`{layer}`" in refused(check, make_adapter(tmp_path / "heart", tensors=tensors))


@pytest.mark.parametrize(
    "key",
    [
        f"{Q0}.weight",
        f"{Q0}.lora_C.weight",
        f"{Q0}.lora_magnitude_vector",
        "base_model.model.model.embed_tokens.lora_embedding_A",
        "model.layers.0.self_attn.q_proj.lora_A.weight",
        "",
    ],
)
def test_a_tensor_of_another_kind_is_refused(key: str, check: Check, make_adapter: MakeAdapter, tmp_path: Path) -> None:
    """A tensor whose name is no LoRA matrix of a linear layer is refused by its name."""
    import torch

    folder = make_adapter(tmp_path / "heart", tensors=pair() | {key: torch.ones(4, 64)})
    assert f"tensor `{key}`" in refused(check, folder)


@pytest.mark.parametrize("side", ["A", "B"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_values_that_are_no_numbers_are_refused(
    side: str, value: float, dtype: str, check: Check, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    """A single NaN or infinite value in any matrix has the adapter refused: it would spread to other requests."""
    import torch

    tensors = {name: tensor.to(getattr(torch, dtype)) for name, tensor in pair().items()}
    tensors[f"{Q0}.lora_{side}.weight"][-1, -1] = value
    assert f"q_proj.lora_{side}` holds NaN" in refused(check, make_adapter(tmp_path / "heart", tensors=tensors))


@pytest.mark.parametrize("side", ["A", "B"])
def test_half_a_pair_is_refused(side: str, check: Check, make_adapter: MakeAdapter, tmp_path: Path) -> None:
    """A layer with only one of its two matrices is refused."""
    tensors = pair()
    del tensors[f"{Q0}.lora_{side}.weight"]
    folder = make_adapter(tmp_path / "heart", tensors=tensors)
    assert "has only one of lora_A and lora_B" in refused(check, folder)


def test_one_matrix_under_two_names_is_refused(check: Check, make_adapter: MakeAdapter, tmp_path: Path) -> None:
    """A matrix that is there twice, with and without PEFT's `default`, is refused: which one counts is unclear."""
    tensors = pair()
    tensors[f"{Q0}.lora_A.default.weight"] = 2 * tensors[f"{Q0}.lora_A.weight"]
    assert "q_proj" in refused(check, make_adapter(tmp_path / "heart", tensors=tensors))


@pytest.mark.parametrize("zero", ["A", "B", "AB"])
def test_an_adapter_that_changes_nothing_is_refused(
    zero: str, check: Check, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    """An adapter all of whose updates are zero is refused: it would serve the base model under its name."""
    tensors = pair()
    for side in zero:
        tensors[f"{Q0}.lora_{side}.weight"].zero_()
    assert "changes nothing" in refused(check, make_adapter(tmp_path / "heart", tensors=tensors))


def test_matrices_whose_product_is_zero_change_nothing(check: Check, make_adapter: MakeAdapter, tmp_path: Path) -> None:
    """An adapter is refused where neither matrix is zero, but one has values only where the other has none."""
    tensors = pair()
    tensors[f"{Q0}.lora_A.weight"][:2].zero_()
    tensors[f"{Q0}.lora_B.weight"][:, 2:].zero_()
    assert "changes nothing" in refused(check, make_adapter(tmp_path / "heart", tensors=tensors))


def test_an_adapter_scaled_to_nothing_is_refused(check: Check, make_adapter: MakeAdapter, tmp_path: Path) -> None:
    """An adapter with `lora_alpha` zero is refused like one of zeros."""
    assert "changes nothing" in refused(check, make_adapter(tmp_path / "heart", config={"lora_alpha": 0}))


def test_one_layer_with_an_effect_is_enough(check: Check, make_adapter: MakeAdapter, tmp_path: Path) -> None:
    """An adapter whose other layers are still zero is served for the one that is not."""
    idle = pair(prefix=Q0.replace("layers.0", "layers.1"))
    for tensor in idle.values():
        tensor.zero_()
    assert check(make_adapter(tmp_path / "heart", tensors=pair() | idle)).rank == 4


def test_content_hash_is_what_sha256sum_prints(make_adapter: MakeAdapter, tmp_path: Path) -> None:
    """Anyone can compute an adapter's hash with `sha256sum`."""
    folder = make_adapter(tmp_path / "heart")
    command = f"sha256sum {CONFIG} {WEIGHTS} | sha256sum"
    done = subprocess.run(["sh", "-c", command], cwd=folder, capture_output=True, text=True, check=True)
    assert adapters.content_hash(folder) == done.stdout.split()[0]


def test_every_byte_counts(check: Check, make_adapter: MakeAdapter, tmp_path: Path) -> None:
    """Two adapters that differ in configuration or in one value have different hashes; equal ones have the same."""
    nudged = pair()
    nudged[f"{Q0}.lora_A.weight"][0, 0] += 1e-6
    first = check(make_adapter(tmp_path / "1", tensors=pair()))
    versions = [
        check(make_adapter(tmp_path / "2", tensors=pair(), config={"lora_alpha": 9})),
        check(make_adapter(tmp_path / "3", tensors=nudged)),
    ]
    assert len({first.sha256, *(version.sha256 for version in versions)}) == 3
    again = check(make_adapter(tmp_path / "4", tensors=pair()))
    assert (again.sha256, again.path, again.engine_name) == (first.sha256, first.path, first.engine_name)


def test_a_tampered_copy_is_replaced(check: Check, make_adapter: MakeAdapter, tmp_path: Path) -> None:
    """A copy in the store whose content is not what its name says is replaced, not served."""
    folder = make_adapter(tmp_path / "heart")
    version = check(folder)
    (version.path / WEIGHTS).write_bytes(b"tampered")
    assert check(folder) == version
    assert (version.path / WEIGHTS).read_bytes() == (folder / WEIGHTS).read_bytes()


@pytest.mark.parametrize("filename", [CONFIG, WEIGHTS])
def test_an_incomplete_copy_is_replaced(filename: str, check: Check, make_adapter: MakeAdapter, tmp_path: Path) -> None:
    """A copy in the store that lacks a file is made again."""
    folder = make_adapter(tmp_path / "heart")
    version = check(folder)
    (version.path / filename).unlink()
    assert check(folder) == version
    assert adapters.content_hash(version.path) == version.sha256


def test_an_intact_copy_is_kept(check: Check, make_adapter: MakeAdapter, tmp_path: Path) -> None:
    """A second check of the same content writes nothing: an engine may be reading the copy."""
    folder = make_adapter(tmp_path / "heart")
    version = check(folder)
    before = (version.path / WEIGHTS).stat()
    assert check(folder) == version
    after = (version.path / WEIGHTS).stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_a_version_does_not_change_with_its_source(check: Check, make_adapter: MakeAdapter, tmp_path: Path) -> None:
    """Changing or deleting the source afterwards leaves a version as it was; checked again, it is another version."""
    folder = make_adapter(tmp_path / "heart")
    version = check(folder)
    make_adapter(folder, rank=8)
    assert adapters.content_hash(version.path) == version.sha256
    changed = check(folder)
    assert changed.sha256 != version.sha256
    assert changed.path != version.path
    shutil.rmtree(folder)
    assert adapters.content_hash(version.path) == version.sha256


@pytest.fixture
def linked(make_adapter: MakeAdapter, tmp_path: Path) -> Path:
    """A folder `linked` whose files are links to those in the folder `real` beside it."""
    real, folder = make_adapter(tmp_path / "real"), tmp_path / "linked"
    folder.mkdir()
    for filename in (CONFIG, WEIGHTS):
        (folder / filename).symlink_to(real / filename)
    return folder


def test_a_link_inside_the_boundary_is_copied(
    linked: Path, make_adapter: MakeAdapter, tmp_path: Path, tiny_model: BaseModel, store: Path
) -> None:
    """Files that are links, as in a hub's cache, are copied by content: the copy does not change with their target."""
    located = Located(linked, (tmp_path / "other", (tmp_path / "real").resolve()), "hf://org/repo@commit")
    version = adapters.check(located, "heart", tiny_model.linears, tiny_model.name, store)
    make_adapter(tmp_path / "real", rank=8)
    assert adapters.content_hash(version.path) == version.sha256
    assert version.source == "hf://org/repo@commit"
    assert not any(path.is_symlink() for path in version.path.iterdir())


@pytest.mark.parametrize("filename", [CONFIG, WEIGHTS])
@pytest.mark.parametrize("relative", [True, False])
def test_a_file_that_leads_out_is_refused(
    filename: str, relative: bool, check: Check, make_adapter: MakeAdapter, tmp_path: Path, store: Path
) -> None:
    """A file of an adapter that is a link out of its folder is refused, and nothing is copied: it could be any file."""
    outside, folder = make_adapter(tmp_path / "outside"), make_adapter(tmp_path / "heart")
    (folder / filename).unlink()
    target = Path("..", "outside", filename) if relative else outside / filename
    (folder / filename).symlink_to(target)
    assert "is a symbolic link that leads out of" in refused(check, folder)
    assert not store.exists()


def test_the_card_is_kept_as_it_is_now(check: Check, make_adapter: MakeAdapter, tmp_path: Path) -> None:
    """A README.md beside the weights is the adapter's card; the hash leaves it out, and the latest one counts."""
    folder = make_adapter(tmp_path / "adapter")
    bare = check(folder)
    assert adapters.card(bare) is None
    for text in ("# Hearts\n", "# Hearts, mended: \u2665\n"):
        (folder / "README.md").write_text(text, encoding="utf-8")
        assert check(folder) == bare
        assert adapters.card(bare) == text
    (folder / "README.md").write_bytes(b"x" * (adapters.CARD_BYTES + 1) + b"\xff")
    check(folder)
    assert adapters.card(bare) == "x" * adapters.CARD_BYTES
    (folder / "README.md").unlink()
    check(folder)
    assert adapters.card(bare) is None


def test_a_card_that_leads_out_is_none(check: Check, make_adapter: MakeAdapter, tmp_path: Path) -> None:
    """A README.md that is a link out of the adapter's folder is not read, and the adapter is served without it."""
    folder, secret = make_adapter(tmp_path / "adapter"), tmp_path / "secret"
    secret.write_text("secret", encoding="utf-8")
    (folder / "README.md").symlink_to(secret)
    assert adapters.card(check(folder)) is None


def test_a_folder_that_is_a_link_is_its_target(check: Check, make_adapter: MakeAdapter, tmp_path: Path) -> None:
    """An absolute path to a link to an adapter's folder is that folder: the operator or plugin named it."""
    real = make_adapter(tmp_path / "real")
    (tmp_path / "link").symlink_to(real)
    assert check(tmp_path / "link").sha256 == adapters.content_hash(real)


@pytest.mark.parametrize(("rank", "pattern"), [(8, {}), (4, {"layers.0.self_attn.q_proj": 8})], ids=["r", "pattern"])
def test_a_rank_above_the_limit_is_refused(
    rank: int, pattern: dict[str, int], make_adapter: MakeAdapter, tmp_path: Path, tiny_model: BaseModel, store: Path
) -> None:
    """An adapter with a rank above HLO_MAX_LORA_RANK, in any layer, is refused with both; one at the limit is not."""
    tensors = pair(rank=8) | pair(rank=rank, prefix=Q0.replace("layers.0", "layers.1"))
    folder = make_adapter(tmp_path / "heart", rank=rank, config={"rank_pattern": pattern}, tensors=tensors)
    for limit in (8, 64, None):
        checked = adapters.check(Located.at(folder), "heart", tiny_model.linears, tiny_model.name, store, limit)
        assert checked.rank == 8
    with pytest.raises(AdapterError, match="rank 8 is above HLO_MAX_LORA_RANK=7") as caught:
        adapters.check(Located.at(folder), "heart", tiny_model.linears, tiny_model.name, store, 7)
    assert caught.value.remedy == "Raise it, or train with a lower rank."


def test_nothing_is_left_in_the_store_but_copies(
    check: Check, make_adapter: MakeAdapter, tmp_path: Path, store: Path
) -> None:
    """The store holds complete copies and no half-made ones, whose folder nobody else can enter."""
    folder = make_adapter(tmp_path / "heart")
    version = check(folder)
    check(folder)
    assert os.listdir(store / "adapters") == [version.sha256]
    assert (store / "adapters").stat().st_mode & 0o077 == 0


def test_two_processes_may_keep_the_same_adapter_at_once(
    check: Check, make_adapter: MakeAdapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When another process has made the same copy in the meantime, that one is used."""
    folder = make_adapter(tmp_path / "heart")
    rename = os.rename

    def late(source: str, target: Path) -> None:
        shutil.copytree(source, target)  # what the other process did
        rename(source, target)

    monkeypatch.setattr(os, "rename", late)
    version = check(folder)
    assert adapters.content_hash(version.path) == version.sha256


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An importable package `hlo_test_weights` with a folder `weights` in it."""
    folder = tmp_path / "site" / "hlo_test_weights"
    (folder / "weights").mkdir(parents=True)
    (folder / "__init__.py").write_text("", encoding="utf-8")
    monkeypatch.syspath_prepend(str(folder.parent))
    importlib.invalidate_caches()
    yield folder
    sys.modules.pop("hlo_test_weights", None)


def test_a_name_is_looked_up_in_order(tmp_path: Path) -> None:
    """A name is found in the first folder of the search path that has it."""
    first, second = tmp_path / "1", tmp_path / "2"
    (second / "heart").mkdir(parents=True)
    assert adapters.locate(Adapter("heart"), (first, second)) == Located.at(second / "heart")
    (first / "heart").mkdir(parents=True)
    assert adapters.locate(Adapter("heart"), (first, second)) == Located.at(first / "heart")


def test_an_adapter_that_is_nowhere_is_told_with_every_place(tmp_path: Path) -> None:
    """An adapter that is not found is refused with every place that was looked in."""
    with pytest.raises(AdapterError) as caught:
        adapters.locate(Adapter("heart"), (tmp_path / "1", tmp_path / "2"))
    assert str(tmp_path / "1" / "heart") in caught.value.message
    assert str(tmp_path / "2" / "heart") in caught.value.message
    assert "HLO_ADAPTER_PATH" in caught.value.remedy


def test_an_absolute_path_is_taken(tmp_path: Path) -> None:
    """An absolute path is the folder itself, wherever it is."""
    assert adapters.locate(Adapter(str(tmp_path)), ()) == Located.at(tmp_path)


@pytest.mark.parametrize("reference", ["weights", "./weights", "sub/../weights"])
def test_a_folder_inside_a_package_is_found(reference: str, package: Path) -> None:
    """A reference with a package is a folder inside that package."""
    found = adapters.locate(Adapter(reference, package="hlo_test_weights"), ())
    assert found == Located.at((package / "weights").resolve())


@pytest.mark.parametrize(
    "adapter",
    [
        Adapter("../x"),
        Adapter(".."),
        Adapter("a/b"),
        Adapter(""),
        Adapter("~/x"),
        Adapter("a\0b"),
        Adapter(" heart"),
        Adapter("heart\n"),
        Adapter("https://example.org/x"),
        Adapter("s3://bucket/x"),
        Adapter("hf://org/repo", package="hlo_test_weights"),
        Adapter("file:///etc"),
        Adapter("/no/such/folder"),
        Adapter("/" + "x" * 300),
        Adapter("../x", package="hlo_test_weights"),
        Adapter("/etc", package="hlo_test_weights"),
        Adapter("weights/../../x", package="hlo_test_weights"),
        Adapter("missing", package="hlo_test_weights"),
        Adapter("a\0b", package="hlo_test_weights"),
        Adapter("x" * 300, package="hlo_test_weights"),
        Adapter("weights", package="hlo_test_no_such_package"),
        Adapter("weights", package="hlo_test_weights.missing"),
        Adapter("weights", package="hlo.records"),
        Adapter("weights", package=""),
    ],
    ids=lambda adapter: repr(f"{adapter.package}:{adapter.reference[:20]}"),
)
@pytest.mark.usefixtures("package")
def test_references_that_lead_nowhere_are_refused(adapter: Adapter, tmp_path: Path) -> None:
    """A reference that leads out of its folder, is a URL, no name, or names nothing, is refused with a remedy."""
    (tmp_path / "x").mkdir()
    (tmp_path / "site" / "x").mkdir()
    with pytest.raises(AdapterError) as caught:
        adapters.locate(adapter, (tmp_path / "search",))
    assert caught.value.remedy


def test_a_link_that_leads_out_is_refused(tmp_path: Path, package: Path) -> None:
    """A symbolic link that leads out of the search path or out of the package is refused."""
    outside, search = tmp_path / "outside", tmp_path / "search"
    outside.mkdir()
    search.mkdir()
    (search / "heart").symlink_to(outside)
    (package / "heart").symlink_to(outside)
    for adapter in (Adapter("heart"), Adapter("heart", package="hlo_test_weights")):
        with pytest.raises(AdapterError, match="leads out of"):
            adapters.locate(adapter, (search,))


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[StubHub]:
    """A stub of a model hub, and an empty cache."""
    with serving(tmp_path / "cache") as stub:
        yield stub


@pytest.mark.parametrize("under", ["", "adapters/heart"])
def test_an_adapter_on_a_hub_is_fetched_and_checked(
    under: str, hub: StubHub, make_adapter: MakeAdapter, tmp_path: Path, tiny_model: BaseModel, store: Path
) -> None:
    """An adapter on a hub is fetched without pickles, checked like any other, and its source names the commit."""
    folder = make_adapter(tmp_path / "heart")
    (folder / "README.md").write_text("# Heart", encoding="utf-8")
    (folder / "training_args.bin").write_bytes(b"a pickle")
    commit = hub.push_folder("clinic/heart", folder, f"{under}/" if under else "")
    tail = f"/{under}" if under else ""
    located = adapters.locate(Adapter(f"hf://clinic/heart@main{tail}"), (), hub.open())
    assert sorted(path.name for path in located.folder.iterdir()) == ["README.md", CONFIG, WEIGHTS]
    version = adapters.check(located, "heart", tiny_model.linears, tiny_model.name, store)
    assert version.sha256 == adapters.content_hash(folder)
    assert version.source == f"hf://clinic/heart@{commit}{tail}"
    assert not any(path.is_symlink() for path in version.path.iterdir())


def test_a_hub_is_used_as_its_environment_says(hub: StubHub, make_adapter: MakeAdapter, tmp_path: Path) -> None:
    """Without a hub of its own, an adapter is fetched from where huggingface_hub looks, into its cache."""
    commit = hub.push_folder("clinic/heart", make_adapter(tmp_path / "heart"))
    located = adapters.locate(Adapter(f"hf://clinic/heart@{commit}"), ())
    assert located.folder.is_relative_to(hub.cache)


def test_a_link_out_of_a_hubs_cache_is_refused(
    hub: StubHub, make_adapter: MakeAdapter, tmp_path: Path, tiny_model: BaseModel, store: Path
) -> None:
    """A file in a hub's cache that was replaced by a link out of the repository's part of it is refused."""
    folder = make_adapter(tmp_path / "heart")
    hub.push_folder("clinic/heart", folder)
    located = adapters.locate(Adapter("hf://clinic/heart"), (), hub.open())
    (located.folder / WEIGHTS).unlink()
    (located.folder / WEIGHTS).symlink_to(folder / WEIGHTS)
    with pytest.raises(AdapterError, match="leads out of"):
        adapters.check(located, "heart", tiny_model.linears, tiny_model.name, store)


def test_a_shared_blob_of_a_hubs_cache_is_taken(
    hub: StubHub, make_adapter: MakeAdapter, tmp_path: Path, tiny_model: BaseModel, store: Path
) -> None:
    """A file that huggingface_hub keeps once for all repositories, in the cache's `blobs`, is inside the boundary."""
    hub.push_folder("clinic/heart", make_adapter(tmp_path / "heart"))
    located = adapters.locate(Adapter("hf://clinic/heart"), (), hub.open())
    blob = (located.folder / WEIGHTS).resolve()
    shared = hub.cache / "blobs" / "00" / blob.name
    shared.parent.mkdir(parents=True)
    blob.rename(shared)
    blob.symlink_to(shared)
    assert adapters.check(located, "heart", tiny_model.linears, tiny_model.name, store).rank == 4


def test_an_unpinned_adapter_is_refused_in_production(hub: StubHub, make_adapter: MakeAdapter, tmp_path: Path) -> None:
    """In production an adapter's branch must be in the lock file, and then means the commit that stands there."""
    folder = make_adapter(tmp_path / "heart")
    commit = hub.push_folder("clinic/heart", folder)
    hub.push("clinic/heart", {CONFIG: b"moved"})
    adapter = Adapter("hf://clinic/heart@main")
    with pytest.raises(HubError, match="hf://clinic/heart@main is not pinned"):
        adapters.locate(adapter, (), hub.open(production=True))
    content = (folder / WEIGHTS).read_bytes()
    files = {WEIGHTS: LockedFile(hashlib.sha256(content).hexdigest(), len(content))}
    lock = Lock().having(Reference.parse(adapter.reference), Locked(commit, files))
    assert adapters.locate(adapter, (), hub.open(lock, production=True)).source == f"hf://clinic/heart@{commit}"


@pytest.mark.parametrize("reference", ["hf://heart", "hf://org/repo@", "hf://org/repo@main/../x"])
def test_malformed_hub_references_are_refused(reference: str) -> None:
    """A reference to a hub that is malformed, or leads out of its repository, is refused without asking any."""
    with pytest.raises(HubError, match="is no reference to a model hub"):
        adapters.locate(Adapter(reference), ())


def test_the_null_adapter_changes_nothing_and_fits(tiny_model: BaseModel, store: Path) -> None:
    """The null adapter is all zero, of rank 1, on one layer of the wanted kinds, and always has the same hash."""
    from safetensors.torch import load_file

    made = [adapters.null(tiny_model.linears, "tiny", frozenset({"v_proj"}), store) for _ in range(2)]
    assert made[0] == made[1]
    assert (made[0].name, made[0].rank, made[0].modules) == ("null", 1, ("v_proj",))
    weights = load_file(made[0].path / WEIGHTS)
    assert [not tensor.any() for tensor in weights.values()] == [True, True]
    with pytest.raises(AdapterError, match="changes nothing"):  # and nothing else is wrong with it
        adapters.check(Located.at(made[0].path), "null", tiny_model.linears, "tiny", store)


def test_peft_can_read_what_is_accepted(tiny_model: BaseModel, check: Check, tmp_path: Path) -> None:
    """An adapter that PEFT itself saved is accepted, with the rank and layers that PEFT was told."""
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(str(tiny_model.folder))
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    peft.get_peft_model(model, config).save_pretrained(str(tmp_path / "heart"))
    version = check(tmp_path / "heart")
    assert (version.rank, version.modules) == (4, ("down_proj", "q_proj"))


def test_a_store_that_can_not_be_written_is_told(
    tiny_model: BaseModel, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    """Where no copy can be kept, the adapter is refused with the place and the setting that names another."""
    folder = make_adapter(tmp_path / "good")
    (tmp_path / "file").write_text("")
    with pytest.raises(AdapterError, match="can not be copied to") as caught:
        adapters.check(Located.at(folder), "heart", tiny_model.linears, tiny_model.name, tmp_path / "file")
    assert str(tmp_path / "file") in caught.value.message
    assert "HLO_CACHE_DIR" in caught.value.remedy
