"""Starts an engine beside other work."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from hlo.contracts import Engine

E = TypeVar("E", bound=Engine)
T = TypeVar("T")


async def both(starting: Coroutine[Any, Any, E], other: Coroutine[Any, Any, T]) -> tuple[E, T]:
    """Do both at once; when one fails, no engine stays behind."""
    engine, result = asyncio.create_task(starting), asyncio.create_task(other)
    try:
        return await asyncio.gather(engine, result)
    except BaseException:
        engine.cancel()
        result.cancel()
        started, _ = await asyncio.gather(engine, result, return_exceptions=True)
        if not isinstance(started, BaseException):
            await started.close()
        raise
