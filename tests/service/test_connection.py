"""Connections whose other end is slow: each is ended in its time, and with what can still be said."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest
import uvicorn

from hlo.assemble import Runtime
from hlo.service.app import create_app
from hlo.service.connection import protocol
from hlo.service.state import Service
from hlo.settings import Settings

if TYPE_CHECKING:
    from tests.conftest import Parts, Until

pytestmark = pytest.mark.usefixtures("clean_environment")

HEAD = b"POST /ask HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 100\r\n"


@asynccontextmanager
async def serving(app: Any, settings: Settings) -> AsyncIterator[int]:
    """A server of that app on a port of its own, as `serve` makes it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        limits = protocol(settings.receive_timeout_s, settings.send_timeout_s)
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, http=limits, timeout_graceful_shutdown=1))
        running = asyncio.create_task(server._serve(sockets=[listener]))
        yield listener.getsockname()[1]
        server.should_exit = True
        await running


@asynccontextmanager
async def listening(parts: Parts, until: Until) -> AsyncIterator[int]:
    """HLO around these parts, with little patience."""

    async def start(settings: Settings, *_: Any) -> Runtime:
        return parts.runtime(settings)

    settings = Settings(receive_timeout_s=0.3)
    service = Service(settings, start)
    service.metrics = parts.metrics
    async with serving(create_app(service), settings) as port, asyncio.timeout(60):
        await until(lambda: service.stage == "ready")
        yield port


async def said(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    """All that a server says until it closes the connection: status, headers and body."""
    text = await reader.read()
    head, _, body = text.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    return int(status.split()[1]), headers, body


@pytest.mark.parametrize("sent", [b"", HEAD[:30], HEAD])
async def test_a_head_that_does_not_come_is_not_waited_for(parts: Parts, until: Until, sent: bytes) -> None:
    """A connection on which no whole head arrives is closed, with a 408."""
    async with listening(parts, until) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(sent)
        status, headers, _ = await said(reader)
        writer.close()
    assert (status, headers["connection"]) == (408, "close")


async def test_a_head_that_drips_is_not_waited_for(parts: Parts, until: Until) -> None:
    """Bytes that come one by one do not put off the end."""
    async with listening(parts, until) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\nx: ")
        while not reader.at_eof():
            writer.write(b"x")
            with suppress(TimeoutError, ConnectionError):
                await asyncio.wait_for(reader.read(100), 0.02)
        writer.close()


async def test_a_body_of_which_half_comes_is_a_problem(parts: Parts, until: Until) -> None:
    """A body that does not arrive whole is answered with 408 and the setting, and the connection is closed."""
    async with listening(parts, until) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(HEAD + b'\r\n{"question": ')
        status, headers, body = await said(reader)
        writer.close()
    assert (status, headers["connection"]) == (408, "close")
    assert headers["content-type"] == "application/problem+json"
    problem = json.loads(body)
    assert problem["type"] == "urn:hlo:problem:request-too-slow"
    assert "HLO_RECEIVE_TIMEOUT_S" in problem["remedy"]


async def test_a_client_that_goes_in_the_middle_of_its_body_is_its_own_fault(
    parts: Parts, until: Until, caplog: pytest.LogCaptureFixture
) -> None:
    """A body that breaks off is counted as the client's doing, and leaves nothing in the log."""
    async with listening(parts, until) as port:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(HEAD + b'\r\n{"question": ')
        await asyncio.sleep(0.1)
        writer.close()
        await until(lambda: b'path="/ask"' in parts.metrics.render())
        assert b'hlo_http_responses_total{path="/ask",status="499"} 1.0' in parts.metrics.render()
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


async def test_a_second_request_may_come_on_the_same_connection(parts: Parts, until: Until) -> None:
    """What was in time is answered, however long the server takes, and the next head has its own time."""
    parts.engine._pause = 0.004
    async with listening(parts, until) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        body = json.dumps({"question": "heart " * 20}).encode()
        for _ in range(2):
            writer.write(HEAD.replace(b"100", str(len(body)).encode()) + b"\r\n" + body)
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200")
            length = next(int(line[16:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length"))
            await reader.readexactly(length)
        writer.close()


@pytest.mark.parametrize("stream", [False, True])
async def test_what_runs_when_the_server_ends_is_told(
    parts: Parts, until: Until, stream: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """An answer that is not done when the grace is over ends with a problem that says when to ask again."""
    parts.engine._pause = 3600.0 if not stream else 0.05
    async with listening(parts, until) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        body = json.dumps({"question": "heart " * 60, "stream": stream}).encode()
        writer.write(HEAD.replace(b"100", str(len(body)).encode()) + b"\r\n" + body)
        await until(lambda: parts.engine.running)
    status, headers, text = await said(reader)
    writer.close()
    assert b"urn:hlo:problem:not-ready" in text
    assert b"The server is stopping." in text
    if stream:
        assert status == 200
        assert text.endswith(b"\r\n0\r\n\r\n")
        assert text.count(b"event: problem") == 1
    else:
        assert status == 503
        assert int(headers["retry-after"]) > 0
    assert "Exception in ASGI application" not in caplog.text


async def test_a_client_that_takes_nothing_is_cut_off() -> None:
    """Who asks for much and does not read is cut off once nothing more fits, and what was made for it ends."""
    ended = asyncio.Event()

    async def endless(scope: Any, receive: Any, send: Any) -> None:
        async def until_gone() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass

        if scope["type"] == "http":
            gone = asyncio.create_task(until_gone())
            await send({"type": "http.response.start", "status": 200, "headers": []})
            while not gone.done():
                await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})
                await asyncio.sleep(0)
            ended.set()

    async with serving(endless, Settings(receive_timeout_s=30, send_timeout_s=0.3)) as port, asyncio.timeout(60):
        with socket.create_connection(("127.0.0.1", port), timeout=30) as greedy:
            greedy.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            await ended.wait()
            await asyncio.to_thread(_read_all, greedy)  # what was under way; then it ends


def _read_all(client: socket.socket) -> None:
    while client.recv(1 << 20):
        pass
