"""A server of fakes, and a client for it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Protocol

import pytest
from litestar import Litestar
from litestar.testing import TestClient

from hlo.assemble import Report, Runtime
from hlo.service.app import create_app
from hlo.service.state import Service, Start
from hlo.settings import Settings
from hlo.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from tests.conftest import MakeParts, Parts


class Serve(Protocol):
    """How tests ask for a server; without `start` it becomes ready with these parts, or with fakes."""

    def __call__(
        self, parts: Parts | None = None, *, start: Start | None = None, wait: bool = True, **settings: Any
    ) -> TestClient[Litestar]:
        """Start a server, wait until it is ready or has failed, and return a client."""


@pytest.fixture
def serve(make_parts: MakeParts, clean_environment: object) -> Iterator[Serve]:
    """Start servers; they stop when the test ends."""
    with ExitStack() as stack:

        def run(
            parts: Parts | None = None, *, start: Start | None = None, wait: bool = True, **settings: Any
        ) -> TestClient[Litestar]:
            async def assemble(settings: Settings, metrics: Metrics, report: Report) -> Runtime:
                report("assembling")
                return (parts or make_parts(metrics=metrics)).runtime(settings)

            service = Service(Settings(**settings), start or assemble)
            client = TestClient(create_app(service), raise_server_exceptions=False)
            stack.enter_context(client)
            deadline = time.monotonic() + 60
            while wait and service.stage not in ("ready", "failed"):
                assert time.monotonic() < deadline, service.stage
                time.sleep(0.001)
            return client

        yield run


@pytest.fixture
def client(serve: Serve) -> TestClient[Litestar]:
    """A client of a server of fakes that is ready."""
    return serve()
