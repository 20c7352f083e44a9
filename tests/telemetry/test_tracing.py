"""Spans: who is whose parent, what they tell, and what they never tell."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import nullcontext
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import TYPE_CHECKING

import pytest
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from hlo.errors import HLOError, InvalidRequest, OutOfScope, SettingsError
from hlo.pipeline import Policy
from hlo.records import Answer, Question
from hlo.telemetry import tracing
from hlo.telemetry.tracing import Tracing

if TYPE_CHECKING:
    from tests.conftest import MakeParts

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = {"traceparent": f"00-{TRACE}-b7ad6b7169203331-01"}


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    """Where the spans of a test are found."""
    return InMemorySpanExporter()


@pytest.fixture
def traced(exporter: InMemorySpanExporter) -> Tracing:
    """Tracing into the exporter."""
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return Tracing(provider.get_tracer("hlo"), provider.shutdown)


def by_name(exporter: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    return {span.name: span for span in exporter.get_finished_spans()}


async def test_one_question_is_one_trace(
    make_parts: MakeParts, traced: Tracing, exporter: InMemorySpanExporter
) -> None:
    """A question's spans are one tree: `hlo.ask` over `hlo.route` and `hlo.generate`, with names and statuses."""
    parts = make_parts(tracing=traced)
    answer = [event async for event in parts.pipeline.ask(Question("heart chest pain"))][-1]
    assert isinstance(answer, Answer)
    spans = by_name(exporter)
    assert set(spans) == {"hlo.ask", "hlo.route", "hlo.generate"}
    root = spans["hlo.ask"]
    assert root.parent is None
    assert root.kind == SpanKind.SERVER
    for name in ("hlo.route", "hlo.generate"):
        parent = spans[name].parent
        assert parent is not None
        assert parent.span_id == root.context.span_id
    assert f"{root.context.trace_id:032x}" == answer.trace_id
    assert dict(root.attributes or {}) == {"hlo.route.status": "routed", "hlo.specialty": "cardiology"}
    assert answer.adapter is not None
    assert dict(spans["hlo.generate"].attributes or {}) == {"hlo.adapter": answer.adapter.engine_name}


async def test_the_callers_trace_goes_on(
    make_parts: MakeParts, traced: Tracing, exporter: InMemorySpanExporter
) -> None:
    """A question that comes with a `traceparent` belongs to that trace."""
    parts = make_parts(tracing=traced)
    answer = [event async for event in parts.pipeline.ask(Question("heart"), tracing.incoming(PARENT))][-1]
    assert isinstance(answer, Answer)
    assert answer.trace_id == TRACE
    parent = by_name(exporter)["hlo.ask"].parent
    assert parent is not None
    assert f"{parent.span_id:016x}" == "b7ad6b7169203331"


@pytest.mark.parametrize("headers", [{}, {"traceparent": "nonsense"}, {"traceparent": f"00-{'0' * 32}-{'0' * 16}-01"}])
def test_a_broken_traceparent_is_no_error(
    headers: dict[str, str], traced: Tracing, exporter: InMemorySpanExporter
) -> None:
    """A missing or malformed `traceparent` begins a new trace."""
    with traced.span("x", tracing.incoming(headers)):
        pass
    assert by_name(exporter)["x"].parent is None


@pytest.mark.parametrize(
    ("policy", "text", "error"),
    [
        (Policy(), "heart canarywords", None),
        (Policy(), "canarywords", None),
        (Policy(answer_out_of_scope=False), "canarywords", OutOfScope),
        (Policy(max_question_chars=1), "heart canarywords", InvalidRequest),
    ],
)
async def test_spans_tell_no_patients_words(
    policy: Policy,
    text: str,
    error: type[HLOError] | None,
    make_parts: MakeParts,
    traced: Tracing,
    exporter: InMemorySpanExporter,
) -> None:
    """No span holds a word of the question or of the answer, also where the question is refused."""
    parts = make_parts(tracing=traced, policy=policy)
    with pytest.raises(error) if error else nullcontext():
        assert [event async for event in parts.pipeline.ask(Question(text))]
    told = "".join(span.to_json() for span in exporter.get_finished_spans())
    assert "hlo.ask" in told
    assert "canarywords" not in told


def test_an_error_is_told_by_type(traced: Tracing, exporter: InMemorySpanExporter) -> None:
    """A span in which an error was raised says its type and not its text, and the error goes on."""
    with pytest.raises(ValueError, match="canary"), traced.span("x", Context()):
        raise ValueError("canary")
    span = by_name(exporter)["x"]
    assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, "ValueError")
    assert "canary" not in span.to_json()


@pytest.mark.usefixtures("clean_environment")
def test_without_an_endpoint_nothing_is_traced() -> None:
    """Where no endpoint is set nothing is recorded, and answers still have an id each."""
    quiet = Tracing.from_environment("1")
    with quiet.span("a", Context()) as first, quiet.span("b", Context()) as second:
        assert not first.is_recording()
        assert tracing.trace_id(first) != tracing.trace_id(second)
    quiet.close()


@pytest.mark.usefixtures("clean_environment")
def test_tracing_can_be_disabled(monkeypatch: pytest.MonkeyPatch) -> None:
    """`OTEL_SDK_DISABLED=true` turns tracing off, endpoint or not."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    with Tracing.from_environment("1").span("a", Context()) as span:
        assert not span.is_recording()


@pytest.mark.usefixtures("clean_environment")
def test_a_missing_sdk_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """An endpoint without the SDK installed is refused, with what to install."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace.export", None)
    with pytest.raises(SettingsError, match="OTEL_EXPORTER_OTLP_ENDPOINT") as caught:
        Tracing.from_environment("1")
    assert "hlo[otel]" in caught.value.remedy


class Collector(BaseHTTPRequestHandler):
    """Takes what is sent to an OTLP endpoint."""

    received: list[tuple[str, bytes]]

    def do_POST(self) -> None:
        """Keep the path and the body."""
        self.received.append((self.path, self.rfile.read(int(self.headers["content-length"]))))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def collector() -> Iterator[tuple[str, list[tuple[str, bytes]]]]:
    """The address of an OTLP collector, and what it received."""
    received: list[tuple[str, bytes]] = []
    handler = type("Handler", (Collector,), {"received": received})
    with HTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", received
        server.shutdown()
        thread.join()


@pytest.mark.usefixtures("clean_environment")
def test_spans_are_exported_on_close(
    collector: tuple[str, list[tuple[str, bytes]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With an endpoint set, spans are sent there, at the latest on close, under the service's name."""
    address, received = collector
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", address)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "hlo-under-test")
    exported = Tracing.from_environment("1")
    with exported.span("hlo.ask", Context()):
        pass
    exported.close()
    ((path, body),) = received
    assert path == "/v1/traces"
    assert b"hlo.ask" in body
    assert b"hlo-under-test" in body
