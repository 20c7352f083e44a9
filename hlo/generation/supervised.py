"""An engine that is started again when it dies, with its adapters, while the server goes on listening.

What was in flight when it died fails at once, and what comes meanwhile is refused; nothing is asked twice. Starts are
counted until an engine has run for a while: one that dies of every question, or does not start any more, is given up.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager, suppress

from msgspec import Struct

from hlo.contracts import Engine, EngineActivity, EngineInfo
from hlo.errors import AdapterError, EngineDead, HLOError, NotReady
from hlo.generation import adapters
from hlo.records import AdapterVersion, Delta, Prompt, Sampling

logger = logging.getLogger("hlo")

_LOOK_S = 0.5  # between two looks at whether the engine lives; a request that fails of its death tells sooner
_LONGEST_WAIT_S = 60.0


class Restarts(Struct, frozen=True):
    """How a dead engine is started again: after `backoff_s` seconds, then twice that, and so on up to a minute.

    It is given up after `attempts`, which are counted anew once an engine has run for `window_s` seconds.
    """

    attempts: int = 5
    backoff_s: float = 1.0
    window_s: float = 600.0


class SupervisedEngine:
    """An `Engine` around one that `begin` makes. It is looked after from `watch` on, and until then just as it is.

    `count` hears `done` or `failed` of each start.
    """

    def __init__(
        self, engine: Engine, begin: Callable[[], Awaitable[Engine]], restarts: Restarts, count: Callable[[str], None]
    ) -> None:
        self.given_up: asyncio.Future[HLOError] = asyncio.get_running_loop().create_future()
        self._engine: Engine | None = engine
        self._info = engine.info
        self._begin = begin
        self._restarts = restarts
        self._count = count
        self._adapters: dict[str, AdapterVersion] = {}
        self._lost: dict[str, AdapterError] = {}
        self._stage = ""
        self._died = asyncio.Event()
        self._watching: asyncio.Task[None] | None = None

    @property
    def info(self) -> EngineInfo:
        """What is running, or was until it died."""
        return self._info

    @property
    def activity(self) -> EngineActivity | None:
        """What the engine counts, where it does; anew after a restart."""
        return getattr(self._engine, "activity", None)

    def watch(self, report: Callable[[str], None]) -> None:
        """Look after the engine from now on; `report` hears the stages of a restart, and `ready` at its end."""
        self._watching = asyncio.create_task(self._keep_alive(report))

    async def load(self, adapter: AdapterVersion) -> None:
        """Load an adapter, now and after each restart. One that is loaded is left as it is."""
        if adapter.engine_name in self._adapters and adapter.engine_name not in self._lost:
            return
        with self._alive() as engine:
            await engine.load(adapter)
        self._adapters[adapter.engine_name] = adapter
        self._lost.pop(adapter.engine_name, None)

    async def unload(self, adapter: AdapterVersion) -> None:
        """Forget an adapter. Of a dead engine that is true already."""
        self._adapters.pop(adapter.engine_name, None)
        self._lost.pop(adapter.engine_name, None)
        with suppress(EngineDead, NotReady), self._alive() as engine:
            try:
                await engine.unload(adapter)
            except Exception:
                await engine.check_health()  # what it raises of its own death may be anything
                raise

    async def generate(self, prompt: Prompt, sampling: Sampling) -> AsyncGenerator[Delta, None]:
        """What the engine generates. Raises `NotReady` while it is being started again."""
        with self._alive() as engine:
            if prompt.adapter is not None and (error := self._lost.get(prompt.adapter.engine_name)) is not None:
                raise AdapterError(error.message, remedy=error.remedy)
            async with aclosing(engine.generate(prompt, sampling)) as deltas:
                async for delta in deltas:
                    yield delta

    async def score(self, prompt: Prompt) -> tuple[float, ...]:
        """What the engine scores."""
        with self._alive() as engine:
            return await engine.score(prompt)

    async def check_health(self) -> None:
        """Raise `EngineDead` when it died just now, and `NotReady` while it is being started again."""
        with self._alive() as engine:
            await engine.check_health()

    async def close(self) -> None:
        """Stop looking after the engine, and stop the engine."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        if self._engine is not None:
            await self._engine.close()

    @contextmanager
    def _alive(self) -> Iterator[Engine]:
        """The engine, of whose death who watches it hears at once."""
        if self._engine is None:
            raise NotReady(f"The server is not ready: {self._stage}.", remedy="Ask again in a few seconds.")
        try:
            yield self._engine
        except EngineDead as error:
            self._died.set()
            if self._watching is None:
                raise
            raise EngineDead(error.message, remedy="Ask again in a few seconds; it is started anew.") from error

    async def _keep_alive(self, report: Callable[[str], None]) -> None:
        clock, tried = asyncio.get_running_loop().time, 0
        while self._engine is not None:
            since, dead = clock(), self._engine
            await self._death(dead)
            if clock() - since >= self._restarts.window_s:
                tried = 0
            self._stage, self._engine = "the engine died", None
            logger.error("the engine died; what it was answering has failed")
            await _closed(dead)
            while self._engine is None and tried < self._restarts.attempts:
                tried += 1
                self._stage = f"restarting the engine, attempt {tried} of {self._restarts.attempts}"
                report(self._stage)
                await asyncio.sleep(min(self._restarts.backoff_s * 2 ** (tried - 1), _LONGEST_WAIT_S))
                self._engine = await self._again()
                self._count("failed" if self._engine is None else "done")
            if self._engine is not None:
                self._died.clear()
                report("ready")
        self._stage = "the engine is dead, and was given up"
        self.given_up.set_result(
            EngineDead(
                f"The engine died, and did not come back in {tried} attempts.",
                remedy="The log above says why. Start the server anew, or let what started it do so.",
            )
        )

    async def _death(self, engine: Engine) -> None:
        """Return when the engine is dead."""
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._died.wait(), _LOOK_S)
            self._died.clear()
            try:
                await engine.check_health()
            except EngineDead:
                return
            except HLOError:  # /readyz tells of it; only death is mended here
                continue
            except Exception as error:  # a stranger's engine that can not even tell how it is
                logger.error("the engine's health could not be told: %s", type(error).__name__)
                return

    async def _again(self) -> Engine | None:
        """Another engine with the same adapters; None where it does not start, or dies of them."""
        try:
            engine = await self._begin()
        except Exception as error:  # a stranger's engine can fail with anything
            logger.error("the engine did not start: %s", error if isinstance(error, HLOError) else type(error).__name__)
            return None
        try:
            await self._load_all(engine)
            await engine.check_health()
        except BaseException as error:
            await _closed(engine)
            if not isinstance(error, Exception):
                raise
            logger.error("the engine died of its adapters: %s", type(error).__name__)
            return None
        self._info = engine.info
        return engine

    async def _load_all(self, engine: Engine) -> None:
        """Load what was loaded before, from the checked copies. What can not be is told, and asked for in vain."""
        loaded, self._lost = [], {}
        for name, adapter in tuple(self._adapters.items()):
            try:
                await asyncio.to_thread(adapters.check_copy, adapter)
                await engine.load(adapter)
                loaded.append(adapter)
            except AdapterError as error:
                self._lost[name] = error
                logger.error("after the restart, %s is not loaded: %s", name, error)
        for adapter in loaded:
            if adapter.engine_name not in self._adapters:  # was unloaded meanwhile
                await engine.unload(adapter)


async def _closed(engine: Engine) -> None:
    """Close an engine that is dead or of no use; that it fails in that, too, stops nobody."""
    try:
        await engine.close()
    except Exception as error:
        logger.warning("the dead engine could not be closed: %s", type(error).__name__)
