"""The console at `/`: a page for people, made of plain files that need no build step and nothing from elsewhere.

A browser runs no script but these, asks nobody but this server, and shows the page in no frame: the headers say so.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any, Literal

from litestar import Request, Response, get
from litestar.di import NamedDependency
from litestar.exceptions import NotFoundException
from litestar.params import FromPath
from msgspec import Struct

import hlo
from hlo.service.access import OPEN
from hlo.service.state import Service

_POLICY = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "img-src": "'self'",
    "connect-src": "'self'",
    "base-uri": "'none'",
    "form-action": "'none'",  # a question in a form that no script caught must not end up in an address
    "frame-ancestors": "'none'",
    "require-trusted-types-for": "'script'",  # and none are trusted: what comes from a server is never read as HTML
    "trusted-types": "'none'",
}
HEADERS = {
    "content-security-policy": "; ".join(f"{name} {value}" for name, value in _POLICY.items()),
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "cache-control": "no-cache",  # kept by browsers, and asked after each time: an upgrade shows at once
}
_MEDIA = {
    ".css": "text/css",
    ".html": "text/html",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}


class _File(Struct, frozen=True):
    content: bytes
    media: str
    etag: str


class AboutView(Struct, frozen=True):
    """What the console shows of the settings. `traced` says whether answers leave traces that `trace_url` can find."""

    version: str
    quantization: str
    ambiguous: Literal["first", "base", "ask"]
    out_of_scope: Literal["base", "refuse"]
    max_question_chars: int
    traced: bool
    trace_url: str


@cache
def files() -> Mapping[str, _File]:
    """The console's files by name, with their hashes."""
    found = {}
    for path in resources.files(__name__).joinpath("static").iterdir():
        suffix = path.name[path.name.rfind(".") :]
        content = path.read_bytes()
        found[path.name] = _File(content, _MEDIA[suffix], f'"{hashlib.sha256(content).hexdigest()[:32]}"')
    return found


@get("/", include_in_schema=False, opt=OPEN)
async def page(request: Request[Any, Any, Any]) -> Response[bytes]:
    """The page."""
    return _respond(request, files()["index.html"])


@get("/console/{name:str}", include_in_schema=False, opt=OPEN)
async def part(name: FromPath[str], request: Request[Any, Any, Any]) -> Response[bytes]:
    """A file that the page is made of."""
    file = files().get(name)
    if file is None:
        raise NotFoundException(detail="The console has no such file.")
    return _respond(request, file)


@get("/console/about", include_in_schema=False)
async def about(service: NamedDependency[Service]) -> AboutView:
    """What the console has to know of the settings, be the server ready or not."""
    settings = service.settings
    return AboutView(
        version=hlo.__version__,
        quantization=settings.effective_quantization,
        ambiguous=settings.ambiguous,
        out_of_scope=settings.out_of_scope,
        max_question_chars=settings.max_question_chars,
        traced=service.tracing.enabled,
        trace_url=settings.trace_url,
    )


HANDLERS = (page, part, about)


def _respond(request: Request[Any, Any, Any], file: _File) -> Response[bytes]:
    """The file, or 304 where the browser has it (RFC 9110, 13.1.2)."""
    headers = {**HEADERS, "etag": file.etag}
    known = {one.strip().removeprefix("W/") for one in request.headers.get("if-none-match", "").split(",")}
    if known & {file.etag, "*"}:
        return Response(b"", status_code=304, headers=headers, media_type=file.media)
    return Response(file.content, headers=headers, media_type=file.media)
