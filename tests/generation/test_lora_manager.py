"""The adapters of a step in vLLM's worker: what is in place is only marked as used."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from msgspec import Struct

from hlo.generation.vllm_engine import lora_manager


class Request(Struct, frozen=True):
    """What a request says of its adapter."""

    lora_int_id: int
    load_inplace: bool = False


class Cache(OrderedDict[int, str]):
    """Adapters by number; the one that was not used for longest comes first."""

    def touch(self, number: int) -> None:
        """Mark one as used."""
        self.move_to_end(number)


class Models:
    """The adapters that were read, and those that have a slot."""

    def __init__(self) -> None:
        self._registered_adapters = Cache()
        self._active_adapters = Cache()


def worker() -> Any:
    """A manager like vLLM's, with HLO's way in its place; `brought` are the steps that went vLLM's way."""

    class Manager:
        def __init__(self) -> None:
            self.brought: list[set[int]] = []
            self._adapter_manager = Models()

        def _apply_adapters(self, lora_requests: set[Request | None]) -> None:
            numbers = {one.lora_int_id for one in lora_requests if one}
            self.brought.append(numbers)
            for cache in (self._adapter_manager._registered_adapters, self._adapter_manager._active_adapters):
                cache.update(dict.fromkeys(sorted(numbers), "adapter"))

    lora_manager.patch(Manager)
    return Manager()


def step(manager: Any, *numbers: int) -> None:
    """A step with those adapters, and one request without."""
    manager._apply_adapters({None, *(Request(number) for number in numbers)})


def test_vllm_brings_in_what_is_not_in_place() -> None:
    """A step with an adapter that is not in place goes vLLM's way with all of its adapters, and later ones do not."""
    manager = worker()
    step(manager, 1)
    step(manager, 1, 2)
    step(manager, 2, 1)
    assert manager.brought == [{1}, {1, 2}]


def test_an_adapter_that_lost_its_slot_is_brought_in() -> None:
    """An adapter that was read and has no slot is vLLM's to bring in."""
    manager = worker()
    step(manager, 1)
    del manager._adapter_manager._active_adapters[1]
    step(manager, 1)
    assert manager.brought == [{1}, {1}]


def test_adapters_in_place_are_marked_as_used() -> None:
    """What no step has had for longest goes first, among those that were read and those that have a slot."""
    manager = worker()
    step(manager, 1, 2, 3)
    step(manager, 1)
    models = manager._adapter_manager
    assert [list(models._registered_adapters), list(models._active_adapters)] == [[2, 3, 1], [2, 3, 1]]


def test_an_adapter_is_read_again_where_that_is_asked_for() -> None:
    """An adapter that is in place goes vLLM's way if it is to be read again."""
    manager = worker()
    step(manager, 1)
    manager._apply_adapters({Request(1, load_inplace=True)})
    assert manager.brought == [{1}, {1}]
