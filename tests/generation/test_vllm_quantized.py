"""8-bit weights under vLLM: what is asked of it, what it must have made of that, and what is refused."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from hlo.contracts import EngineOptions
from hlo.errors import EngineError, ModelError, SettingsError
from hlo.generation.quantize import checkpoint, compressed, making
from hlo.generation.vllm_engine.quantized import DTYPES, Plan, plan
from hlo.generation.vllm_engine.weights import verify

if TYPE_CHECKING:
    from hlo.generation.base_model import BaseModel


@pytest.fixture(scope="module")
def int8(tiny_model: BaseModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, in int8."""
    out = tmp_path_factory.mktemp("models") / "int8"
    making.make(
        tiny_model,
        out,
        text=None,
        tolerance=None,
        device="cpu",
        dtype="float32",
        force=False,
        progress=lambda done, total: None,
        report=lambda what: None,
    )
    return out


@pytest.fixture
def options(int8: Path) -> EngineOptions:
    """What a GPU is asked for with QUANTIZE=true."""
    return EngineOptions(int8, "tiny", "cuda", "auto", "int8", slots=2, rank=8, kinds=("q_proj",))


def test_a_gpu_serves_int8_by_vllms_kernels(options: EngineOptions) -> None:
    """The int8 checkpoint is loaded as compressed-tensors, with activations rounded too, or not, as asked."""
    for quantization, form in (("int8", compressed.W8A8), ("int8_weight_only", compressed.WEIGHT_ONLY)):
        found = plan(msgspec.structs.replace(options, quantization=quantization))
        assert found.quantization == quantization
        assert found.arguments["load_format"] == compressed.LOAD_FORMAT
        about = found.arguments["hf_overrides"]["quantization_config"]
        assert about["format"] == form
        assert sorted(about["ignore"]) == ["lm_head", "model.embed_tokens"]


def test_a_gpu_without_int8_products_rounds_weights_alone(
    options: EngineOptions, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """On a Blackwell GPU, QUANTIZE=true serves the same int8 weights in 16-bit products, and the log says so."""
    newest = SimpleNamespace(has_device_capability=lambda capability: capability <= 120)
    monkeypatch.setitem(sys.modules, "vllm.platforms", SimpleNamespace(current_platform=newest))
    assert plan(options).quantization == "int8_weight_only"
    assert "no int8 product for this GPU" in caplog.text


def test_the_tolerance_is_kept(options: EngineOptions, int8: Path) -> None:
    """Where the checkpoint's report says that only the weights may be rounded, QUANTIZE=true rounds only these."""
    file = int8 / checkpoint.REPORT
    before = file.read_text()
    file.write_text(json.dumps(json.loads(before) | {"serve_as": "int8_weight_only"}))
    try:
        assert plan(options).quantization == "int8_weight_only"
    finally:
        file.write_text(before)


def test_bitsandbytes_itself_is_used_on_a_cpu_and_on_demand(
    options: EngineOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A CPU serves int8 by bitsandbytes, since vLLM's int8 layers take no LoRA there; a GPU when told to."""
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1")
    for change in ({"device": "cpu"}, {"quantization": "bitsandbytes"}):
        found = plan(msgspec.structs.replace(options, **change))
        assert (found.quantization, found.arguments) == ("bitsandbytes", {"quantization": "bitsandbytes"})


def test_without_the_plugin_there_is_a_remedy(options: EngineOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where bitsandbytes is to compute and vLLM's plugin for it is missing, the remedy says how to install it."""

    def absent(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", absent)
    with pytest.raises(SettingsError, match=r"QUANTIZE=true needs .* vllm-bnb-plugin") as caught:
        plan(msgspec.structs.replace(options, device="cpu"))
    assert "--no-deps vllm-bnb-plugin" in caught.value.remedy


@pytest.mark.parametrize(
    ("change", "said", "remedy"),
    [
        ({"quantization": "int8_weight_only", "device": "cpu"}, "needs a GPU", "QUANTIZE=true"),
        ({"quantization": "none"}, "saved in int8", "QUANTIZE=true"),
        ({"quantization": "fp8_per_channel"}, "saved in int8", "original model"),
    ],
    ids=str,
)
def test_what_does_not_go_together_is_refused(
    change: dict[str, Any], said: str, remedy: str, options: EngineOptions
) -> None:
    """An int8 checkpoint is served as int8 or not at all, and weight-only kernels are a GPU's."""
    with pytest.raises(SettingsError, match=said) as caught:
        plan(msgspec.structs.replace(options, **change))
    assert remedy in caught.value.remedy


@pytest.mark.parametrize("quantization", ["int8", "int8_weight_only", "bitsandbytes"])
def test_a_plain_checkpoint_is_refused(quantization: str, options: EngineOptions, tiny_model: BaseModel) -> None:
    """A model in 16 bit is not rounded behind the operator's back: vLLM would make 4 bit of it."""
    with pytest.raises(SettingsError, match="saved in int8") as caught:
        plan(msgspec.structs.replace(options, quantization=quantization, model=tiny_model.folder))
    assert "hlo models quantize" in caught.value.remedy


def test_a_folder_that_only_says_int8_is_refused(options: EngineOptions, tiny_model: BaseModel, tmp_path: Path) -> None:
    """The weights themselves are looked at, not the configuration alone."""
    config = dict(tiny_model.config) | {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").hardlink_to(tiny_model.folder / "model.safetensors")
    with pytest.raises(ModelError, match="no layer in int8"):
        plan(msgspec.structs.replace(options, model=tmp_path))


def test_a_plain_model_needs_nothing(options: EngineOptions, tiny_model: BaseModel) -> None:
    """Without quantisation nothing is asked of vLLM and anything may be found; fp8 must be found as such."""
    plain = msgspec.structs.replace(options, model=tiny_model.folder, quantization="none")
    assert plan(plain) == Plan("none", {})
    found = plan(msgspec.structs.replace(plain, quantization="fp8_per_channel"))
    assert (found.arguments, found.dtypes) == ({"quantization": "fp8_per_channel"}, DTYPES["fp8_per_channel"])


def layers(count: int, bits: float) -> dict[str, int]:
    """Linear layers of a million weights each."""
    return {"layers": count, "values": count * 1_000_000, "bytes": int(count * 125_000 * bits)}


INT8 = Plan("int8", {}, ("int8",))


@pytest.mark.parametrize(
    ("wanted", "linear", "dtype"),
    [
        (INT8, {"int8": layers(4, 8.03)}, "int8"),
        (Plan("int8_weight_only", {}, ("int32", "uint8")), {"int32": layers(4, 8.01)}, "int32"),
        (msgspec.structs.replace(INT8, kept=1_000_000), {"int8": layers(4, 8.1), "bfloat16": layers(1, 16)}, "int8"),
        (Plan("none", {}), {"bfloat16": layers(4, 16)}, "bfloat16"),
        (Plan("none", {}), {}, "none"),
    ],
)
def test_what_was_asked_for_passes(wanted: Plan, linear: dict[str, Any], dtype: str) -> None:
    """Layers in the wanted dtype, and those that the checkpoint keeps in 16 bit, are served; devices are added up."""
    found = verify([{"bytes": 500, "linear": linear}, {"bytes": 600, "linear": linear}], wanted)
    assert (found.size, found.dtype) == (1100, dtype)


@pytest.mark.parametrize(
    ("linear", "said"),
    [
        ({"bfloat16": layers(4, 16)}, "4 in bfloat16"),
        ({"uint8": layers(4, 4.5)}, "4 in uint8"),
        ({"int8": layers(3, 8), "bfloat16": layers(1, 16)}, "1 in bfloat16"),
        ({"int8": layers(4, 16)}, "in 16.0 bits"),
        ({"int8": layers(4, 4)}, "in 4.0 bits"),
        ({}, "none"),
    ],
    ids=str,
)
def test_what_was_not_asked_for_is_not_served(linear: dict[str, Any], said: str) -> None:
    """Layers left in 16 bit, made 4 bit, or kept in more bytes than they should are refused with what was found."""
    with pytest.raises(EngineError, match=said) as caught:
        verify([{"bytes": 1, "linear": linear}], INT8)
    assert caught.value.remedy


def test_vllm_loads_the_very_same_weights(int8: Path) -> None:
    """HLO's loader, found by vLLM under its name, gives the checkpoint's int8 weights and scales under vLLM's names."""
    probe = """
import json, sys
from types import SimpleNamespace
import torch
from safetensors.torch import load_file
from vllm.config.load import LoadConfig
from vllm.model_executor.model_loader import get_model_loader
from hlo.generation.quantize import compressed
from hlo.generation.vllm_engine import worker

found = {}
for form in (compressed.W8A8, compressed.WEIGHT_ONLY):
    config = SimpleNamespace(quantization_config=compressed.quantization_config(form))
    model = SimpleNamespace(model=sys.argv[1], revision=None, hf_config=config)
    loader = get_model_loader(LoadConfig(load_format=compressed.LOAD_FORMAT, use_tqdm_on_load=False))
    found[form] = dict(loader.get_all_weights(model, SimpleNamespace()))
saved = load_file(sys.argv[1] + "/model.safetensors")
stem = "model.layers.1.mlp.down_proj"
a, b = found.values()
assert torch.equal(a[f"{stem}.weight"], saved[f"{stem}.weight"])
assert torch.equal(a[f"{stem}.weight_scale"][:, 0], saved[f"{stem}.SCB"] / 127)
assert torch.equal(b[f"{stem}.weight_packed"], compressed.pack(saved[f"{stem}.weight"]))
assert torch.equal(b[f"{stem}.weight_scale"], a[f"{stem}.weight_scale"])
assert torch.equal(a["model.norm.weight"], saved["model.norm.weight"])
assert callable(worker.HloWorker.hlo_weights)
print("the same", len(a), len(b))
"""
    done = subprocess.run([sys.executable, "-c", probe, str(int8)], capture_output=True, text=True, check=False)
    # 21 tensors in 16 bit become 35 with the scales of 14 layers, and 49 with the shapes that packing needs.
    assert done.stdout.splitlines()[-1:] == ["the same 35 49"], done.stderr[-3000:]
