"""The service's state: from start to stop."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from hlo.assemble import Runtime
from hlo.errors import NotReady, SettingsError
from hlo.service.app import create_app
from hlo.service.state import Service
from hlo.settings import Settings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.conftest import Parts, Until

pytestmark = pytest.mark.usefixtures("clean_environment")


@asynccontextmanager
async def running(service: Service, until: Until) -> AsyncIterator[None]:
    """The service's lifespan, once it is ready or has failed."""
    async with service.lifespan(create_app(service)):
        await until(lambda: service.stage in ("ready", "failed"))
        yield


async def test_stopping_closes_the_runtime(parts: Parts, until: Until) -> None:
    """When the server stops, the engine is closed, and there is no runtime any more."""

    async def start(settings: Settings, *_: Any) -> Runtime:
        return parts.runtime(settings)

    service = Service(Settings(), start)
    async with running(service, until):
        assert service.runtime.pipeline is parts.pipeline
        assert not parts.engine.closed
    assert parts.engine.closed
    with pytest.raises(NotReady, match="stopping"):
        _ = service.runtime


async def test_stopping_while_starting_cancels() -> None:
    """A server that is stopped while it starts does not wait for the start to end."""
    began, ended = asyncio.Event(), asyncio.Event()

    async def start(*_: Any) -> Runtime:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        raise AssertionError

    service = Service(Settings(), start)
    async with service.lifespan(create_app(service)):
        await began.wait()
    assert ended.is_set()
    assert service.failure is None


async def test_a_known_failure_is_kept(until: Until) -> None:
    """An error of HLO's own at start is kept as it is, and asks the server to stop."""
    error = SettingsError("vLLM is not installed.", remedy="Install it.")

    async def start(*_: Any) -> Runtime:
        raise error

    service = Service(Settings(), start)
    async with running(service, until):
        assert service.failure is error
        assert service.stopped.is_set()


async def test_an_unforeseen_failure_goes_to_the_log(caplog: pytest.LogCaptureFixture, until: Until) -> None:
    """Any other error at start is logged in full, for the operator, and told as a failure that names the log."""

    async def start(*_: Any) -> Runtime:
        raise ZeroDivisionError("the flux")

    service = Service(Settings(), start)
    async with running(service, until):
        assert service.failure is not None
        assert "log" in service.failure.remedy
        assert service.stopped.is_set()
    assert "ZeroDivisionError: the flux" in caplog.text
