"""What the vLLM engine refuses before vLLM is imported; with vLLM itself, the tests are in tests/e2e."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from hlo.contracts import EngineOptions
from hlo.errors import SettingsError
from hlo.generation.vllm_engine import VllmEngine
from hlo.generation.vllm_engine.engine import _since_asked
from hlo.generation.vllm_engine.starting import environment, spans

OPTIONS = EngineOptions(Path("model"), "model", "cuda", "auto", "none", slots=2, rank=8, kinds=("q_proj",))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"dtype": "float32"}, "HLO_DTYPE=float32"),
        ({"quantization": "bitsandbytes"}, "int8"),
    ],
)
async def test_what_would_fail_in_the_engine_is_refused_first(
    changes: dict[str, Any], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Settings of which vLLM would die, or make something else, are refused before it is started, with a remedy."""
    monkeypatch.setitem(sys.modules, "vllm", None)  # importing it now fails
    (tmp_path / "config.json").write_text("{}")
    given = {field: getattr(OPTIONS, field) for field in OPTIONS.__struct_fields__} | {"model": tmp_path} | changes
    with pytest.raises(SettingsError, match=said) as caught:
        await VllmEngine.start(EngineOptions(**given))
    assert caught.value.remedy


def test_what_one_engine_takes_from_the_environment_is_not_left_to_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """While vLLM starts its settings are in the environment, an operator's own first; afterwards it is as it was."""
    monkeypatch.delenv("TORCHDYNAMO_DISABLE", raising=False)
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "ERROR")
    before = dict(os.environ)
    with environment(msgspec.structs.replace(OPTIONS, enforce_eager=True)):
        assert (os.environ["TORCHDYNAMO_DISABLE"], os.environ["VLLM_LOGGING_LEVEL"]) == ("1", "ERROR")
    assert dict(os.environ) == before
    with environment(OPTIONS):
        assert "TORCHDYNAMO_DISABLE" not in os.environ


@pytest.mark.parametrize(
    ("changes", "own", "there"),
    [
        ({"quantization": "fp8_per_channel"}, {}, "expandable_segments:True"),
        ({"quantization": "fp8_per_channel", "tensor_parallel_size": 2}, {}, None),
        ({"quantization": "fp8_per_channel", "device": "cpu"}, {}, None),
        ({}, {}, None),
        ({"quantization": "fp8_per_channel"}, {"PYTORCH_CUDA_ALLOC_CONF": "backend:native"}, "backend:native"),
        ({"quantization": "fp8_per_channel"}, {"PYTORCH_ALLOC_CONF": "backend:native"}, None),
    ],
)
def test_rounded_weights_leave_no_holes_on_a_small_card(
    changes: dict[str, Any], own: dict[str, str], there: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch may split its blocks where weights are rounded as they load, unless the operator says."""
    for name in ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"):
        monkeypatch.delenv(name, raising=False)
    for name, value in own.items():
        monkeypatch.setenv(name, value)
    with environment(msgspec.structs.replace(OPTIONS, **changes)):
        assert os.environ.get("PYTORCH_CUDA_ALLOC_CONF") == there


TRACES = {
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:4317",
    "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "grpc",
    "OTEL_SERVICE_NAME": "hlo",
    "TRACEPARENT": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
}


def test_where_spans_go_is_told_while_vllm_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM and its processes find where their spans go and whose they are; nothing of it stays, nor what vLLM left."""
    for name in TRACES:
        monkeypatch.delenv(name, raising=False)
    before = dict(os.environ)
    with environment(msgspec.structs.replace(OPTIONS, trace_environment=TRACES)):
        assert os.environ.items() >= TRACES.items()
        os.environ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"] = "http://127.0.0.1:4317"  # as vLLM does
    assert dict(os.environ) == before


@pytest.mark.parametrize(
    ("given", "arguments", "expected"),
    [
        (TRACES, {}, {"otlp_traces_endpoint": "http://127.0.0.1:4317"}),
        (TRACES, {"disable_log_stats": True}, {}),
        ({}, {}, {}),
    ],
)
def test_vllm_is_asked_for_spans_that_it_can_make(
    given: dict[str, str], arguments: dict[str, Any], expected: dict[str, str]
) -> None:
    """vLLM gets the endpoint where there is one, unless it keeps no statistics: it would die of the first span then."""
    assert spans(msgspec.structs.replace(OPTIONS, trace_environment=given, arguments=arguments)) == expected


def test_no_time_is_of_the_wall_clock() -> None:
    """A request's times are right though the wall clock was set meanwhile; what vLLM did not note is not told."""
    noted = SimpleNamespace(arrival_time=1.8e9, first_token_latency=-86400.0, queued_ts=50.0, scheduled_ts=50.5)
    noted.first_token_ts = 0.0
    assert _since_asked(noted, "scheduled_ts", 0.25) == 0.75
    assert _since_asked(noted, "first_token_ts", 0.25) is None
    assert _since_asked(None, "scheduled_ts", 0.25) is None
