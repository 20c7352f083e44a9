"""The command line in this process, and a stub of a server for it to talk to."""

from __future__ import annotations

import json
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from hlo.cli import main


@dataclass(frozen=True)
class Done:
    """What a run of `hlo` left: its exit status and what it printed."""

    status: int
    out: str
    err: str


Hlo = Callable[..., Done]


@pytest.fixture
def hlo(
    clean_environment: object, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Hlo]:
    """Run `hlo` with these arguments, in an empty working directory and without colours."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: str) -> Done:
        monkeypatch.setattr(sys, "argv", ["hlo", *arguments])
        status: Any = 0
        try:
            main()
        except SystemExit as ended:
            status = ended.code or 0
        printed = capsys.readouterr()
        return Done(status, printed.out, printed.err)

    yield run
    root.handlers[:] = handlers
    root.setLevel(level)


@dataclass(frozen=True)
class Stub:
    """A server that gives one answer to every request, and remembers the requests."""

    url: str
    asked: list[tuple[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    answer: dict[str, Any] = field(default_factory=dict)

    def gives(self, body: bytes | str | object, status: int = 200, media_type: str = "application/json") -> None:
        """Answer every request from now on with this."""
        if isinstance(body, str):
            body = body.encode()
        elif not isinstance(body, bytes):
            body = json.dumps(body).encode()
        self.answer.update(body=body, status=status, media_type=media_type)


@pytest.fixture
def stub() -> Iterator[Stub]:
    """A stub of a server, listening."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            """Remember the request and give the answer."""
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            found.asked.append((self.path, body))
            found.headers.append({name.lower(): value for name, value in self.headers.items()})
            self.send_response(found.answer["status"])
            self.send_header("content-type", found.answer["media_type"])
            self.send_header("content-length", str(len(found.answer["body"])))
            self.end_headers()
            self.wfile.write(found.answer["body"])

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        found = Stub(f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield found
        server.shutdown()
        thread.join()
