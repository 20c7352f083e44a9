"""Spans for OpenTelemetry: made where somebody wants them, and otherwise nothing at all.

Spans carry names, numbers and statuses, never words of a question, a prompt or an answer, nor an error's text.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager

from opentelemetry.context import Context
from opentelemetry.trace import (
    INVALID_SPAN,
    Span,
    SpanKind,
    Status,
    StatusCode,
    Tracer,
    get_current_span,
    set_span_in_context,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from hlo.errors import InvalidRequest, OutOfScope, QuestionRefused
from hlo.telemetry import exporting

Attributes = Mapping[str, AttributeValue]
Spans = Callable[..., AbstractContextManager[Span]]
"""`Tracing.span` under a parent that is settled: takes a name, and attributes."""

NOBODY: Span = INVALID_SPAN
"""The parent of a trace's first span."""
ABORTED = "Aborted"  # the error.type of what was given up from outside: by a client, or as the server stops
CLIENT_GONE = "ClientDisconnected"

_PROPAGATOR = TraceContextTextMapPropagator()
_REFUSALS = (InvalidRequest, OutOfScope, QuestionRefused)


class Tracing:
    """Makes spans. Parents are passed by hand: a stream outlives the task and context that began it."""

    def __init__(
        self,
        tracer: Tracer | None = None,
        close: Callable[[], None] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._tracer = tracer
        self._close = close
        self._environment = environment or {}

    @classmethod
    def from_environment(cls, version: str) -> Tracing:
        """Export over OTLP when the standard variables ask for it. Raises `SettingsError`."""
        if not exporting.wanted():
            return cls()
        provider, close = exporting.provider(version)
        return cls(provider.get_tracer("hlo", version), close, exporting.environment())

    @property
    def enabled(self) -> bool:
        """Whether spans are made; the sampler may still leave each of them out."""
        return self._tracer is not None

    def begin(
        self, name: str, parent: Span = NOBODY, attributes: Attributes | None = None, kind: SpanKind = SpanKind.INTERNAL
    ) -> Span:
        """A span that the caller ends. Where nothing is traced it is the parent, which records nothing."""
        if self._tracer is None:
            return parent
        return self._tracer.start_span(
            name, context=_inside(parent), kind=kind, attributes=attributes, record_exception=False
        )

    @contextmanager
    def span(self, name: str, parent: Span = NOBODY, attributes: Attributes | None = None) -> Iterator[Span]:
        """A span that ends with the block, and tells by its type what was raised in it."""
        if self._tracer is None:
            yield parent
            return
        span = self.begin(name, parent, attributes)
        try:
            yield span
        except BaseException as error:
            mark(span, error)
            raise
        finally:
            span.end()

    @contextmanager
    def whole(self, name: str, given: Span) -> Iterator[Span]:
        """`given`, where it is a span of this process; else a span under it. Either tells what was raised."""
        context = given.get_span_context()
        if self._tracer is not None and (context.is_remote or not context.is_valid):
            with self.span(name, given) as span:
                yield span
            return
        try:
            yield given
        except BaseException as error:
            mark(given, error)
            raise

    def past(self, name: str, parent: Span, began: int, ended: int, attributes: Attributes | None = None) -> None:
        """A span of what is over by now; `began` and `ended` are in nanoseconds of `time.time_ns`."""
        if self._tracer is not None:
            span = self._tracer.start_span(name, context=_inside(parent), start_time=began, attributes=attributes)
            span.end(ended)

    def environment(self, parent: Span) -> dict[str, str]:
        """What a process needs in its environment to send spans of its own to the same place, under that parent."""
        if not self._environment:
            return {}
        return {**self._environment, **{name.upper(): value for name, value in outgoing(parent).items()}}

    def under(self, parent: Span) -> Spans:
        """`span`, with that parent."""
        return lambda name, attributes=None: self.span(name, parent, attributes)

    def close(self) -> None:
        """Send what is still waiting."""
        if self._close is not None:
            self._close()


UNTRACED = Tracing().under(NOBODY)
"""The spans of those whom nobody traces."""


def mark(span: Span, error: BaseException | str) -> None:
    """Say of a span what kind of error it met. A refusal is no failure of ours, so its status stays as it was."""
    if not span.is_recording():
        return
    kind = error if isinstance(error, str) else type(error).__name__
    if isinstance(error, (GeneratorExit, asyncio.CancelledError)):
        kind = ABORTED
    span.set_attribute("error.type", kind)
    if not isinstance(error, _REFUSALS):
        span.set_status(Status(StatusCode.ERROR, kind))


def incoming(headers: Mapping[str, str]) -> Span:
    """The caller's span, from W3C `traceparent` and `tracestate`; `NOBODY` where they name none."""
    return get_current_span(_PROPAGATOR.extract(dict(headers), context=Context()))


def outgoing(span: Span) -> dict[str, str]:
    """The headers that make a span the parent of what another process does; empty where nothing is traced."""
    context = span.get_span_context()
    if not context.is_valid:
        return {}
    headers = {"traceparent": f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"}
    return headers | {"tracestate": context.trace_state.to_header()} if context.trace_state else headers


def trace_id(span: Span) -> str:
    """The trace's id in hexadecimal; a fresh one where nobody traces, so that an answer can always be referred to."""
    context = span.get_span_context()
    return f"{context.trace_id:032x}" if context.is_valid else secrets.token_hex(16)


def _inside(span: Span) -> Context:
    return set_span_in_context(span, Context())


__all__ = [
    "ABORTED",
    "CLIENT_GONE",
    "NOBODY",
    "UNTRACED",
    "Attributes",
    "Span",
    "SpanKind",
    "Spans",
    "Tracing",
    "incoming",
    "mark",
    "outgoing",
    "trace_id",
]
