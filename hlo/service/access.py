"""Who may do what: the one place that looks at `Authorization` (RFC 6750), and that counts what a key may.

A route says in its `opt` what it asks for: nothing (`OPEN`), the role `admin` (`ADMIN`), or, saying nothing, any key.
"""

from __future__ import annotations

import ipaddress
import math
import time
from typing import Any, Literal, cast
from urllib.parse import urlsplit

from litestar.enums import ScopeType
from litestar.middleware import ASGIMiddleware
from litestar.types import ASGIApp, Receive, Scope, Send
from msgspec import Struct

from hlo.errors import Forbidden, TooManyRequests, Unauthorized
from hlo.keys import Key, Keyring, Role
from hlo.telemetry.metrics import Metrics

OPEN = {"access": "open"}
ADMIN = {"access": "admin"}

_CALLER = "hlo_caller"
_REALM = 'Bearer realm="hlo"'


class Caller(Struct, frozen=True):
    """Who makes a request: the id of its key, or None on a server without keys, where everybody may do all."""

    key: str | None
    role: Role


class Access(ASGIMiddleware):
    """Lets requests through that may pass, and tells routes whose they are.

    No route sees a key, and none is in an error: these hold its id at most.
    """

    scopes = (ScopeType.HTTP,)

    def __init__(self, keys: Keyring, metrics: Metrics) -> None:
        self._keys = keys
        self._metrics = metrics
        self._uses: dict[str, Use] = {}

    async def handle(self, scope: Scope, receive: Receive, send: Send, next_app: ASGIApp) -> None:
        """Serve one request, or raise why not. Raises `Unauthorized`, `Forbidden` or `TooManyRequests`."""
        wanted: Literal["open", "ask", "admin"] = scope["route_handler"].opt.get("access", "ask")
        request = cast("dict[str, Any]", scope)
        self._keys.refresh()
        if not self._keys.closed:
            if wanted != "open":
                _check_origin(_header(scope, b"origin"))
            request[_CALLER] = Caller(None, "admin")
            await next_app(scope, receive, send)
            return
        key = _key(self._keys, scope)
        request[_CALLER] = Caller(key.id, key.role) if key else None
        if wanted == "open":
            await next_app(scope, receive, send)
            return
        if key is None:
            raise _unauthorized(given=_header(scope, b"authorization") is not None)
        if wanted == "admin" and key.role != "admin":
            self._metrics.keyed(key.id, "forbidden")
            raise Forbidden(
                f"The key {key.id} has the role `{key.role}`; this route wants `admin`.",
                challenge=f'{_REALM}, error="insufficient_scope", scope="admin"',
                remedy="Use a key that `hlo keys new NAME --role admin` made.",
            )
        use = self._uses.setdefault(key.id, Use())
        try:
            use.begin(key, time.monotonic())
        except TooManyRequests:
            self._metrics.keyed(key.id, "limited")
            raise
        self._metrics.keyed(key.id, "served")
        try:
            await next_app(scope, receive, send)
        finally:
            use.end()


class Use:
    """What a key does now. Its rate is a token bucket's that holds a minute's worth, counted by one time.

    The generic cell rate algorithm (ITU-T I.371): `due` is when the bucket is full again, on a clock that never jumps.
    """

    __slots__ = ("_due", "_running")

    def __init__(self) -> None:
        self._due = 0.0
        self._running = 0

    def begin(self, key: Key, now: float) -> None:
        """Count a request in. Raises `TooManyRequests`."""
        if key.concurrent is not None and self._running >= key.concurrent:
            raise TooManyRequests(
                f"The key {key.id} makes {self._running} requests at once already, as many as it may.",
                retry_after_s=1,
                remedy="Wait for an answer before you ask again.",
            )
        if key.rate is not None:
            each = 60 / key.rate
            due = max(self._due, now) + each
            wait = due - now - 60
            if wait > 1e-6:  # rounding errors do not count
                raise TooManyRequests(
                    f"The key {key.id} may make {key.rate} requests a minute.",
                    retry_after_s=math.ceil(wait),
                    remedy=f"Ask again in {math.ceil(wait)} seconds.",
                )
            self._due = due
        self._running += 1

    def end(self) -> None:
        """Count a request out."""
        self._running -= 1


def caller_of(request: Any) -> Caller | None:
    """Who makes a request; None where that is not known, which only open routes see."""
    return cast("Caller | None", request.scope.get(_CALLER))


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address; a name is one only if it is `localhost`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _key(keys: Keyring, scope: Scope) -> Key | None:
    scheme, _, given = (_header(scope, b"authorization") or "").partition(" ")
    return keys.find(given.strip()) if scheme.lower() == "bearer" else None


def _unauthorized(*, given: bool) -> Unauthorized:
    return Unauthorized(
        "The key is not in force." if given else "This server wants a key.",
        challenge=f'{_REALM}, error="invalid_token"' if given else _REALM,
        remedy="Send `Authorization: Bearer KEY` with a key that `hlo keys new NAME` made.",
    )


def _check_origin(origin: str | None) -> None:
    """Keep web pages of others away from a server without keys: they run on this machine, too, in its browser."""
    try:
        if origin is None or is_loopback(urlsplit(origin).hostname or ""):
            return
    except ValueError:  # no address at all
        pass
    raise Forbidden(
        "A web page of another origin may not use a server without keys.",
        challenge=_REALM,
        remedy="Make a key with `hlo keys new NAME`, and have the page send it.",
    )


def _header(scope: Scope, name: bytes) -> str | None:
    return next((value.decode("latin-1") for one, value in scope["headers"] if one == name), None)
