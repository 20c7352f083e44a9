"""Reads adapters beside the engine's loop, inside vLLM's workers.

vLLM reads an adapter's file, and takes pinned memory for each of its tensors, between two steps of its loop: all that
runs stands still for that long. Here a thread of the worker reads it, and when vLLM asks for it, it is there.
"""

from __future__ import annotations

import sys
import threading
from contextlib import suppress
from typing import Any

import torch

_SWITCH_S = 0.0005
"""How soon the thread that reads gives up the interpreter to the engine's loop; Python's default is ten times that.

A step that waited so long for it took half as long again.
"""


class AdapterReader:
    """What vLLM adds to the class of its workers (its argument `worker_extension_cls`); called by `collective_rpc`."""

    device: Any
    model_runner: Any

    def hlo_read_adapter(self, name: str, number: int, path: str, spare: int = 0) -> bool:
        """Begin to read an adapter; False when this vLLM can not be helped, and will read it by itself.

        `spare` is how many more may come once the engine serves.
        """
        manager: Any = getattr(self.model_runner, "lora_manager", None)
        if not callable(getattr(manager, "_load_adapter", None)):
            return False
        from vllm.lora.request import LoRARequest

        shelf = getattr(manager, "_hlo_shelf", None)
        if shelf is None:
            shelf = manager._hlo_shelf = _Shelf(manager._load_adapter, self.device, spare)
            manager._load_adapter = shelf.take
            sys.setswitchinterval(_SWITCH_S)
        shelf.read(LoRARequest(lora_name=name, lora_int_id=number, lora_path=path))
        return True

    def hlo_adapter_is_read(self, number: int) -> bool:
        """Whether the reading has come to an end, good or bad."""
        return not self.model_runner.lora_manager._hlo_shelf.reads(number)


class _Shelf:
    """Adapters that were read and not yet taken, by their numbers. `load` is vLLM's own way to read one."""

    def __init__(self, load: Any, device: Any, spare: int) -> None:
        self._load = load
        self._device = device
        self._spare = spare
        self._largest = 0
        self._read: dict[int, Any] = {}
        self._threads: dict[int, threading.Thread] = {}

    def read(self, request: Any) -> None:
        """Read an adapter in a thread."""
        thread = threading.Thread(target=self._work, args=(request,), name="hlo-adapter", daemon=True)
        self._threads[request.lora_int_id] = thread
        thread.start()

    def reads(self, number: int) -> bool:
        """Whether a thread is at it."""
        thread = self._threads.get(number)
        return thread is not None and thread.is_alive()

    def take(self, request: Any) -> Any:
        """Give away what was read; what was not, or could not be, vLLM reads now, and tells what is wrong with it."""
        self._threads.pop(request.lora_int_id, None)
        found = self._read.pop(request.lora_int_id, None)
        return self._load(request) if found is None else found

    def _work(self, request: Any) -> None:
        with suppress(Exception):  # vLLM reads it again in `take`, and its error reaches who asked for it
            if self._device.type == "cuda":  # pinned memory is had through the thread's current GPU
                torch.cuda.set_device(self._device)
            model = self._load(request)
            for layer in model.loras.values():
                layer.optimize()  # multiplies by alpha / rank: vLLM would do it in the loop
            self._make_room(model)
            self._read[request.lora_int_id] = model

    def _make_room(self, model: Any) -> None:
        """Take pinned memory for those that may come, and leave it in torch's cache, as the first of a size is read.

        The GPU's driver gives out pinned memory to one thread at a time, and holds up the engine's launches meanwhile.
        """
        parts = [part for layer in model.loras.values() for part in (layer.lora_a, layer.lora_b) if part is not None]
        size = sum(part.nbytes for part in parts if part.is_pinned())
        if size <= self._largest:
            return
        self._largest = size
        taken = [torch.empty_like(part, pin_memory=True) for _ in range(self._spare) for part in parts]
        del taken
