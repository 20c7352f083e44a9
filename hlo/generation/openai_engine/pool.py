"""The servers together: which are up, which of them gets a request, and what adapters all of them are to have."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Sequence
from contextlib import suppress
from typing import Protocol

from hlo.errors import AdapterError, EngineError, NotReady
from hlo.generation import affinity
from hlo.generation.openai_engine.server import VllmServer
from hlo.generation.openai_engine.wire import ServerFailed
from hlo.records import AdapterVersion

logger = logging.getLogger("hlo")

_EVERY_S = 5.0  # between two looks at a server that is well
_FIRST_S, _LONGEST_S = 0.25, 15.0  # between two at one that is not: at first, and at most
_ALIKE = 0.5  # nats a token, on average, that two servers of the same model may differ by: other GPUs, other kernels


class Choose(Protocol):
    """How a server is chosen: see `affinity.choose`."""

    def __call__(self, key: str | None, running: dict[str, int]) -> str:
        """The server for one more request."""


class Pool:
    """Looks after its servers in the background, from `start` to `close`."""

    def __init__(self, servers: Sequence[VllmServer], choose: Choose = affinity.choose) -> None:
        self.servers = {server.url: server for server in servers}
        self._choose = choose
        self._wanted: dict[str, AdapterVersion] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._changed = asyncio.Condition()
        self._looks: dict[str, ServerFailed | None] = {}  # what came of the latest look at each

    @property
    def up(self) -> list[VllmServer]:
        """The servers that requests may go to."""
        return [server for server in self.servers.values() if server.up]

    async def start(self, wait_s: float) -> None:
        """Return when each server has been looked at and one is up. Raises `EngineError`."""
        self._tasks = [asyncio.create_task(self._watch(server)) for server in self.servers.values()]
        with suppress(TimeoutError):
            async with asyncio.timeout(wait_s), self._changed:
                await self._changed.wait_for(self._settled)
        if not self.up:
            reasons = "; ".join(f"{server.url}: {server.reason}" for server in self.servers.values())
            raise EngineError(
                f"No server of HLO_ENGINE_URLS can be used. {reasons}.",
                remedy="Start `vllm serve` there with the same model and --enable-lora; `hlo doctor` looks at each.",
            )

    async def close(self) -> None:
        """Look at them no more."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(server.close() for server in self.servers.values()))

    def pick(
        self,
        key: str | None,
        adapter: AdapterVersion | None,
        without: Collection[str] = (),
        choose: Choose | None = None,
    ) -> VllmServer | None:
        """The server for one more request, of those not yet tried; None: there is none.

        Raises `NotReady` where none is up, and `AdapterError` where all that are up refuse the adapter.
        """
        up = self.up
        if not up:
            raise NotReady(
                f"None of the {len(self.servers)} servers that generate can be used.",
                remedy="Ask again in a few seconds; HLO's log says what is wrong with each.",
            )
        able = [server for server in up if adapter is None or adapter.engine_name not in server.refused]
        if adapter is not None and not able:
            raise up[0].refused[adapter.engine_name]
        running = {server.url: server.running for server in able if server.url not in without}
        return self.servers[(choose or self._choose)(key, running)] if running else None

    def others(self, tried: Collection[str]) -> bool:
        """Whether there is another server to ask."""
        return any(server.url not in tried for server in self.up)

    async def load(self, adapter: AdapterVersion) -> None:
        """Give all servers an adapter, those that are not up as soon as they are.

        Raises `AdapterError` when no server takes it, and `NotReady` when none is up.
        """
        self._wanted[adapter.engine_name] = adapter
        servers = self.up
        done = await asyncio.gather(*(self._load(server, adapter) for server in servers))
        if any(error is None for error in done):
            return
        self.unload(adapter)
        raise next((error for error in done if isinstance(error, AdapterError)), None) or NotReady(
            "None of the servers that generate can be used.", remedy="Ask again in a few seconds."
        )

    def unload(self, adapter: AdapterVersion) -> None:
        """Want an adapter no more."""
        self._wanted.pop(adapter.engine_name, None)
        for server in self.servers.values():
            server.forget(adapter)

    async def _load(self, server: VllmServer, adapter: AdapterVersion) -> Exception | None:
        """What is wrong with an adapter on a server, if anything."""
        try:
            await server.load(adapter)
        except AdapterError as error:
            logger.warning("%s", error)
            return error
        except ServerFailed as error:
            server.down(error.reason)
            return error
        return None

    async def _watch(self, server: VllmServer) -> None:
        """Look at a server again and again; one that is down more and more rarely, unless something wakes it."""
        pause = _FIRST_S
        while True:
            server.wake.clear()
            failure, was_up = None, server.up
            try:
                await (server.check() if server.up else self._connect(server))
            except ServerFailed as error:
                failure = error
            except Exception:  # a mistake of HLO's own must not end the looking
                logger.exception("could not look at the server %s", server.url)
                failure = ServerFailed("HLO could not look at it")
            if failure is not None and (was_up or server.reason != failure.reason):
                logger.warning("the server %s is not used: %s", server.url, failure.reason)
            if failure is not None:
                server.up, server.reason = False, failure.reason
            async with self._changed:
                self._looks[server.url] = failure
                self._changed.notify_all()
            pause = _FIRST_S if failure is None else min(2 * pause, _LONGEST_S)
            with suppress(TimeoutError):
                async with asyncio.timeout(pause if failure else _EVERY_S):
                    await server.wake.wait()

    async def _connect(self, server: VllmServer) -> None:
        """Take a server in, once it has all adapters. Raises `ServerFailed`."""
        await server.connect()
        tried: set[str] = set()
        while missing := [one for name, one in self._wanted.items() if name not in tried]:  # more may come meanwhile
            for adapter in missing:
                tried.add(adapter.engine_name)
                with suppress(AdapterError):  # kept, and told by whoever asks for it
                    await server.load(adapter)
        # Nothing is waited for from here on, so that of two that differ one is there first.
        base = next((other.base for other in self.up), server.base)
        apart = sum(abs(a - b) for a, b in zip(base, server.base, strict=True)) / len(base)
        if not apart <= _ALIKE:
            raise ServerFailed(
                f"its base model says something else than that of the others, by {apart:.2g} nats a token", refused=True
            )
        server.up, server.reason = True, ""
        logger.info("the server %s is used: vLLM %s, %d adapters", server.url, server.version, len(tried))

    def _settled(self) -> bool:
        """Whether each server has been looked at and one is up, or none will be before somebody changes it."""
        looked = len(self._looks) == len(self.servers)
        return looked and (bool(self.up) or all(error and error.refused for error in self._looks.values()))
