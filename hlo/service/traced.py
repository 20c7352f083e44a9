"""A span for each request, from its first byte to the last of its answer, which for a stream is the stream's end."""

from __future__ import annotations

from typing import Any, cast

from litestar.enums import ScopeType
from litestar.middleware import ASGIMiddleware
from litestar.types import ASGIApp, Message, Receive, Scope, Send

from hlo.service.state import Service
from hlo.telemetry import spans, tracing
from hlo.telemetry.tracing import CLIENT_GONE, NOBODY, Span, SpanKind

_UNTRACED = ("/healthz", "/readyz", "/metrics", "/", "/console/{name}", "/console/about")  # not anybody's questions
_KEY = "hlo_span"


class Traced(ASGIMiddleware):
    """Begins the span, hands it to the handler, tells the client its trace, and ends it with what came of it."""

    scopes = (ScopeType.HTTP,)

    def __init__(self, service: Service) -> None:
        self._service = service

    async def handle(self, scope: Scope, receive: Receive, send: Send, next_app: ASGIApp) -> None:
        """Serve one request inside its span."""
        request = cast("dict[str, Any]", scope)
        caller = _caller(scope)
        if request["path_template"] in _UNTRACED or not self._service.tracing.enabled:
            request[_KEY] = caller
            await next_app(scope, receive, send)
            return
        name = f"{request['method']} {request['path_template']}"
        made = self._service.tracing.begin(name, caller, spans.of_request(request), SpanKind.SERVER)
        request[_KEY] = made
        watch = _Watch(made, receive, send)
        try:
            await next_app(scope, watch.receive, watch.send)
        except BaseException as error:
            tracing.mark(made, error)
            raise
        finally:
            watch.end()


def span_of(request: Any) -> Span:
    """The span of a request; where nothing is traced, the caller's, which records nothing here."""
    return cast("Span", request.scope.get(_KEY, NOBODY))


class _Watch:
    """Sees what a request receives and sends."""

    def __init__(self, span: Span, receive: Receive, send: Send) -> None:
        self._span = span
        self._receive = receive
        self._send = send
        self._status = 0
        self._whole = False
        self._gone = False

    async def receive(self) -> Any:
        message = await self._receive()
        if message["type"] == "http.disconnect" and not self._whole:
            self._gone = True
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            headers = [(name.encode(), value.encode()) for name, value in tracing.outgoing(self._span).items()]
            message["headers"] = [*message["headers"], *headers]
        await self._send(message)
        if message["type"] == "http.response.body" and not message.get("more_body"):
            self._whole = True

    def end(self) -> None:
        """Say how it ended. A client's mistake is not ours: the status stays unset then, as OpenTelemetry has it."""
        if self._span.is_recording():
            if self._status:
                self._span.set_attribute("http.response.status_code", self._status)
            if self._gone:
                tracing.mark(self._span, CLIENT_GONE)
            elif self._status >= 500 and not _told(self._span):
                tracing.mark(self._span, str(self._status))
        self._span.end()


def _told(span: Span) -> bool:
    """Whether a span's error is known by a better name than its status code."""
    return "error.type" in (getattr(span, "attributes", None) or {})


def _caller(scope: Scope) -> Span:
    """The client's own span, where the request's headers name one."""
    found = {
        name.decode("latin-1"): value.decode("latin-1")
        for name, value in scope["headers"]
        if name in (b"traceparent", b"tracestate")
    }
    return tracing.incoming(found) if found else NOBODY
