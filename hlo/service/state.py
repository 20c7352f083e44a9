"""What the service knows: whether it is ready, the runtime behind it, and the default adapter of `/generate`."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from litestar import Litestar

from hlo.assemble import Report, Runtime
from hlo.catalog import BASE
from hlo.errors import HLOError, NotReady
from hlo.keys import Keyring
from hlo.records import AdapterVersion
from hlo.reload import Reloaded, Reloader
from hlo.settings import Settings
from hlo.telemetry.metrics import Metrics
from hlo.telemetry.tracing import NOBODY, Span, Tracing

logger = logging.getLogger("hlo")

Start = Callable[[Settings, Metrics, Report], Awaitable[Runtime]]


class Service:
    """One server's state. It listens from the first moment, and answers questions once `start` has finished.

    Raises `SettingsError` for a file of keys that can not be read.
    """

    def __init__(self, settings: Settings, start: Start) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.keys = Keyring(settings.keys_file.expanduser())
        self.stage = "starting"
        self.started = int(time.time())
        self.failure: HLOError | None = None
        self.stopped = asyncio.Event()
        self._start = start
        self._runtime: Runtime | None = None
        self._reloader: Reloader | None = None
        self._reloads: set[asyncio.Task[None]] = set()
        self._default: str = BASE
        self._untraced = Tracing()

    @property
    def runtime(self) -> Runtime:
        """The running parts. Raises `NotReady`."""
        if self._runtime is None:
            raise NotReady(f"The server is not ready: {self.stage}.", remedy="Ask again in a few seconds.")
        return self._runtime

    @property
    def tracing(self) -> Tracing:
        """Where the requests' spans go: nowhere until the server is ready."""
        return self._untraced if self._runtime is None else self._runtime.tracing

    @property
    def default(self) -> str:
        """The name of the default adapter of `/generate`."""
        return self._default

    def switch(self, name: str, *, field: str) -> tuple[AdapterVersion | None, AdapterVersion | None]:
        """Make `name` the default adapter; returns the new and the previous one. Raises `UnknownAdapter`."""
        catalog = self.runtime.pipeline.catalog
        adapter, previous = catalog.adapter(name, field=field), catalog.adapter(self._default, field=field)
        self._default = name
        return adapter, previous

    async def reload(self, caller: Span = NOBODY) -> Reloaded:
        """Exchange the specialties for those that are installed now. Raises `NotReady` or any other `HLOError`."""
        await self.runtime.pipeline.engine.check_health()
        if self._reloader is None:
            self._reloader = Reloader(self.runtime)
        done = await self._reloader.reload(caller)
        if self._default in done.removed:
            logger.warning("the default adapter of /generate, %s, was removed: it is %s now", self._default, BASE)
            self._default = BASE
        return done

    def reload_soon(self) -> None:
        """Reload in the background, and log what went wrong."""

        async def run() -> None:
            try:
                await self.reload()
            except HLOError as error:
                logger.error("reload failed: %s", error)

        task = asyncio.create_task(run())
        self._reloads.add(task)
        task.add_done_callback(self._reloads.discard)

    def announce(self, url: str) -> None:
        """Log where the server listens."""
        logger.info("listening on %s", url)

    @asynccontextmanager
    async def lifespan(self, _: Litestar) -> AsyncIterator[None]:
        """Start in the background while the server listens; stop with it."""
        starting = asyncio.create_task(self._run())
        try:
            yield
        finally:
            starting.cancel()
            for task in self._reloads:
                task.cancel()
            await asyncio.gather(starting, *self._reloads, return_exceptions=True)
            if self._reloader is not None:
                await self._reloader.close()
            runtime, self._runtime, self.stage = self._runtime, None, "stopping"
            if runtime is not None:
                await runtime.close()

    async def _run(self) -> None:
        def report(stage: str) -> None:
            self.stage = stage
            logger.info("%s", stage)

        try:
            self._runtime = await self._start(self.settings, self.metrics, report)
            report("ready")
            if self._runtime.failed is not None:
                raise await asyncio.shield(self._runtime.failed)
        except HLOError as error:
            self.failure, self.stage = error, "failed"
            self.stopped.set()
        except Exception:
            self.failure = HLOError("The server could not start.", remedy="The log above says why.")
            logger.exception("start-up failed")
            self.stage = "failed"
            self.stopped.set()
