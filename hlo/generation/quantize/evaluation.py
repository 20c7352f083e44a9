"""What rounding a model's weights costs: perplexity and logits on a text, before and after.

The int8 weights are put into the 16-bit model as what they stand for, so that the figures are of the weights and not of
anybody's kernels. W8A8 rounds the inputs of these layers too, a scale for each token, as vLLM's kernels do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from hlo.errors import ModelError
from hlo.generation.base_model import BaseModel
from hlo.generation.quantize import compressed
from hlo.generation.quantize.checkpoint import Checkpoint, weight_files

if TYPE_CHECKING:
    import torch

WINDOW = 512  # tokens that are read at once
MOST = 2048  # tokens that are read in all: the logits of every one of them are kept


class Fit(Struct, frozen=True):
    """How a way to serve does on the text, against the model in 16 bit.

    `logit_error` is the root mean square of the logits' differences, `same` the share of tokens of which the likeliest
    next token is the same.
    """

    quantization: str
    perplexity: float
    logit_error: float
    same: float


def evaluate(
    model: BaseModel, checkpoint: Checkpoint, text: str, *, device: str, dtype: str, report: Callable[[str], None]
) -> tuple[int, tuple[Fit, ...]]:
    """The number of tokens read, and the fits of `none`, `int8_weight_only` and `int8`. Raises `ModelError`."""
    import torch

    loaded, windows = _load(model, text, device, dtype)
    count = sum(len(window) for window in windows)
    with torch.inference_mode():
        report("reading the text with the 16-bit weights")
        logits = [_logits(loaded, window) for window in windows]
        fits = [_fit("none", windows, logits, logits)]
        _put(loaded, checkpoint)
        report("reading the text with the int8 weights")
        fits.append(_fit("int8_weight_only", windows, logits, (_logits(loaded, window) for window in windows)))
        for name in checkpoint.layers:
            loaded.get_submodule(name).register_forward_pre_hook(_round_inputs)
        report("reading the text with int8 weights and activations")
        fits.append(_fit("int8", windows, logits, (_logits(loaded, window) for window in windows)))
    return count, tuple(fits)


def read_text(file: Path | None) -> str:
    """The operator's text, or the one that comes with HLO. Raises `ModelError`."""
    path = file or Path(__file__).with_name("text.txt")
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ModelError(f"`{path}` can not be read: {error}", remedy="Name a text file in UTF-8.") from error


def _load(model: BaseModel, text: str, device: str, dtype: str) -> tuple[Any, list[torch.Tensor]]:
    """The model, ready to read, and the text's tokens in windows."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()  # whoever calls this shows one
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(model.folder), local_files_only=True)
        loaded = AutoModelForCausalLM.from_pretrained(
            str(model.folder), dtype="auto" if dtype == "auto" else getattr(torch, dtype), local_files_only=True
        )
        loaded = loaded.to(device).eval()
    except torch.OutOfMemoryError as error:
        raise ModelError(
            f"`{model.name}` does not fit the memory of `{device}`.",
            remedy="Set HLO_DEVICE=cpu, or give --no-evaluate and forgo the perplexity.",
        ) from error
    except Exception as error:  # a damaged file can make the libraries raise anything
        raise ModelError(f"Transformers can not load `{model.folder}`: {error}", remedy="Fetch it again.") from error
    tokens = tokenizer(text, return_tensors="pt", verbose=False)["input_ids"][0][:MOST].to(device)
    windows = [one for one in tokens.split(min(WINDOW, model.context)) if len(one) > 1]
    if not windows:
        raise ModelError("The text has fewer than two tokens.", remedy="Name a longer one with --text.")
    return loaded, windows


def _logits(model: Any, window: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor = model(window.unsqueeze(0), use_cache=False).logits[0, :-1].float()
    return found


def _fit(quantization: str, windows: list[torch.Tensor], base: list[torch.Tensor], found: Any) -> Fit:
    loss = error = 0.0
    same = count = values = 0
    for window, before, after in zip(windows, base, found, strict=True):
        right = after.log_softmax(-1).gather(1, window[1:, None])
        loss -= float(right.double().sum())
        error += float((after - before).double().square().sum())
        same += int((after.argmax(-1) == before.argmax(-1)).sum())
        count += len(right)
        values += after.numel()
    return Fit(quantization, math.exp(loss / count), math.sqrt(error / values), same / count)


def _put(model: Any, checkpoint: Checkpoint) -> None:
    """Put what the int8 weights stand for in the place of the 16-bit ones."""
    for name, weight in stand_for(checkpoint):
        target = model.get_submodule(name).weight
        target.copy_(weight.to(target.device, target.dtype))


def stand_for(checkpoint: Checkpoint) -> Iterator[tuple[str, torch.Tensor]]:
    """Each int8 layer's name and the float32 weights that it stands for."""
    from safetensors import safe_open

    wanted = set(checkpoint.layers)
    for file in weight_files(checkpoint.folder):
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - no mapping
                stem, _, kind = name.rpartition(".")
                if kind == "weight" and stem in wanted:
                    row = compressed.scale(tensors.get_tensor(f"{stem}.SCB"))
                    yield stem, tensors.get_tensor(name).float() * row.unsqueeze(1)


def _round_inputs(module: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    (values,) = inputs
    step = values.abs().amax(-1, keepdim=True).clamp(min=1e-10) / 127
    return ((values / step).round() * step,)
