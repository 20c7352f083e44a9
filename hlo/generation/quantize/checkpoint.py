"""Reads what an int8 checkpoint of bitsandbytes holds, from its configuration and the headers of its weights."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from msgspec import Struct

from hlo.errors import ModelError

REPORT = "quantize.json"
"""What `hlo models quantize` writes beside the weights."""

ServeAs = Literal["int8", "int8_weight_only"]


class Checkpoint(Struct, frozen=True):
    """An int8 checkpoint.

    `layers` names the linear layers in int8; `kept` maps every other matrix to the number of its values. `size` is of
    the weights' files, in bytes. `serve_as` is what the report says keeps the operator's tolerance.
    """

    folder: Path
    layers: tuple[str, ...]
    kept: Mapping[str, int]
    size: int
    serve_as: ServeAs


def saved_in_int8(folder: Path) -> bool:
    """Whether the model's configuration says that bitsandbytes saved it in int8."""
    config = _json(folder / "config.json")
    about = config.get("quantization_config") or {}
    return about.get("quant_method", "bitsandbytes") == "bitsandbytes" and bool(about.get("load_in_8bit"))


def read(folder: Path) -> Checkpoint:
    """What the checkpoint holds. Raises `ModelError` when it is none that can be served."""
    layers: list[str] = []
    scaled: set[str] = set()
    kept: dict[str, int] = {}
    for file in weight_files(folder):
        for name, kind, shape in _headers(file):
            stem, _, last = name.rpartition(".")
            if last == "SCB":
                scaled.add(stem)
            elif last == "weight" and kind == "I8":
                layers.append(stem)
                if shape[1] % 4:
                    raise ModelError(
                        f"`{stem}` in `{folder}` has rows of {shape[1]} weights, no multiple of four.",
                        remedy="Serve the original model, with HLO_QUANTIZATION=fp8_per_channel.",
                    )
            elif last == "weight" and len(shape) == 2:
                kept[stem] = shape[0] * shape[1]
    if not layers or scaled != set(layers):
        strange = sorted(scaled ^ set(layers))
        raise ModelError(
            f"`{folder}` is not an int8 checkpoint as bitsandbytes saves it: "
            + (f"`{strange[0]}` lacks its weights or their scales." if strange else "it has no layer in int8."),
            remedy="Make one with `hlo models quantize`.",
        )
    size = sum(file.stat().st_size for file in weight_files(folder))
    return Checkpoint(folder, tuple(sorted(layers)), kept, size, report(folder).get("serve_as", "int8"))


def report(folder: Path) -> dict[str, Any]:
    """What `hlo models quantize` wrote of a model; empty where it was made otherwise."""
    return _json(folder / REPORT) if (folder / REPORT).is_file() else {}


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The model's weights; what an index does not name belongs to no model (Mistral's second copy). `ModelError`."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = sorted(set(_json(index).get("weight_map", {}).values()))
    else:
        names = sorted(file.name for file in folder.glob("*.safetensors") if not file.name.startswith("consolidated"))
    if not names or not all((folder / name).is_file() for name in names):
        raise ModelError(
            f"`{folder}` lacks its weights as safetensors.",
            remedy="Fetch the model again; pickled weights are not read.",
        )
    return tuple(folder / name for name in names)


def _headers(file: Path) -> Iterator[tuple[str, str, list[int]]]:
    """Name, dtype and shape of each tensor; the order of bitsandbytes' rows is read, too."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - no mapping
                if name.endswith(".weight_format") and int(tensors.get_tensor(name)) != 0:
                    raise ModelError(
                        f"`{name}` in `{file}` has its rows in an order for one kind of GPU.",
                        remedy="Make the checkpoint anew with `hlo models quantize`.",
                    )
                header = tensors.get_slice(name)
                yield name, header.get_dtype(), header.get_shape()
    except (OSError, SafetensorError) as error:
        raise ModelError(f"`{file}` can not be read: {error}", remedy="Fetch or make the model again.") from error


def _json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"`{file}` can not be read: {error}", remedy="Fetch or make the model again.") from error
    return found if isinstance(found, dict) else {}
