"""Questions over HTTP, through the real router and the real engine."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.e2e.reference import ADAPTERS, files
from tests.e2e.server import Server

SPECIALTIES = sorted(path.parent.name for path in ADAPTERS.glob("*/adapter_config.json"))

# One question for each specialty, in a patient's words.
ASKED = {
    "cardiology": "my chest feels tight when I climb the stairs and it goes away when I rest",
    "endocrinology": "my thyroid blood test came back low and I am tired and gaining weight",
    "gastroenterology": "I get cramps and bloating in my belly after every meal and run to the toilet",
    "genetics": "a condition runs in my family, should I get a gene test before having children",
    "geriatrics": "my 84 year old mother keeps falling at home, how can I make it safe for her",
    "hematology": "I bruise very easily and my blood count shows low platelets",
    "infectious_disease": "I was bitten by a tick on a hike and now I have a fever and a ring shaped rash",
    "nephrology": "my kidneys are losing protein and my urine is foamy",
    "neurology": "my hand trembles when it is resting and my steps have become short and shuffling",
    "oncology": "they found a lump in my breast and want a biopsy to see if it is a tumour",
    "pulmonology": "I wheeze and cough at night and my inhaler does not help my breathing",
}


def content_hash(name: str) -> str:
    """The adapter's hash, reckoned here from its files."""
    lines = "".join(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in files(name))
    return hashlib.sha256(lines.encode()).hexdigest()


def events(text: str) -> list[tuple[str, Any]]:
    """The server-sent events in a response."""
    found = []
    for block in text.strip().split("\n\n"):
        name, data = block.split("\n")
        found.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return found


def test_every_embedded_specialty_is_served(server: Server) -> None:
    """All specialties of this checkout are ready, and none was refused."""
    ready = server.get("/readyz").json()
    assert sorted(ready["specialties"]) == SPECIALTIES == sorted(ASKED)
    assert ready["refused"] == []
    assert ready["engine"]["engine"] == "vllm"
    listed = server.get("/specialties").json()["specialties"]
    assert {one["name"]: one["adapter"]["sha256"] for one in listed} == {
        name: content_hash(name) for name in SPECIALTIES
    }


def test_mixed_questions_at_once_each_reach_their_own_specialist(server: Server) -> None:
    """Concurrent questions of all specialties are each answered by that specialty's adapter, known by its hash."""
    with ThreadPoolExecutor(22) as pool:
        asked = list(ASKED.items()) * 2
        answers = list(pool.map(lambda one: server.post("/ask", {"question": one[1], "max_tokens": 24}).json(), asked))
    for (specialty, _), answer in zip(asked, answers, strict=True):
        assert answer["specialty"] == specialty, answer
        assert answer["route"]["status"] in ("routed", "ambiguous")
        assert [one["score"] for one in answer["route"]["scores"]] == sorted(
            (one["score"] for one in answer["route"]["scores"]), reverse=True
        )
        assert len(answer["route"]["scores"]) == len(SPECIALTIES)
        assert answer["adapter"] == {"name": specialty, "sha256": content_hash(specialty)}
        assert answer["usage"]["completion_tokens"] > 0
        assert answer["answer"].strip()
        assert len(answer["trace_id"]) == 32


def test_an_everyday_question_is_answered_by_the_base_model(server: Server) -> None:
    """Out of scope falls back to the base model without an adapter."""
    answer = server.post("/ask", {"question": "what is a good recipe for banana bread", "max_tokens": 8}).json()
    assert answer["route"]["status"] == "out_of_scope"
    assert answer["specialty"] is None
    assert answer["adapter"] is None


def test_a_pinned_specialty_skips_routing(server: Server) -> None:
    """`specialty` decides who answers, whatever the question is."""
    body = {"question": "what is a good recipe for banana bread", "specialty": "neurology", "max_tokens": 8}
    answer = server.post("/ask", body).json()
    assert answer["specialty"] == "neurology"
    assert answer["route"] == {
        "status": "routed",
        "specialty": "neurology",
        "scores": [],
        "margin": 0.0,
        "out_of_scope": 0.0,
        "candidates": [],
        "pinned_by": "request",
    }


def test_probabilities_of_a_route_sum_to_one(server: Server) -> None:
    """The specialties' probabilities and that of none of them are all there is, and the best is the one chosen."""
    for question in ASKED.values():
        route = server.post("/route", {"question": question}).json()
        assert sum(one["probability"] for one in route["scores"]) + route["out_of_scope"] == pytest.approx(1)
        assert route["specialty"] == max(route["scores"], key=lambda one: one["probability"])["specialty"]


def test_a_follow_up_stays_with_its_specialist(server: Server) -> None:
    """What says nothing by itself stays with the conversation's specialist; a new topic goes to its own."""
    turns = [{"question": ASKED["cardiology"], "answer": "It may be the heart."}]
    alone = server.post("/ask", {"question": "and what about at night?", "max_tokens": 8}).json()
    later = server.post("/ask", {"question": "and what about at night?", "turns": turns, "max_tokens": 8}).json()
    other = server.post("/ask", {"question": ASKED["nephrology"], "turns": turns, "max_tokens": 8}).json()
    assert alone["specialty"] is None
    assert later["specialty"] == later["adapter"]["name"] == "cardiology"
    assert other["specialty"] == "nephrology"
    assert later["usage"]["prompt_tokens"] > alone["usage"]["prompt_tokens"]


def test_the_thresholds_in_force_are_told(server: Server) -> None:
    """`/readyz` says where decisions change, and that this rests on the settings."""
    ready = server.get("/readyz").json()
    assert set(ready["thresholds"]) == {"min_in_scope", "min_probability"}
    assert ready["thresholds_from"]["kind"] == "settings"
    assert ready["thresholds_from"]["refused"] is None


def test_a_stream_says_the_same_as_the_whole_answer(server: Server) -> None:
    """First the route, then deltas that add up to the answer, then the totals."""
    body = {"question": ASKED["nephrology"], "max_tokens": 32}
    whole = server.post("/ask", body).json()
    response = server.post("/ask", body | {"stream": True})
    assert response.headers["content-type"].startswith("text/event-stream")
    found = events(response.text)
    assert [name for name, _ in found[:2]] == ["route", "delta"]
    assert found[-1][0] == "answer"
    assert "".join(data["text"] for name, data in found if name == "delta") == whole["answer"]
    assert found[0][1] == whole["route"]
    assert found[-1][1]["answer"] == whole["answer"]
    assert found[-1][1]["usage"] == whole["usage"]


def test_sampling_parameters_reach_the_engine(server: Server) -> None:
    """A seed repeats an answer, another seed changes it, `stop` ends it, and `max_tokens` bounds it."""
    body = {"question": ASKED["cardiology"], "temperature": 1.5, "max_tokens": 24}
    first, again, other = (server.post("/ask", body | {"seed": seed}).json()["answer"] for seed in (1, 1, 2))
    assert first == again != other
    whole = server.post("/ask", {"question": ASKED["cardiology"], "max_tokens": 24}).json()
    assert whole["usage"]["completion_tokens"] <= 24
    word = whole["answer"].split()[2]
    stopped = server.post("/ask", {"question": ASKED["cardiology"], "max_tokens": 24, "stop": [word]}).json()
    assert stopped["finish_reason"] == "stop"
    assert word not in stopped["answer"]


def test_routes_can_be_had_alone(server: Server) -> None:
    """`/route` routes one question or a list, in order, and generates nothing."""
    before = server.metric('vllm:generation_tokens_total{engine="0",model_name="hlo-demo-10m"}')
    one = server.post("/route", {"question": ASKED["oncology"]}).json()
    many = server.post("/route", {"question": list(ASKED.values())}).json()["routes"]
    assert one["specialty"] == "oncology"
    assert [route["specialty"] for route in many] == list(ASKED)
    assert server.metric('vllm:generation_tokens_total{engine="0",model_name="hlo-demo-10m"}') == before


def test_switching_the_default_adapter_changes_generate_at_once(server: Server) -> None:
    """After `/switch-adapter`, `/generate` without an adapter answers as the named one does, and back."""
    prompt = {"prompt": "The treatment of this disease", "max_tokens": 16}
    named = server.post("/generate", prompt | {"adapter": "cardiology"}).json()
    base = server.post("/generate", prompt).json()
    assert base["adapter"] is None
    switched = server.post("/switch-adapter", {"adapter_name": "cardiology"}).json()
    assert switched["adapter"]["sha256"] == content_hash("cardiology")
    assert switched["previous"] is None
    try:
        assert server.post("/generate", prompt).json() == named
    finally:
        back = server.post("/switch-adapter", {"adapter_name": "base"}).json()
    assert back == {"adapter": None, "previous": switched["adapter"]}
    assert server.post("/generate", prompt).json()["text"] == base["text"]


def test_the_caller_s_trace_goes_on(server: Server) -> None:
    """The answer carries the trace id of an incoming W3C `traceparent`."""
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    headers = {"traceparent": f"00-{trace}-00f067aa0ba902b7-01"}
    with server.client() as client:
        answer = client.post("/ask", json={"question": "hello", "max_tokens": 1}, headers=headers).json()
    assert answer["trace_id"] == trace


def test_metrics_tell_of_questions_and_of_vllm(server: Server) -> None:
    """Both HLO's and vLLM's metrics are in `/metrics`, and a question moves them."""
    line = 'hlo_questions_total{outcome="length",route="routed",specialty="hematology"}'
    before = server.metric(line)
    server.post("/ask", {"question": "x", "specialty": "hematology", "max_tokens": 2})
    assert server.metric(line) == before + 1
    assert server.metric('vllm:generation_tokens_total{engine="0",model_name="hlo-demo-10m"}') > 0
    text = server.get("/metrics").text
    for family in ("hlo_routing_seconds", "hlo_first_token_seconds", "hlo_answer_seconds", "hlo_tokens"):
        assert f"# TYPE {family}" in text
    assert "lora_requests_info" not in text


@pytest.mark.parametrize(
    ("path", "body", "status", "slug", "field"),
    [
        ("/ask", {"question": ""}, 400, "invalid-request", "$.question"),
        ("/ask", {"question": "a" * 4001}, 400, "invalid-request", "$.question"),
        ("/ask", {"question": "x", "specialty": "dermatology"}, 404, "unknown-specialty", "$.specialty"),
        ("/ask", {"question": 5}, 400, "invalid-request", "$.question"),
        ("/ask", {"question": "x", "max_tokens": 0}, 400, "invalid-request", "$.max_tokens"),
        ("/generate", {"prompt": "x", "adapter": "../cardiology"}, 404, "unknown-adapter", "$.adapter"),
        ("/generate", {"prompt": "heart " * 2000}, 413, "prompt-too-long", "$.prompt"),
        ("/switch-adapter", {"adapter_name": "nobody"}, 404, "unknown-adapter", "$.adapter_name"),
    ],
)
def test_bad_requests_get_a_problem(
    server: Server, path: str, body: dict[str, Any], status: int, slug: str, field: str
) -> None:
    """What is wrong comes back as an RFC 9457 problem that names the field and the remedy."""
    response = server.post(path, body)
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert problem["type"] == f"urn:hlo:problem:{slug}"
    assert problem["field"] == field
    assert problem["remedy"]


def test_a_stream_s_bad_request_is_an_http_status_too(server: Server) -> None:
    """A problem that is known before the first word is told as one, not inside the stream."""
    assert server.post("/ask", {"question": " ", "stream": True}).status_code == 400


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_stops_the_engine(server: Server, *, stream: bool) -> None:
    """Closing the connection in the middle aborts the request in the engine."""
    gone = 'hlo_questions_total{outcome="abort",route="routed",specialty="cardiology"}'
    before = server.metric(gone)
    body = {"question": "x", "specialty": "cardiology", "max_tokens": 900, "stream": stream, "temperature": 2.0}
    with server.client() as client:
        if stream:
            with client.stream("POST", "/ask", json=body) as response:
                assert next(response.iter_lines()) == "event: route"
        else:
            with pytest.raises(httpx.ReadTimeout):
                client.post("/ask", json=body, timeout=1.5)
    server.wait_for(gone, before + 1)
    server.wait_for('vllm:num_requests_running{engine="0",model_name="hlo-demo-10m"}', 0)
    server.wait_for("hlo_questions_running", 0)


def test_no_word_of_a_question_is_in_the_log_or_the_metrics(server: Server) -> None:
    """Questions that are answered, streamed, refused and broken leave nothing of themselves behind."""
    canary = "quetzalcoatlus"
    for body in (
        {"question": f"my {canary} hurts", "max_tokens": 4},
        {"question": f"my {canary} hurts", "max_tokens": 4, "stream": True},
        {"question": f"my {canary} hurts", "specialty": f"{canary} pain"},
        {"question": f"my {canary} hurts " * 400},
        {"question": [canary]},
    ):
        response = server.post("/ask", body)
        if response.status_code != 200:
            assert canary not in response.text
    server.post("/route", {"question": canary})
    server.post("/generate", {"prompt": canary, "max_tokens": 4})
    with server.client() as client:
        client.post("/ask", content=f'{{"question": "{canary}"'.encode())
        assert canary not in client.get("/metrics").text
    assert canary not in server.log.read_text(errors="replace")


def test_an_emergency_gets_a_notice_ahead_of_the_answer(server: Server) -> None:
    """A question that tells of an emergency gets the notice of `hlo-redflags` first, also streamed; others get none."""
    body = {"question": "crushing pain in my chest going down my left arm, im sweating and feel sick", "max_tokens": 8}
    answer = server.post("/ask", body).json()
    (notice,) = answer["notices"]
    assert notice["plugin"] == "redflags"
    assert "emergency number" in notice["text"]
    assert answer["answer"].startswith(notice["text"] + "\n\n")
    assert answer["usage"]["completion_tokens"] == 8
    first = next(data for name, data in events(server.post("/ask", body | {"stream": True}).text) if name == "delta")
    assert first["text"] == notice["text"] + "\n\n"
    calm = server.post("/ask", {"question": "what can I eat to lower my cholesterol", "max_tokens": 8}).json()
    assert calm["notices"] == []
