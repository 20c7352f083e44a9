"""How answers leave: whole, unless the client has gone, or as server-sent events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing
from typing import Any, TypeVar

from litestar import Request
from litestar.background_tasks import BackgroundTask
from litestar.exceptions import ClientException
from litestar.response import Stream

from hlo.errors import EngineError
from hlo.records import Answer, Completion, Delta, FinishReason, Opening

T = TypeVar("T")


async def whole_answer(events: AsyncGenerator[Opening | Delta | Answer, None]) -> Answer:
    """The answer at the end of a question's events. Raises any `HLOError`."""
    async with aclosing(events):
        async for event in events:
            if isinstance(event, Answer):
                return event
    raise EngineError("The engine ended without an answer.", remedy="Ask again.")


async def whole_completion(
    events: AsyncGenerator[Opening | Delta | Completion, None],
) -> tuple[str, Completion, FinishReason]:
    """The text of a raw prompt's continuation, who wrote it, and why it ended. Raises any `HLOError`."""
    text, reason, end = "", None, None
    async with aclosing(events):
        async for event in events:
            if isinstance(event, Completion):
                end = event
            elif isinstance(event, Delta):
                text, reason = text + event.text, event.finish_reason
    if end is None:
        raise EngineError("The engine ended without a completion.", remedy="Ask again.")
    return text, end, reason or "abort"


def streamed(
    events: AsyncGenerator[bytes, None], source: AsyncGenerator[Any, None], headers: dict[str, str] | None = None
) -> Stream:
    """A response of server-sent events, made from `source`; a client that leaves stops the engine's request."""

    async def close() -> None:  # Litestar would call `events.aclose` itself in a thread, and never await it
        await events.aclose()
        await source.aclose()  # where nothing of `events` was sent, it never came to close its source

    # A client that leaves while bytes are being sent leaves the generator suspended; the background task closes it,
    # and with it the request in the engine.
    return Stream(
        events,
        media_type="text/event-stream",
        headers={"cache-control": "no-store", "x-accel-buffering": "no"} | (headers or {}),
        background=BackgroundTask(close),
    )


async def unless_gone(request: Request[Any, Any, Any], work: Coroutine[Any, Any, T]) -> T:
    """Do `work`, unless the client closes the connection first; then cancel it, so that the engine stops at once."""
    task = asyncio.create_task(work)
    gone = asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientException(detail="The client closed the connection.", status_code=499)
        return task.result()
    finally:
        for one in (task, gone):
            one.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _disconnected(request: Request[Any, Any, Any]) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
