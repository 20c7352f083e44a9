"""8-bit weights under vLLM: what is asked of it for each way, and what must be found on the device afterwards.

vLLM's flags are not to be trusted: `bitsandbytes` makes 4 bit of a 16-bit checkpoint, and
`int8_per_channel_weight_only` leaves a dense model as it is. Neither is asked for, and `weights.verify` looks.
"""

from __future__ import annotations

import importlib.metadata
import logging
from collections.abc import Mapping
from typing import Any

from msgspec import Struct

from hlo.contracts import EngineOptions
from hlo.errors import SettingsError
from hlo.generation.quantize import checkpoint, compressed
from hlo.generation.quantize.checkpoint import Checkpoint

logger = logging.getLogger("hlo")

_SERVED_AS = {"int8": compressed.W8A8, "int8_weight_only": compressed.WEIGHT_ONLY}
DTYPES = {
    "int8": ("int8",),
    "int8_weight_only": ("int32", "uint8", "int8"),  # packed as the kernel wants it
    "bitsandbytes": ("int8",),
    "fp8_per_channel": ("float8_e4m3fn", "int32"),  # int32: four packed, on GPUs that do not compute in fp8
}
"""The dtypes that linear layers may have on the device, for each way of 8-bit weights."""


class Plan(Struct, frozen=True):
    """What vLLM is asked for: `arguments`, and for what they are to make: `dtypes` of linear layers (none: any).

    `kept` counts the values of linear layers that the checkpoint itself keeps in 16 bit.
    """

    quantization: str
    arguments: Mapping[str, Any]
    dtypes: tuple[str, ...] = ()
    kept: int = 0


def plan(options: EngineOptions) -> Plan:
    """What is to be asked of vLLM. Raises `SettingsError` or `ModelError` where it would make something else."""
    in_int8 = checkpoint.saved_in_int8(options.model)
    wanted = options.quantization
    if wanted in ("none", "fp8_per_channel"):
        if in_int8:
            raise SettingsError(
                f"`{options.model}` was saved in int8, and HLO_QUANTIZATION is {wanted}.",
                remedy="Set QUANTIZE=true, or point HLO_MODEL at the original model.",
            )
        asked = {} if wanted == "none" else {"quantization": wanted}
        return Plan(wanted, asked, DTYPES.get(wanted, ()))
    if not in_int8:
        raise SettingsError(
            f"{_asked(wanted)} needs a checkpoint saved in int8 by bitsandbytes, and `{options.model}` is not one.",
            remedy="Make one with `hlo models quantize`, or set HLO_QUANTIZATION=fp8_per_channel, which rounds any "
            "checkpoint as it loads.",
        )
    found = checkpoint.read(options.model)
    way = _way(options, found)
    kept = sum(values for name, values in found.kept.items() if ".layers." in name)
    if way == "bitsandbytes":
        _check_plugin(wanted)
        if options.tensor_parallel_size > 1:
            raise SettingsError(
                f"{_asked(wanted)}: bitsandbytes can not divide a model among {options.tensor_parallel_size} devices.",
                remedy="Set HLO_QUANTIZATION to int8 or int8_weight_only on GPUs, or HLO_TENSOR_PARALLEL_SIZE=1 "
                "(HLO_ENGINE_ARGUMENTS comes first).",
            )
        return Plan(way, {"quantization": way}, DTYPES[way], kept)
    about = compressed.quantization_config(_SERVED_AS[way], tuple(found.kept))
    arguments = {"load_format": compressed.LOAD_FORMAT, "hf_overrides": {"quantization_config": about}}
    return Plan(way, arguments, DTYPES[way], kept)


def _way(options: EngineOptions, found: Checkpoint) -> str:
    """How the int8 weights are computed with: as asked, as the tolerance allows, and as the device can."""
    wanted = options.quantization
    if options.device != "cpu":
        way = found.serve_as if wanted == "int8" else wanted
        if way == "int8" and not _multiplies_int8():
            logger.warning("vLLM has no int8 product for this GPU: weights alone are in 8 bit (int8_weight_only)")
            return "int8_weight_only"
        return way
    if wanted == "int8_weight_only":
        raise SettingsError(
            "HLO_QUANTIZATION=int8_weight_only needs a GPU.",
            remedy="Set QUANTIZE=true, which serves the same weights through bitsandbytes on a CPU.",
        )
    return "bitsandbytes"  # vLLM's int8 layers take no LoRA on a CPU


def _multiplies_int8() -> bool:
    """Whether vLLM can multiply int8 by int8 here: its kernels end before compute capability 10.0 (Blackwell).

    vLLM, csrc/quantization/w8a8/cutlass/scaled_mm_entry.cu.
    """
    from vllm.platforms import current_platform

    return not current_platform.has_device_capability(100)


def _check_plugin(wanted: str) -> None:
    try:
        importlib.metadata.version("vllm-bnb-plugin")
        importlib.metadata.version("bitsandbytes")
    except importlib.metadata.PackageNotFoundError as error:
        raise SettingsError(
            f"{_asked(wanted)} needs the packages `vllm-bnb-plugin` and `bitsandbytes` here.",
            remedy="`pip install --no-deps vllm-bnb-plugin bitsandbytes`.",
        ) from error


def _asked(wanted: str) -> str:
    return "QUANTIZE=true" if wanted == "int8" else f"HLO_QUANTIZATION={wanted}"
