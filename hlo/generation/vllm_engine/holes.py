"""Closes the holes that loading leaves in a GPU's memory.

Weights that are rounded as they load come to lie between the places of 16-bit ones, which PyTorch can give back only
where a whole block is free, or a whole page of 20 MiB of an expandable segment: of a 7B model 0.5 GiB stay, or 0.3,
which a card of 8 GB does not have to give.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from hlo.generation.vllm_engine.installed import as_known

logger = logging.getLogger("hlo")

_WORTH = 0.02  # of what the weights leave of vLLM's share: smaller holes are not worth the seconds
_SMALL = 2**20  # bytes up to which PyTorch gives an allocation a place among the small ones
_STAY = "holes in the GPU's memory stay"


def install() -> None:
    """Do so in this process after loading, where vLLM is as it is known here; elsewhere the log says that it is not."""
    with as_known(_STAY):
        from vllm.v1.worker.gpu_worker import Worker

        patch(Worker)


def patch(worker: type[Any]) -> None:
    """Close holes at the end of `load_model` of vLLM's class of workers.

    Raises AttributeError or TypeError for a class that has no such method with these arguments.
    """
    inspect.signature(worker.load_model).bind(None, load_dummy_weights=False)
    theirs: Callable[..., None] = worker.load_model

    def load_model(self: Any, **arguments: Any) -> None:
        """Load the model, and give back what lies free between its weights where that is worth it."""
        theirs(self, **arguments)
        weights: list[torch.Tensor] = []
        with as_known(_STAY):
            weights = _worth_moving(self)
        if weights:
            before = torch.cuda.memory_reserved()
            close(weights, torch.cuda.empty_cache)
            logger.info("%.0f MiB between weights given back", (before - torch.cuda.memory_reserved()) / 2**20)

    worker.load_model = load_model


def _worth_moving(worker: Any) -> list[torch.Tensor]:
    """A worker's weights that can be moved; none where little lies free between them."""
    # In CuMem's pool, which weights are put to sleep in, they have to stay.
    if not torch.cuda.is_available() or worker.vllm_config.model_config.enable_cumem_allocator:
        return []
    torch.cuda.empty_cache()
    reserved = torch.cuda.memory_reserved()
    if reserved - torch.cuda.memory_allocated() <= _WORTH * max(worker.requested_memory - reserved, 0):
        return []
    model = worker.model_runner.get_model()
    every = (*model.parameters(), *model.buffers())
    return [one for one in every if one.is_cuda and not is_traceable_wrapper_subclass(one)]  # those have no storage


def close(tensors: Iterable[torch.Tensor], give_back: Callable[[], None]) -> None:
    """Move the storages of `tensors`, lowest address first, to where there is room once `give_back` returned the rest.

    Tensors and their views stay what they are, but for their addresses. Meanwhile the host holds one storage's bytes.
    An error, such as torch.OutOfMemoryError, leaves a tensor without its storage.
    """
    storages = {one.untyped_storage().data_ptr(): one.untyped_storage() for one in tensors}
    for _, storage in sorted(storages.items()):
        size = storage.nbytes()
        if size <= _SMALL or not storage.resizable():
            continue
        kept = torch.UntypedStorage(size).copy_(storage)
        storage.resize_(0)
        give_back()
        storage.resize_(size)
        storage.copy_(kept)
    give_back()
