"""The thread that reads adapters in vLLM's workers; with vLLM itself, the tests are in tests/e2e."""

from __future__ import annotations

import sys
import threading
import time
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch

from hlo.generation.vllm_engine.reader import AdapterReader


class Layer:
    """Stands for vLLM's LoRALayerWeights."""

    def __init__(self, lora_a: torch.Tensor, lora_b: torch.Tensor, scaling: float) -> None:
        self.lora_a, self.lora_b, self.scaling = lora_a, lora_b, scaling

    def optimize(self) -> None:
        """Multiply by the scaling, once."""
        self.lora_b = self.lora_b * self.scaling
        self.scaling = 1.0


class Model(NamedTuple):
    """Stands for vLLM's LoRAModel."""

    name: str
    loras: dict[str, Layer]


class Manager:
    """Stands for vLLM's WorkerLoRAManager: reads adapters, and keeps in which thread it did."""

    def __init__(self) -> None:
        self.threads: list[threading.Thread] = []
        self.go_on = threading.Event()

    def _load_adapter(self, request: Any) -> Any:
        self.threads.append(threading.current_thread())
        self.go_on.wait(30)
        if request.lora_path == "/broken":
            raise ValueError("broken")
        return Model(request.lora_name, {"layer": Layer(torch.ones(2, 4), torch.ones(4, 2), 2.0)})


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> AdapterReader:
    """A worker of vLLM with HLO's part."""
    fake = ModuleType("vllm.lora.request")
    fake.LoRARequest = lambda **fields: SimpleNamespace(**fields)  # type: ignore[attr-defined]
    for name, module in (("vllm", ModuleType("vllm")), ("vllm.lora", ModuleType("vllm.lora")), (fake.__name__, fake)):
        monkeypatch.setitem(sys.modules, name, module)
    reader = AdapterReader()
    reader.device = SimpleNamespace(type="cpu")
    reader.model_runner = SimpleNamespace(lora_manager=Manager())
    return reader


def request(number: int, path: str = "/x") -> Any:
    """What vLLM asks its manager with."""
    return SimpleNamespace(lora_name=f"a{number}", lora_int_id=number, lora_path=path)


def read(worker: AdapterReader, number: int, path: str = "/x") -> None:
    """Read an adapter to the end."""
    assert worker.hlo_read_adapter(f"a{number}", number, path)
    wait(worker, number)


def wait(worker: AdapterReader, number: int) -> None:
    """Wait until an adapter is read."""
    worker.model_runner.lora_manager.go_on.set()
    deadline = time.monotonic() + 30
    while not worker.hlo_adapter_is_read(number):
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_it_reads_in_a_thread_of_its_own(worker: AdapterReader) -> None:
    """Reading begins at once and ends later; when vLLM asks for the adapter, it is there, and nothing is read again."""
    manager = worker.model_runner.lora_manager
    assert worker.hlo_read_adapter("a1", 1, "/x")
    assert not worker.hlo_adapter_is_read(1)
    wait(worker, 1)
    assert manager._load_adapter(request(1)).name == "a1"
    assert len(manager.threads) == 1
    assert threading.main_thread() not in manager.threads


def test_it_multiplies_by_the_scaling_there(worker: AdapterReader) -> None:
    """B is multiplied by alpha / rank in the thread, and vLLM has nothing left of it to do in its loop."""
    read(worker, 1)
    layer = worker.model_runner.lora_manager._load_adapter(request(1)).loras["layer"]
    assert layer.scaling == 1
    assert layer.lora_b.unique().tolist() == [2.0]


def test_what_was_given_away_is_read_again(worker: AdapterReader) -> None:
    """An adapter is kept for one load only: vLLM reads it by itself when it asks again, as it does any other."""
    manager = worker.model_runner.lora_manager
    read(worker, 1)
    assert [manager._load_adapter(request(number)).name for number in (1, 1, 7)] == ["a1", "a1", "a7"]
    assert manager.threads[1:] == [threading.main_thread()] * 2


def test_an_error_reaches_who_asked(worker: AdapterReader) -> None:
    """An adapter that can not be read fails where vLLM asks for it, not in the thread."""
    read(worker, 1, "/broken")
    with pytest.raises(ValueError, match="broken"):
        worker.model_runner.lora_manager._load_adapter(request(1, "/broken"))


def test_a_vllm_that_changed_is_left_alone(worker: AdapterReader) -> None:
    """Where vLLM has no manager of the kind, it is told that nothing is read ahead."""
    worker.model_runner = SimpleNamespace()
    assert not worker.hlo_read_adapter("a1", 1, "/x")
