"""The rows of benchmarks/eight_bit.py: what each way of 8-bit weights needs, and how its engine is started."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks import shapes
from hlo.generation.base_model import EMBEDDED_NAME, embedded_root
from hlo.generation.quantize import compressed

LIMITS = "of bf16 ≥ 1.10 at once, ≥ 1.30 alone, ≤ 0.60 GiB"
ROWS = ("bf16", "int8", "int8_weight_only", "fp8_per_channel", "bitsandbytes")
_FORMS = {"int8": compressed.W8A8, "int8_weight_only": compressed.WEIGHT_ONLY}


def missing(name: str, *, gpu: bool, lora: bool) -> str:
    """Why a row can not be had here; empty if it can."""
    if name in _FORMS and not gpu and (lora or name == "int8_weight_only"):
        return "not on CPUs" + (" with LoRA" if name == "int8" else "")
    if name == "bitsandbytes":
        for package in ("bitsandbytes", "vllm-bnb-plugin"):
            try:
                importlib.metadata.version(package)
            except importlib.metadata.PackageNotFoundError:
                return f"{package} is not installed"
    return ""


def prepare(
    name: str, folder: Path, config: Mapping[str, Any] | None, *, checkpoint: Path | None, loaded: bool = False
) -> dict[str, Any]:
    """Write what a row's engine reads, and return its arguments.

    With a `config`, a model of that shape with random weights; without, the demonstration model. bitsandbytes has no
    dummy weights: its row loads `checkpoint`, and so do the other int8 rows without a `config`, or when `loaded`.
    """
    own: dict[str, Any] = {"fp8_per_channel": {"quantization": name}}.get(name, {})
    if checkpoint is not None and (name == "bitsandbytes" or (name in _FORMS and (loaded or config is None))):
        if name in _FORMS:
            overrides = {"quantization_config": compressed.quantization_config(_FORMS[name])}
            own = {"load_format": compressed.LOAD_FORMAT, "hf_overrides": overrides}
        return {"model": str(checkpoint), **own}
    if config is None:
        return {"model": str(embedded_root() / "models" / EMBEDDED_NAME), **own}
    if name in _FORMS:
        config = {**config, "quantization_config": compressed.quantization_config(_FORMS[name])}
    return {"model": str(shapes.model(folder, dict(config))), "load_format": "dummy", **own}


def random_int8(folder: Path, config: dict[str, Any], *, gpu: bool) -> Path:
    """A checkpoint as bitsandbytes saves it, with random int8 weights: one file a layer."""
    import torch
    from safetensors.torch import save_file

    place = "cuda" if gpu else "cpu"
    about = {"quant_method": "bitsandbytes", "load_in_8bit": True, "load_in_4bit": False, "llm_int8_threshold": 6.0}
    shapes.model(folder, config | {"quantization_config": about})
    hidden, head, inner = config["hidden_size"], config["head_dim"], config["intermediate_size"]
    heads, kv = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    linears = {
        "self_attn.q_proj": (heads, hidden),
        "self_attn.k_proj": (kv, hidden),
        "self_attn.v_proj": (kv, hidden),
        "self_attn.o_proj": (hidden, heads),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    index: dict[str, str] = {}

    def save(file: str, tensors: dict[str, torch.Tensor]) -> None:
        save_file({name: one.cpu() for name, one in tensors.items()}, folder / file, {"format": "pt"})
        index.update(dict.fromkeys(tensors, file))

    small = {"dtype": torch.bfloat16, "device": place}
    outer = {
        "model.embed_tokens.weight": torch.randn(config["vocab_size"], hidden, **small) * 0.02,
        "lm_head.weight": torch.randn(config["vocab_size"], hidden, **small) * 0.02,
        "model.norm.weight": torch.ones(hidden, **small),
    }
    save("outer.safetensors", outer)
    for layer in range(config["num_hidden_layers"]):
        tensors = {}
        for name, (out, into) in linears.items():
            stem = f"model.layers.{layer}.{name}"
            tensors[f"{stem}.weight"] = torch.randint(-127, 128, (out, into), dtype=torch.int8, device=place)
            tensors[f"{stem}.SCB"] = torch.full((out,), 0.05, device=place)
            tensors[f"{stem}.weight_format"] = torch.zeros((), dtype=torch.uint8)
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"model.layers.{layer}.{name}.weight"] = torch.ones(hidden, **small)
        save(f"layer-{layer:02}.safetensors", tensors)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return folder
