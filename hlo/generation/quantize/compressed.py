"""bitsandbytes' int8 weights in the words of compressed-tensors, whose int8 formats vLLM runs under CUDA graphs.

bitsandbytes keeps a linear layer as `weight` (int8, out x in) and `SCB` (the absolute maximum of each row, float32), and
takes a row to be `weight * SCB / 127`. compressed-tensors keeps `weight_scale` = SCB / 127, and either `weight` as it is
(`int-quantized`) or `weight_packed` (`pack-quantized`: weight + 128 as a byte, four of a row in an int32, the first in
the lowest bits) with `weight_shape`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

LOAD_FORMAT = "hlo_int8"
W8A8, WEIGHT_ONLY = "int-quantized", "pack-quantized"


def translate(name: str, tensor: torch.Tensor, form: str) -> Iterator[tuple[str, torch.Tensor]]:
    """What `form` has instead of one of bitsandbytes' tensors: one, two or none; 16-bit tensors stay as they are."""
    import torch

    stem, _, kind = name.rpartition(".")
    if kind == "SCB":
        yield f"{stem}.weight_scale", (tensor.float() / 127).unsqueeze(1)
    elif kind == "weight_format":  # 0: rows as they are; `check_checkpoint` refuses others
        return
    elif tensor.dtype != torch.int8:
        yield name, tensor
    elif form == W8A8:
        yield name, tensor
    else:
        yield f"{stem}.weight_packed", pack(tensor)
        yield f"{stem}.weight_shape", torch.tensor(tensor.shape, dtype=torch.int64)


def pack(weight: torch.Tensor) -> torch.Tensor:
    """Pack int8, (out, in), into int32, (out, in / 4), as compressed-tensors does."""
    import torch

    offset = weight.contiguous().view(torch.uint8) ^ 128  # the same as adding 128
    return offset.view(torch.int32)


def quantization_config(form: str, ignored: Sequence[str] = ("lm_head",)) -> Mapping[str, Any]:
    """The `quantization_config` of config.json: one symmetric scale a row, activations scaled for each token or not."""
    integers = {"num_bits": 8, "type": "int", "symmetric": True}
    activations = integers | {"strategy": "token", "dynamic": True} if form == W8A8 else None
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "quantization_status": "compressed",
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": integers | {"strategy": "channel", "dynamic": False},
                "input_activations": activations,
            }
        },
        "ignore": list(ignored),
    }
