"""Traces of a real server with the real engine, as they come to a real receiver."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from msgspec import Struct

from hlo.telemetry.audit import Keys
from hlo.telemetry.audit_check import check
from tests.e2e.server import Server, running
from tests.e2e.test_answers import ASKED, content_hash
from tests.otlp import Received, Receiver, receiving

CANARY = "zanthoribe"  # a word that nothing but a client can have brought
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
AUDIT_KEY = "the key of these tests, no other"
UNSET, ERROR = 0, 2
INTERNAL, SERVER = 1, 2  # kinds, as OTLP numbers them
STAGES = ("POST /ask", "screen", "route", "encode", "score", "prompt", "generate", "llm_request")


class Traced(Struct, frozen=True):
    """A server, where its spans come in, and its audit log."""

    server: Server
    receiver: Receiver
    audit_log: Path


@pytest.fixture(scope="module", params=["grpc", "http/protobuf"])
def traced(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Traced]:
    """A server that sends its spans over each protocol."""
    folder: Path = tmp_path_factory.mktemp("traced")
    variables: dict[str, Any] = {
        "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=tests",
        "HLO_OUT_OF_SCOPE": "refuse",
        "HLO_AUDIT_LOG": str(folder / "audit.jsonl"),
        "HLO_AUDIT_KEY": AUDIT_KEY,
    }
    with receiving(request.param) as receiver, running(folder, **(variables | receiver.environment)) as server:
        yield Traced(server, receiver, folder / "audit.jsonl")


def parents(spans: dict[str, Received]) -> dict[str, str]:
    """The name of each span's parent; what is no span of the same trace keeps its id."""
    names = {span.id: span.name for span in spans.values()}
    return {span.name: names.get(span.parent, span.parent) for span in spans.values()}


def asked(traced: Traced, body: dict[str, Any], **headers: str) -> httpx.Response:
    with traced.server.client() as client:
        return client.post("/ask", json=body, headers=headers)


def trace_of(response: httpx.Response) -> str:
    """The trace that a response names in its header."""
    return response.headers["traceparent"].split("-")[1]


def test_one_question_is_one_tree(traced: Traced) -> None:
    """A question's trace goes from the server's span over the stages to vLLM's own, all of the service `hlo`."""
    response = asked(traced, {"question": ASKED["cardiology"], "max_tokens": 8})
    answer = response.json()
    assert trace_of(response) == answer["trace_id"]
    spans = traced.receiver.wait_for(answer["trace_id"], *STAGES)
    assert parents(spans) == {
        "POST /ask": "",
        "screen": "POST /ask",  # hlo-redflags is installed
        "route": "POST /ask",
        "encode": "route",
        "score": "route",
        "prompt": "POST /ask",
        "generate": "POST /ask",
        "llm_request": "generate",
    }
    kinds = {name: SERVER if name in ("POST /ask", "llm_request") else INTERNAL for name in STAGES}
    assert {name: span.kind for name, span in spans.items()} == kinds
    assert {span.status for span in spans.values()} == {UNSET}
    for span in spans.values():
        assert span.resource["service.name"] == "hlo"
        assert span.resource["deployment.environment.name"] == "tests"
    root = spans["POST /ask"]
    assert root.resource["service.version"]
    assert root.attributes["http.request.method"] == "POST"
    assert root.attributes["http.route"] == root.attributes["url.path"] == "/ask"
    assert root.attributes["http.response.status_code"] == 200
    assert root.attributes["hlo.specialty"] == "cardiology"
    route = spans["route"].attributes
    assert (route["hlo.route.status"], route["hlo.route.specialty"]) == ("routed", "cardiology")
    assert route["hlo.route.top"] == [one["specialty"] for one in answer["route"]["scores"][:3]]
    assert route["hlo.route.margin"] == pytest.approx(answer["route"]["margin"], abs=0.001)
    generate, engine = spans["generate"].attributes, spans["llm_request"].attributes
    assert generate["gen_ai.operation.name"] == "chat"
    assert generate["gen_ai.provider.name"] == "vllm"
    assert generate["gen_ai.request.model"] == answer["model"]
    assert generate["hlo.model.quantization"] == "none"
    assert generate["hlo.adapter.name"] == "cardiology"
    assert generate["hlo.adapter.sha256"] == content_hash("cardiology")
    assert generate["hlo.adapter.version"]
    assert generate["gen_ai.response.finish_reasons"] == [answer["finish_reason"]]
    used = (answer["usage"]["prompt_tokens"], answer["usage"]["completion_tokens"])
    assert (generate["gen_ai.usage.input_tokens"], generate["gen_ai.usage.output_tokens"]) == used
    assert (engine["gen_ai.usage.prompt_tokens"], engine["gen_ai.usage.completion_tokens"]) == used
    for name in ("hlo.queue_s", "gen_ai.response.time_to_first_chunk", "hlo.decode_s"):
        assert generate[name] >= 0


def test_the_callers_trace_goes_on(traced: Traced) -> None:
    """A caller's `traceparent` is the parent of the server's span, and comes back with that span's id."""
    response = asked(traced, {"question": ASKED["oncology"], "max_tokens": 4}, traceparent=f"00-{TRACE}-{PARENT}-01")
    spans = traced.receiver.wait_for(TRACE, *STAGES)
    assert spans["POST /ask"].parent == PARENT
    assert response.json()["trace_id"] == TRACE
    assert response.headers["traceparent"].split("-")[1:3] == [TRACE, spans["POST /ask"].id]


def test_a_caller_that_samples_nothing_is_heeded(traced: Traced) -> None:
    """Where the caller's `traceparent` says that it is not sampled, no span of its trace comes, not even vLLM's."""
    skipped = TRACE[::-1]
    asked(traced, {"question": ASKED["oncology"], "max_tokens": 4}, traceparent=f"00-{skipped}-{PARENT}-00")
    later = asked(traced, {"question": ASKED["oncology"], "max_tokens": 4})
    traced.receiver.wait_for(trace_of(later), *STAGES)
    assert traced.receiver.trace(skipped) == {}


def test_a_streams_span_ends_with_the_stream(traced: Traced) -> None:
    """The spans of a stream last until its last event, and say that it was one."""
    body = {"question": ASKED["neurology"], "max_tokens": 24, "temperature": 1.5, "seed": 5, "stream": True}
    with traced.server.client() as client, client.stream("POST", "/ask", json=body) as response:
        trace, text = trace_of(response), "".join(response.iter_text())
    answer = json.loads(text.rpartition("event: answer\ndata: ")[2])
    assert answer["trace_id"] == trace
    spans = traced.receiver.wait_for(trace, *STAGES)
    root, generate = spans["POST /ask"], spans["generate"]
    assert root.began <= generate.began <= generate.ended <= root.ended
    assert (root.ended - root.began) / 1e6 >= answer["timings"]["total_ms"] - 1
    assert generate.attributes["gen_ai.request.stream"] is True
    assert root.status == UNSET


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_is_marked(traced: Traced, stream: bool) -> None:
    """When the client goes away, the server's span and `generate` end at once, marked; vLLM makes none for it."""
    trace = f"{0xC0FFEE + stream:032x}"
    body = {"question": ASKED["nephrology"], "max_tokens": 1500, "temperature": 2.0, "stream": stream}
    headers = {"traceparent": f"00-{trace}-{PARENT}-01"}
    with httpx.Client(base_url=traced.server.url, timeout=None if stream else 2.0) as client:
        if stream:
            with client.stream("POST", "/ask", json=body, headers=headers) as response:
                assert next(response.iter_bytes())
        else:
            with pytest.raises(httpx.ReadTimeout):
                client.post("/ask", json=body, headers=headers)
    spans = traced.receiver.wait_for(trace, "POST /ask", "generate")
    assert (spans["POST /ask"].status, spans["generate"].status) == (ERROR, ERROR)
    assert spans["POST /ask"].attributes["error.type"] == "ClientDisconnected"
    assert spans["POST /ask"].attributes["http.response.status_code"] == (200 if stream else 499)
    assert spans["generate"].attributes["error.type"] == "Aborted"
    assert spans["generate"].attributes["gen_ai.response.finish_reasons"] == ["abort"]
    assert "llm_request" not in spans


@pytest.mark.parametrize(
    ("body", "status", "kind"),
    [
        ({"question": f"what is a good recipe for {CANARY} bread"}, 422, "OutOfScope"),
        ({"question": f"{CANARY} ", "specialty": "dermatology"}, 404, "UnknownSpecialty"),
        ({"question": f"{CANARY} " * 400}, 400, "InvalidRequest"),
    ],
)
def test_a_refusal_is_marked(traced: Traced, body: dict[str, Any], status: int, kind: str) -> None:
    """A refusal has its kind in `error.type` and no error status: the server did what it should."""
    response = asked(traced, body)
    assert response.status_code == status
    root = traced.receiver.wait_for(trace_of(response), "POST /ask")["POST /ask"]
    assert (root.attributes["error.type"], root.status) == (kind, UNSET)
    assert root.attributes["http.response.status_code"] == status


def test_other_routes_are_traced_and_probes_are_not(traced: Traced) -> None:
    """`/route` and `/generate` have their stages, a reload its steps; health and metrics leave no span."""
    with traced.server.client() as client:
        routed = client.post("/route", json={"question": [ASKED["oncology"], ASKED["genetics"]]})
        spans = traced.receiver.wait_for(trace_of(routed), "POST /route", "route", "encode", "score")
        assert spans["route"].attributes["hlo.questions"] == 2
        body = {"prompt": "A heart", "adapter": "cardiology", "max_tokens": 4}
        spans = traced.receiver.wait_for(
            trace_of(client.post("/generate", json=body)), "POST /generate", "prompt", "generate", "llm_request"
        )
        assert parents(spans)["llm_request"] == "generate"
        assert spans["generate"].attributes["gen_ai.operation.name"] == "text_completion"
        for path in ("/healthz", "/readyz", "/metrics"):
            assert "traceparent" not in client.get(path).headers
        reloaded = client.post("/admin/specialties/reload", timeout=300)
        assert reloaded.status_code == 200
    name = "POST /admin/specialties/reload"
    spans = traced.receiver.wait_for(trace_of(reloaded), name, "reload", "load plugin", "embed examples")
    assert parents(spans) == {name: "", "reload": name, "load plugin": "reload", "embed examples": "reload"}


def test_the_start_is_one_trace(traced: Traced) -> None:
    """The start is one trace: plugins and adapters one by one, and vLLM's own loading in its processes."""
    asked(traced, {"question": ASKED["cardiology"], "max_tokens": 1})
    own = {"find model", "plugins", "load plugin", "load encoder", "start engine", "embed examples", "load adapter"}
    vllms = {"Overall Loading", "EngineCoreProc init", "Load weights"}
    spans = traced.receiver.wait(lambda found: {"start"} | own | vllms <= {span.name for span in found})
    (start,) = (span for span in spans if span.name == "start")
    here = [span for span in spans if span.trace == start.trace]
    names = parents({span.name: span for span in here})
    assert {names[name] for name in own - {"load plugin"}} == {"start"}
    assert names["load plugin"] == "plugins"
    assert names["Overall Loading"] == "start engine"
    assert vllms <= set(names)
    assert {span.resource["service.name"] for span in here} == {"hlo"}
    adapters = {span.attributes["hlo.adapter.name"]: span for span in here if span.name == "load adapter"}
    assert sorted(adapters) == sorted(ASKED)
    assert all(span.attributes["hlo.adapter.effect"] > 0 for span in adapters.values())
    # Nothing that belongs to the start began a trace of its own.
    assert not [span for span in spans if span.name == "llm_request" and not span.parent]


def test_no_patients_word_is_sent(traced: Traced) -> None:
    """In all the bytes that were sent, vLLM's included, there is no word of a question, a prompt or an answer."""
    with traced.server.client() as client:
        said = [
            client.post("/ask", json={"question": f"{ASKED['cardiology']} {CANARY}", "max_tokens": 16}),
            client.post("/ask", json={"question": CANARY, "turns": [{"question": CANARY, "answer": CANARY}]}),
            client.post("/generate", json={"prompt": f"{CANARY} {CANARY}", "max_tokens": 4, "stop": [CANARY]}),
            client.post("/generate", json={"prompt": CANARY, "adapter": CANARY}),
            client.post("/route", json={"question": CANARY}),
            client.post("/ask", content=f'{{"question": "{CANARY}"'),
            client.post(f"/{CANARY}?{CANARY}=1", json={}),
            client.get("/specialties", headers={"user-agent": CANARY, "x-words": CANARY}, params={"q": CANARY}),
        ]
        last = client.post("/route", json={"question": "the last one"})
    traced.receiver.wait_for(trace_of(last), "POST /route")
    traced.receiver.wait_for(trace_of(said[0]), *STAGES)
    sent = b"".join(traced.receiver.bodies)
    assert b"generate" in sent
    assert CANARY.encode() not in sent
    assert said[0].json()["answer"].strip().encode() not in sent
    assert ASKED["cardiology"].encode() not in sent
    assert b"You are" not in sent  # templates begin so


def test_an_answer_is_in_the_audit_log(traced: Traced) -> None:
    """The audit log has a record of each answer under its trace id, without its words, and checks as it was written."""
    question = f"{ASKED['cardiology']} {CANARY}"
    answer = asked(traced, {"question": question, "max_tokens": 8}).json()
    records = {record["trace_id"]: record for record in map(json.loads, traced.audit_log.read_text().splitlines())}
    said = records[answer["trace_id"]]
    assert (said["specialty"], said["adapter_sha256"]) == ("cardiology", answer["adapter"]["sha256"])
    assert (said["outcome"], said["completion_tokens"]) == (answer["finish_reason"], 8)
    assert said["question"] == Keys(AUDIT_KEY).question(question)
    assert CANARY not in traced.audit_log.read_text()
    assert check(traced.audit_log, AUDIT_KEY).faults == ()
