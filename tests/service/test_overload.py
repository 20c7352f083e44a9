"""Too much at once, and too late: what clients are told, and what stops."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from litestar import Litestar
from litestar.testing import TestClient

from hlo import keys
from hlo.generation.line import Line
from hlo.telemetry.audit import Audit
from hlo.testing import EchoEngine
from tests.telemetry.test_audit import SECRET

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import MakeParts, Parts
    from tests.service.conftest import Serve

LONG = "heart " * 60
ROUTES = [("/ask", "question"), ("/generate", "prompt")]
OPENAI: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", {"model": "auto", "messages": [{"role": "user", "content": LONG}]}),
    ("/v1/completions", {"model": "oncology", "prompt": LONG, "max_tokens": 200}),
]


class Stuck(EchoEngine):
    """An engine that says nothing until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.go = threading.Event()

    async def generate(self, prompt: Any, sampling: Any) -> Any:
        """Wait, then echo."""
        import asyncio

        self.running += 1
        try:
            while not self.go.is_set():  # noqa: ASYNC110 - it is set in another thread
                await asyncio.sleep(0.001)
        finally:
            self.running -= 1
        async for delta in super().generate(prompt, sampling):
            yield delta


@contextmanager
def busy(client: TestClient[Litestar], parts: Parts, number: int) -> Iterator[list[int]]:
    """So many questions under way, in the engine or waiting; they end with the block. Gives their statuses then."""
    statuses: list[int] = []

    def ask() -> None:
        statuses.append(client.post("/ask", json={"question": "heart"}).status_code)

    threads = [threading.Thread(target=ask) for _ in range(number)]
    for one in threads:
        one.start()
    engine = parts.engine
    assert isinstance(engine, Stuck)
    until(lambda: engine.running + parts.pipeline.line.waiting == number)
    try:
        yield statuses
    finally:
        engine.go.set()
        for one in threads:
            one.join()


def until(condition: Callable[[], object]) -> None:
    """Wait for what happens in the server's thread."""
    for _ in range(30_000):
        if condition():
            return
        threading.Event().wait(0.001)
    raise AssertionError("it never came")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("path", "field"), [*ROUTES, ("/route", "question")])
def test_beyond_the_line_is_503_at_once(
    path: str, field: str, stream: bool, serve: Serve, make_parts: MakeParts
) -> None:
    """When the engine and the line are full the next is told to come back, as a status, while the others go on."""
    parts = make_parts(engine=Stuck(), line=Line(1, 2))
    client = serve(parts)
    with busy(client, parts, 3) as statuses:
        assert "hlo_questions_waiting 2.0" in client.get("/metrics").text
        refused = client.post(path, json={field: "heart"} | ({"stream": True} if stream and path != "/route" else {}))
        assert (refused.status_code, refused.json()["type"]) == (503, "urn:hlo:problem:overloaded")
        assert int(refused.headers["retry-after"]) >= 1
        assert statuses == []
    assert statuses == [200, 200, 200]
    assert client.post(path, json={field: "heart"}).status_code == 200


@pytest.mark.parametrize("how", ["body", "header", "setting"])
@pytest.mark.parametrize(("path", "field"), ROUTES)
def test_what_is_late_is_stopped(path: str, field: str, how: str, serve: Serve, make_parts: MakeParts) -> None:
    """An answer that is not there in time is 504, and its generation stops; the time comes from any of three places."""
    parts = make_parts(engine=EchoEngine(pause=0.02))
    client = serve(parts, request_timeout_s=0.1 if how == "setting" else 600)
    body = {field: LONG} | ({"timeout_s": 0.1} if how == "body" else {})
    late = client.post(path, json=body, headers={"HLO-Timeout": "0.1"} if how == "header" else {})
    assert (late.status_code, late.json()["type"]) == (504, "urn:hlo:problem:deadline-exceeded")
    assert "0.1 seconds" in late.json()["detail"]
    assert (parts.engine.running, parts.engine.aborted) == (0, 1)
    text = parts.metrics.render().decode()
    assert 'outcome="error"' in text
    assert "hlo_questions_running 0.0" in text


@pytest.mark.parametrize(("path", "field"), ROUTES)
def test_a_late_stream_ends_with_a_problem(path: str, field: str, serve: Serve, make_parts: MakeParts) -> None:
    """A stream whose time is up ends with the problem as its last event, after what had come by then."""
    parts = make_parts(engine=EchoEngine(pause=0.02))
    response = serve(parts).post(path, json={field: LONG, "stream": True, "timeout_s": 0.3})
    events = response.text.strip().split("\n\n")
    assert (response.status_code, len(events) > 3) == (200, True)
    assert events[-1].startswith("event: problem\ndata: ")
    assert json.loads(events[-1].partition("data: ")[2])["status"] == 504
    assert (parts.engine.running, parts.engine.aborted) == (0, 1)


@pytest.mark.parametrize(("path", "body"), OPENAI)
def test_openais_routes_are_no_way_round(
    path: str, body: dict[str, Any], serve: Serve, make_parts: MakeParts, clean_environment: Path
) -> None:
    """OpenAI's routes want a key, keep deadlines, stand in the same line, and name the key in the audit log."""
    kept, secret = keys.make("ward 7", "ask")
    keys.add(clean_environment / "hlo.keys", kept)
    log = Audit.open(clean_environment / "audit.jsonl", SECRET, 1 << 20)
    parts = make_parts(engine=EchoEngine(pause=0.02), line=Line(1, 1), audit=log)
    client = serve(parts)
    assert client.post(path, json=body).status_code == 401
    headers = {"authorization": f"Bearer {secret}"}
    assert client.post(path, json=body, headers=headers | {"hlo-timeout": "0.1"}).status_code == 504
    with parts.pipeline.line.enter(None), parts.pipeline.line.enter(None):
        refused = client.post(path, json=body, headers=headers)
        assert (refused.status_code, "retry-after" in refused.headers) == (503, True)
    log.close()
    callers = [json.loads(line)["caller"] for line in (clean_environment / "audit.jsonl").read_text().splitlines()]
    assert callers == [kept.id, kept.id]


def test_time_that_is_spent_in_the_line_counts(serve: Serve, make_parts: MakeParts) -> None:
    """A question whose time is up while it waits for the engine is 504, and gives up its place."""
    parts = make_parts(engine=Stuck(), line=Line(1, 2))
    client = serve(parts)
    with busy(client, parts, 1):
        late = client.post("/ask", json={"question": "heart", "timeout_s": 0.05})
        assert late.status_code == 504
        assert parts.pipeline.line.waiting == 0


@pytest.mark.parametrize("path", ["/ask", "/route"])
def test_time_that_routing_takes_counts(path: str, serve: Serve, make_parts: MakeParts) -> None:
    """A question whose time is up while it is routed is 504."""
    parts = make_parts()
    go = threading.Event()
    encode = parts.encoder.encoder.encode
    parts.encoder.encoder.encode = lambda questions: (go.wait(30), encode(questions))[1]  # type: ignore[method-assign]
    client = serve(parts)
    try:
        late = client.post(path, json={"question": "heart"}, headers={"hlo-timeout": "0.05"})
    finally:
        go.set()
    assert (late.status_code, late.json()["type"]) == (504, "urn:hlo:problem:deadline-exceeded")


@pytest.mark.parametrize("given", ["", "x", "nan", "inf", "-1", "0", "1e999", "1 2", "61"])
def test_a_time_that_is_none_is_refused(given: str, serve: Serve) -> None:
    """A header that is no number of seconds, or more than the operator allows, is the client's mistake."""
    client = serve(max_request_timeout_s=60)
    response = client.post("/ask", json={"question": "heart"}, headers={"hlo-timeout": given})
    assert (response.status_code, response.json()["field"]) == (400, "hlo-timeout")


@pytest.mark.parametrize("given", [0, -1, 61, "x", [5]])
def test_a_bodys_time_that_is_none_is_refused(given: object, serve: Serve) -> None:
    """The same in the body, which comes before the header."""
    client = serve(max_request_timeout_s=60)
    response = client.post("/ask", json={"question": "heart", "timeout_s": given}, headers={"hlo-timeout": "5"})
    assert (response.status_code, response.json()["field"]) == (400, "$.timeout_s")
    assert client.post("/ask", json={"question": "heart", "timeout_s": 5}).status_code == 200


def test_an_answer_is_its_keys(
    serve: Serve,
    make_parts: MakeParts,
    clean_environment: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The audit log and the log name the key by its id, and never hold it."""
    caplog.set_level("INFO")
    kept, secret = keys.make("ward 7", "ask")
    keys.add(clean_environment / "hlo.keys", kept)
    log = Audit.open(clean_environment / "audit.jsonl", SECRET, 1 << 20)
    client = serve(make_parts(audit=log))
    for path, field in ROUTES:
        client.post(path, json={field: "heart"}, headers={"authorization": f"Bearer {secret}"})
    log.close()
    text = (clean_environment / "audit.jsonl").read_text()
    assert [json.loads(line)["caller"] for line in text.splitlines()] == [kept.id, kept.id]
    told = [getattr(record, "hlo_fields", {}).get("key") for record in caplog.records]
    assert told.count(kept.id) == 2
    assert secret.split("_", 2)[2] not in text + caplog.text + str(told)
