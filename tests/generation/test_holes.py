"""Holes between weights are closed, and the weights stay what they are."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hlo.generation.vllm_engine import holes

MIB = 2**20


def test_weights_stay_what_they_are() -> None:
    """Tensors that share a storage see it moved; one after the other is free while memory is given back."""
    large = torch.nn.Parameter(torch.randn(512, 1024).T, requires_grad=False)  # as vLLM keeps rounded weights
    part, other = large[:, 100:200], torch.randn(MIB)
    small = torch.randn(8)
    before = [one.clone() for one in (large, part, other, small)]
    places, strides = (large.data_ptr(), other.data_ptr(), small.data_ptr()), large.stride()
    free: list[list[int]] = []

    def give_back() -> None:
        free.append([one.untyped_storage().nbytes() for one in (large, other, small)])

    holes.close((large, part, other, small, large), give_back)
    for now, then in zip((large, part, other, small), before, strict=True):
        torch.testing.assert_close(now, then, rtol=0, atol=0)
    assert large.stride() == strides
    assert part.untyped_storage().data_ptr() == large.untyped_storage().data_ptr()
    sizes = [2 * MIB, 4 * MIB, 32]
    in_order = sorted(range(2), key=lambda which: places[which])  # the small one never moves
    assert free == [[0 if at == which else size for at, size in enumerate(sizes)] for which in in_order] + [sizes]


class Worker:
    """As much of vLLM's as is patched: a model of one layer, and 100 MiB for it and its cache."""

    requested_memory = 100 * MIB

    def __init__(self, *, sleeps: bool = False) -> None:
        """With or without vLLM's sleep mode."""
        self.vllm_config = SimpleNamespace(model_config=SimpleNamespace(enable_sleep_mode=sleeps))
        self.model_runner = SimpleNamespace(get_model=lambda: self.model)
        self.model: Any = None

    def load_model(self, *, load_dummy_weights: bool = False) -> None:
        """Load it."""
        assert not load_dummy_weights
        self.model = torch.nn.Linear(1024, 1024)


@pytest.mark.parametrize(
    ("gpu", "reserved", "sleeps", "closed"),
    [(True, 50, False, True), (True, 41, False, False), (True, 50, True, False), (False, 50, False, False)],
)
def test_only_where_it_is_worth_it(
    gpu: bool, reserved: int, sleeps: bool, closed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU, where more than a fiftieth of what is left lies between weights, and these are not in a pool."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: reserved * MIB)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 40 * MIB)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    moved: list[int] = []
    monkeypatch.setattr(holes, "close", lambda tensors, give_back: moved.append(len(tensors)))
    patched = type("Patched", (Worker,), {})
    holes.patch(patched)
    worker = patched(sleeps=sleeps)
    worker.load_model()
    assert worker.model is not None
    assert moved == ([2] if closed else [])


def test_another_vllm_is_not_patched() -> None:
    """A worker that loads in another way is told at once, not when it loads."""

    class Other:
        """Loads with other arguments."""

        def load_model(self, weights: str) -> None:
            """Load."""

    with pytest.raises(TypeError):
        holes.patch(Other)
