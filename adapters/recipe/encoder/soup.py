"""From members to the shipped folder: the average of their layers in the base model, exported to int8 ONNX."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from adapters.recipe.encoder.settings import BASE, NAME
from adapters.recipe.encoder.training import Layers
from hlo.routing.onnx_export import ExportReport, export

WEIGHTS = "model.safetensors"


def missing(base: Path) -> list[Path]:
    """The files without which a folder is no base model."""
    return [
        base / file
        for file in (WEIGHTS, "config.json", "modules.json", "tokenizer.json")
        if not (base / file).is_file()
    ]


def average(members: Sequence[Layers]) -> Layers:
    """The mean of every weight, all members counting the same."""
    return {name: torch.stack([member[name] for member in members]).mean(0) for name in members[0]}


def write_model(base: Path, layers: Layers, out: Path) -> None:
    """Write the sentence-transformers model in ``base`` to a new folder, with other layers."""
    weights = load_file(base / WEIGHTS)
    if unknown := sorted(layers.keys() - weights.keys()):
        raise ValueError(f"`{base / WEIGHTS}` has no {unknown[0]}; the weights of a plain BERT were wanted.")
    shutil.copytree(base, out, ignore=shutil.ignore_patterns(WEIGHTS), copy_function=shutil.copyfile)
    save_file({**weights, **layers}, out / WEIGHTS, metadata={"format": "pt"})


def ship(base: Path, layers: Layers, out: Path) -> ExportReport:
    """Export the model with these layers into ``out``, in place of the encoder there; the card beside it stays.

    Raises `EncoderError` as `hlo.routing.onnx_export.export` does.
    """
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as work:
        model, exported = Path(work, "float32"), Path(work, "int8")
        write_model(base, layers, model)
        report = export(model, exported, name=NAME, base=f"{BASE}, fine-tuned")
        for file in exported.iterdir():
            file.replace(out / file.name)
    return report
