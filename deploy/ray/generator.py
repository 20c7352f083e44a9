"""A replica that generates: one engine of HLO's, started as `hlo serve` would, and the adapters that Ray sends here."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing

from ray import serve

from hlo import assemble, engines, logs
from hlo.contracts import EngineInfo
from hlo.records import AdapterVersion, Delta, Prompt, Sampling
from hlo.settings import load_settings

logger = logging.getLogger("hlo")


@serve.deployment
class Generator:
    """An engine behind a handle of Ray's, which awaits `__init__` and `__del__`. The methods are those of `Engine`."""

    async def __init__(self) -> None:  # type: ignore[misc]
        settings = load_settings()
        logs.configure(settings.log_level, settings.log_format)
        model = await asyncio.to_thread(assemble.find_model, settings)
        found, hooks = await asyncio.to_thread(assemble.collect, settings, model)
        # Its own copy of an adapter comes before the ingress's, whose path may be another machine's.
        self._versions = {entry.adapter.engine_name: entry.adapter for entry in found.entries.values()}
        self._engine = await engines.start(settings, model, found, hooks)

    @serve.multiplexed(max_num_models_per_replica=-1)  # type: ignore[untyped-decorator]
    async def adapter(self, name: str) -> AdapterVersion:
        """Load an adapter, once; from then on Ray sends its requests here. The engine itself gives adapters turns."""
        version = self._versions[name]
        await self._engine.load(version)
        logger.info("this replica has the adapter %s", name)
        return version

    async def info(self) -> EngineInfo:
        """What is running."""
        return self._engine.info

    async def load(self, adapter: AdapterVersion) -> None:
        """Load an adapter on this replica."""
        await self._ready(adapter)

    async def generate(self, prompt: Prompt, sampling: Sampling) -> AsyncGenerator[Delta, None]:
        """Text as it is generated; when Ray cancels this, the engine stops."""
        await self._ready(prompt.adapter)
        async with aclosing(self._engine.generate(prompt, sampling)) as deltas:
            async for delta in deltas:
                yield delta

    async def score(self, prompt: Prompt) -> tuple[float, ...]:
        """Log-probabilities of a prompt's tokens."""
        await self._ready(prompt.adapter)
        return await self._engine.score(prompt)

    async def check_health(self) -> None:
        """Raise when nothing can be generated: Ray replaces the replica then."""
        await self._engine.check_health()

    async def _ready(self, adapter: AdapterVersion | None) -> None:
        if adapter is not None:
            self._versions.setdefault(adapter.engine_name, adapter)
            await self.adapter(adapter.engine_name)

    async def __del__(self) -> None:
        await self._engine.close()
