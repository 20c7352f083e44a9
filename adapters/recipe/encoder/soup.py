"""From members to the shipped folder: the average of their layers in the base model, in int8 ONNX, rounded anew."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from msgspec.structs import replace
from safetensors.torch import load_file, save_file

from adapters.recipe.encoder.narrow import narrow
from adapters.recipe.encoder.settings import BASE, NAME
from adapters.recipe.encoder.training import Layers
from hlo.routing.onnx_encoder import MODEL, OnnxEncoder
from hlo.routing.onnx_export import SAMPLES, ExportReport, export
from hlo.routing.sentence_encoder import SentenceEncoder

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


def ship(base: Path, layers: Layers, out: Path, texts: Sequence[str]) -> ExportReport:
    """Export the model with these layers into ``out``, in place of the encoder there; the card beside it stays.

    Its weights are rounded anew on ``texts``. Raises `EncoderError` as `hlo.routing.onnx_export.export` does.
    """
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as work:
        model, exported = Path(work, "float32"), Path(work, "int8")
        write_model(base, layers, model)
        report = export(model, exported, name=NAME, base=f"{BASE}, fine-tuned")
        narrow(exported, texts)
        encoder = OnnxEncoder.load(exported)
        cosines = (encoder.encode(SAMPLES) * SentenceEncoder.of(model, BASE).encode(SAMPLES)).sum(axis=1)
        for file in exported.iterdir():
            file.replace(out / file.name)
    return replace(
        report,
        description=encoder.description,
        fingerprint=encoder.fingerprint,
        size=(out / MODEL).stat().st_size,
        mean_cosine=float(cosines.mean()),
        min_cosine=float(cosines.min()),
    )
