"""The plan of a batch on the device, where captured CUDA graphs read it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from hlo.generation.lora_kernels.tiles import BLOCKS, most_tiles, plan

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Batch:
    """Device memory for plans of at most `tokens` tokens of `slots` slots; its addresses never change.

    `order` has shape (tokens,), each of `tables` (most tiles, 4); both int32. A tile without tokens is none.
    """

    def __init__(self, tokens: int, slots: int, device: torch.device | str) -> None:
        sizes = [tokens, *(most_tiles(tokens, slots, block) * 4 for block in BLOCKS)]
        self._starts = np.cumsum([0, *(-(-size // 4) * 4 for size in sizes)])  # 16 bytes each: aligned
        self._memory = torch.zeros(int(self._starts[-1]), dtype=torch.int32, device=device)
        self.order = self._memory[:tokens]
        self.tables = tuple(
            self._memory[start : start + size].view(-1, 4)
            for start, size in zip(self._starts[1:].tolist(), sizes[1:], strict=False)
        )

    def update(self, slots: NDArray[np.integer]) -> bool:
        """Plan for a batch, shape (tokens,); False when no token has an adapter. Waits for nothing on the device."""
        planned = plan(slots)
        # Pinned memory comes from torch's cache, which keeps it until this copy is done.
        pinned = self._memory.is_cuda
        new = torch.zeros(len(self._memory), dtype=torch.int32, pin_memory=pinned)
        whole = new.numpy()
        for start, part in zip(self._starts.tolist(), (planned.order, *planned.tables), strict=False):
            whole[start : start + part.size] = part.reshape(-1)
        self._memory.copy_(new, non_blocking=pinned)
        return bool(len(planned.order))
