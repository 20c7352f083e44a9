"""Clients that leave: their generation stops, whole or streamed."""

from __future__ import annotations

import asyncio
import gc
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from litestar import Litestar

from hlo.assemble import Runtime
from hlo.service.app import create_app
from hlo.service.state import Service
from hlo.settings import Settings
from hlo.testing import EchoEngine

if TYPE_CHECKING:
    from tests.conftest import MakeParts, Parts, Until

pytestmark = pytest.mark.usefixtures("clean_environment")


@asynccontextmanager
async def ready(parts: Parts, until: Until) -> AsyncIterator[Litestar]:
    """An app around these parts, in this event loop, that is ready."""

    async def start(settings: Settings, *_: Any) -> Runtime:
        return parts.runtime(settings)

    service = Service(Settings(), start)
    app = create_app(service)
    async with service.lifespan(app), asyncio.timeout(60):
        await until(lambda: service.stage == "ready")
        yield app


async def post(
    app: Litestar, path: str, body: dict[str, Any], gone: asyncio.Event, sent: list[Any], *, reads: int = 1_000_000
) -> None:
    """Make one request as a server does; the client leaves when `gone` is set, and reads `reads` pieces at most."""
    content = json.dumps(body).encode()
    waiting = [{"type": "http.request", "body": content, "more_body": False}]

    async def receive() -> Any:
        if waiting:
            return waiting.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)
        if len(sent) > reads:
            await asyncio.Event().wait()

    scope: Any = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 2),
        "state": {},
        "extensions": {},
    }
    await app(scope, receive, send)


LONG = "heart " * 50
REQUESTS: list[tuple[str, dict[str, Any]]] = [
    ("/ask", {"question": LONG}),
    ("/generate", {"prompt": LONG}),
    ("/v1/chat/completions", {"model": "auto", "messages": [{"role": "user", "content": LONG}]}),
    ("/v1/completions", {"model": "base", "prompt": LONG, "max_tokens": 300}),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("path", "asked"), REQUESTS)
async def test_a_client_that_leaves_stops_its_generation(
    path: str,
    asked: dict[str, Any],
    stream: bool,
    make_parts: MakeParts,
    until: Until,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """When the client closes the connection, the engine's request is aborted and nothing is left running."""
    parts = make_parts(engine=EchoEngine(pause=0.01))
    gone = asyncio.Event()
    async with ready(parts, until) as app:
        sent: list[Any] = []
        body = asked | {"stream": stream}
        request = asyncio.create_task(post(app, path, body, gone, sent))
        await until(lambda: sent if stream else parts.engine.running)
        gone.set()
        await request
        await until(lambda: not parts.engine.running)
    assert parts.engine.aborted == 1
    assert "hlo_questions_running 0.0" in parts.metrics.render().decode()
    assert sent[0]["status"] == (200 if stream else 499)
    assert "unforeseen" not in caplog.text


@pytest.mark.parametrize(("path", "asked"), REQUESTS)
async def test_a_client_that_stops_reading_and_leaves_stops_its_generation(
    path: str, asked: dict[str, Any], make_parts: MakeParts, until: Until
) -> None:
    """When the client leaves in the middle of a piece that it did not take, the engine's request is aborted at once."""
    parts = make_parts(engine=EchoEngine(pause=0.0001))
    gone = asyncio.Event()
    async with ready(parts, until) as app:
        sent: list[Any] = []
        request = asyncio.create_task(post(app, path, asked | {"stream": True}, gone, sent, reads=5))
        await until(lambda: len(sent) > 5)
        gc.disable()  # the garbage collector would close what is left open, some time
        try:
            gone.set()
            await request
            assert (parts.engine.running, parts.engine.aborted) == (0, 1)
        finally:
            gc.enable()


@pytest.mark.parametrize(("path", "asked"), REQUESTS[2:])
async def test_a_client_that_leaves_before_the_first_word_stops_it(
    path: str, asked: dict[str, Any], make_parts: MakeParts, until: Until
) -> None:
    """A stream that has not begun, because the engine has no word yet, ends when its client leaves."""
    parts = make_parts(engine=EchoEngine(pause=30))
    gone = asyncio.Event()
    async with ready(parts, until) as app:
        sent: list[Any] = []
        request = asyncio.create_task(post(app, path, asked | {"stream": True}, gone, sent))
        await until(lambda: parts.engine.running)
        gone.set()
        await request
    assert (parts.engine.running, parts.engine.aborted) == (0, 1)
    assert sent[0]["status"] == 499


async def test_a_client_that_stays_gets_its_answer(make_parts: MakeParts, until: Until) -> None:
    """Waiting for a client to leave does not keep an answer from one that stays."""
    parts = make_parts()
    sent: list[Any] = []
    async with ready(parts, until) as app:
        await post(app, "/ask", {"question": "heart"}, asyncio.Event(), sent)
    assert sent[0]["status"] == 200
    assert json.loads(sent[1]["body"])["specialty"] == "cardiology"
    assert parts.engine.aborted == 0
