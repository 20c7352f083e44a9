"""Serves an assembled HLO over HTTP in the benchmark's own process."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn

from hlo.assemble import Report, Runtime
from hlo.service.app import create_app
from hlo.service.server import SWITCH_INTERVAL_S, settled
from hlo.service.state import Service
from hlo.settings import Settings
from hlo.telemetry.metrics import Metrics


@asynccontextmanager
async def serving(runtime: Runtime) -> AsyncIterator[str]:
    """Serve it, as `hlo serve` does, as long as the block lasts; gives the address."""

    async def start(_: Settings, __: Metrics, ___: Report) -> Runtime:
        return runtime

    sys.setswitchinterval(SWITCH_INTERVAL_S)
    app = create_app(Service(runtime.settings, settled(start)))
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    task = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
        await asyncio.sleep(0.05)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    await task
