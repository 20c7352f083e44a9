"""A stub of `vllm serve`: a real HTTP server that speaks as much of its interface as HLO uses, and fails as it is told.

Adapters that are loaded answer with their own name. A connection serves one request, so that nothing is reused.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

BASE = "the-model"


@dataclass(frozen=True)
class Asked:
    """A request that the stub got."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]

    @property
    def model(self) -> str:
        """Who was to write."""
        return str(self.body["model"])


@dataclass
class StubServer:
    """One server, and how it misbehaves.

    `failing` is taken from for each completion: a status to answer with, or after how many tokens the connection is cut
    (a negative number). `silent` adapters change no score. `author` is who all answers are said to be by.
    """

    port: int = 0
    version: str = "0.33.0"
    key: str = ""
    lets_load: bool = True
    max_loras: int = 64
    context: int = 512
    shift: float = 0.0
    pause: float = 0.0
    text: str = ""
    author: str = ""
    adapters: dict[str, str] = field(default_factory=dict)
    silent: set[str] = field(default_factory=set)
    failing: deque[int] = field(default_factory=deque)
    asked: list[Asked] = field(default_factory=list)
    writing: int = 0
    aborted: int = 0
    _server: asyncio.Server | None = None
    _open: set[asyncio.StreamWriter] = field(default_factory=set)

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def completions(self) -> list[Asked]:
        """The streams that were asked for."""
        return [one for one in self.asked if one.path == "/v1/completions" and one.body.get("stream")]

    @property
    def given(self) -> list[str]:
        """The adapters that it was given, as often as it was."""
        return [one.body["lora_name"] for one in self.asked if one.path == "/v1/load_lora_adapter" and one.body]

    async def start(self) -> None:
        """Listen, on the same port as before; what was loaded is gone."""
        self.adapters = {} if self.lets_load else self.adapters
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def kill(self) -> None:
        """Stop as a killed process does: every connection is reset, and no new one taken."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for writer in list(self._open):
            writer.transport.abort()
        await asyncio.sleep(0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            method, path, _ = head[0].split(" ")
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:-2])}
            body = await reader.readexactly(int(headers.get("content-length", 0)))
            asked = Asked(path, headers, json.loads(body) if body else {})
            self.asked.append(asked)
            if self.key and path.startswith("/v1") and headers.get("authorization") != f"Bearer {self.key}":
                self._say(writer, 401, {"error": "Unauthorized"})
            elif method == "POST" and path == "/v1/completions":
                await self._complete(asked, reader, writer)
            else:
                self._say(writer, *self._look(asked))
            await writer.drain()
        self._open.discard(writer)
        writer.close()

    def _look(self, asked: Asked) -> tuple[int, Any]:
        """Everything but completions: the status and the body."""
        if asked.path == "/version":
            return 200, {"version": self.version}
        if asked.path == "/health":
            return 200, None
        if asked.path == "/metrics":
            line = f'vllm:lora_requests_info{{max_lora="{self.max_loras}",running_lora_adapters=""}} 1.0\n'
            return 200, line.encode()
        if asked.path == "/v1/models":
            base = {"id": BASE, "parent": None, "max_model_len": self.context}
            return 200, {"data": [base, *({"id": name, "parent": BASE} for name in self.adapters)]}
        if asked.path == "/v1/load_lora_adapter" and self.lets_load:
            if not asked.body:
                return 400, _error("Field required")
            name = asked.body["lora_name"]
            if name in self.adapters:
                return 400, _error(f"The lora adapter '{name}' has already been loaded.")
            if "broken" in name:
                return 500, _error("Call to add_lora method failed: no such file")
            self.adapters[name] = asked.body["lora_path"]
            return 200, b"Success"
        return 404, _error("Not Found")

    async def _complete(self, asked: Asked, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        failure = self.failing.popleft() if self.failing and asked.body.get("stream") else 0
        if asked.model != BASE and asked.model not in self.adapters:
            return self._say(writer, 404, _error(f"The model `{asked.model}` does not exist."))
        if failure > 0:
            return self._say(writer, failure, _error(f"about {asked.body['prompt']}", param="prompt"))
        if "prompt_logprobs" in asked.body:
            return self._say(writer, 200, self._scored(asked))
        self._say(writer, 200, None, "text/event-stream")
        text = self.text or f"{asked.model} on {self.port}"
        text = text[: asked.body["max_tokens"]]
        self.writing += 1
        gone = asyncio.create_task(reader.read())
        try:
            for at, one in enumerate(text):
                if failure and at == -failure:
                    writer.transport.abort()
                    return None
                last = at == len(text) - 1
                choice = {"text": one, "token_ids": [ord(one)], "finish_reason": "stop" if last else None}
                said = {"model": self.author or asked.model, "choices": [choice]}
                writer.write(b": still here\n\ndata: " + json.dumps(said, ensure_ascii=False).encode() + b"\n\n")
                await writer.drain()
                await asyncio.wait({gone}, timeout=self.pause) if self.pause else None
                if gone.done():
                    self.aborted += 1
                    return None
            writer.write(b"data: [DONE]\n\n")
        finally:
            self.writing -= 1
            gone.cancel()
        return None

    def _scored(self, asked: Asked) -> dict[str, Any]:
        """Log-probabilities that depend on the adapter's name."""
        changed = asked.model != BASE and asked.model not in self.silent and not asked.model.startswith("hlo-null")
        less = int(hashlib.sha256(asked.model.encode()).hexdigest()[:4], 16) / 65536 + 0.1 if changed else 0.0
        tokens = asked.body["prompt"]
        rows = [None, *({str(token): {"logprob": -1.0 - less - self.shift}} for token in tokens[1:])]
        choice = {"text": "x", "finish_reason": "length", "prompt_logprobs": rows}
        return {"model": self.author or asked.model, "choices": [choice]}

    @staticmethod
    def _say(writer: asyncio.StreamWriter, status: int, body: Any, kind: str = "application/json") -> None:
        made = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        length = b"" if kind == "text/event-stream" else b"content-length: %d\r\n" % len(made)
        head = b"HTTP/1.1 %d x\r\ncontent-type: %b\r\nconnection: close\r\n%b\r\n" % (status, kind.encode(), length)
        writer.write(head + made)


@asynccontextmanager
async def stubs(*servers: StubServer) -> AsyncIterator[tuple[StubServer, ...]]:
    """Start stubs, and stop them when the block ends."""
    for server in servers:
        await server.start()
    try:
        yield servers
    finally:
        for server in servers:
            await server.kill()


@contextmanager
def stubs_beside(*servers: StubServer) -> Iterator[None]:
    """`stubs` on an event loop in a thread of their own, for code that has one itself."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="stubs")
    thread.start()
    try:
        for server in servers:
            asyncio.run_coroutine_threadsafe(server.start(), loop).result()
        yield
    finally:
        for server in servers:
            asyncio.run_coroutine_threadsafe(server.kill(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def _error(message: str, param: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": "x", "param": param, "code": 0}}
