"""8-bit weights under vLLM: what can be asked for."""

from __future__ import annotations

import importlib.metadata
import json

from hlo.contracts import EngineOptions
from hlo.errors import SettingsError


def check_quantization(options: EngineOptions) -> None:
    """bitsandbytes in 8 bit needs a checkpoint saved in int8; on any other, vLLM would silently make 4 bit of it."""
    if options.quantization != "bitsandbytes":
        return
    saved = json.loads((options.model / "config.json").read_text(encoding="utf-8")).get("quantization_config", {})
    if not saved.get("load_in_8bit"):
        raise SettingsError(
            f"QUANTIZE=true needs a checkpoint saved in int8 by bitsandbytes, and `{options.model}` is not one.",
            remedy="Save one with transformers' BitsAndBytesConfig(load_in_8bit=True), or set "
            "HLO_QUANTIZATION=fp8_per_channel, which quantises any checkpoint as it loads.",
        )
    try:
        importlib.metadata.version("vllm-bnb-plugin")
    except importlib.metadata.PackageNotFoundError as error:
        raise SettingsError(
            "QUANTIZE=true needs the package `vllm-bnb-plugin`.",
            remedy="`pip install --no-deps vllm-bnb-plugin bitsandbytes`.",
        ) from error
