"""Adapters put into their slots: what the layers hold afterwards is what vLLM's own way would have put there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import pytest
import torch

from hlo.generation.vllm_engine import slots

Part: TypeAlias = torch.Tensor | None


def layers(patched: bool) -> tuple[Any, dict[str, Any]]:
    """A manager like vLLM's with two layers, one of them of two slices; every slot is full of sevens."""

    class One:
        tp_size = 1

        def __init__(self, slices: int) -> None:
            self.lora_a_stacked = tuple(torch.full((3, 1, 4, 6), 7.0) for _ in range(slices))
            self.lora_b_stacked = tuple(torch.full((3, 1, 5, 4), 7.0) for _ in range(slices))

        def reset_lora(self, index: int) -> None:
            for whole in (*self.lora_a_stacked, *self.lora_b_stacked):
                whole[index] = 0

        def set_lora(self, index: int, lora_a: Any, lora_b: Any) -> None:
            self.reset_lora(index)
            for stacked, parts in ((self.lora_a_stacked, lora_a), (self.lora_b_stacked, lora_b)):
                some = [parts] if isinstance(parts, torch.Tensor) else parts
                for whole, part in zip(stacked, some, strict=True):
                    if part is not None:
                        whole[index, 0, : part.shape[0], : part.shape[1]].copy_(part)

    class Other(One):
        pass

    class Manager:
        def __init__(self) -> None:
            self.modules = {"o": One(1), "qk": Other(2), "left out": One(1)}
            self.adapters: dict[int, dict[str, Any]] = {}

        def activate_adapter(self, lora_id: int) -> bool:
            for name, module in self.modules.items():
                found = self.adapters[lora_id].get(name)
                if found is None:
                    module.reset_lora(1)
                else:
                    module.set_lora(1, *found)
            return True

    if patched:
        slots.patch(Manager, (One, Other))
    manager = Manager()
    return manager, manager.modules


def adapter(rank: int, second: Callable[[Part], Part]) -> dict[str, Any]:
    """Random matrices of that rank; `second` may take away those of the second slice."""
    chance = torch.Generator().manual_seed(rank)

    def pair() -> tuple[torch.Tensor, torch.Tensor]:
        return torch.randn(rank, 6, generator=chance), torch.randn(5, rank, generator=chance)

    (a, b), (c, d) = pair(), pair()
    return {"o": pair(), "qk": ([a, second(c)], [b, second(d)])}


@pytest.mark.parametrize("rank", [2, 4])
@pytest.mark.parametrize("second", [lambda part: part, lambda _: None])
def test_slots_hold_what_vllm_would_put_there(rank: int, second: Callable[[Part], Part]) -> None:
    """Of full rank or a lower one, with a slice or without: each slot's values are those of vLLM's own way."""
    held = []
    for patched in (False, True):
        manager, modules = layers(patched)
        manager.adapters[9] = adapter(rank, second)
        assert manager.activate_adapter(9)
        held.append([whole for one in modules.values() for whole in (*one.lora_a_stacked, *one.lora_b_stacked)])
    for theirs, ours in zip(*held, strict=True):
        assert torch.equal(theirs, ours)
        assert (ours[0] == 7).all()
        assert (ours[2] == 7).all()


def test_a_layer_shared_among_gpus_is_filled_by_vllm() -> None:
    """With tensor parallelism each layer takes its own part of the matrices: vLLM does it, as ever."""
    manager, modules = layers(True)
    asked = []
    modules["o"].tp_size = 2
    modules["o"].reset_lora = lambda index: asked.append(index)
    manager.adapters[9] = adapter(4, lambda part: part)
    manager.activate_adapter(9)
    assert asked == [1]


def test_outside_of_an_activation_it_is_vllms() -> None:
    """A layer that is filled by itself is filled at once."""
    _, modules = layers(True)
    a, b = adapter(4, lambda part: part)["o"]
    modules["o"].set_lora(0, a, b)
    assert torch.equal(modules["o"].lora_a_stacked[0][0, 0], a)
    assert torch.equal(modules["o"].lora_b_stacked[0][0, 0], b)


def test_another_vllm_is_left_as_it_is() -> None:
    """Where vLLM's method takes other arguments, nothing is changed, and the error names the argument."""

    class Manager:
        def activate_adapter(self, number: int) -> bool:
            return bool(number)

    theirs = Manager.activate_adapter
    with pytest.raises(TypeError, match="number"):
        slots.patch(Manager, ())
    assert Manager.activate_adapter is theirs
