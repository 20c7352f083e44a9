"""How many inputs are tried, and how that is told."""

from __future__ import annotations

import os
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Protocol

import pytest
import uvicorn
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import HypothesisWarning
from hypothesis.strategies import SearchStrategy

from hlo.assemble import Runtime
from hlo.errors import HLOError
from hlo.service.app import create_app
from hlo.service.state import Service
from hlo.settings import Settings
from tests.figures import Figure
from tests.service.conftest import serve as serve  # a fixture of this folder's, too

if TYPE_CHECKING:
    from tests.conftest import MakeParts

EXAMPLES = int(os.environ.get("HOSTILE_EXAMPLES", "100"))
"""Inputs for each property; `nox -s reliability` tries many more."""


class Tries(Protocol):
    """How tests try inputs: `use` gets each, and may raise `HLOError` in words that can be written, no other."""

    def __call__(self, what: str, inputs: SearchStrategy[Any], use: Callable[[Any], object], share: float = 1) -> None:
        """Try `EXAMPLES` times `share` inputs, and record how many that were."""


@pytest.fixture
def tries(figure: Figure) -> Tries:
    """Try inputs, and record how many."""

    def run(what: str, inputs: SearchStrategy[Any], use: Callable[[Any], object], share: float = 1) -> None:
        tried = refused = 0

        @settings(
            max_examples=max(int(EXAMPLES * share), 1),
            database=None,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
        )
        @given(inputs)
        def each(value: Any) -> None:
            nonlocal tried, refused
            tried += 1
            try:
                use(value)
            except HLOError as error:
                refused += 1
                str(error).encode()

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", HypothesisWarning)  # it would rather not print what is nested so deep
            each()
        assert tried
        figure("inputs", what, tried, f"{refused} refused in words, {tried - refused} taken, no other error")

    return run


@pytest.fixture
def url(make_parts: MakeParts, clean_environment: object) -> Iterator[str]:
    """The address of a server with fakes behind its routes, and uvicorn before them, as `hlo serve` has."""

    async def start(chosen: Settings, metrics: Any, _: Any) -> Runtime:
        return make_parts(metrics=metrics).runtime(chosen)

    service = Service(Settings(), start)
    server = uvicorn.Server(uvicorn.Config(create_app(service), port=0, log_config=None, access_log=False))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        deadline = time.monotonic() + 60
        while not (server.started and service.stage == "ready"):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        host, port = server.servers[0].sockets[0].getsockname()
        yield f"http://{host}:{port}"
    finally:
        server.should_exit = True
        thread.join()
