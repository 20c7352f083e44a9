"""Writes a model's weights in int8, one file at a time: the whole model is never in memory."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hlo.errors import ModelError, SettingsError
from hlo.generation.base_model import BaseModel
from hlo.generation.quantize.checkpoint import saved_in_int8, weight_files

if TYPE_CHECKING:
    import torch

Progress = Callable[[int, int], None]
"""Hears how many layers are done, and how many there are."""

_INDEX = "model.safetensors.index.json"


def check_packages() -> None:
    """Raise `SettingsError` where bitsandbytes is not installed."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise SettingsError("`bitsandbytes` is not installed.", remedy="`pip install 'hlo[bnb]'`.")


def write(model: BaseModel, folder: Path, progress: Progress) -> None:
    """Write the int8 checkpoint of `model` to `folder`, which exists and is empty. Raises `ModelError`.

    It is what transformers and bitsandbytes write for `BitsAndBytesConfig(load_in_8bit=True)`: every linear layer but
    the output head in int8, all else in 16 bit. bitsandbytes itself rounds.
    """
    if "quantization_config" in model.config:
        kind = "in int8 already" if saved_in_int8(model.folder) else "quantised already"
        raise ModelError(f"`{model.folder}` is {kind}.", remedy="Name the original model, in 16 or 32 bit.")
    files = weight_files(model.folder)
    _check_room(files, folder)
    index: dict[str, str] = {}
    done: set[str] = set()
    size = 0
    for file in files:
        tensors = _quantize(file, model, done, lambda: progress(len(done), len(model.linears)))
        _save(tensors, folder / file.name)
        index.update(dict.fromkeys(tensors, file.name))
        size += sum(tensor.nbytes for tensor in tensors.values())
    if lost := sorted(set(model.linears) - done):
        raise ModelError(
            f"`{model.folder}` lacks the weights of {len(lost)} linear layers under the names that transformers gives "
            f"them, such as `{lost[0]}.weight`.",
            remedy="Models whose layers are fused on disk can be served with HLO_QUANTIZATION=fp8_per_channel.",
        )
    if len(files) > 1:
        whole = {"metadata": {"total_size": size}, "weight_map": dict(sorted(index.items()))}
        (folder / _INDEX).write_text(json.dumps(whole, indent=1), encoding="utf-8")
    _write_rest(model, folder)


def _quantize(file: Path, model: BaseModel, done: set[str], tell: Callable[[], None]) -> dict[str, torch.Tensor]:
    import torch
    from bitsandbytes.functional import int8_vectorwise_quant
    from safetensors import safe_open

    tensors: dict[str, torch.Tensor] = {}
    with safe_open(file, "pt") as source:
        for name in source.keys():  # noqa: SIM118 - no mapping
            tensor = source.get_tensor(name)
            stem, _, kind = name.rpartition(".")
            if stem in model.linears and kind == "weight":
                half = tensor.to(torch.float16)  # as bitsandbytes does
                if not torch.isfinite(half).all():
                    raise ModelError(
                        f"`{name}` has weights that are not finite in float16, in which bitsandbytes rounds.",
                        remedy="Serve the original model, with HLO_QUANTIZATION=fp8_per_channel.",
                    )
                rounded, maximum, _ = int8_vectorwise_quant(half.contiguous())
                tensors[name], tensors[f"{stem}.SCB"] = rounded, maximum
                tensors[f"{stem}.weight_format"] = torch.tensor(0, dtype=torch.uint8)
                done.add(stem)
                tell()
            else:
                tensors[name] = tensor.to(torch.bfloat16) if tensor.dtype == torch.float32 else tensor
    return tensors


def _save(tensors: dict[str, torch.Tensor], file: Path) -> None:
    from safetensors.torch import save_file

    try:
        save_file(tensors, file, {"format": "pt"})
        file.chmod(0o644)  # safetensors makes it its owner's alone
    except Exception as error:  # safetensors has errors of its own for a full disk
        raise ModelError(f"`{file}` can not be written: {error}", remedy="Make room, or name another disk.") from error


def _write_rest(model: BaseModel, folder: Path) -> None:
    """The configuration, and the tokenizer's files as they are."""
    from transformers import BitsAndBytesConfig

    about: dict[str, Any] = BitsAndBytesConfig(load_in_8bit=True).to_dict()
    config = dict(model.config) | {"quantization_config": about}
    dtype = config.pop("torch_dtype", None) or config.get("dtype")
    config["dtype"] = "float16" if dtype == "float16" else "bfloat16"
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    for file in sorted(model.folder.iterdir()):
        wanted = file.suffix in (".json", ".jinja", ".txt") or file.name.startswith("tokenizer.model")
        if file.is_file() and wanted and file.name not in ("config.json", _INDEX):
            shutil.copyfile(file, folder / file.name)


def _check_room(files: tuple[Path, ...], folder: Path) -> None:
    """What is written is smaller than what is read."""
    needed, free = sum(file.stat().st_size for file in files), shutil.disk_usage(folder).free
    if free < needed:
        raise ModelError(
            f"`{folder.parent}` has {free / 2**30:.1f} GiB free; up to {needed / 2**30:.1f} are needed.",
            remedy="Make room, or name a folder on another disk with --out.",
        )


def version() -> str:
    """The version of bitsandbytes."""
    return importlib.metadata.version("bitsandbytes")
