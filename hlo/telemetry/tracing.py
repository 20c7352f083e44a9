"""Spans for OpenTelemetry: exported where the standard `OTEL_*` variables say, and otherwise not recorded at all.

Spans carry names, numbers and statuses, never words of a question, a prompt or an answer, nor an error's text.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from hlo.errors import SettingsError

_PROPAGATOR = TraceContextTextMapPropagator()
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


class Tracing:
    """Makes spans. Parents are passed by hand: a stream outlives the task and context that began it."""

    def __init__(self, tracer: Tracer | None = None, close: Callable[[], None] | None = None) -> None:
        self._tracer = tracer or trace.NoOpTracer()
        self._close = close

    @classmethod
    def from_environment(cls, version: str) -> Tracing:
        """Export over OTLP when an endpoint is set (OpenTelemetry specification, "OTLP Exporter")."""
        if not any(os.environ.get(name) for name in _ENDPOINTS) or os.environ.get("OTEL_SDK_DISABLED") == "true":
            return cls()
        try:
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor

            if os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc").startswith("http"):
                from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            else:
                from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import (  # type: ignore[assignment]
                    OTLPSpanExporter,
                )
        except ImportError as error:
            raise SettingsError(
                "OTEL_EXPORTER_OTLP_ENDPOINT is set, but OpenTelemetry's SDK is not installed.",
                remedy="`pip install 'hlo[otel]'`, or unset it.",
            ) from error
        name = os.environ.get("OTEL_SERVICE_NAME", "hlo")
        provider = TracerProvider(resource=Resource.create({"service.name": name, "service.version": version}))
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        return cls(provider.get_tracer("hlo", version), provider.shutdown)

    @contextmanager
    def span(self, name: str, parent: Context, *, kind: SpanKind = SpanKind.INTERNAL) -> Iterator[Span]:
        """A span that ends with the block; an error marks it with the error's type, not its text."""
        span = self._tracer.start_span(name, context=parent, kind=kind, record_exception=False)
        try:
            yield span
        except BaseException as error:
            span.set_status(Status(StatusCode.ERROR, type(error).__name__))
            raise
        finally:
            span.end()

    def close(self) -> None:
        """Send what is still waiting."""
        if self._close is not None:
            self._close()


def incoming(headers: Mapping[str, str]) -> Context:
    """The caller's context, from W3C `traceparent` and `tracestate`."""
    return _PROPAGATOR.extract(dict(headers), context=Context())


def inside(span: Span) -> Context:
    """The context in which `span` is the parent."""
    return trace.set_span_in_context(span, Context())


def trace_id(span: Span) -> str:
    """The trace's id in hexadecimal; a fresh one where nobody traces, so that an answer can always be referred to."""
    context = span.get_span_context()
    return f"{context.trace_id:032x}" if context.is_valid else secrets.token_hex(16)
