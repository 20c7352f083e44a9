"""Spans: who is whose parent, what they tell, and what they never tell."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing, nullcontext
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import TYPE_CHECKING

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from hlo.errors import HLOError, InvalidRequest, OutOfScope, SettingsError
from hlo.pipeline import Policy
from hlo.plugins import Hooks
from hlo.plugins.hooks import Hook
from hlo.records import Answer, Delta, Prompt, Question, Sampling, SamplingOverrides, Turn
from hlo.telemetry import tracing
from hlo.telemetry.tracing import Tracing
from hlo.testing import EchoEngine

if TYPE_CHECKING:
    from tests.conftest import MakeParts

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = {"traceparent": f"00-{TRACE}-b7ad6b7169203331-01"}


def by_name(exporter: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    return {span.name: span for span in exporter.get_finished_spans()}


async def test_one_question_is_one_trace(
    make_parts: MakeParts, traced: Tracing, exporter: InMemorySpanExporter
) -> None:
    """A question is one tree: `ask` over `route`, `prompt` and `generate`; `encode` and `score` under `route`."""
    parts = make_parts(tracing=traced)
    answer = [event async for event in parts.pipeline.ask(Question("heart chest pain"))][-1]
    assert isinstance(answer, Answer)
    spans = by_name(exporter)
    root, route = spans["ask"], spans["route"]
    parents = {name: span.parent and span.parent.span_id for name, span in spans.items()}
    under, deeper = root.context.span_id, route.context.span_id
    assert parents == {
        "ask": None,
        "route": under,
        "prompt": under,
        "generate": under,
        "encode": deeper,
        "score": deeper,
    }
    assert f"{root.context.trace_id:032x}" == answer.trace_id
    assert dict(root.attributes or {}) == {"hlo.route.status": "routed", "hlo.specialty": "cardiology"}


async def test_a_route_says_what_was_close(
    make_parts: MakeParts, traced: Tracing, exporter: InMemorySpanExporter
) -> None:
    """The span `route` has the encoder, the decision, the best three scores and the margin."""
    parts = make_parts(tracing=traced)
    answer = [event async for event in parts.pipeline.ask(Question("heart chest pain"))][-1]
    assert isinstance(answer, Answer)
    route, told = answer.route, dict(by_name(exporter)["route"].attributes or {})
    assert told == {
        "hlo.encoder": "hashing",
        "hlo.route.status": "routed",
        "hlo.route.specialty": "cardiology",
        "hlo.route.margin": route.margin,
        "hlo.route.out_of_scope": route.out_of_scope,
        "hlo.route.top": tuple(one.specialty for one in route.scores[:3]),
        "hlo.route.scores": tuple(one.score for one in route.scores[:3]),
        "hlo.route.probabilities": tuple(one.probability for one in route.scores[:3]),
    }


async def test_a_generation_says_who_wrote_it_and_how_much(
    make_parts: MakeParts, traced: Tracing, exporter: InMemorySpanExporter
) -> None:
    """The span `generate` has OpenTelemetry's names for model, parameters and tokens, and the adapter by its hash."""
    parts = make_parts(tracing=traced)
    answer = [event async for event in parts.pipeline.ask(Question("heart chest pain"))][-1]
    assert isinstance(answer, Answer)
    assert answer.adapter is not None
    told = dict(by_name(exporter)["generate"].attributes or {})
    assert isinstance(told.pop("gen_ai.response.time_to_first_chunk"), float)
    assert isinstance(told.pop("hlo.decode_s"), float)
    assert told == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "echo",
        "gen_ai.request.model": "echo",
        "gen_ai.output.type": "text",
        "gen_ai.request.max_tokens": 256,
        "gen_ai.request.temperature": 0.0,
        "gen_ai.request.top_p": 1.0,
        "gen_ai.request.stream": True,
        "gen_ai.usage.input_tokens": answer.usage.prompt_tokens,
        "gen_ai.usage.output_tokens": answer.usage.completion_tokens,
        "gen_ai.usage.cache_read.input_tokens": 0,
        "gen_ai.response.finish_reasons": ("stop",),
        "hlo.model.quantization": "none",
        "hlo.specialty": "cardiology",
        "hlo.adapter.name": "cardiology",
        "hlo.adapter.sha256": answer.adapter.sha256,
        "hlo.adapter.version": "1.2.3",
    }


async def test_the_engine_is_told_its_parent(
    make_parts: MakeParts, traced: Tracing, exporter: InMemorySpanExporter
) -> None:
    """The prompt carries the W3C headers of the span `generate`, for an engine that makes spans of its own."""

    class Listening(EchoEngine):
        """An engine that keeps what it was told."""

        heard: Mapping[str, str]

        def generate(self, prompt: Prompt, sampling: Sampling) -> AsyncGenerator[Delta, None]:
            self.heard = dict(prompt.trace)
            return super().generate(prompt, sampling)

    engine = Listening()
    parts = make_parts(tracing=traced, engine=engine)
    assert [event async for event in parts.pipeline.ask(Question("heart"))]
    context = by_name(exporter)["generate"].context
    assert engine.heard == {
        "traceparent": f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
    }


async def test_what_is_given_up_says_so(make_parts: MakeParts, traced: Tracing, exporter: InMemorySpanExporter) -> None:
    """When the reader leaves in the middle, `ask` and `generate` end then, marked, with the tokens so far."""
    parts = make_parts(tracing=traced)
    async with aclosing(parts.pipeline.ask(Question("heart chest pain"))) as events:
        async for event in events:
            if isinstance(event, Delta):
                break
    spans = by_name(exporter)
    for name in ("ask", "generate"):
        assert spans[name].status.status_code == StatusCode.ERROR
        assert (spans[name].attributes or {})["error.type"] == "Aborted"
    told = spans["generate"].attributes or {}
    assert (told["gen_ai.usage.output_tokens"], told["gen_ai.response.finish_reasons"]) == (1, ("abort",))


@pytest.mark.parametrize("error", [None, ValueError("heart canarywords")])
async def test_a_plugin_that_fails_or_takes_too_long_is_told(
    error: Exception | None, make_parts: MakeParts, traced: Tracing, exporter: InMemorySpanExporter
) -> None:
    """A plugin that is left out is named on the span `screen` with the kind of its error, and the question goes on."""
    hang = threading.Event()

    def hlo_question(question: Question) -> None:
        if error is not None:
            raise error
        hang.wait(30)

    hooks = Hooks(question=(Hook("nosy", hlo_question, ("question",)),))
    parts = make_parts(tracing=traced, hooks=hooks, hook_timeout_s=0.05)
    answer = [event async for event in parts.pipeline.ask(Question("heart canarywords"))][-1]
    hang.set()
    assert isinstance(answer, Answer)
    span, kind = by_name(exporter)["screen"], type(error).__name__ if error else "TimeoutError"
    assert (span.status.status_code, (span.attributes or {})["error.type"]) == (StatusCode.ERROR, kind)
    (event,) = span.events
    assert dict(event.attributes or {}) == {"hlo.plugin": "nosy", "error.type": kind}
    assert by_name(exporter)["ask"].status.status_code == StatusCode.UNSET
    assert "canarywords" not in "".join(one.to_json() for one in exporter.get_finished_spans())


async def test_a_refusal_is_told_but_is_no_failure(
    make_parts: MakeParts, traced: Tracing, exporter: InMemorySpanExporter
) -> None:
    """A question that is refused says by which rule, and its span's status stays unset."""
    parts = make_parts(tracing=traced, policy=Policy(answer_out_of_scope=False))
    with pytest.raises(OutOfScope):
        assert [event async for event in parts.pipeline.ask(Question("where do I park"))]
    span = by_name(exporter)["ask"]
    assert span.status.status_code == StatusCode.UNSET
    assert (span.attributes or {})["error.type"] == "OutOfScope"


async def test_a_raw_prompt_and_a_route_are_traced_too(
    make_parts: MakeParts, traced: Tracing, exporter: InMemorySpanExporter
) -> None:
    """A raw prompt has `prompt` and `generate` under its span, several routes have one `route`."""
    parts = make_parts(tracing=traced)
    deltas = parts.pipeline.complete("heart", "cardiology", SamplingOverrides())
    assert [delta async for delta in deltas]
    spans = by_name(exporter)
    assert set(spans) == {"complete", "prompt", "generate"}
    assert (spans["generate"].attributes or {})["gen_ai.operation.name"] == "text_completion"
    exporter.clear()
    await parts.pipeline.route(["heart", "brain"])
    spans = by_name(exporter)
    assert set(spans) == {"route", "encode", "score"}
    assert (spans["route"].attributes or {})["hlo.questions"] == 2


async def test_the_callers_trace_goes_on(
    make_parts: MakeParts, traced: Tracing, exporter: InMemorySpanExporter
) -> None:
    """A question that comes with a `traceparent` belongs to that trace."""
    parts = make_parts(tracing=traced)
    answer = [event async for event in parts.pipeline.ask(Question("heart"), tracing.incoming(PARENT))][-1]
    assert isinstance(answer, Answer)
    assert answer.trace_id == TRACE
    parent = by_name(exporter)["ask"].parent
    assert parent is not None
    assert f"{parent.span_id:016x}" == "b7ad6b7169203331"


@pytest.mark.parametrize("headers", [PARENT, PARENT | {"tracestate": "a=1,b=2"}, {}])
def test_what_came_in_goes_out(headers: dict[str, str]) -> None:
    """The headers for the next process are OpenTelemetry's own for that span, the trace state among them."""
    wanted: dict[str, str] = {}
    span = tracing.incoming(headers)
    TraceContextTextMapPropagator().inject(wanted, set_span_in_context(span))
    assert tracing.outgoing(span) == wanted == headers


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
    assert '"ask"' in told
    assert "canarywords" not in told


def test_an_error_is_told_by_type(traced: Tracing, exporter: InMemorySpanExporter) -> None:
    """A span in which an error was raised says its type and not its text, and the error goes on."""
    with pytest.raises(ValueError, match="canary"), traced.span("x"):
        raise ValueError("canary")
    span = by_name(exporter)["x"]
    assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, "ValueError")
    assert dict(span.attributes or {}) == {"error.type": "ValueError"}
    assert not span.events
    assert "canary" not in span.to_json()


@pytest.mark.usefixtures("clean_environment")
def test_without_an_endpoint_nothing_is_traced() -> None:
    """Where no endpoint is set nothing is recorded, and answers still have an id each."""
    quiet = Tracing.from_environment("1")
    with quiet.span("a") as first, quiet.span("b") as second:
        assert not first.is_recording()
        assert tracing.trace_id(first) != tracing.trace_id(second)
    quiet.close()


@pytest.mark.usefixtures("clean_environment")
def test_tracing_can_be_disabled(monkeypatch: pytest.MonkeyPatch) -> None:
    """`OTEL_SDK_DISABLED=true` turns tracing off, endpoint or not."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    with Tracing.from_environment("1").span("a") as span:
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
    with exported.span("ask"):
        pass
    exported.close()
    ((path, body),) = received
    assert path == "/v1/traces"
    assert b"ask" in body
    assert b"hlo-under-test" in body


@pytest.mark.parametrize("wanted", [False, True])
async def test_words_are_in_spans_only_where_the_operator_wants_them(
    wanted: bool, make_parts: MakeParts, traced: Tracing, exporter: InMemorySpanExporter
) -> None:
    """With HLO_CAPTURE_CONTENT `generate` has the messages in and out, as OpenTelemetry writes them."""
    parts = make_parts(tracing=traced, policy=Policy(capture_content=wanted))
    question = Question("heart chest pain", turns=(Turn("heart?", "Go on."),))
    answer = [event async for event in parts.pipeline.ask(question)][-1]
    assert isinstance(answer, Answer)
    told = [dict(span.attributes or {}) for span in exporter.get_finished_spans()]
    if not wanted:
        assert "chest" not in str(told)
        return
    (generate,) = [one for one in told if "gen_ai.operation.name" in one]
    said = [(one["role"], one["parts"]) for one in json.loads(str(generate["gen_ai.input.messages"]))]
    assert said == [
        (role, [{"type": "text", "content": words}])
        for role, words in (("user", "heart?"), ("assistant", "Go on."), ("user", "heart chest pain"))
    ]
    (written,) = json.loads(str(generate["gen_ai.output.messages"]))
    assert written == {"role": "assistant", "parts": [{"type": "text", "content": answer.text}]}
