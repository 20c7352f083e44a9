"""Holes between weights are closed, and the weights stay what they are."""

from __future__ import annotations

import dataclasses
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

    def __init__(self, *, pool: bool = False) -> None:
        """With or without a pool of CuMem's for its weights."""
        self.vllm_config = SimpleNamespace(model_config=SimpleNamespace(enable_cumem_allocator=pool))
        self.model_runner = SimpleNamespace(get_model=lambda: self.model)
        self.model: Any = None

    def load_model(self, *, load_dummy_weights: bool = False) -> None:
        """Load it."""
        assert not load_dummy_weights
        self.model = torch.nn.Linear(1024, 1024)


@pytest.mark.parametrize(
    ("gpu", "reserved", "pool", "closed"),
    [(True, 50, False, True), (True, 41, False, False), (True, 50, True, False), (False, 50, False, False)],
)
def test_only_where_it_is_worth_it(
    gpu: bool, reserved: int, pool: bool, closed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU, where more than a fiftieth of what is left lies between weights, and these are not in a pool."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: reserved * MIB)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 40 * MIB)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.Tensor, "is_cuda", gpu)
    moved: list[int] = []
    monkeypatch.setattr(holes, "close", lambda tensors, give_back: moved.append(len(tensors)))
    patched = type("Patched", (Worker,), {})
    holes.patch(patched)
    worker = patched(pool=pool)
    worker.load_model()
    assert worker.model is not None
    assert moved == ([2] if closed else [])


def test_a_worker_of_another_kind_loads_all_the_same(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where vLLM's worker lacks what is asked of it, the model is loaded, and the log says what was missing."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    patched = type("Patched", (Worker,), {})
    holes.patch(patched)
    worker = patched()
    del worker.vllm_config
    worker.load_model()
    assert worker.model is not None
    assert "has no attribute 'vllm_config'" in caplog.text


def test_another_vllm_is_left_as_it_is() -> None:
    """Where vLLM's method takes other arguments, nothing is changed, and the error names the argument."""

    class Other:
        def load_model(self, weights: str) -> None:
            raise AssertionError(weights)

    theirs = Other.load_model
    with pytest.raises(TypeError, match="weights"):
        holes.patch(Other)
    assert Other.load_model is theirs


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
def test_the_vllm_that_is_here_is_known() -> None:
    """Its worker is patched, and has the flag that is looked at."""
    from vllm.config import ModelConfig
    from vllm.v1.worker.gpu_worker import Worker as Theirs

    patched: Any = type("Patched", (Theirs,), {})
    holes.patch(patched)
    assert patched.load_model is not Theirs.load_model
    assert "enable_cumem_allocator" in {field.name for field in dataclasses.fields(ModelConfig)}
