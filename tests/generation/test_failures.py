"""Why vLLM did not start, by what it says; with vLLM itself, the test is in tests/e2e."""

from __future__ import annotations

import json
import logging
from logging.config import DictConfigurator
from pathlib import Path
from typing import Any

import pytest

from hlo import logs
from hlo.contracts import EngineOptions
from hlo.errors import EngineError, OutOfMemory
from hlo.generation.base_model import BaseModel
from hlo.generation.vllm_engine import failures
from hlo.generation.vllm_engine.failures import Recorder, causes, failure, wants_memory

TORCH = (
    "OutOfMemoryError: CUDA out of memory. Tried to allocate 224.00 MiB. GPU 0 has a total capacity of 7.75 GiB of "
    "which 101.00 MiB is free. Of the allocated memory 7.00 GiB is allocated by PyTorch. If reserved but unallocated "
    "memory is large try setting PYTORCH_ALLOC_CONF=expandable_segments:True."
)
NO_BLOCKS = (
    "ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization` when initializing "
    "the engine."
)
TOO_LONG = (
    "ValueError: To serve at least one request with the model's max seq len (32768), (4.0 GiB KV cache is needed, "
    "which is larger than the available KV cache memory (1.5 GiB). Based on the available memory, the estimated "
    "maximum model length is 12288. Try increasing `gpu_memory_utilization` or decreasing `max_model_len`."
)
OLD_TOO_LONG = (
    "ValueError: The model's max seq len (32768) is larger than the maximum number of tokens that can be stored in KV "
    "cache (12288). Try increasing `gpu_memory_utilization`."
)
TAKEN = (
    "ValueError: Free memory on device cuda:0 (3.0/23.5 GiB) on startup is less than desired GPU memory utilization "
    "(0.9, 21.15 GiB). Decrease GPU memory utilization or reduce GPU memory used by other processes."
)
ON_CPU = (
    "ValueError: Available memory on node 0 (9.7/23.1 GiB) on kv cache allocation is less than requested memory for kv "
    "(100000.0 GiB). Decrease --kv-cache-memory-bytes, VLLM_CPU_KVCACHE_SPACE, or reduce CPU memory used by others."
)
UNKNOWN = RuntimeError("Engine core initialization failed. See root cause above. Failed core proc(s): {}")


def options(model: Path, **changes: Any) -> EngineOptions:
    given: dict[str, Any] = {
        "device": "cuda",
        "slots": 2,
        "rank": 8,
        "kinds": ("q_proj",),
        "dtype": "auto",
        "quantization": "none",
    }
    return EngineOptions(model=model, name="tiny", **given | changes)


@pytest.mark.parametrize("text", [TORCH, NO_BLOCKS, TOO_LONG, OLD_TOO_LONG, TAKEN, ON_CPU])
def test_a_want_of_memory_is_known_by_its_words(text: str, tiny_model: BaseModel) -> None:
    """What vLLM and torch say of a want of memory becomes one error, with HLO's advice instead of theirs."""
    found = failure(UNKNOWN, (text,), options(tiny_model.folder))
    assert type(found) is OutOfMemory
    assert found.remedy
    assert "Try increasing" not in found.message
    assert "PYTORCH_ALLOC_CONF" not in found.message
    assert "gpu_memory_utilization" not in found.message


@pytest.mark.parametrize(
    "text", ["ValueError: unsupported architecture", "KeyError: 'model.layers.0'", "memory leak tracker started"]
)
def test_another_cause_is_told_as_it_is(text: str, tiny_model: BaseModel) -> None:
    """Any other cause is told in its own words, and not as a want of memory."""
    found = failure(UNKNOWN, (text,), options(tiny_model.folder))
    assert type(found) is EngineError
    assert text in found.message


def test_without_a_recorded_cause_vllms_own_words_are_told(tiny_model: BaseModel) -> None:
    """Where nothing was recorded, what the parent heard is told."""
    assert str(UNKNOWN) in failure(UNKNOWN, (), options(tiny_model.folder)).message


def test_a_gpu_that_others_hold_is_told_with_what_is_free(tiny_model: BaseModel) -> None:
    """When other processes hold the GPU, the advice asks for no more of it than vLLM found free."""
    found = failure(UNKNOWN, (TAKEN,), options(tiny_model.folder))
    assert "HLO_GPU_MEMORY_UTILIZATION=0.12" in found.remedy


@pytest.mark.parametrize(
    ("length", "gib", "said"),
    [(1024, 100, "HLO_CPU_KV_CACHE_GIB=1"), (1 << 23, 1, "HLO_MAX_MODEL_LEN to at most 4194304")],
)
def test_on_a_cpu_the_cache_is_advised(length: int, gib: int, said: str, tiny_model: BaseModel) -> None:
    """On a CPU, a cache that is too large is to be smaller, one that is too small larger, or the context shorter."""
    chosen = options(tiny_model.folder, device="cpu", cpu_kv_cache_gib=gib, max_model_len=length)
    assert said in failure(UNKNOWN, (ON_CPU,), chosen).remedy


def test_a_model_that_can_not_be_read_still_gets_a_remedy(tmp_path: Path) -> None:
    """Where the model's configuration is of no help, the remedy is the doctor."""
    assert "hlo doctor" in failure(UNKNOWN, (TORCH,), options(tmp_path)).remedy


def record(error: Exception) -> logging.LogRecord:
    try:
        raise error
    except type(error) as raised:
        info = (type(raised), raised, raised.__traceback__)
    return logging.LogRecord("vllm.v1.engine.core", logging.ERROR, "core.py", 1, "Failed to %s.", ("start",), info)


def test_causes_are_recorded_in_order(tmp_path: Path) -> None:
    """What vLLM's processes log with an exception is read back, the first cause first."""
    recorder = Recorder(str(tmp_path))
    for error in (ValueError("first"), RuntimeError("second\nline")):
        recorder.handle(record(error))
    assert causes(tmp_path) == ("ValueError: first", "RuntimeError: second\nline")


def test_a_want_of_memory_keeps_its_traceback_off_the_log(tmp_path: Path) -> None:
    """Handlers after the recorder see a line and no traceback for a want of memory, and the whole for all else."""
    recorder = Recorder(str(tmp_path))
    wanting, other = record(RuntimeError("CUDA out of memory. Tried it")), record(ValueError("odd"))
    recorder.handle(wanting)
    recorder.handle(other)
    assert (wanting.exc_info, wanting.getMessage()) == (None, "Failed to start. CUDA out of memory. Tried it.")
    assert other.exc_info is not None


def test_once_vllm_has_started_nothing_is_recorded(tmp_path: Path) -> None:
    """With its folder gone the recorder leaves records alone: what fails later may hold patients' words."""
    later = record(RuntimeError("CUDA out of memory"))
    Recorder(str(tmp_path / "gone")).handle(later)
    assert later.exc_info is not None
    assert causes(tmp_path / "gone") == ()


def test_vllm_logs_as_it_does_and_to_the_recorder(tmp_path: Path) -> None:
    """vLLM's usual logging stays, and the recorder hears its engine, workers and executors."""
    given = failures.watch(tmp_path, {}, "console")["logging_config"]
    config = json.loads(Path(given.pylogging_config_file).read_text())
    assert config["loggers"]["vllm"]["handlers"] == ["vllm"]
    assert config["loggers"]["vllm.v1"]["handlers"] == ["hlo"]
    assert config["handlers"]["hlo"]["folder"] == str(tmp_path)


def test_vllm_logs_json_where_hlo_does(tmp_path: Path) -> None:
    """With HLO_LOG_FORMAT=json, vLLM's processes write HLO's JSON lines, too."""
    given = failures.watch(tmp_path, {}, "json")["logging_config"]
    config = json.loads(Path(given.pylogging_config_file).read_text())
    made = DictConfigurator(config).configure_formatter(config["formatters"][config["handlers"]["vllm"]["formatter"]])
    assert isinstance(made, logs.JsonFormatter)


def test_the_operators_logging_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the operator configures vLLM's logging, HLO adds nothing to it."""
    assert failures.watch(tmp_path, {"logging_config": object()}, "console") == {}
    monkeypatch.setenv("VLLM_LOGGING_CONFIG_PATH", str(tmp_path / "own.json"))
    assert failures.watch(tmp_path, {}, "console") == {}


@pytest.mark.parametrize("text", ["memory leak tracker started", "remembering"])
def test_not_every_word_of_memory_is_a_want_of_it(text: str) -> None:
    """What only mentions memory is no want of it."""
    assert not wants_memory(text)
