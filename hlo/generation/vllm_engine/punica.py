"""HLO's LoRA kernels in vLLM's layers. Imported inside vLLM's worker processes only.

Three things are done otherwise than by vLLM. The kernels are HLO's (`hlo.generation.lora_kernels`). Which token has
which adapter is worked out on the CPU and copied without waiting: vLLM's own way waits for the GPU twice a step. And
adapters that are in place are not looked for again (`lora_manager`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from vllm.lora.layers.base import BaseLayerWithLoRA
from vllm.lora.layers.base_linear import BaseLinearLayerWithLoRA
from vllm.lora.punica_wrapper.punica_gpu import PunicaWrapperGPU
from vllm.lora.worker_manager import LRUCacheWorkerLoRAManager

from hlo.generation.lora_kernels import configs, ops
from hlo.generation.lora_kernels.batch import Batch
from hlo.generation.lora_kernels.tiles import slots_of
from hlo.generation.vllm_engine import lora_manager
from hlo.generation.vllm_engine.lora_plugin import wanted

logger = logging.getLogger("hlo")

# The layers that HLO computes. Others go around `_apply_async_impl`, or share the work among GPUs in another way.
_OURS = frozenset(
    {
        "ColumnParallelLinearWithLoRA",
        "MergedColumnParallelLinearWithLoRA",
        "MergedQKVParallelLinearWithLoRA",
        "QKVParallelLinearWithLoRA",
        "RowParallelLinearWithLoRA",
    }
)


class HloPunicaWrapper(PunicaWrapperGPU):  # type: ignore[misc]
    """Tells the layers which token has which adapter, and adds LoRA to what they compute."""

    def __init__(
        self, max_num_batched_tokens: int, max_batches: int, device: torch.device | str, **kwargs: Any
    ) -> None:
        super().__init__(max_num_batched_tokens, max_batches, device, **kwargs)
        self.hlo_batch = Batch(max_num_batched_tokens, self.max_loras, device)
        gpu = torch.cuda.get_device_name(device)
        self.hlo_configs, path = configs.load(gpu, map(Path, wanted() or ()))
        logger.info("HLO's LoRA kernels on %s, configurations: %s", gpu, path or "by rule")
        # Whether a layer that HLO's kernels can not compute needs vLLM's own data, too.
        self.hlo_needs_theirs = bool(self.lora_config.enable_tower_connector_lora)

    def update_metadata(
        self, mapping: Any, lora_index_to_id: list[int | None], max_loras: int, vocab_size: int, **kwargs: Any
    ) -> None:
        """Take in which token of the next step has which adapter."""
        if self.hlo_needs_theirs:
            super().update_metadata(mapping, lora_index_to_id, max_loras, vocab_size, **kwargs)
        ids = np.fromiter(mapping.index_mapping, dtype=np.int64, count=len(mapping.index_mapping))
        any_adapter = self.hlo_batch.update(slots_of(ids, lora_index_to_id))
        # Read while a CUDA graph is captured: vLLM captures one without adapters, and one for all else.
        self.token_mapping_meta.no_lora_flag_cpu[0] = not any_adapter

    def hlo_idle(self) -> bool:
        """Whether no token of the step has an adapter."""
        return bool(self.token_mapping_meta.no_lora_flag_cpu.item())


def _compute(self: Any, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """A linear layer with LoRA; the first kernel runs before, beside or after the layer's own product."""
    wrapper = self.punica_wrapper
    a, b = self.lora_a_stacked, self.lora_b_stacked
    if not getattr(self, "_hlo", False):
        return _theirs(self, x, bias)

    def product() -> torch.Tensor:
        made: torch.Tensor = self._get_quant_method().apply(self.base_layer, x, bias)
        return made

    rows = x.flatten(0, -2)
    if wrapper.hlo_idle() or not rows.shape[0]:
        return product()
    batch, config = wrapper.hlo_batch, wrapper.hlo_configs.choose(ops.layer(a, b), rows.shape[0])
    rows = rows if rows.stride(-1) == 1 else rows.contiguous()
    return ops.add_lora(product, rows, a, b, batch, config, self._lora_stream)


def _set_mapping(self: Any, punica_wrapper: Any) -> None:
    _their_set_mapping(self, punica_wrapper)
    if isinstance(punica_wrapper, HloPunicaWrapper):
        ours = type(self).__name__ in _OURS and ops.fits(self.lora_a_stacked, self.lora_b_stacked)
        self._hlo = ours
        punica_wrapper.hlo_needs_theirs |= not ours


_theirs: Callable[..., torch.Tensor] = BaseLinearLayerWithLoRA._apply_async_impl
_their_set_mapping: Callable[..., None] = BaseLayerWithLoRA.set_mapping
BaseLinearLayerWithLoRA._apply_async_impl = _compute
BaseLayerWithLoRA.set_mapping = _set_mapping
lora_manager.patch(LRUCacheWorkerLoRAManager)
