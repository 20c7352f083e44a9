"""Our encoding of spans is OpenTelemetry's own, whatever is in them."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, Status, StatusCode
from opentelemetry.util.types import AttributeValue

from hlo.telemetry import tracing
from hlo.telemetry.encoding import encode
from hlo.telemetry.tracing import NOBODY, Tracing

TEXT = st.text(max_size=300)
WHOLE = st.integers(-(1 << 63), (1 << 63) - 1)
REAL = st.floats(allow_nan=False)
VALUES = st.one_of(TEXT, st.booleans(), WHOLE, REAL, st.lists(TEXT, max_size=4), st.lists(REAL, max_size=4))
REMOTE = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "tracestate": "a=1,b=2"}


def made(*, kind: SpanKind, attributes: Mapping[str, AttributeValue], remote: bool, error: str) -> list[ReadableSpan]:
    """A span and one under it."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(resource=Resource({"service.name": "hlo", "n": 1}), shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    traced = Tracing(provider.get_tracer("hlo", "1.2"))
    span = traced.begin("POST /ask", tracing.incoming(REMOTE) if remote else NOBODY, attributes, kind)
    with traced.span("näme", span, attributes) as under:
        if error:
            under.set_status(Status(StatusCode.ERROR, error))
    span.end()
    return list(exporter.get_finished_spans())


@given(
    st.sampled_from(SpanKind),
    st.dictionaries(TEXT.filter(bool), VALUES, max_size=8),
    st.booleans(),
    st.sampled_from(("", "ValueError")),
)
def test_it_is_opentelemetrys(kind: SpanKind, attributes: dict[str, AttributeValue], remote: bool, error: str) -> None:
    """Kinds, attributes of every type, statuses, parents here and elsewhere and trace states come out the same."""
    spans = made(kind=kind, attributes=attributes, remote=remote, error=error)
    assert encode(spans) == encode_spans(spans)


@pytest.mark.parametrize("value", [1, True, 1.0, "1"])
def test_equal_values_of_other_types_stay_apart(value: AttributeValue) -> None:
    """`1`, `True` and `1.0` are equal to Python and three things to OTLP, one after the other too."""
    for other in (1, True, 1.0, value):
        spans = made(kind=SpanKind.SERVER, attributes={"a": other}, remote=False, error="")
        assert encode(spans) == encode_spans(spans)


def test_what_is_rare_is_encoded_too() -> None:
    """A batch with an event in it is OpenTelemetry's encoder's."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with Tracing(provider.get_tracer("hlo")).span("one") as span:
        span.add_event("plugin failed", {"hlo.plugin": "nosy"})
    spans = exporter.get_finished_spans()
    assert encode(spans) == encode_spans(spans)
    assert encode(spans).resource_spans[0].scope_spans[0].spans[0].events
