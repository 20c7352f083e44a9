"""Loads bitsandbytes' int8 checkpoint as compressed-tensors: the very same weights and scales, under vLLM's own names.

bitsandbytes' kernels run eagerly and slowly; vLLM's int8 kernels run under CUDA graphs. Nothing is written to disk.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from vllm.model_executor.model_loader import register_model_loader
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

from hlo.generation.quantize.compressed import LOAD_FORMAT, translate


@register_model_loader(LOAD_FORMAT)
class Int8Loader(DefaultModelLoader):  # type: ignore[misc]
    """vLLM's loader of safetensors, with each tensor translated on its way."""

    def __init__(self, load_config: Any) -> None:
        load_config = copy.copy(load_config)
        load_config.load_format = "safetensors"
        super().__init__(load_config)

    def get_all_weights(self, model_config: Any, model: Any) -> Iterator[tuple[str, torch.Tensor]]:
        """Every tensor of the checkpoint, in the format that the model's configuration asks for."""
        form = model_config.hf_config.quantization_config["format"]
        for name, tensor in super().get_all_weights(model_config, model):
            yield from translate(name, tensor, form)
