"""Puts an adapter into its slot on the GPU with a few calls.

vLLM empties and fills a slot with four calls of torch for each matrix, between two steps of its loop: some thousand
calls for 32 layers, as long as a step takes. Here the layers only say what goes where, and two calls do it for all.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from hlo.generation.vllm_engine.installed import as_known


class _Copies:
    """What is to be copied, and what is to be zero before it; on the stream of the step that comes next."""

    def __init__(self) -> None:
        self._empty: list[torch.Tensor] = []
        self._places: list[torch.Tensor] = []
        self._parts: list[torch.Tensor] = []

    def add(self, stacked: Sequence[torch.Tensor], index: int, parts: Sequence[torch.Tensor | None]) -> None:
        """Fill slot `index` of matrices (slots, 1, rows, columns) each with a part, which may be smaller, or None."""
        for whole, part in zip(stacked, parts, strict=True):
            place = whole[index, 0]
            if part is None or part.shape != place.shape:
                self._empty.append(place)
            if part is not None:
                self._places.append(place[: part.shape[0], : part.shape[1]])
                self._parts.append(part)

    def do(self) -> None:
        """Copy all."""
        if self._empty:
            torch._foreach_zero_(self._empty)
        if self._places:
            torch._foreach_copy_(self._places, self._parts, non_blocking=True)


_gathered: _Copies | None = None


def install() -> None:
    """Do so in this process, where vLLM is as it is known here; elsewhere its own way stays, and the log says so."""
    with as_known("adapters get their slots in vLLM's own way"):
        from vllm.lora.layers.base_linear import BaseLinearLayerWithLoRA
        from vllm.lora.layers.column_parallel_linear import MergedColumnParallelLinearWithLoRA
        from vllm.lora.model_manager import LRUCacheLoRAModelManager

        patch(LRUCacheLoRAModelManager, (BaseLinearLayerWithLoRA, MergedColumnParallelLinearWithLoRA))


def patch(manager: type[Any], layers: Iterable[type[Any]]) -> None:
    """Put HLO's way into `activate_adapter` of vLLM's class of managers, and `set_lora` of its classes of `layers`.

    Raises AttributeError or TypeError for classes that have no such methods with these arguments.
    """
    layers = [layer for layer in layers if "set_lora" in vars(layer)]
    inspect.signature(manager.activate_adapter).bind(None, lora_id=0)
    for layer in layers:
        inspect.signature(layer.set_lora).bind(None, index=0, lora_a=None, lora_b=None)
    theirs: Callable[[Any, int], bool] = manager.activate_adapter

    def activate_adapter(self: Any, lora_id: int) -> bool:
        """Give an adapter a slot, if it has none."""
        global _gathered  # the layers are called by vLLM, and only from the engine's loop
        _gathered = _Copies()
        try:
            changed = theirs(self, lora_id)
            _gathered.do()
        finally:
            _gathered = None
        return changed

    manager.activate_adapter = activate_adapter
    for layer in layers:
        layer.set_lora = _set_lora(layer.set_lora)


def _set_lora(theirs: Callable[..., None]) -> Callable[..., None]:
    def set_lora(self: Any, index: int, lora_a: Any, lora_b: Any) -> None:
        """Fill a layer's slot with an adapter's matrices: one of each kind, or a list with one for each slice."""
        a, b = ([one] if isinstance(one, torch.Tensor) else one for one in (lora_a, lora_b))
        alike = len(a) == len(b) == len(self.lora_a_stacked)
        if _gathered is None or self.tp_size > 1 or not alike:
            theirs(self, index, lora_a, lora_b)
            return
        _gathered.add(self.lora_a_stacked, index, a)
        _gathered.add(self.lora_b_stacked, index, b)

    return set_lora
