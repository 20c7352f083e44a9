"""Listening: what can be told before anything is loaded."""

from __future__ import annotations

import gc
import importlib.util
import socket
from pathlib import Path
from typing import Any, cast

import pytest

from hlo import keys
from hlo.assemble import Runtime
from hlo.errors import SettingsError
from hlo.service.server import event_loop, serve, settled
from hlo.settings import Settings
from hlo.telemetry.metrics import Metrics

pytestmark = pytest.mark.usefixtures("clean_environment")


async def never(*_: Any) -> Runtime:
    """A start that must not be reached."""
    raise AssertionError("nothing may be started")


async def test_a_taken_port_is_told_first() -> None:
    """A port that is taken is refused before anything is started, with the setting to change."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SettingsError, match=f"127.0.0.1:{port}") as caught:
            await serve(Settings(port=port), never)
    assert "HLO_PORT" in caught.value.remedy


@pytest.mark.parametrize("host", ["256.1.1.1", "203.0.113.7"])
async def test_an_address_that_is_not_ours_is_told(host: str) -> None:
    """An address that is none, or not this machine's, is refused with the setting to change."""
    keys.add(Path("hlo.keys"), keys.make("ward 7", "ask")[0])  # without one only loopback would be tried
    with pytest.raises(SettingsError, match=host) as caught:
        await serve(Settings(host=host, port=0), never)
    assert "HLO_HOST" in caught.value.remedy


async def test_a_failed_start_ends_the_server() -> None:
    """A server that can not start stops by itself and raises why."""

    async def start(*_: Any) -> Runtime:
        raise SettingsError("vLLM is not installed.", remedy="Install it.")

    with pytest.raises(SettingsError, match="vLLM"):
        await serve(Settings(port=0), start)


async def test_what_a_start_made_is_left_out_of_collections() -> None:
    """After a start, the garbage collector no longer looks at what was there by then."""

    async def start(*_: Any) -> Runtime:
        return cast("Runtime", [])

    before = gc.get_freeze_count()
    try:
        assert not await settled(start)(Settings(), Metrics(), print)
        assert gc.get_freeze_count() > before
    finally:
        gc.unfreeze()


def test_the_fastest_loop_is_taken() -> None:
    """The server runs on uvloop where that is installed, and on asyncio's own loop elsewhere."""
    make = event_loop()
    if importlib.util.find_spec("uvloop") is None:
        assert make is None
    else:
        assert make is not None
        loop = make()
        loop.close()
        assert type(loop).__module__ == "uvloop"
