"""The adapters: one LoRA per specialty, on top of the saved base model."""

from __future__ import annotations

import itertools
import json
import math
import random
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from adapters.recipe.base import load_base
from adapters.recipe.examples import Window, row_windows, specialty_windows
from adapters.recipe.medquad import Splits
from adapters.recipe.settings import BASE_NAME, TARGET_MODULES, LoraTraining
from adapters.recipe.training import Loop, mean_loss, run_loop

#: What stays in adapter_config.json: all that a LoRA of this kind needs, and no path of a machine.
CONFIG_KEYS: tuple[str, ...] = (
    "peft_type",
    "task_type",
    "base_model_name_or_path",
    "inference_mode",
    "r",
    "lora_alpha",
    "lora_dropout",
    "bias",
    "target_modules",
    "modules_to_save",
    "fan_in_fan_out",
    "init_lora_weights",
    "use_rslora",
    "use_dora",
)


def _fresh(base: Path, how: LoraTraining, device: torch.device) -> Any:
    torch.manual_seed(how.seed)
    config = LoraConfig(
        r=how.rank,
        lora_alpha=how.alpha,
        lora_dropout=how.dropout,
        bias="none",
        target_modules=list(TARGET_MODULES),
        task_type="CAUSAL_LM",
    )
    return get_peft_model(load_base(base, device), config)


def _capped(pool: list[Window], most: int, seed: int) -> list[Window]:
    chosen: list[Window] = []
    count = 0
    for window in random.Random(seed).sample(pool, len(pool)):  # noqa: S311 - a shuffle
        count += len(window.ids)
        if count > most:
            break
        chosen.append(window)
    return chosen


def _loop(pool: list[Window], how: LoraTraining, rate: float, epochs: int, name: str) -> Loop:
    tokens = sum(len(window.ids) for window in pool)
    budget = min(max(tokens // how.steps_per_epoch, how.min_batch_tokens), how.max_batch_tokens)
    return Loop(epochs, rate, how.weight_decay, budget, 8, how.seed, name)


def train_adapter(
    tokenizer: Any,
    splits: Splits,
    specialty: str,
    base: Path,
    out: Path,
    how: LoraTraining,
    device: torch.device,
) -> dict[str, Any]:
    """Choose learning rate and epochs on the tuning slice, train on all rows, save; facts back.

    With a single choice there is nothing to try, and only the last run is made.
    """
    plain = load_base(base, device)
    positions = int(plain.config.max_position_embeddings)
    pad = int(tokenizer.pad_token_id)
    rows, slice_rows = splits.train[specialty], splits.tuning[specialty]
    seen = {row.disease for row in splits.base}
    rows = [row for row in rows if row.disease not in seen]
    watch = row_windows(tokenizer, slice_rows, positions)
    pool = _capped(specialty_windows(tokenizer, rows, specialty, positions, how.seed), how.max_tokens, how.seed)
    before = mean_loss(plain, watch, pad, device)
    tried: dict[tuple[float, int], float] = {}
    choices = list(itertools.product(how.learning_rates, how.epochs))
    for rate, epochs in choices if len(choices) > 1 else []:
        model = _fresh(base, how, device)
        loop = _loop(pool, how, rate, epochs, f"{specialty} {rate:g} x{epochs}")
        tried[rate, epochs] = run_loop(model, pool, loop, pad, device, watch)
    rate, epochs = min(choices, key=lambda choice: tried.get(choice, 0.0))
    pool = _capped(
        specialty_windows(tokenizer, slice_rows + rows, specialty, positions, how.seed),
        how.max_tokens,
        how.seed,
    )
    model = _fresh(base, how, device)
    run_loop(model, pool, _loop(pool, how, rate, epochs, specialty), pad, device, [])
    save_adapter(model, out / specialty, how)
    return {
        "rows": len(rows) + len(slice_rows),
        "tokens": sum(len(window.ids) for window in pool),
        "learning_rate": rate,
        "epochs": epochs,
        "base_tuning_perplexity": round(math.exp(before), 3),
        "tried": {f"{r:g} x{e}": round(math.exp(loss), 3) for (r, e), loss in tried.items()},
    }


def save_adapter(model: Any, folder: Path, how: LoraTraining) -> None:
    """Write one adapter: tensors rounded to bfloat16, a config with nothing of this machine."""
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(str(folder))
    weights = folder / "adapter_model.safetensors"
    rounded = {name: tensor.to(torch.bfloat16).contiguous() for name, tensor in load_file(weights).items()}
    save_file(rounded, weights, metadata={"format": "pt"})
    path = folder / "adapter_config.json"
    config: dict[str, Any] = json.loads(path.read_text())
    config["base_model_name_or_path"] = BASE_NAME
    config["inference_mode"] = True
    config["target_modules"] = sorted(TARGET_MODULES)
    kept = {key: config[key] for key in CONFIG_KEYS if key in config}
    path.write_text(json.dumps(kept, indent=2, sort_keys=True) + "\n")
    (folder / "README.md").unlink(missing_ok=True)
