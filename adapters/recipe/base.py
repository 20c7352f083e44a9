"""The base model: a small Mistral, trained from scratch on MedQuAD answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import AutoModelForCausalLM, GenerationConfig, MistralConfig, MistralForCausalLM

from adapters.recipe.examples import row_windows, typed_windows
from adapters.recipe.medquad import Splits
from adapters.recipe.settings import BaseTraining, ModelShape
from adapters.recipe.training import Loop, run_loop


def model_config(tokenizer: Any, shape: ModelShape) -> MistralConfig:
    """The Mistral configuration of a shape, with the ids of this tokenizer."""
    return MistralConfig(
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        max_position_embeddings=shape.positions,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        sliding_window=None,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def add_dropout(model: nn.Module, share: float) -> None:
    """Drop out what each attention and feed-forward block adds (Mistral has no such option)."""

    def drop(module: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        return functional.dropout(output, share, module.training)

    for name, module in model.named_modules():
        if name.endswith(("o_proj", "down_proj")):
            module.register_forward_hook(drop)


def train_base(
    tokenizer: Any, splits: Splits, shape: ModelShape, how: BaseTraining, device: torch.device
) -> MistralForCausalLM:
    """Train the base model in float32 (bfloat16 products on CUDA) and return it on the device."""
    torch.manual_seed(how.seed)
    model = MistralForCausalLM(model_config(tokenizer, shape)).to(device)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.mul_((2 * shape.layers) ** -0.5)
    add_dropout(model, how.dropout)
    pool = typed_windows(tokenizer, splits.base, shape.positions, how.question_weight, how.seed)
    watch = row_windows(tokenizer, splits.base_tuning, shape.positions)
    tokens = sum(len(window.ids) for window in pool)
    size = sum(parameter.numel() for parameter in model.parameters())
    print(f"base: {size:,} parameters, {tokens:,} tokens in {len(pool):,} windows", flush=True)
    loop = Loop(
        how.epochs,
        how.learning_rate,
        how.weight_decay,
        how.batch_tokens,
        how.warmup_steps,
        how.seed,
        "base",
    )
    run_loop(model, pool, loop, tokenizer.pad_token_id, device, watch)
    return model


def save_base(model: MistralForCausalLM, folder: Path) -> None:
    """Write config and weights, rounded to bfloat16, as safetensors."""
    rounded = model.to("cpu", torch.bfloat16)
    rounded.generation_config = GenerationConfig(
        bos_token_id=model.config.bos_token_id,
        eos_token_id=model.config.eos_token_id,
        pad_token_id=model.config.pad_token_id,
        do_sample=False,
    )
    rounded.save_pretrained(str(folder))
    path = folder / "config.json"
    config: dict[str, Any] = json.loads(path.read_text())
    config.pop("_name_or_path", None)
    config["rope_theta"] = 10000.0
    config["torch_dtype"] = "bfloat16"
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def load_base(folder: Path, device: torch.device) -> Any:
    """Load the saved weights (rounded to bfloat16) as float32 for training and measurement."""
    return AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32).to(device)
