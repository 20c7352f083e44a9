"""The engine as HLO's ingress sees it: a handle to the replicas, of which Ray chooses one for each request."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

from msgspec.structs import replace
from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import BackPressureError
from ray.serve.handle import DeploymentHandle

from hlo.contracts import EngineInfo, EngineOptions
from hlo.errors import EngineError, HLOError, NotReady, Overloaded
from hlo.records import AdapterVersion, Delta, Prompt, Sampling

_TRIES = 3
_ANSWER_S = 10.0  # for a replica to say that it lives


class RayEngine:
    """Replicas of `Generator` behind HLO's `Engine` protocol. Made by `RayEngine.start`."""

    def __init__(self, generators: DeploymentHandle, info: EngineInfo) -> None:
        self._generators = generators
        self._info = info

    @classmethod
    async def start(cls, generators: DeploymentHandle, options: EngineOptions) -> RayEngine:
        """Wait for the first replica. Raises what a replica raises."""
        async with _told():
            info: EngineInfo = await generators.info.remote()
        return cls(generators, replace(info, engine=f"ray/{info.engine}", reason=options.reason))

    @property
    def info(self) -> EngineInfo:
        """What the first replica said of itself; all have the same settings."""
        return self._info

    async def load(self, adapter: AdapterVersion) -> None:
        """Load it on the replica that Ray chooses; others load it when Ray sends them a request for it."""
        async with _told():
            await self._for(adapter).load.remote(adapter)

    async def unload(self, adapter: AdapterVersion) -> None:
        """Nothing: a replica keeps what it has, and its engine gives adapters turns."""

    async def generate(self, prompt: Prompt, sampling: Sampling) -> AsyncGenerator[Delta, None]:
        """Text as a replica generates it. Where one is lost before its first delta, another is asked."""
        for tried in range(1, _TRIES + 1):
            begun = False
            deltas = self._for(prompt.adapter).options(stream=True).generate.remote(prompt, sampling)
            try:
                async with _told():
                    async for delta in deltas:
                        begun = True
                        yield delta
                return
            except _Lost:
                if begun:
                    raise EngineError("The replica that was answering is gone.", remedy="Ask again.") from None
                if tried == _TRIES:
                    raise NotReady("No replica could answer.", remedy="Ask again in a few seconds.") from None
            finally:
                deltas.cancel()

    async def score(self, prompt: Prompt) -> tuple[float, ...]:
        """Log-probabilities of a prompt's tokens."""
        async with _told():
            scored: tuple[float, ...] = await self._for(prompt.adapter).score.remote(prompt)
        return scored

    async def check_health(self) -> None:
        """Raise `NotReady` while no replica answers: Ray starts others."""
        try:
            async with _told(), asyncio.timeout(_ANSWER_S):
                await self._generators.check_health.remote()
        except (TimeoutError, _Lost):
            raise NotReady("No replica answers.", remedy="Ask again in a few seconds.") from None

    async def close(self) -> None:
        """Nothing: the replicas are Ray's."""

    def _for(self, adapter: AdapterVersion | None) -> DeploymentHandle:
        return self._generators.options(multiplexed_model_id=adapter.engine_name) if adapter else self._generators


class _Lost(EngineError):
    """A replica is gone."""


@asynccontextmanager
async def _told() -> AsyncIterator[None]:
    """Tell Ray's errors as HLO's; HLO's own come through as they were."""
    try:
        yield
    except BackPressureError:
        raise Overloaded("All replicas are busy.", remedy="Ask again in a few seconds.") from None
    except RayTaskError as error:
        if isinstance(error.cause, HLOError):
            raise error.cause from None
        raise EngineError("The replica failed on this request.", remedy="Ask again; see Ray's log.") from error
    except RayActorError:
        raise _Lost("The replica is gone.", remedy="Ask again.") from None
