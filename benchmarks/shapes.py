"""Makes models and adapters of a given shape for benchmarks: the configuration is real, the weights are not.

vLLM fills a model in with `load_format="dummy"`; speed does not depend on what the weights say.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from hlo.generation.base_model import EMBEDDED_NAME, embedded_root

MISTRAL_7B: dict[str, Any] = {
    "architectures": ["MistralForCausalLM"],
    "bos_token_id": 0,
    "dtype": "bfloat16",
    "eos_token_id": 1,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "model_type": "mistral",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "pad_token_id": 2,
    "rms_norm_eps": 1e-05,
    "rope_parameters": {"rope_theta": 1000000.0, "rope_type": "default"},
    "sliding_window": None,
    "tie_word_embeddings": False,
    "vocab_size": 32768,
}
"""The config.json of mistralai/Mistral-7B-Instruct-v0.3, with the special tokens of the demonstration tokenizer."""

TINY: dict[str, Any] = MISTRAL_7B | {
    "head_dim": 32,
    "hidden_size": 128,
    "intermediate_size": 256,
    "max_position_embeddings": 2048,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "vocab_size": 8192,
}
"""The same in small, for machines without a GPU."""

GRAPHS = [1, 8, 16, 32, 64, 128, 192, 256, 384, 512]
"""The batches that come up in benchmarks: to capture CUDA graphs for all of vLLM's sizes takes a minute more."""

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
ALL_LINEAR = (*ATTENTION, "gate_proj", "up_proj", "down_proj")


def model(folder: Path, config: dict[str, Any], *, layers: int | None = None) -> Path:
    """A model without weights: its configuration, and the demonstration model's tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    config = config | ({"num_hidden_layers": layers} if layers else {})
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    demo = embedded_root() / "models" / EMBEDDED_NAME
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(demo / name, folder / name)
    return folder


def adapters(
    folder: Path, config: dict[str, Any], count: int, *, rank: int = 16, kinds: tuple[str, ...] = ATTENTION
) -> list[Path]:
    """`count` adapters in PEFT's layout, all with the same small random weights (one file, linked)."""
    import torch
    from safetensors.torch import save_file

    hidden, head = config["hidden_size"], config["head_dim"]
    heads, kv = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    inner = config["intermediate_size"]
    shapes = {  # (out, in), and where it stands
        "q_proj": (heads, hidden, "self_attn"),
        "k_proj": (kv, hidden, "self_attn"),
        "v_proj": (kv, hidden, "self_attn"),
        "o_proj": (hidden, heads, "self_attn"),
        "gate_proj": (inner, hidden, "mlp"),
        "up_proj": (inner, hidden, "mlp"),
        "down_proj": (hidden, inner, "mlp"),
    }
    chance = torch.Generator().manual_seed(0)
    tensors = {}
    for layer in range(config["num_hidden_layers"]):
        for kind in kinds:
            out, into, block = shapes[kind]
            name = f"base_model.model.model.layers.{layer}.{block}.{kind}"
            tensors[f"{name}.lora_A.weight"] = (torch.randn(rank, into, generator=chance) * 0.02).bfloat16()
            tensors[f"{name}.lora_B.weight"] = (torch.randn(out, rank, generator=chance) * 0.02).bfloat16()
    about = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": list(kinds),
    }
    made: list[Path] = []
    for number in range(count):
        place = folder / f"adapter-{number:03}"
        place.mkdir(parents=True, exist_ok=True)
        (place / "adapter_config.json").write_text(json.dumps(about))
        weights = place / "adapter_model.safetensors"
        if not made:
            save_file(tensors, weights)
        elif not weights.exists():
            weights.hardlink_to(made[0] / weights.name)
        made.append(place)
    return made
