"""Requests that no client makes by mistake: too large, too deep, half-made, or with names that lead elsewhere."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import httpx
import pytest

if TYPE_CHECKING:
    from tests.figures import Figure

pytestmark = [pytest.mark.reliability, pytest.mark.usefixtures("clean_environment")]
ROUTES = ("/ask", "/route", "/generate", "/v1/chat/completions", "/v1/completions", "/switch-adapter")
MIB = 1 << 20


@pytest.fixture
def client(url: str) -> Iterator[httpx.Client]:
    """A client of the server."""
    with httpx.Client(base_url=url, timeout=60) as made:
        yield made


def spoken(url: str, request: bytes) -> bytes:
    """What a server says to these bytes, until it closes the connection or is silent for a second."""
    host, port = urlsplit(url).netloc.split(":")
    said = b""
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        try:
            connection.sendall(request)
            connection.settimeout(1)
            while piece := connection.recv(1 << 16):
                said += piece
        except OSError:  # it hung up, or waits for more
            pass
    return said


def alive(client: httpx.Client) -> None:
    """The server answers a question still."""
    assert client.post("/ask", json={"question": "heart"}).json()["specialty"] == "cardiology"


@pytest.mark.parametrize("chunked", [False, True])
def test_ten_megabytes_are_refused(chunked: bool, client: httpx.Client, figure: Figure) -> None:
    """A body of ten megabytes is refused, and is not waited for to its end."""

    def pieces() -> Iterator[bytes]:
        for _ in range(10):
            yield b"a" * MIB

    for path in ROUTES:
        content = pieces() if chunked else b"a" * (10 * MIB)
        try:
            response = client.post(path, content=content, headers={"content-type": "application/json"})
        except httpx.TransportError:
            continue  # it hung up while the client still sent
        assert response.status_code == 413
    alive(client)
    figure("inputs", f"bodies of 10 MB, {'in pieces' if chunked else 'whole'}", len(ROUTES), "refused, server answers")


DEEP = ("[", '{"a":', '[{"a":', '{"question":', '{"messages":[', '{"question":"x","turns":[', '{"stop":[')


def test_deep_json_is_refused(client: httpx.Client, figure: Figure) -> None:
    """JSON of any depth that fits into a body is refused as a bad request."""
    tried = 0
    for path in ROUTES:
        for piece in DEEP:
            for depth in (10, 500, 5_000, 60_000):
                body = (piece * depth)[:MIB].encode()
                response = client.post(path, content=body)
                assert response.status_code == 400, (path, piece, depth, response.text)
                tried += 1
    alive(client)
    figure("inputs", "JSON nested up to 60,000 deep", tried, "refused with 400")


FLOODS = (
    b"GET /healthz HTTP/1.1\r\nhost: x\r\n" + b"".join(b"x-%d: y\r\n" % number for number in range(20_000)) + b"\r\n",
    b"GET /healthz HTTP/1.1\r\nhost: x\r\nx: " + b"y" * (2 * MIB) + b"\r\n\r\n",
    b"GET /" + b"a" * (2 * MIB) + b" HTTP/1.1\r\nhost: x\r\n\r\n",
    b"GET /healthz HTTP/1.1\r\n" + b"host: x\r\n" * 1000 + b"\r\n",
    b"POST /ask HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n{}",
    b"POST /ask HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n{}",
    b"POST /ask HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999999999999999\r\n\r\n{}",
    b"POST /ask HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\ncontent-length: 2\r\n\r\n{}",
    b"POST /ask HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n{}\r\n",
    b"POST /ask HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n",
    b"GET /healthz HTTP/9.9\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc",
    b"\x00" * 4096,
    b"GET /healthz HTTP/1.1\r\nhost: x\r\nauthorization: Bearer \xff\xfe\r\ntraceparent: \xff\r\norigin: \xff\r\n\r\n",
)


def test_floods_of_headers_and_broken_requests_hurt_nobody(url: str, client: httpx.Client, figure: Figure) -> None:
    """Whatever comes in the place of a request, the server has no failure of its own, and answers the next."""
    for request in FLOODS:
        assert not spoken(url, request).startswith(b"HTTP/1.1 5")
        alive(client)
    figure("inputs", "floods of headers and broken requests", len(FLOODS), "no failure; the next is answered")


NAMES = (
    "../cardiology",
    "..",
    ".",
    "/etc/passwd",
    "..%2f..%2fetc%2fpasswd",
    "cardiology/../oncology",
    "cardiology\0",
    "%00",
)
MORE = (
    "hf://evil.host/x",
    "http://127.0.0.1/x",
    "file:///etc/passwd",
    "CARDIOLOGY",
    "ｃardiology",
    "cardiology ",
    "\u202ecardiology",
)


def test_no_name_leads_anywhere(url: str, client: httpx.Client, figure: Figure) -> None:
    """A specialty, adapter or model is found by its own name, and by no path, address or look-alike."""
    tried = 0
    for name in NAMES + MORE:
        messages = [{"role": "user", "content": "heart"}]
        for path, body in (
            ("/ask", {"question": "heart", "specialty": name}),
            ("/generate", {"prompt": "x", "adapter": name}),
            ("/switch-adapter", {"adapter_name": name}),
            ("/v1/chat/completions", {"model": name, "messages": messages}),
            ("/v1/completions", {"model": name, "prompt": "x"}),
        ):
            response = client.post(path, json=body)
            assert response.status_code == 404, (path, name)
            assert "root:" not in response.text
            tried += 1
        if "\0" not in name:
            assert client.get(f"/v1/models/{name}").status_code in (200, 404)
    for path in (
        "/schema/../ask",
        "/v1/models/..%2f..%2fetc%2fpasswd",
        "/v1/models/%2e%2e/%2e%2e/metrics",
        "//etc/passwd",
    ):
        assert b"root:" not in spoken(url, f"GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode())
        tried += 1
    figure("inputs", "names that are paths, addresses or look-alikes", tried, "not found")


TRICKS = (
    "\0",
    "\u202e",
    "\ufeff",
    "\u2028",
    "e\u0301" * 2000,
    "a" + "\u0300" * 3900,
    "\U000e0001",
    "\ufdfa" * 400,
    "é",
)


def test_tricks_of_unicode_are_words(client: httpx.Client, figure: Figure) -> None:
    """NUL, directions, marks piled up and what is not normalised are words like others; a lone surrogate is refused."""
    tried = 0
    for trick in TRICKS:
        messages = [{"role": "user", "content": f"heart {trick}"[:4000]}]
        for path, body in (
            ("/ask", {"question": f"heart {trick}"[:4000], "max_tokens": 2}),
            ("/route", {"question": f"heart {trick}"[:4000]}),
            ("/v1/chat/completions", {"model": "base", "messages": messages, "max_tokens": 2}),
        ):
            status = client.post(path, json=body).status_code
            assert status == 200 or (len(trick) > 400 and status in (400, 413)), (path, trick[:5], status)
            tried += 1
    for surrogate in ("\\ud800", "\\udfff", "\\ud800\\u0041", "x\\udc00"):
        for path, field in (("/ask", "question"), ("/generate", "prompt"), ("/v1/completions", "prompt")):
            content = json.dumps({field: "X"} | ({"model": "base"} if "v1" in path else {})).replace("X", surrogate)
            assert client.post(path, content=content.encode()).status_code == 400
            tried += 1
    figure("inputs", "tricks of Unicode", tried, "words, or refused")
