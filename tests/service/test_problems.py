"""Problems: which error has which status, and that no word of a patient is in any."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Any

import pytest
from litestar import Litestar
from litestar.testing import TestClient

from hlo import errors
from hlo.assemble import Runtime
from hlo.errors import EngineDead, EngineError, HLOError, InvalidRequest, Overloaded, SettingsError
from hlo.pipeline import Policy
from hlo.records import Delta, Prompt, Sampling
from hlo.service.problems import problem
from hlo.testing import EchoEngine

if TYPE_CHECKING:
    from httpx import Response

    from tests.conftest import MakeParts
    from tests.service.conftest import Serve

Client = TestClient[Litestar]
CANARY = "canarywords"
HEART = f"heart {CANARY}"


def told(response: Response, status: int, slug: str) -> dict[str, Any]:
    """Check that a response is a problem of this kind, complete and silent about the question; return it."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    assert CANARY not in response.text
    assert "Traceback" not in response.text
    found: dict[str, Any] = response.json()
    assert (found["type"], found["status"]) == (f"urn:hlo:problem:{slug}", status)
    assert found["title"]
    assert found["detail"]
    assert found["remedy"]
    assert set(found) <= {"type", "title", "status", "detail", "field", "remedy", "retry_after"}
    return found


BODIES: list[tuple[str, dict[str, Any], str]] = [
    ("/ask", {"question": None}, "$.question"),
    ("/ask", {"question": 7}, "$.question"),
    ("/ask", {"question": [HEART]}, "$.question"),
    ("/ask", {"question": ""}, "$.question"),
    ("/ask", {"question": "   "}, "$.question"),
    ("/ask", {"question": HEART, "specialty": 7}, "$.specialty"),
    ("/ask", {"question": HEART, "turns": HEART}, "$.turns"),
    ("/ask", {"question": HEART, "turns": [HEART]}, "$.turns[0]"),
    ("/ask", {"question": HEART, "turns": [{}]}, "$.turns[0]"),
    ("/ask", {"question": HEART, "turns": [{"question": HEART}] * 65}, "$.turns"),
    ("/ask", {"question": HEART, "turns": [{"question": ""}]}, "$.turns[0].question"),
    ("/ask", {"question": HEART, "turns": [{"question": HEART}, {"question": " "}]}, "$.turns[1].question"),
    ("/ask", {"question": HEART, "turns": [{"question": 7}]}, "$.turns[0].question"),
    ("/ask", {"question": HEART, "turns": [{"question": HEART, "answer": 7}]}, "$.turns[0].answer"),
    ("/ask", {"question": HEART, "turns": [{"question": HEART, "answr": HEART}]}, "$.turns[0]"),
    ("/ask", {"question": HEART, "stream": HEART}, "$.stream"),
    ("/ask", {"question": HEART, "max_tokens": 0}, "$.max_tokens"),
    ("/ask", {"question": HEART, "max_tokens": HEART}, "$.max_tokens"),
    ("/ask", {"question": HEART, "max_tokens": 10**30}, "$.max_tokens"),
    ("/ask", {"question": HEART, "temperature": -1}, "$.temperature"),
    ("/ask", {"question": HEART, "temperature": 2.1}, "$.temperature"),
    ("/ask", {"question": HEART, "top_p": 0}, "$.top_p"),
    ("/ask", {"question": HEART, "top_p": 1.5}, "$.top_p"),
    ("/ask", {"question": HEART, "seed": -1}, "$.seed"),
    ("/ask", {"question": HEART, "stop": HEART}, "$.stop"),
    ("/ask", {"question": HEART, "stop": [""]}, "$.stop[0]"),
    ("/ask", {"question": HEART, "stop": ["x"] * 17}, "$.stop"),
    ("/route", {"question": 7}, "$.question"),
    ("/route", {"question": [7]}, "$.question[0]"),
    ("/route", {"question": [HEART, ""]}, "$.question[1]"),
    ("/generate", {"prompt": ""}, "$.prompt"),
    ("/generate", {"prompt": 7}, "$.prompt"),
    ("/generate", {"prompt": HEART, "adapter": 7}, "$.adapter"),
    ("/switch-adapter", {"adapter_name": 7}, "$.adapter_name"),
]


@pytest.mark.parametrize(("path", "body", "field"), BODIES, ids=lambda one: str(one)[:60])
def test_a_field_that_breaks_a_rule_is_named(path: str, body: dict[str, Any], field: str, client: Client) -> None:
    """A field that is missing, of a wrong type or out of range is named by its path."""
    assert told(client.post(path, json=body), 400, "invalid-request")["field"] == field


@pytest.mark.parametrize(
    ("path", "field"),
    [("/ask", "question"), ("/route", "question"), ("/generate", "prompt"), ("/switch-adapter", "adapter_name")],
)
def test_a_missing_field_is_named(path: str, field: str, client: Client) -> None:
    """A request without the one field that it must have is told which."""
    found = told(client.post(path, json={}), 400, "invalid-request")
    assert f"`{field}`" in found["detail"]
    assert found["field"] == "$"


@pytest.mark.parametrize("path", ["/ask", "/route", "/generate", "/switch-adapter"])
def test_an_unknown_field_is_refused(path: str, client: Client) -> None:
    """A field that no route knows is refused by name, and not ignored: it may be a misspelling."""
    body = {"question": HEART, "prompt": HEART, "adapter_name": "base", "temprature": 1}
    wanted = {"/ask": ("question",), "/route": ("question",), "/generate": ("prompt",)}.get(path, ("adapter_name",))
    sent = {key: body[key] for key in (*wanted, "temprature")}
    assert "temprature" in told(client.post(path, json=sent), 400, "invalid-request")["detail"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b'{"question": "heart canarywords',
        b"null",
        b"[]",
        b'"heart canarywords"',
        b"heart canarywords",
        b'{"question": "\xff canarywords"}',
        b'{"question": "\\ud800 canarywords"}',
        b"[" * 100_000,
        b'{"question":' * 50_000,
        b'{"question": "heart", "question": 1}',
        b"\xef\xbb\xbf{}",
    ],
    ids=lambda content: repr(content[:24]),
)
@pytest.mark.parametrize("path", ["/ask", "/route"])
def test_a_body_that_is_no_such_object_is_refused(content: bytes, path: str, client: Client) -> None:
    """A body that is missing, broken, no UTF-8, nested too deep or no object is refused as a whole or by field."""
    found = told(
        client.post(path, content=content, headers={"content-type": "application/json"}), 400, "invalid-request"
    )
    assert found["field"].startswith("$")


def test_a_missing_body_is_told_in_words(client: Client) -> None:
    """A request without a body is told that a JSON object was wanted."""
    assert "no body" in told(client.post("/ask"), 400, "invalid-request")["detail"]


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_that_is_too_large_is_refused(chunked: bool, serve: Serve) -> None:
    """A body beyond the limit is refused with the setting, whether or not it says how long it is."""
    client = serve(max_body_bytes=1024)
    body = json.dumps({"question": HEART + " " * 2000}).encode()
    content = iter([body[:1000], body[1000:]]) if chunked else body
    found = told(client.post("/ask", content=content), 413, "body-too-large")
    assert "larger than this server takes" in found["detail"]
    assert "HLO_MAX_BODY_BYTES" in found["remedy"]


def test_an_over_long_question_is_refused(serve: Serve, make_parts: MakeParts) -> None:
    """A question beyond the limit is refused with the setting."""
    client = serve(make_parts(policy=Policy(max_question_chars=10)))
    found = told(client.post("/ask", json={"question": HEART}), 400, "invalid-request")
    assert found["field"] == "$.question"
    assert "HLO_MAX_QUESTION_CHARS" in found["remedy"]


def test_too_many_questions_are_refused(serve: Serve) -> None:
    """More questions in one request than allowed are refused with the setting; as many as allowed are routed."""
    client = serve(max_batch_questions=2)
    assert client.post("/route", json={"question": [HEART] * 2}).status_code == 200
    found = told(client.post("/route", json={"question": [HEART] * 3}), 400, "invalid-request")
    assert "HLO_MAX_BATCH_QUESTIONS" in found["remedy"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_beyond_the_context_is_refused(stream: bool, serve: Serve, make_parts: MakeParts) -> None:
    """A prompt that leaves no room for an answer has a status of its own, also before a stream begins."""
    client = serve(make_parts(engine=EchoEngine(max_model_len=10)))
    for path, field in (("/ask", "question"), ("/generate", "prompt")):
        found = told(client.post(path, json={field: HEART, "stream": stream}), 413, "prompt-too-long")
        assert found["field"] == f"$.{field}"


@pytest.mark.parametrize("stream", [False, True])
def test_an_unknown_specialty_is_not_found(stream: bool, client: Client) -> None:
    """A pin that names no specialty is told what is installed."""
    body = {"question": HEART, "specialty": "dentistry", "stream": stream}
    found = told(client.post("/ask", json=body), 404, "unknown-specialty")
    assert found["field"] == "$.specialty"
    assert "cardiology, neurology, oncology" in found["remedy"]


def test_a_question_in_the_place_of_a_specialty_is_not_repeated(client: Client) -> None:
    """What stands where a name was wanted is not repeated: it may be the question."""
    told(client.post("/ask", json={"question": HEART, "specialty": HEART}), 404, "unknown-specialty")
    told(client.post("/generate", json={"prompt": "a", "adapter": HEART}), 404, "unknown-adapter")


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/generate", {"prompt": "a", "adapter": "dentistry"}, "$.adapter"),
        ("/switch-adapter", {"adapter_name": "dentistry"}, "$.adapter_name"),
    ],
)
def test_an_unknown_adapter_is_not_found(path: str, body: dict[str, Any], field: str, client: Client) -> None:
    """A name under which no adapter is loaded is told which are, and changes nothing."""
    found = told(client.post(path, json=body), 404, "unknown-adapter")
    assert found["field"] == field
    assert "base, cardiology, neurology, oncology" in found["remedy"]
    assert client.post("/generate", json={"prompt": "a"}).json()["adapter"] is None


def test_an_unknown_path_is_not_found(client: Client) -> None:
    """A path that no route has is a problem like any other, and is not repeated."""
    told(client.get(f"/nowhere/{CANARY}"), 404, "not-found")


@pytest.mark.parametrize(("method", "path"), [("GET", "/ask"), ("DELETE", "/route"), ("POST", "/healthz")])
def test_a_method_that_is_not_allowed_is_told(method: str, path: str, client: Client) -> None:
    """A method that a route does not take is refused, with those that it takes."""
    response = client.request(method, path)
    told(response, 405, "method-not-allowed")
    assert {"GET", "POST"} & set(response.headers["allow"].replace(" ", "").split(","))


def test_out_of_scope_can_be_a_problem(serve: Serve, make_parts: MakeParts) -> None:
    """Where the operator refuses what no specialty covers, that has a status of its own."""
    client = serve(make_parts(policy=Policy(answer_out_of_scope=False)))
    told(client.post("/ask", json={"question": CANARY}), 422, "out-of-scope")


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/ask", {"question": HEART}),
        ("POST", "/ask", {"question": HEART, "stream": True}),
        ("POST", "/route", {"question": HEART}),
        ("POST", "/generate", {"prompt": HEART}),
        ("POST", "/switch-adapter", {"adapter_name": "oncology"}),
        ("GET", "/specialties", None),
    ],
)
def test_before_it_is_ready_the_server_says_so(
    method: str, path: str, body: dict[str, Any] | None, serve: Serve
) -> None:
    """While the server starts, questions get 503 with what it waits for and when to come back."""

    async def start(_: Any, __: Any, report: Any) -> Runtime:
        report("loading the moon")
        await asyncio.Event().wait()
        raise AssertionError

    client = serve(start=start, wait=False)
    while client.get("/readyz").json()["stage"] == "starting":
        pass
    response = client.request(method, path, json=body)
    found = told(response, 503, "not-ready")
    assert "loading the moon" in found["detail"]
    assert response.headers["retry-after"] == str(found["retry_after"])
    ready = client.get("/readyz")
    assert (ready.status_code, ready.json()["ready"], ready.json()["stage"]) == (503, False, "loading the moon")
    assert client.get("/healthz").status_code == 200
    assert client.get("/metrics").status_code == 200


def test_a_failed_start_is_told(serve: Serve) -> None:
    """A server that could not start is not ready, for ever, and alive."""

    async def start(*_: Any) -> Runtime:
        raise SettingsError("vLLM is not installed.", remedy="Install it.")

    client = serve(start=start)
    ready = client.get("/readyz")
    assert (ready.status_code, ready.json()["stage"]) == (503, "failed")
    told(client.post("/ask", json={"question": HEART}), 503, "not-ready")


class Failing(EchoEngine):
    """An engine that fails on each request, after a few words, with the question in the error's text."""

    def __init__(self, error: Exception, after: int) -> None:
        super().__init__()
        self._error = error
        self._after = after

    async def generate(self, prompt: Prompt, sampling: Sampling) -> AsyncGenerator[Delta, None]:
        """Say a few words, and fail."""
        for _ in range(self._after):
            yield Delta("x", (1,))
        raise self._error


FAILURES = [
    (Overloaded("The engine's queue is full.", remedy="Wait."), 503, "overloaded"),
    (EngineDead("The engine process died.", remedy="Restart."), 503, "engine-dead"),
    (EngineError("The engine failed.", remedy="Ask again."), 500, "engine-error"),
    (ValueError(f"a patient said {CANARY}"), 500, "internal-error"),
    (KeyError(CANARY), 500, "internal-error"),
    (RuntimeError(f"{CANARY} {CANARY}"), 500, "internal-error"),
]


@pytest.mark.parametrize(("error", "status", "slug"), FAILURES, ids=lambda one: type(one).__name__)
@pytest.mark.parametrize("path", ["/ask", "/generate"])
def test_a_failing_engine_is_a_problem(
    path: str,
    error: Exception,
    status: int,
    slug: str,
    serve: Serve,
    make_parts: MakeParts,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """An engine's error has its own status; one that nobody foresaw is told without its text, there and in the log."""
    client = serve(make_parts(engine=Failing(error, after=2)))
    response = client.post(path, json={"question" if path == "/ask" else "prompt": HEART})
    told(response, status, slug)
    assert (response.headers.get("retry-after") is not None) == (slug in ("overloaded", "engine-dead"))
    assert CANARY not in caplog.text
    assert type(error).__name__ in caplog.text


@pytest.mark.parametrize(("error", "status", "slug"), FAILURES, ids=lambda one: type(one).__name__)
@pytest.mark.parametrize("path", ["/ask", "/generate"])
def test_a_stream_that_fails_ends_with_a_problem(
    path: str,
    error: Exception,
    status: int,
    slug: str,
    serve: Serve,
    make_parts: MakeParts,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A stream whose engine fails ends with the problem as an event, and repeats no word of the question in it."""
    client = serve(make_parts(engine=Failing(error, after=2)))
    response = client.post(path, json={"question" if path == "/ask" else "prompt": HEART, "stream": True})
    last = response.text.rstrip("\n").rpartition("\n\n")[2]
    assert last.startswith("event: problem\ndata: ")
    found = json.loads(last.partition("data: ")[2])
    assert (found["type"], found["status"]) == (f"urn:hlo:problem:{slug}", status)
    assert CANARY not in last
    assert CANARY not in caplog.text


def test_a_dead_engine_is_not_ready(serve: Serve, make_parts: MakeParts) -> None:
    """Once the engine is dead, `/readyz` says so and questions get 503."""
    parts = make_parts()
    client = serve(parts)
    parts.engine.closed = True
    ready = client.get("/readyz")
    assert (ready.status_code, ready.json()["ready"]) == (503, False)
    assert "closed" in ready.json()["stage"]
    told(client.post("/ask", json={"question": HEART}), 503, "engine-dead")


def test_no_patients_word_is_logged(serve: Serve, make_parts: MakeParts, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever is asked, and whatever becomes of it, no log on any level holds a word of the question."""
    caplog.set_level(logging.DEBUG)
    client = serve(make_parts())
    for path in ("/ask", "/route", "/generate"):
        for field in ("question", "prompt"):
            for more in ({}, {"stream": True}, {"specialty": HEART}, {"adapter": HEART}, {"max_tokens": HEART}):
                client.post(path, json={field: HEART} | more)
        client.post(path, content=b'{"question": "canarywords')
    assert CANARY not in caplog.text


ALL = [one for one in vars(errors).values() if isinstance(one, type) and issubclass(one, HLOError)]


@pytest.mark.parametrize("error", ALL, ids=lambda one: str(one.__name__))
def test_every_error_has_a_problem(error: type[HLOError]) -> None:
    """Every error of HLO's has a problem with a status and its message; only a request's own faults are below 500."""
    made = error("It broke.", field="$.x") if issubclass(error, InvalidRequest) else error("It broke.")
    found = problem(made)
    assert (found.detail, found.remedy) == ("It broke.", None)
    refusals = (errors.OutOfScope, errors.QuestionRefused, errors.Unauthorized, errors.TooManyRequests)
    assert (found.status < 500) == issubclass(error, (InvalidRequest, *refusals))
    assert found.type.startswith("urn:hlo:problem:")
