"""bitsandbytes' int8 weights in the words of compressed-tensors, whose int8 formats vLLM runs under CUDA graphs.

bitsandbytes keeps a linear layer as `weight` (int8, out x in) and `SCB` (the absolute maximum of each row, float32),
and takes it to be `weight * SCB / 127`. compressed-tensors keeps `weight_scale` = SCB / 127, and either `weight` as it
is (`int-quantized`), or `weight_packed` with `weight_shape` (`pack-quantized`: weight + 128 as a byte, four of a row in
an int32, the first in the lowest bits).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

LOAD_FORMAT = "hlo_int8"
"""How vLLM is told to load through `hlo.generation.vllm_engine.int8_loader`."""
W8A8, WEIGHT_ONLY = "int-quantized", "pack-quantized"


def translate(name: str, tensor: torch.Tensor, form: str) -> Iterator[tuple[str, torch.Tensor]]:
    """What `form` has in the place of one of bitsandbytes' tensors; 16-bit tensors stay as they are."""
    import torch

    stem, _, kind = name.rpartition(".")
    if kind == "SCB":
        yield f"{stem}.weight_scale", scale(tensor).unsqueeze(1)
    elif kind == "weight_format":  # says that rows are in order; `checkpoint.read` refuses another one
        return
    elif tensor.dtype != torch.int8 or form == W8A8:
        yield name, tensor
    else:
        yield f"{stem}.weight_packed", pack(tensor)
        yield f"{stem}.weight_shape", torch.tensor(tensor.shape, dtype=torch.int64)


def scale(absolute_maximum: torch.Tensor) -> torch.Tensor:
    """What an int8 weight of each row is multiplied with, float32."""
    return absolute_maximum.float() / 127


def pack(weight: torch.Tensor) -> torch.Tensor:
    """Pack int8, (out, in), into int32, (out, in / 4)."""
    import torch

    return (weight.contiguous().view(torch.uint8) ^ 128).view(torch.int32)  # ^ 128: adds 128 to what was signed


def quantization_config(form: str, ignored: Sequence[str] = ("lm_head",)) -> dict[str, Any]:
    """The `quantization_config` of config.json: one symmetric scale a row; with W8A8, another for each token."""
    integers = {"num_bits": 8, "type": "int", "symmetric": True}
    activations = integers | {"strategy": "token", "dynamic": True} if form == W8A8 else None
    weights = integers | {"strategy": "channel", "dynamic": False}
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "quantization_status": "compressed",
        "config_groups": {
            "group_0": {"targets": ["Linear"], "weights": weights, "input_activations": activations},
        },
        "ignore": list(ignored),
    }
