"""The span of a request: what it says of errors, what it never says, and what the client hears of it."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Any

import pytest
from litestar import Litestar
from litestar.testing import TestClient
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from hlo.errors import EngineDead
from hlo.records import Delta, Prompt, Sampling
from hlo.telemetry.tracing import Tracing
from hlo.testing import EchoEngine

if TYPE_CHECKING:
    from tests.conftest import MakeParts
    from tests.service.conftest import Serve

CANARY = "zanthoribe"


class Failing(EchoEngine):
    """An engine that says a little of the prompt and then raises."""

    def __init__(self, error: Exception, *, after: int) -> None:
        super().__init__()
        self._error = error
        self._after = after

    async def generate(self, prompt: Prompt, sampling: Sampling) -> AsyncGenerator[Delta, None]:
        """Raise after some deltas."""
        for _ in range(self._after):
            yield Delta("x", (1,))
        raise self._error


def root(exporter: InMemorySpanExporter) -> ReadableSpan:
    """The one span of a server."""
    (found,) = (span for span in exporter.get_finished_spans() if span.kind == SpanKind.SERVER)
    return found


def ask(client: TestClient[Litestar], **more: Any) -> Any:
    return client.post("/ask", json={"question": f"heart {CANARY}", **more})


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("after", [0, 3])
@pytest.mark.parametrize("error", [EngineDead("It died.", remedy="Restart."), RuntimeError(f"of {CANARY}")])
def test_an_error_is_told_by_type_wherever_it_came(
    error: Exception,
    after: int,
    stream: bool,
    serve: Serve,
    make_parts: MakeParts,
    traced: Tracing,
    exporter: InMemorySpanExporter,
) -> None:
    """An error is the request's error type, before the first byte and inside a stream; its text is nowhere."""
    response = ask(serve(make_parts(engine=Failing(error, after=after), tracing=traced)), stream=stream)
    span = root(exporter)
    told = span.attributes or {}
    assert told["error.type"] == type(error).__name__
    assert told["http.response.status_code"] == response.status_code
    assert span.status.status_code == StatusCode.ERROR
    assert CANARY not in "".join(one.to_json() for one in exporter.get_finished_spans())


def test_what_a_client_gets_wrong_is_no_error_of_ours(
    serve: Serve, make_parts: MakeParts, traced: Tracing, exporter: InMemorySpanExporter
) -> None:
    """A malformed body leaves a span with its status code, and no error."""
    response = serve(make_parts(tracing=traced)).post("/ask", content=f'{{"question": "{CANARY}"')
    span = root(exporter)
    assert (span.attributes or {})["http.response.status_code"] == response.status_code == 400
    assert span.status.status_code == StatusCode.UNSET
    assert CANARY not in span.to_json()


def test_the_client_hears_its_trace(
    serve: Serve, make_parts: MakeParts, traced: Tracing, exporter: InMemorySpanExporter
) -> None:
    """The response's `traceparent` names the request's span, also where the request was refused."""
    client = serve(make_parts(tracing=traced))
    for body in ({"question": "heart"}, {"question": ""}):
        exporter.clear()
        version, trace, span, _ = client.post("/ask", json=body).headers["traceparent"].split("-")
        context = root(exporter).context
        assert (version, trace, span) == ("00", f"{context.trace_id:032x}", f"{context.span_id:016x}")


def test_probes_and_unknown_paths_leave_no_span(
    serve: Serve, make_parts: MakeParts, traced: Tracing, exporter: InMemorySpanExporter
) -> None:
    """Health, metrics and paths that there are not leave no span: machines ask for them, or guess them."""
    client = serve(make_parts(tracing=traced))
    for path in ("/healthz", "/readyz", "/metrics", f"/{CANARY}"):
        assert "traceparent" not in client.get(path).headers
    assert exporter.get_finished_spans() == ()


def test_untraced_answers_keep_the_callers_id(serve: Serve) -> None:
    """Where nothing is traced, an answer still has its caller's trace id, and the response no header of ours."""
    trace = "0af7651916cd43dd8448eb211c80319c"
    response = serve().post(
        "/ask", json={"question": "heart"}, headers={"traceparent": f"00-{trace}-b7ad6b7169203331-01"}
    )
    assert response.json()["trace_id"] == trace
    assert "traceparent" not in response.headers
