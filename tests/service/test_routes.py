"""The routes, when all is well."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest
from litestar import Litestar
from litestar.testing import TestClient

import hlo
from hlo.pipeline import Policy
from hlo.plugins import Hooks
from hlo.plugins.hooks import Hook
from hlo.records import Screening
from hlo.testing import EchoEngine

if TYPE_CHECKING:
    from tests.conftest import MakeParts
    from tests.service.conftest import Serve

Client = TestClient[Litestar]
HEART = "My heart and my chest hurt"


def events(text: str) -> list[tuple[str, Any]]:
    """The server-sent events in a body: names and decoded data."""
    found = []
    for block in text.split("\n\n")[:-1]:
        name, data = block.split("\n")
        found.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return found


def test_ask(client: Client) -> None:
    """`POST /ask` gives the answer and all that produced it."""
    response = client.post("/ask", json={"question": HEART})
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert body["answer"] == f"cardiology:<cardiology: {HEART}>"
    assert (body["specialty"], body["model"], body["finish_reason"]) == ("cardiology", "echo", "stop")
    assert set(body["adapter"]) == {"name", "sha256"}
    assert body["route"]["status"] == "routed"
    assert [one["specialty"] for one in body["route"]["scores"]] == ["cardiology", "neurology", "oncology"]
    assert body["usage"] == {"prompt_tokens": 40, "completion_tokens": 51}
    assert set(body["timings"]) == {"route_ms", "first_token_ms", "total_ms"}
    assert re.fullmatch(r"[0-9a-f]{32}", body["trace_id"])


def test_ask_pinned_and_overridden(client: Client) -> None:
    """`specialty` pins, and the sampling fields of the request count."""
    body = client.post(
        "/ask",
        json={
            "question": HEART,
            "specialty": "oncology",
            "max_tokens": 3,
            "temperature": 0.5,
            "top_p": 0.5,
            "seed": 1,
            "stop": ["x"],
        },
    ).json()
    assert (body["answer"], body["finish_reason"], body["route"]["pinned_by"]) == ("onc", "length", "request")


def test_a_stream_tells_notices_apart(serve: Serve, make_parts: MakeParts) -> None:
    """What plugins put ahead of an answer comes first in a stream, named as theirs; nothing that is generated does."""
    hook = Hook("a", lambda question: Screening(notice="Call 112."), ("question",))
    client = serve(make_parts(hooks=Hooks(question=(hook,))))
    found = events(client.post("/ask", json={"question": HEART, "stream": True}).text)
    (_, first), *others = [event for event in found if event[0] == "delta"]
    assert first == {"text": "Call 112.\n\n", "notices": [{"plugin": "a", "text": "Call 112."}]}
    assert others
    assert all(set(data) == {"text"} for _, data in others)


def test_ask_in_a_conversation(client: Client) -> None:
    """`turns` are earlier questions and answers; they count in the routing and stand in the prompt."""
    earlier = [{"question": "Is it my heart?", "answer": "No."}, {"question": "heart pulse"}]
    body = client.post("/ask", json={"question": "valve numb", "turns": earlier}).json()
    assert body["answer"] == "cardiology:<Is it my heart?>No.<heart pulse><cardiology: valve numb>"
    assert client.post("/ask", json={"question": "valve numb", "turns": []}).json()["specialty"] == "neurology"
    most = [{"question": "heart"}] * 64
    assert client.post("/ask", json={"question": "valve numb", "turns": most}).status_code == 200


def test_a_stream_in_a_conversation(client: Client) -> None:
    """A streamed answer knows the earlier turns too."""
    asked = {"question": "valve numb", "turns": [{"question": "heart pulse", "answer": "It beats."}], "stream": True}
    found = events(client.post("/ask", json=asked).text)
    assert found[-1][1]["answer"] == "cardiology:<heart pulse>It beats.<cardiology: valve numb>"


def test_routes_tell_probabilities(client: Client) -> None:
    """A route has the probability of each specialty and of none, which sum to one, and what it lies between."""
    body = client.post("/route", json={"question": "valve numb"}).json()
    assert body["out_of_scope"] + sum(one["probability"] for one in body["scores"]) == pytest.approx(1)
    assert (body["status"], body["candidates"]) == ("ambiguous", ["neurology", "cardiology"])
    assert client.post("/route", json={"question": HEART}).json()["candidates"] == []


@pytest.mark.parametrize("stream", [False, True])
def test_ask_back(stream: bool, serve: Serve, make_parts: MakeParts) -> None:
    """Where the operator says so, an ambiguous question is answered over HTTP with which was meant."""
    response = serve(make_parts(policy=Policy(ambiguous="ask"))).post(
        "/ask", json={"question": "valve numb", "stream": stream}
    )
    body = events(response.text)[-1][1] if stream else response.json()
    assert body["answer"] == "Your question could be one for Neurology or Cardiology. Which do you mean?"
    assert (body["specialty"], body["finish_reason"]) == (None, "stop")
    assert body["usage"] == {"prompt_tokens": 0, "completion_tokens": 0}


def test_ask_base(client: Client) -> None:
    """An answer by the base model has no specialty and no adapter."""
    body = client.post("/ask", json={"question": "Where do I park?"}).json()
    assert (body["specialty"], body["adapter"], body["route"]["status"]) == (None, None, "out_of_scope")


def test_ask_belongs_to_the_callers_trace(serve: Serve, make_parts: MakeParts) -> None:
    """A `traceparent` header is passed on: with tracing on, the answer carries its trace id."""
    from opentelemetry.sdk.trace import TracerProvider

    from hlo.telemetry.tracing import Tracing

    client = serve(make_parts(tracing=Tracing(TracerProvider().get_tracer("hlo"))))
    trace = "0af7651916cd43dd8448eb211c80319c"
    headers = {"traceparent": f"00-{trace}-b7ad6b7169203331-01"}
    assert client.post("/ask", json={"question": HEART}, headers=headers).json()["trace_id"] == trace


def test_ask_streams(client: Client) -> None:
    """With `stream`: one route, many deltas, one answer, and the deltas are the answer's text."""
    response = client.post("/ask", json={"question": f"{HEART}\n\nätsch", "stream": True})
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["cache-control"] == "no-store"
    found = events(response.text)
    names = [name for name, _ in found]
    assert names == ["route", *["delta"] * (len(found) - 2), "answer"]
    assert found[0][1]["specialty"] == "cardiology"
    text = "".join(data["text"] for name, data in found if name == "delta")
    assert text == found[-1][1]["answer"] == f"cardiology:<cardiology: {HEART}\n\nätsch>"


def test_streamed_and_whole_answers_are_the_same(client: Client) -> None:
    """The last event of a stream is what the request without `stream` gives, times and ids apart."""
    whole = client.post("/ask", json={"question": HEART}).json()
    streamed = events(client.post("/ask", json={"question": HEART, "stream": True}).text)[-1][1]
    for body in (whole, streamed):
        del body["timings"], body["trace_id"]
    assert whole == streamed


def test_route_one(client: Client) -> None:
    """`POST /route` with one question gives its route."""
    body = client.post("/route", json={"question": HEART}).json()
    assert (body["status"], body["specialty"], len(body["scores"])) == ("routed", "cardiology", 3)


@pytest.mark.parametrize("questions", [[], [HEART], ["Where do I park?", HEART]])
def test_route_many(questions: list[str], client: Client) -> None:
    """`POST /route` with a list gives as many routes, in order, also for one question and for none."""
    body = client.post("/route", json={"question": questions}).json()
    wanted = ["cardiology" if question == HEART else None for question in questions]
    assert [route["specialty"] for route in body["routes"]] == wanted


def test_generate(client: Client) -> None:
    """`POST /generate` continues a raw prompt with the named adapter."""
    body = client.post("/generate", json={"prompt": "a<b", "adapter": "oncology"}).json()
    assert (body["text"], body["adapter"]["name"], body["model"]) == ("oncology:a<b", "oncology", "echo")
    assert (body["usage"], body["finish_reason"]) == ({"prompt_tokens": 3, "completion_tokens": 12}, "stop")


def test_generate_streams(client: Client) -> None:
    """With `stream`: many deltas, then the usage."""
    found = events(client.post("/generate", json={"prompt": "ab", "adapter": "base", "stream": True}).text)
    assert "".join(data["text"] for name, data in found if name == "delta") == "base:ab"
    assert found[-1] == ("usage", {"prompt_tokens": 2, "completion_tokens": 7})


def test_switch_adapter(client: Client) -> None:
    """`POST /switch-adapter` changes which adapter `/generate` takes by default, tells both, and can go back."""
    assert client.post("/generate", json={"prompt": "a"}).json()["adapter"] is None
    switched = client.post("/switch-adapter", json={"adapter_name": "oncology"})
    assert switched.status_code == 200
    assert (switched.json()["adapter"]["name"], switched.json()["previous"]) == ("oncology", None)
    assert client.post("/generate", json={"prompt": "a"}).json()["text"] == "oncology:a"
    assert client.post("/generate", json={"prompt": "a", "adapter": "neurology"}).json()["text"] == "neurology:a"
    back = client.post("/switch-adapter", json={"adapter_name": "base"}).json()
    assert (back["adapter"], back["previous"]["name"]) == (None, "oncology")
    assert client.post("/generate", json={"prompt": "a"}).json()["text"] == "base:a"


def test_switching_does_not_touch_ask(client: Client) -> None:
    """The default adapter of `/generate` changes nothing for questions."""
    client.post("/switch-adapter", json={"adapter_name": "oncology"})
    assert client.post("/ask", json={"question": HEART}).json()["specialty"] == "cardiology"


def test_two_servers_share_no_default(serve: Serve) -> None:
    """The default adapter of one server is not another's: no global holds it."""
    first, second = serve(), serve()
    first.post("/switch-adapter", json={"adapter_name": "oncology"})
    assert second.post("/generate", json={"prompt": "a"}).json()["adapter"] is None


def test_specialties(client: Client) -> None:
    """`GET /specialties` shows what is served with its adapter and package, and what was refused and why."""
    body = client.get("/specialties").json()
    assert [one["name"] for one in body["specialties"]] == ["cardiology", "neurology", "oncology"]
    first = body["specialties"][0]
    assert (first["title"], first["rank"], first["adapter_bytes"], first["examples"]) == ("Cardiology", 8, 1024, 2)
    assert (first["plugin"], first["distribution"], first["version"]) == (
        "plugin-cardiology",
        "hlo-cardiology",
        "1.2.3",
    )
    assert body["refused"] == [
        {
            "plugin": "plugin-broken",
            "specialty": "broken",
            "reason": "It is broken.",
            "remedy": "Mend it.",
            "kind": "PluginError",
        }
    ]


def test_health(client: Client) -> None:
    """`GET /healthz` says that the process lives."""
    response = client.get("/healthz")
    assert (response.status_code, response.json()) == (200, {"status": "ok"})


def test_ready(client: Client) -> None:
    """`GET /readyz` says what is running once questions can be answered."""
    response = client.get("/readyz")
    body = response.json()
    assert (response.status_code, body["ready"], body["stage"]) == (200, True, "ready")
    assert (body["engine"]["engine"], body["encoder"], body["encoder_fingerprint"]) == (
        "echo",
        "hashing",
        "hashing-256",
    )
    assert body["specialties"] == ["cardiology", "neurology", "oncology"]
    assert body["refused"][0]["specialty"] == "broken"


def test_metrics(client: Client) -> None:
    """`GET /metrics` counts questions by specialty, route and outcome, in Prometheus' format."""
    client.post("/ask", json={"question": HEART})
    response = client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    counted = 'hlo_questions_total{outcome="stop",route="routed",specialty="cardiology"} 1.0'
    assert counted in response.text


def test_http_metrics_name_the_route(client: Client) -> None:
    """Responses are counted by the route's own path and status; what a client makes up is counted as `unknown`."""
    client.post("/ask", json={"question": HEART})
    client.post("/ask", json={})
    client.get("/ask")
    for path in ("/made-up", "/made/up/2", "/ask/more", "/%41sk?x=1"):
        client.get(path)
    text = client.get("/metrics").text
    found = set(re.findall(r'^hlo_http_responses_total\{path="(.*)",status="(.*)"\}', text, re.MULTILINE))
    assert found == {("/ask", "200"), ("/ask", "400"), ("unknown", "405"), ("unknown", "404")}


def test_schema_describes_the_routes(client: Client) -> None:
    """`/schema/openapi.json` describes every route, under HLO's own version."""
    body = client.get("/schema/openapi.json").json()
    assert body["info"] == {"title": "HLO", "version": hlo.__version__}
    wanted = {"/ask", "/route", "/generate", "/switch-adapter", "/specialties", "/healthz", "/readyz"}
    assert wanted <= set(body["paths"])


def test_an_engine_without_end_is_an_error(serve: Serve, make_parts: MakeParts) -> None:
    """An engine that says nothing at all still gives an answer, marked as aborted and without a first token."""

    class Silent(EchoEngine):
        async def generate(self, *_: Any) -> Any:
            """End at once."""
            for nothing in tuple[Any, ...]():
                yield nothing

    body = serve(make_parts(engine=Silent())).post("/ask", json={"question": HEART}).json()
    assert (body["answer"], body["finish_reason"], body["timings"]["first_token_ms"]) == ("", "abort", None)
