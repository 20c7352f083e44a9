"""Requests that are still running when a server that was told to stop ends: they are told so."""

from __future__ import annotations

import asyncio

import msgspec
from litestar.enums import ScopeType
from litestar.middleware import ASGIMiddleware
from litestar.types import ASGIApp, Message, Receive, Scope, Send

from hlo.errors import NotReady
from hlo.service.problems import MEDIA_TYPE, problem

_PROBLEM = problem(NotReady("The server is stopping.", remedy="Ask again; another server may answer."))


class Stopping(ASGIMiddleware):
    """Ends what uvicorn cancels after the grace period with a problem, or in a stream with an event `problem`.

    Without it the connection breaks off, and the log has a traceback for each.
    """

    scopes = (ScopeType.HTTP,)

    async def handle(self, scope: Scope, receive: Receive, send: Send, next_app: ASGIApp) -> None:
        """Serve one request, to its end or to the server's."""
        started: list[Message] = []

        async def watched(message: Message) -> None:
            if message["type"] == "http.response.start":
                started.append(message)
            try:
                await send(message)
            except RuntimeError as error:
                if "handler is closed" not in str(error):  # uvloop's, where the client went in this very moment
                    raise

        try:
            await next_app(scope, receive, watched)
        except asyncio.CancelledError:
            content = msgspec.json.encode(_PROBLEM)
            if not started:
                headers = [
                    (b"content-type", MEDIA_TYPE.encode()),
                    (b"retry-after", b"%d" % (_PROBLEM.retry_after or 1)),
                    (b"connection", b"close"),
                ]
                await send({"type": "http.response.start", "status": _PROBLEM.status, "headers": headers})
            elif (b"content-type", b"text/event-stream; charset=utf-8") in started[0]["headers"]:  # type: ignore[typeddict-item]
                content = b"event: problem\ndata: %b\n\n" % content
            else:  # of another length than was promised
                raise
            await send({"type": "http.response.body", "body": content, "more_body": False})
