"""Measurement: perplexity of held-back answers, and of the hand-written pairs, for every adapter.

"base" is a row of every table beside the adapters; a smaller number is better.
"""

from __future__ import annotations

import json
import math
import tomllib
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from tqdm import tqdm  # type: ignore[import-untyped, unused-ignore]

from adapters.recipe.base import load_base
from adapters.recipe.examples import Window, row_windows, windows
from adapters.recipe.medquad import Splits
from adapters.recipe.settings import SPECIALTIES
from adapters.recipe.training import mean_loss

Table = dict[str, dict[str, float]]


def load_all(model: Path, adapters: Path, device: torch.device) -> Any:
    """The base model with every adapter loaded under its specialty's name, in float32."""
    names = list(SPECIALTIES)
    loaded = PeftModel.from_pretrained(load_base(model, device), str(adapters / names[0]), adapter_name=names[0])
    for name in names[1:]:
        loaded.load_adapter(str(adapters / name), adapter_name=name)
    return loaded.eval()


def loss_table(model: Any, pools: dict[str, list[Window]], pad: int, device: torch.device, fast: bool) -> Table:
    """Mean nats per answer token: ``table[specialty of the rows][adapter or "base"]``."""
    table: Table = {name: {} for name in pools}
    for adapter in tqdm(["base", *SPECIALTIES], desc="measuring", unit="adapter"):
        if adapter != "base":
            model.set_adapter(adapter)
        for name, pool in pools.items():
            if adapter == "base":
                with model.disable_adapter():
                    table[name][adapter] = mean_loss(model, pool, pad, device, fast=fast)
            else:
                table[name][adapter] = mean_loss(model, pool, pad, device, fast=fast)
    return table


def pair_pools(tokenizer: Any, path: Path, length: int) -> dict[str, list[Window]]:
    """Windows of the hand-written question/answer pairs, by specialty."""
    pools: dict[str, list[Window]] = {name: [] for name in SPECIALTIES}
    for pair in tomllib.loads(path.read_text(encoding="utf-8"))["pair"]:
        pools[pair["specialty"]] += windows(tokenizer, pair["question"], pair["answer"], length)
    return pools


def evaluate(
    tokenizer: Any,
    splits: Splits,
    model: Path,
    adapters: Path,
    pairs: Path,
    device: torch.device,
    fast: bool,
) -> dict[str, Any]:
    """Measure all adapters on held-back rows and on the pairs; a JSON-ready report."""
    loaded = load_all(model, adapters, device)
    length = int(loaded.config.max_position_embeddings)
    pad = int(tokenizer.pad_token_id)
    pools = {name: row_windows(tokenizer, rows, length) for name, rows in splits.held_back.items()}
    held = loss_table(loaded, pools, pad, device, fast)
    report: dict[str, Any] = {
        "unit": "perplexity of answers, given the bare question in the chat template",
        "precision_note": " with bfloat16 matrix products" if fast else " in float32",
        "held_back": {
            name: {
                "rows": len(splits.held_back[name]),
                "answer_tokens": int(sum(sum(window.weights) for window in pools[name])),
                "perplexity": {key: round(math.exp(loss), 4) for key, loss in held[name].items()},
            }
            for name in SPECIALTIES
        },
    }
    if pairs.exists():
        measured = loss_table(loaded, pair_pools(tokenizer, pairs, length), pad, device, False)
        report["pairs_nll"] = {
            name: {key: round(loss, 5) for key, loss in row.items()} for name, row in measured.items()
        }
    return report


def verdicts(table: Table) -> list[str]:
    """One line per specialty: right adapter, base, best other adapter, and whether it wins."""
    lines = []
    for name, row in table.items():
        others = {key: value for key, value in row.items() if key not in (name, "base")}
        best = min(others, key=lambda key: others[key])
        wins = row[name] < min(row["base"], others[best])
        lines.append(
            f"{name:20} right {row[name]:8.4f}  base {row['base']:8.4f}  "
            f"best other {others[best]:8.4f} ({best}) {'ok' if wins else 'FAILS'}"
        )
    return lines


def write_report(report: dict[str, Any], path: Path) -> None:
    """Write the report as JSON and print the verdicts."""
    path.write_text(json.dumps(report, indent=2) + "\n")
    held = {name: part["perplexity"] for name, part in report["held_back"].items()}
    print("\n".join(["held-back rows, perplexity:", *verdicts(held)]))
    if "pairs_nll" in report:
        print("\n".join(["hand-written pairs, nats per token:", *verdicts(report["pairs_nll"])]))
