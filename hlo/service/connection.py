"""Connections whose other end is slow, or has stopped: none of them is kept for ever.

uvicorn itself waits as long as it takes for a request's head, and for a client to take what was sent to it.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

_TOO_LATE = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


def protocol(receive_timeout_s: float, send_timeout_s: float) -> type[asyncio.Protocol]:
    """uvicorn's protocol, with these two limits, in seconds."""

    class Connection(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
        """Ends when a request's head takes too long to arrive, or the client takes nothing of what is sent to it."""

        _arriving: asyncio.TimerHandle | None = None
        _leaving: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._arriving = self.loop.call_later(receive_timeout_s, self._too_late)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            in_work = self.cycle is not None and not self.cycle.response_complete
            if in_work and self._arriving is not None:
                self._arriving.cancel()
                self._arriving = None
            elif not in_work and self._arriving is None:
                self._arriving = self.loop.call_later(receive_timeout_s, self._too_late)

        def pause_writing(self) -> None:
            super().pause_writing()
            self._leaving = self.loop.call_later(send_timeout_s, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            if self._leaving is not None:
                self._leaving.cancel()
                self._leaving = None

        def connection_lost(self, exc: Exception | None) -> None:
            for timer in (self._arriving, self._leaving):
                if timer is not None:
                    timer.cancel()
            super().connection_lost(exc)

        def _too_late(self) -> None:
            if not self.transport.is_closing():
                self.transport.write(_TOO_LATE)
                self.transport.close()

    return Connection
