"""OpenTelemetry's standard variables: which of them turn traces on, and that what they say is done."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from hlo.errors import SettingsError
from hlo.telemetry import exporting, tracing
from hlo.telemetry.tracing import Tracing
from tests.otlp import Receiver, receiving

pytestmark = pytest.mark.usefixtures("clean_environment")

SERVER = "http://127.0.0.1:9"


@pytest.fixture(params=["grpc", "http/protobuf"])
def receiver(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    """A receiver over each protocol, named in the environment."""
    with receiving(request.param) as one:
        for name, value in one.environment.items():
            monkeypatch.setenv(name, value)
        yield one


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": SERVER}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": SERVER}, True),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": SERVER, "OTEL_TRACES_EXPORTER": "none"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": SERVER, "OTEL_SDK_DISABLED": "True"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": SERVER, "OTEL_SDK_DISABLED": "false"}, True),
    ],
)
def test_when_traces_are_wanted(variables: dict[str, str], expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """An endpoint or an exporter turns traces on, and either of two variables turns them off again."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert exporting.wanted() is expected
    made = Tracing.from_environment("1")
    assert made.enabled is expected


@pytest.mark.parametrize(
    ("name", "value"), [("OTEL_TRACES_EXPORTER", "zipkin"), ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/json")]
)
def test_what_can_not_be_done_is_refused(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exporter or a protocol that HLO has not is an error that names the value and what there is."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", SERVER)
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=value) as caught:
        Tracing.from_environment("1")
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("variables", "endpoint", "protocol"),
    [
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": SERVER}, SERVER, "grpc"),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, "http://localhost:4317", "grpc"),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": f"{SERVER}/", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"},
            f"{SERVER}/v1/traces",
            "http/protobuf",
        ),
        (
            {
                "OTEL_EXPORTER_OTLP_ENDPOINT": "http://elsewhere",
                "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"{SERVER}/here",
                "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
                "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf",
            },
            f"{SERVER}/here",
            "http/protobuf",
        ),
    ],
)
def test_the_engine_is_told_where_spans_go(
    variables: dict[str, str], endpoint: str, protocol: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine gets one endpoint with its path, one protocol, a service's name and its parent, as vLLM reads them."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    made = Tracing.from_environment("1")
    parent = made.begin("x")
    assert made.environment(parent) == {
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": endpoint,
        "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": protocol,
        "OTEL_SERVICE_NAME": "hlo",
        "TRACEPARENT": tracing.outgoing(parent)["traceparent"],
    }
    assert Tracing().environment(parent) == {}


@pytest.mark.parametrize(
    ("variables", "name"),
    [
        ({}, "hlo"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "service.name=ours,a=b"}, "ours"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "service.name=ours,a=b", "OTEL_SERVICE_NAME": "named"}, "named"),
    ],
)
def test_spans_arrive_with_their_resource(
    variables: dict[str, str], name: str, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Spans arrive over both protocols, under the service's name, with version and the operator's attributes."""
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    made = Tracing.from_environment("1.2.3")
    with made.span("one") as span, made.span("two", span):
        pass
    made.close()
    spans = {one.name: one for one in receiver.spans}
    assert spans["two"].parent == spans["one"].id
    assert spans["two"].trace == spans["one"].trace == tracing.trace_id(span)
    for one in spans.values():
        assert (one.resource["service.name"], one.resource["service.version"]) == (name, "1.2.3")
        assert one.resource.get("a") == ("b" if variables else None)


@pytest.mark.parametrize(
    ("sampler", "argument", "came"),
    [("always_off", "", 0), ("always_on", "", 20), ("traceidratio", "0", 0), ("parentbased_traceidratio", "1.0", 20)],
)
def test_the_sampler_is_the_operators(
    sampler: str, argument: str, came: int, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OTEL_TRACES_SAMPLER and its argument decide which traces are recorded; each has an id all the same."""
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", sampler)
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", argument)
    made = Tracing.from_environment("1")
    for _ in range(20):
        with made.span("one") as span:
            assert span.is_recording() is bool(came)
            assert int(tracing.trace_id(span), 16)
    made.close()
    assert len(receiver.spans) == came


def test_batches_are_the_operators(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    """OTEL_BSP_MAX_EXPORT_BATCH_SIZE says how many spans go in one message."""
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "5")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "60000")
    made = Tracing.from_environment("1")
    for _ in range(20):
        made.begin("one").end()
    made.close()
    assert len(receiver.spans) == 20
    assert len(receiver.bodies) >= 4
