"""Runs the app under uvicorn: listens, starts in the background, and stops without leaving anything behind."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import socket
import sys
from collections.abc import Callable

import uvicorn

from hlo.assemble import Report, Runtime
from hlo.errors import HLOError, SettingsError
from hlo.service.access import is_loopback
from hlo.service.app import create_app
from hlo.service.connection import protocol
from hlo.service.state import Service, Start
from hlo.settings import Settings
from hlo.telemetry.metrics import Metrics

logger = logging.getLogger("hlo")

SWITCH_INTERVAL_S = 0.0005
"""How soon a thread gives up the interpreter to one that waits for it, in seconds; Python's default is ten times that.

After each question the encoder's thread wants it back from the busy event loop: a fifth more questions a second.
"""


def run(settings: Settings, start: Start) -> None:
    """`serve` on an event loop of its own: uvloop's, where that is installed, as it is beside vLLM.

    Raises `HLOError` when it can not start.
    """
    try:
        with asyncio.Runner(loop_factory=event_loop()) as runner:
            runner.run(serve(settings, settled(start)))
    finally:
        gc.unfreeze()  # what is left must be collected before the interpreter goes


def settled(start: Start) -> Start:
    """`start`, after which what it made is left out of garbage collections: it stays, and each would look at all of it.

    That would hold up everybody's answers for a tenth of a second now and then.
    """

    async def started(settings: Settings, metrics: Metrics, report: Report) -> Runtime:
        runtime = await start(settings, metrics, report)
        gc.collect()
        gc.freeze()
        return runtime

    return started


def event_loop() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """What makes the fastest event loop that is installed; None: asyncio's own."""
    try:
        import uvloop
    except ImportError:  # not on Windows, nor without vLLM
        return None
    made: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return made


async def serve(settings: Settings, start: Start) -> None:
    """Serve until told to stop. Raises `HLOError` when it can not start."""
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    service = Service(settings, start)
    listener = _listen(address(settings, closed=service.keys.closed), settings.port)
    config = uvicorn.Config(
        create_app(service),
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=settings.shutdown_grace_s,
        server_header=False,
        http=protocol(settings.receive_timeout_s, settings.send_timeout_s),
    )
    server = uvicorn.Server(config)

    def stop(*_: object) -> None:
        server.should_exit = True

    for number in (signal.SIGINT, signal.SIGTERM):
        # uvicorn handles these itself, and once it has shut down raises them again for whoever came before it;
        # a server that did what it was told exits with 0.
        signal.signal(number, stop)

    if hasattr(signal, "SIGHUP"):
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, service.reload_soon)

    async def stop_on_failure() -> None:
        await service.stopped.wait()
        server.should_exit = True

    watch = asyncio.create_task(stop_on_failure())
    try:
        host, port = listener.getsockname()[:2]
        service.announce(f"http://{f'[{host}]' if ':' in host else host}:{port}")
        await server.serve(sockets=[listener])
    finally:
        watch.cancel()
        listener.close()
    if service.failure is not None:
        raise service.failure
    if not server.started:
        raise HLOError("The server could not start.", remedy="The log above says why.")


def address(settings: Settings, *, closed: bool) -> str:
    """Where to listen: where the settings say, or on this machine alone where no key keeps others out."""
    if closed:
        return settings.host
    remedy = f"`hlo keys new NAME` makes a key, in {settings.keys_file}, and a restart opens the server to others"
    if is_loopback(settings.host):
        logger.info("there is no API key: whoever is on this machine may ask, and nobody else; %s", remedy)
        return settings.host
    loopback = "::1" if ":" in settings.host else "127.0.0.1"
    logger.warning("there is no API key: listening on %s alone, not on %s; %s", loopback, settings.host, remedy)
    return loopback


def _listen(host: str, port: int) -> socket.socket:
    """Bind now, so that a taken port is told before minutes of loading."""
    try:
        return socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=2048
        )
    except OSError as error:
        raise SettingsError(
            f"Can not listen on {host}:{port}: {error.strerror or error}.",
            remedy="Stop what uses it, or set HLO_PORT (0 picks a free one) or HLO_HOST.",
        ) from error
