"""Requests whose bodies arrive too slowly, or only by half."""

from __future__ import annotations

import asyncio
from typing import Any

from litestar.enums import ScopeType
from litestar.exceptions import HTTPException
from litestar.middleware import ASGIMiddleware
from litestar.types import ASGIApp, Receive, Scope, Send


class Arriving(ASGIMiddleware):
    """Ends a request of which not all has come after `timeout_s` seconds: 408, and the connection is closed."""

    scopes = (ScopeType.HTTP,)

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s

    async def handle(self, scope: Scope, receive: Receive, send: Send, next_app: ASGIApp) -> None:
        """Serve one request, as long as its body keeps coming."""
        deadline, whole = asyncio.get_running_loop().time() + self._timeout_s, False

        async def in_time() -> Any:
            nonlocal whole
            if whole:  # whoever asks now waits for the client to leave
                return await receive()
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(
                    status_code=408,
                    detail=f"The request's body did not arrive in {self._timeout_s:g} seconds.",
                    headers={"connection": "close"},
                ) from None
            if message["type"] == "http.disconnect":  # Litestar would take it for its own failure
                raise HTTPException(status_code=499, detail="The client closed the connection.")
            whole = not message.get("more_body", False)
            return message

        await next_app(scope, in_time, send)
