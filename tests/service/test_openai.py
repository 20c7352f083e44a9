"""OpenAI's routes: what they give, what they take, what they refuse, and how they fail."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from litestar import Litestar
from litestar.testing import TestClient

from hlo import errors, keys
from hlo.errors import HLOError, InvalidRequest
from hlo.pipeline import Policy
from hlo.service import openai_errors
from hlo.service.openai_wire import FIXED, ChatRequest, CompletionRequest
from hlo.service.problems import problem
from hlo.testing import EchoEngine
from tests.service.test_problems import ALL, CANARY, FAILURES, Failing

if TYPE_CHECKING:
    from tests.conftest import MakeParts
    from tests.service.conftest import Serve

Client = TestClient[Litestar]
HEART = "My heart and my chest hurt"
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"


def user(*words: str) -> list[dict[str, Any]]:
    """Messages of the user's."""
    return [{"role": "user", "content": one} for one in words]


def asked(words: str = HEART, **more: Any) -> dict[str, Any]:
    """A request for a chat completion."""
    return {"model": "auto", "messages": user(words)} | more


def chunks(text: str) -> list[dict[str, Any]]:
    """The chunks of a stream that ends as it must."""
    *found, end, rest = text.split("\n\n")
    assert (end, rest) == ("data: [DONE]", "")
    return [json.loads(one.removeprefix("data: ")) for one in found]


def test_a_chat_completion(client: Client) -> None:
    """The question is routed; the reply has OpenAI's fields, the specialty as its model, and the engine's usage."""
    response = client.post(CHAT, json=asked())
    assert response.status_code == 200, response.text
    body = response.json()
    assert re.fullmatch("chatcmpl-[0-9a-f]{32}", body.pop("id"))
    assert isinstance(body.pop("created"), int)
    sha256 = response.headers["hlo-adapter-sha256"]
    assert body == {
        "object": "chat.completion",
        "model": "cardiology",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": f"cardiology:<cardiology: {HEART}>", "refusal": None},
                "finish_reason": "stop",
                "logprobs": None,
            }
        ],
        "usage": {"prompt_tokens": 40, "completion_tokens": 51, "total_tokens": 91},
        "system_fingerprint": f"echo+cardiology@{sha256[:16]}",
    }


def test_headers_tell_the_route(client: Client) -> None:
    """Headers name status, specialty, probability, adapter and trace, whole or streamed."""
    told = client.post("/ask", json={"question": HEART}).json()
    for stream in (False, True):
        headers = client.post(CHAT, json=asked(stream=stream)).headers
        assert (headers["hlo-route"], headers["hlo-specialty"]) == ("routed", "cardiology")
        assert float(headers["hlo-probability"]) == pytest.approx(told["route"]["scores"][0]["probability"], abs=0.001)
        assert headers["hlo-adapter-sha256"] == told["adapter"]["sha256"]
        assert re.fullmatch("[0-9a-f]{32}", headers["hlo-trace-id"])
        assert headers["x-request-id"] == headers["hlo-trace-id"]


@pytest.mark.parametrize(("model", "name"), [("oncology", "oncology"), ("base", "base")])
def test_a_model_pins(model: str, name: str, client: Client) -> None:
    """A specialty's name, or `base`, answers whatever the question is, and there is no probability to tell."""
    response = client.post(CHAT, json=asked(model=model))
    assert response.json()["model"] == response.headers["hlo-specialty"] == name
    assert response.json()["choices"][0]["message"]["content"].startswith(f"{name}:<")
    assert "hlo-probability" not in response.headers
    assert ("hlo-adapter-sha256" in response.headers) == (name != "base")


def test_what_nobody_covers_is_answered_by_base(client: Client) -> None:
    """An out-of-scope question's reply comes from `base`, and its probability is that of no specialty."""
    response = client.post(CHAT, json=asked("Where do I park?"))
    assert (response.json()["model"], response.headers["hlo-route"]) == ("base", "out_of_scope")
    assert float(response.headers["hlo-probability"]) > 0.8
    assert response.json()["system_fingerprint"] == "echo"


def test_a_question_back_is_a_completion(serve: Serve, make_parts: MakeParts) -> None:
    """Where HLO asks which was meant, that is the message, and it cost no tokens."""
    body = serve(make_parts(policy=Policy(ambiguous="ask"))).post(CHAT, json=asked("valve numb")).json()
    assert "Which do you mean?" in body["choices"][0]["message"]["content"]
    assert (body["usage"]["total_tokens"], body["choices"][0]["finish_reason"]) == (0, "stop")


def test_a_stream_is_the_whole_in_pieces(client: Client) -> None:
    """A stream has the role first, then the text, then the reason, then `[DONE]`; all chunks name the same reply."""
    response = client.post(CHAT, json=asked(f"{HEART}\n\nätsch", stream=True, max_tokens=60))
    assert response.headers["content-type"].startswith("text/event-stream")
    found = chunks(response.text)
    assert {(one["object"], one["model"]) for one in found} == {("chat.completion.chunk", "cardiology")}
    assert len({(one["id"], one["created"], one["system_fingerprint"]) for one in found}) == 1
    assert all("usage" not in one for one in found)
    choices = [one["choices"][0] for one in found]
    assert choices[0]["delta"] == {"role": "assistant", "content": ""}
    assert (choices[-1]["delta"], choices[-1]["finish_reason"]) == ({}, "stop")
    assert all(one["finish_reason"] is None for one in choices[:-1])
    text = "".join(one["delta"].get("content", "") for one in choices)
    assert text == f"cardiology:<cardiology: {HEART}\n\nätsch>"


@pytest.mark.parametrize(("path", "body"), [(CHAT, asked()), (TEXT, {"model": "oncology", "prompt": "ab"})])
def test_a_stream_ends_with_its_usage_where_that_is_asked_for(path: str, body: dict[str, Any], client: Client) -> None:
    """With `include_usage`, the last chunk has the usage and no choice, and all others have none yet."""
    options = {"stream": True, "stream_options": {"include_usage": True}}
    whole = client.post(path, json=body).json()
    *others, last = chunks(client.post(path, json=body | options).text)
    assert (last["choices"], last["usage"]) == ([], whole["usage"])
    assert all(one["usage"] is None for one in others)


def test_a_text_completion(client: Client) -> None:
    """A raw prompt is continued as it stands, sixteen tokens unless told otherwise, by the adapter that is named."""
    response = client.post(TEXT, json={"model": "oncology", "prompt": "a<bcdefghijklmnop"})
    body = response.json()
    assert body["id"].startswith("cmpl-")
    assert (body["object"], body["model"]) == ("text_completion", "oncology")
    assert body["choices"] == [{"index": 0, "text": "oncology:a<bcdef", "finish_reason": "length", "logprobs": None}]
    assert body["usage"] == {"prompt_tokens": 17, "completion_tokens": 16, "total_tokens": 33}
    assert response.headers["hlo-adapter-sha256"]
    assert "hlo-route" not in response.headers
    base = client.post(TEXT, json={"model": "base", "prompt": ["ab"], "max_tokens": 100}).json()
    assert (base["choices"][0]["text"], base["model"]) == ("base:ab", "base")


def test_a_text_completion_streams(client: Client) -> None:
    """A continued prompt comes in pieces too."""
    found = chunks(client.post(TEXT, json={"model": "oncology", "prompt": "ab", "stream": True}).text)
    assert "".join(one["choices"][0]["text"] for one in found) == "oncology:ab"
    assert [one["choices"][0]["finish_reason"] for one in found][-2:] == [None, "stop"]


def test_models(client: Client) -> None:
    """What can be asked is listed, and each can be looked up."""
    listed = client.get("/v1/models").json()
    assert listed["object"] == "list"
    assert [one["id"] for one in listed["data"]] == ["auto", "base", "cardiology", "neurology", "oncology"]
    assert [one["owned_by"] for one in listed["data"]][:3] == ["hlo", "echo", "hlo-cardiology"]
    for one in listed["data"]:
        assert client.get(f"/v1/models/{one['id']}").json() == one
        assert (one["object"], type(one["created"])) == ("model", int)


def said(client: Client, messages: list[dict[str, Any]]) -> str:
    """What the engine was given, and says again."""
    response = client.post(CHAT, json={"model": "auto", "messages": messages, "max_tokens": 400})
    assert response.status_code == 200, response.text
    text: str = response.json()["choices"][0]["message"]["content"]
    return text


def test_a_conversation(client: Client) -> None:
    """Earlier messages are the turns before the question: they count in the routing and stand in the prompt."""
    messages = [*user("Is it my heart?"), {"role": "assistant", "content": "No."}, *user("heart pulse", "valve numb")]
    assert said(client, messages) == "cardiology:<Is it my heart?>No.<heart pulse><cardiology: valve numb>"
    twice = [*user("heart pulse"), *({"role": "assistant", "content": one} for one in ("Yes.", None, "", "No."))]
    assert said(client, [*twice, *user("valve numb")]) == "cardiology:<heart pulse>Yes.\n\nNo.<cardiology: valve numb>"


def test_parts_of_text_are_lines(client: Client) -> None:
    """A content in parts is their text, a line each."""
    parts = [{"type": "text", "text": "heart"}, {"type": "text", "text": "pulse"}]
    assert said(client, [{"role": "user", "content": parts}]) == "cardiology:<cardiology: heart\npulse>"


@pytest.mark.parametrize("role", ["system", "developer"])
def test_the_systems_messages_are_words_before_the_question(role: str, client: Client) -> None:
    """Wherever they stand, they come inside the specialty's template, forge nothing there and route nothing."""
    first, later = ({"role": role, "content": words} for words in ("Be <brief>. tumor cancer", " Be kind. "))
    messages = [first, *user("heart pulse"), {"role": "assistant", "content": "Yes."}, later, *user(HEART)]
    told = f"cardiology:<heart pulse>Yes.<cardiology: Be <brief>. tumor cancer\n\nBe kind.\n\n{HEART}>"
    assert said(client, messages) == told
    assert said(client, [{"role": role, "content": " "}, *user(HEART)]) == f"cardiology:<cardiology: {HEART}>"


def test_what_openai_answers_can_be_sent_back(client: Client) -> None:
    """The message of a reply is taken as an earlier one, with all its empty fields."""
    reply = client.post(CHAT, json=asked(max_tokens=3)).json()["choices"][0]["message"]
    more: dict[str, Any] = {"annotations": [], "audio": None, "function_call": None, "tool_calls": None, "name": "x"}
    assert said(client, [*user(HEART), reply | more, *user(HEART)]).startswith(f"cardiology:<{HEART}>car<cardio")


def test_a_long_conversation_keeps_its_latest_turns(client: Client) -> None:
    """More turns than HLO keeps are no error: the latest are kept."""
    one = [*user("heart"), {"role": "assistant", "content": "y"}]
    response = client.post(CHAT, json={"model": "base", "messages": [*one * 100, *user("why")], "max_tokens": 500})
    text = response.json()["choices"][0]["message"]["content"]
    assert response.status_code == 200
    assert text.count("<heart>y") <= 64
    assert text.endswith("<why>")


def refused(client: Client, path: str, body: Any, param: str | None, status: int = 400) -> dict[str, Any]:
    """Check that a request is refused as OpenAI refuses, with the parameter, and return the error."""
    response = client.post(path, **({"content": body} if isinstance(body, bytes) else {"json": body}))
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert CANARY not in response.text
    (error,) = response.json().values()
    assert set(error) == {"message", "type", "param", "code", "problem"}
    assert (error["param"], error["type"]) == (param, "invalid_request_error")
    assert error["problem"].startswith("urn:hlo:problem:")
    found: dict[str, Any] = error
    return found


ANSWER = {"role": "assistant", "content": CANARY}


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([], "messages"),
        (user(CANARY, " "), "messages[1].content"),
        (user(" ", CANARY), "messages[0].content"),
        (user("a" * 4001), "messages[0].content"),
        ([{"role": "system", "content": "a" * 4001}, *user(CANARY)], "messages[0].content"),
        ([*user(CANARY), ANSWER], "messages[1]"),
        ([ANSWER, *user(CANARY)], "messages[0]"),
        ([{"role": "system", "content": CANARY}], "messages[0]"),
        ([*user(CANARY), {"role": "assistant", "content": ""}], "messages[1]"),
        ([*user(CANARY), {"role": "tool", "content": CANARY}], "messages[1].role"),
        ([{"role": CANARY, "content": CANARY}], "messages[0].role"),
        ([{"content": CANARY}], "messages[0]"),
        ([{"role": "user", "content": []}], "messages[0].content"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}], "messages[0].content[0].type"),
        ([{"role": "user", "content": [{"type": "text", "text": 7}]}], "messages[0].content[0].text"),
        ([{"role": "user", "content": CANARY, "weight": 1}], "weight"),
        ([*user(CANARY), ANSWER | {"tool_calls": [{"id": "x"}]}, *user(CANARY)], "messages[1].tool_calls"),
    ],
    ids=lambda one: str(one)[:60],
)
def test_a_message_that_can_not_be_taken_is_named(messages: list[dict[str, Any]], param: str, client: Client) -> None:
    """A message that breaks a rule, or holds what HLO does not read, is named by its place, and not repeated."""
    refused(client, CHAT, {"model": "auto", "messages": messages}, param)


def test_every_parameter_is_told() -> None:
    """docs/openai.md says of each parameter what becomes of it."""
    table = (Path(__file__).parents[2] / "docs/openai.md").read_text(encoding="utf-8").split("## Parameters")[1]
    for name in (*ChatRequest.__struct_fields__, *CompletionRequest.__struct_fields__):
        assert f"`{name}`" in table, name


OTHERS: dict[str, Any] = {"logit_bias": {"5": 1}, "tools": [{"type": "function"}], "functions": [{"name": "f"}]}


@pytest.mark.parametrize("name", FIXED)
def test_a_parameter_that_hlo_does_not_have_is_refused_by_name(name: str, client: Client) -> None:
    """What would change the answer is never ignored: it is refused, unless it asks for what HLO does anyhow."""
    taken = 0
    for path, kind, body in (
        (CHAT, ChatRequest, asked()),
        (TEXT, CompletionRequest, {"model": "base", "prompt": "a"}),
    ):
        if name not in kind.__struct_fields__:
            continue
        allowed = () if (path, name) == (TEXT, "logprobs") else FIXED[name][0]
        for value in (None, *allowed):
            assert client.post(path, json=body | {name: value}).status_code == 200
        error = refused(client, path, body | {name: OTHERS.get(name, CANARY)}, name)
        assert FIXED[name][1] in error["message"]
        taken += 1
    assert taken


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("user", "someone"),
        ("metadata", {"a": "b"}),
        ("safety_identifier", "x"),
        ("prompt_cache_key", "x"),
        ("parallel_tool_calls", True),
        ("stop", "x"),
        ("stop", ["x", "y"]),
        ("max_completion_tokens", 3),
        ("stream_options", None),
        ("temperature", None),
    ],
)
def test_a_harmless_parameter_is_taken(name: str, value: Any, client: Client) -> None:
    """What changes nothing is taken, and so is every way to write what HLO has."""
    assert client.post(CHAT, json=asked(**{name: value})).status_code == 200


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"top_k": 5}, "top_k"),
        ({"temperature": 3}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 4, "max_completion_tokens": 5}, "max_tokens"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"stop": ""}, "stop"),
        ({"seed": -1}, "seed"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"include_obfuscation": True}}, "stream_options.include_obfuscation"),
        ({"stream": True, "stream_options": {"more": True}}, "more"),
        ({"model": None}, "model"),
    ],
    ids=str,
)
def test_a_parameter_that_breaks_a_rule_is_named(more: dict[str, Any], param: str, client: Client) -> None:
    """A parameter that is unknown, out of range, or contradicts another is refused by name."""
    refused(client, CHAT, asked(**more), param)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("model", ["gpt-4o", "dermatology", "../cardiology", CANARY + " hurts", ""])
def test_an_unknown_model_is_not_found(model: str, stream: bool, client: Client) -> None:
    """A model that is not served is told as OpenAI does, with where to find those that are."""
    for path, more in ((CHAT, {"messages": user("heart")}), (TEXT, {"prompt": "a"})):
        error = refused(client, path, {"model": model, "stream": stream} | more, "model", 404)
        assert error["code"] == "model_not_found"
        assert "/v1/models" in error["message"]
    if model and "/" not in model:
        assert client.get(f"/v1/models/{model}").json()["error"]["code"] == "model_not_found"


def test_a_raw_prompt_is_not_routed(client: Client) -> None:
    """`auto` sends questions; with a raw prompt it is refused, with the way to go."""
    assert CHAT in refused(client, TEXT, {"model": "auto", "prompt": "a"}, "model")["message"]
    refused(client, TEXT, {"model": "base", "prompt": ""}, "prompt")
    refused(client, TEXT, {"model": "base", "prompt": ["a", "b"]}, "prompt")
    refused(client, TEXT, {"model": "base", "prompt": [1]}, "prompt[0]")


@pytest.mark.parametrize("stream", [False, True])
def test_what_does_not_fit_the_context_is_a_bad_request(stream: bool, serve: Serve, make_parts: MakeParts) -> None:
    """A prompt beyond the context has OpenAI's status and code, and both numbers."""
    client = serve(make_parts(engine=EchoEngine(max_model_len=10)))
    for path, body, param in (
        (CHAT, asked(HEART, stream=stream), "messages[0].content"),
        (TEXT, {"model": "base", "prompt": HEART, "stream": stream}, "prompt"),
    ):
        error = refused(client, path, body, param)
        assert error["code"] == "context_length_exceeded"
        assert re.search(r"has \d+ tokens; .* may have 10", error["message"])


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"model": "\xff"}', b"[" * 100_000], ids=lambda one: repr(one[:9])
)
def test_a_body_that_is_no_such_object_is_refused(content: bytes, client: Client) -> None:
    """A body that is no JSON object is refused in OpenAI's form too."""
    refused(client, CHAT, content, None)


def test_what_no_route_has_is_told_in_openais_form(client: Client) -> None:
    """Unknown paths and methods below `/v1/` are errors as OpenAI's clients read them; elsewhere they are problems."""
    assert client.get("/v1/embeddings").json()["error"]["code"] == "not-found"
    response = client.get(CHAT)
    assert (response.status_code, response.json()["error"]["code"]) == (405, "method-not-allowed")
    assert client.get("/v2/models").headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("policy", [Policy(answer_out_of_scope=False)])
def test_a_refusal_is_unprocessable(policy: Policy, serve: Serve, make_parts: MakeParts) -> None:
    """A question that the operator does not want answered is refused with the status that `/ask` gives."""
    error = refused(serve(make_parts(policy=policy)), CHAT, asked(CANARY), None, 422)
    assert error["code"] == "out-of-scope"


@pytest.mark.parametrize(("error", "status", "slug"), FAILURES, ids=lambda one: type(one).__name__)
@pytest.mark.parametrize(("path", "body"), [(CHAT, asked(CANARY)), (TEXT, {"model": "base", "prompt": CANARY})])
@pytest.mark.parametrize("stream", [False, True])
def test_a_failing_engine_is_a_servers_error(
    stream: bool,
    path: str,
    body: dict[str, Any],
    error: Exception,
    status: int,
    slug: str,
    serve: Serve,
    make_parts: MakeParts,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """An engine that fails before the first word has a status, also for a stream; after that, the stream tells it."""
    client = serve(make_parts(engine=Failing(error, after=0)))
    response = client.post(path, json=body | {"stream": stream})
    assert response.status_code == status
    told = response.json()["error"]
    assert (told["type"], told["code"]) == ("server_error", slug)
    assert (response.headers.get("retry-after") is not None) == (slug in ("overloaded", "engine-dead"))
    client = serve(make_parts(engine=Failing(error, after=2)))
    response = client.post(path, json=body | {"stream": stream})
    if stream:
        assert response.status_code == 200
        *_, last, rest = response.text.split("\n\n")
        assert rest == ""
        assert json.loads(last.removeprefix("data: ")) == {"error": told}
        assert "[DONE]" not in response.text
    else:
        assert (response.status_code, response.json()["error"]) == (status, told)
    assert CANARY not in caplog.text + json.dumps(told)


def test_an_answer_that_is_not_whole_is_an_error(serve: Serve, make_parts: MakeParts) -> None:
    """An engine that ends without a reason gives no completion: OpenAI's clients would take it for a whole one."""

    class Silent(EchoEngine):
        async def generate(self, *_: Any) -> Any:
            """End at once."""
            for nothing in tuple[Any, ...]():
                yield nothing

    client = serve(make_parts(engine=Silent()))
    for path, body in ((CHAT, asked()), (TEXT, {"model": "base", "prompt": "a"})):
        assert client.post(path, json=body).json()["error"]["code"] == "engine-error"
        assert '"code":"engine-error"' in client.post(path, json=body | {"stream": True}).text


def test_questions_are_counted_as_those_of_ask(client: Client) -> None:
    """There is one path: what comes through OpenAI's routes is in the same metrics."""
    client.post(CHAT, json=asked())
    client.post(CHAT, json=asked(stream=True))
    client.post(CHAT, json=asked(model="nobody"))
    client.post(TEXT, json={"model": "oncology", "prompt": "a"})
    told = client.get("/metrics").text
    assert 'hlo_questions_total{outcome="stop",route="routed",specialty="cardiology"} 2.0' in told
    assert 'hlo_questions_total{outcome="refused",route="none",specialty="none"} 1.0' in told
    assert 'hlo_http_responses_total{path="/v1/chat/completions",status="404"} 1.0' in told
    assert 'hlo_completions_total{outcome="stop",specialty="oncology"} 1.0' in told


@pytest.mark.parametrize("error", ALL, ids=lambda one: str(one.__name__))
def test_every_error_is_told(error: type[HLOError]) -> None:
    """Every error of HLO's has a type that fits its status, and its problem's name."""
    made = error("It broke.", field="$.x") if issubclass(error, InvalidRequest) else error("It broke.")
    found = problem(made)
    told = openai_errors.body(found).error
    assert (told.message, told.problem) == ("It broke.", found.type)
    assert told.param == ("x" if issubclass(error, InvalidRequest) else None)
    status = openai_errors.status(found)
    assert (told.type == "server_error") == (status >= 500)
    assert status == (400 if error is errors.PromptTooLong else found.status)


def test_keys_are_openais_keys(serve: Serve, clean_environment: Path) -> None:
    """On a server with keys, `api_key` is one; a missing key, and one that asks too often, are OpenAI's errors."""
    kept, secret = keys.make("ward 7", "ask", 1, None)
    keys.add(clean_environment / "hlo.keys", kept)
    client = serve()
    for path in ("/v1/models", "/v1/models/auto"):
        error = client.get(path).json()["error"]
        assert (error["type"], error["code"]) == ("authentication_error", "invalid_api_key")
    bearing = {"authorization": f"Bearer {secret}"}
    assert client.get("/v1/models", headers=bearing).status_code == 200
    response = client.post(CHAT, json=asked(), headers=bearing)
    error = response.json()["error"]
    assert (response.status_code, error["type"], error["code"]) == (429, "rate_limit_error", "rate_limit_exceeded")
    assert int(response.headers["retry-after"]) > 0
