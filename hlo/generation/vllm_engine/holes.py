"""Closes the holes that loading leaves in a GPU's memory.

Weights that are rounded as they load come to lie between the places of 16-bit ones, which PyTorch can give back only
where a whole block, or a whole page of 20 MiB, is free: 0.3 GiB of a 7B model's stay, which a card of 8 GB does not
have to give.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterable
from typing import Any

import torch

logger = logging.getLogger("hlo")

_WORTH = 0.02  # of what is left for the KV cache: holes below that are not worth the seconds
_LEAST = 2**20  # bytes from which on PyTorch gives an allocation a place among the large ones


def install() -> None:
    """Do so in this process after loading, where vLLM is as it is known here; elsewhere the log says that it is not."""
    try:
        from vllm.v1.worker.gpu_worker import Worker

        patch(Worker)
    except (ImportError, AttributeError, TypeError) as error:
        logger.warning("holes in the GPU's memory stay: this vLLM is another than HLO knows (%s)", error)


def patch(worker: type[Any]) -> None:
    """Close holes at the end of `load_model` of vLLM's class of workers.

    Raises AttributeError or TypeError for a class that has no such method with these arguments.
    """
    inspect.signature(worker.load_model).bind(None, load_dummy_weights=False)
    theirs: Callable[..., None] = worker.load_model

    def load_model(self: Any, **arguments: Any) -> None:
        """Load the model, and give back what lies free between its weights where that is worth it."""
        theirs(self, **arguments)
        # Weights that can be put to sleep lie in a pool of their own, where they have to stay.
        if not torch.cuda.is_available() or self.vllm_config.model_config.enable_sleep_mode:
            return
        torch.cuda.empty_cache()
        before = torch.cuda.memory_reserved()
        left = max(getattr(self, "requested_memory", 0) - before, 0)
        if before - torch.cuda.memory_allocated() > _WORTH * left:
            model = self.model_runner.get_model()
            close((*model.parameters(), *model.buffers()), torch.cuda.empty_cache)
            logger.info("%.0f MiB between weights given back", (before - torch.cuda.memory_reserved()) / 2**20)

    worker.load_model = load_model


def close(tensors: Iterable[torch.Tensor], give_back: Callable[[], None]) -> None:
    """Move the storages of `tensors`, lowest address first, to where there is room once `give_back` returned the rest.

    Tensors and their views stay what they are, but for their addresses. Meanwhile the host holds one storage's bytes.
    """
    storages = {one.untyped_storage().data_ptr(): one.untyped_storage() for one in tensors}
    for _, storage in sorted(storages.items()):
        size = storage.nbytes()
        if size < _LEAST or not storage.resizable():
            continue
        kept = torch.UntypedStorage(size).copy_(storage)
        storage.resize_(0)
        give_back()
        storage.resize_(size)
        storage.copy_(kept)
    give_back()
