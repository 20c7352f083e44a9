"""One real server, with real vLLM, the embedded model and the real encoder, for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.server import Server, running


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The server as it comes: no settings at all."""
    with running(tmp_path_factory.mktemp("server")) as started:
        yield started
