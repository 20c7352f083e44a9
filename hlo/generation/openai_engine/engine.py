"""The engine as its callers see it: each request goes to one server, and to another when that one fails in time."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress

from hlo.contracts import EngineActivity, EngineInfo, EngineOptions
from hlo.errors import AdapterError, EngineDead, EngineError, HLOError, NotReady, Overloaded, SettingsError
from hlo.generation import affinity
from hlo.generation.openai_engine.pool import Pool
from hlo.generation.openai_engine.server import VllmServer
from hlo.generation.openai_engine.wire import ServerFailed
from hlo.records import AdapterVersion, Delta, Prompt, Sampling


class OpenAIEngine:
    """Servers of vLLM's behind HLO's `Engine` protocol. Made by `OpenAIEngine.start`."""

    def __init__(self, pool: Pool, options: EngineOptions) -> None:
        self._pool = pool
        self._options = options
        self._closed = False

    @classmethod
    async def start(cls, options: EngineOptions) -> OpenAIEngine:
        """Wait for the first of the servers. Raises `SettingsError` or `EngineError`."""
        servers = options.servers
        if servers is None:
            raise SettingsError(
                "HLO_ENGINE=openai needs HLO_ENGINE_URLS.",
                remedy="Name the servers in it, such as http://gpu-1:8000,http://gpu-2:8000.",
            )
        pool = Pool([VllmServer(url, servers, options) for url in servers.urls])
        try:
            await pool.start(servers.wait_s)
        except BaseException:
            await pool.close()
            raise
        return cls(pool, options)

    @property
    def info(self) -> EngineInfo:
        """What the servers have in common: the shortest context, and whatever versions there are."""
        known = [server for server in self._pool.servers.values() if server.max_model_len]
        lengths = [server.max_model_len for server in known]
        return EngineInfo(
            engine="openai",
            version=", ".join(sorted({server.version for server in known})),
            model=self._options.name,
            device="servers",
            dtype="unknown",
            quantization="unknown",
            eager=False,
            max_model_len=min([*lengths, *([self._options.max_model_len] if self._options.max_model_len else [])]),
            max_adapters=self._options.slots,
            max_lora_rank=self._options.rank,
            kinds=self._options.kinds,
            reason=self._options.reason,
            # Servers do not tell how many they compute at once; 256 is what most of them are started with.
            max_num_seqs=(self._options.max_num_seqs or 256) * len(self._pool.servers),
        )

    @property
    def activity(self) -> EngineActivity:
        """The turns that adapters take on the servers, all together, and what each server did."""
        servers = tuple(self._pool.servers.values())
        each = [server.admission.activity for server in servers]
        turns, evictions = Counter[str](), Counter[str]()
        for one in each:
            turns.update(one.turns)
            evictions.update(one.evictions)
        return EngineActivity(
            sum(one.held for one in each), turns, evictions, tuple(server.activity for server in servers)
        )

    async def load(self, adapter: AdapterVersion) -> None:
        """Give it to all servers, and see that it changes what each of them says."""
        await self._pool.load(adapter)

    async def unload(self, adapter: AdapterVersion) -> None:
        """Use it no more; the servers keep it, and make room by themselves."""
        self._pool.unload(adapter)

    async def generate(self, prompt: Prompt, sampling: Sampling) -> AsyncGenerator[Delta, None]:
        """Text as a server generates it. What fails before its first delta is asked of another server."""
        self._check_open()
        key, begun = prompt.adapter.engine_name if prompt.adapter else None, False
        tried: set[str] = set()
        failure: ServerFailed | None = None
        while (server := self._pool.pick(key, prompt.adapter, tried)) is not None:
            tried.add(server.url)
            outcome = "aborted"
            try:
                if prompt.adapter is not None:
                    await server.load(prompt.adapter)
                async with aclosing(server.complete(prompt, sampling)) as deltas:
                    async for delta in deltas:
                        begun = True
                        yield delta
                outcome = "done"
                return
            except ServerFailed as error:
                self._saw(server, error)
                failure, outcome = error, "failed" if begun or not self._pool.others(tried) else "moved"
                if begun:
                    raise EngineError(
                        f"The server that was answering failed: {error.reason}.",
                        remedy="Ask again; another server answers.",
                    ) from error
            except AdapterError:
                outcome = "moved"  # and where no server takes it, `pick` says so
            except HLOError:
                outcome = "refused"
                raise
            finally:
                server.requests[outcome] += 1
        raise _nobody(failure)

    async def score(self, prompt: Prompt) -> tuple[float, ...]:
        """Natural-log probabilities of the prompt's tokens after the first.

        With and without an adapter the same prompt goes to the same server, so that the two can be compared.
        """
        self._check_open()
        tried: set[str] = set()
        failure: ServerFailed | None = None
        while (server := self._pool.pick(repr(prompt.token_ids), prompt.adapter, tried, affinity.owner)) is not None:
            tried.add(server.url)
            try:
                if prompt.adapter is not None:
                    await server.load(prompt.adapter)
                return await server.score(prompt)
            except ServerFailed as error:
                failure = error
                self._saw(server, error)
        raise _nobody(failure)

    async def check_health(self) -> None:
        """Raise `NotReady` while no server is up: it passes by itself."""
        self._check_open()
        with suppress(Overloaded):  # which is a kind of health
            self._pool.pick(None, None)

    async def close(self) -> None:
        """Let go of the servers, which go on."""
        if not self._closed:
            self._closed = True
            await self._pool.close()

    def _check_open(self) -> None:
        if self._closed:
            raise EngineDead("The engine was closed.", remedy="Restart HLO.")

    def _saw(self, server: VllmServer, error: ServerFailed) -> None:
        """Leave a server alone that failed, until it has been looked at; one that is busy is well."""
        if not error.busy:
            server.down(error.reason)


def _nobody(failure: ServerFailed | None) -> HLOError:
    """What to tell when all servers were tried."""
    if failure is not None and failure.busy:
        return Overloaded("The queues of all servers are full.", remedy="Ask again in a few seconds.")
    reason = f": {failure.reason}" if failure else ""
    return NotReady(f"No server could answer{reason}.", remedy="Ask again in a few seconds.")
