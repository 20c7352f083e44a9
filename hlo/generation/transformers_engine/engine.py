"""The engine as its callers see it, in asyncio. All work is the worker's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import suppress

from hlo.contracts import EngineInfo, EngineOptions
from hlo.errors import HLOError
from hlo.generation.transformers_engine import checks
from hlo.generation.transformers_engine.commands import Request
from hlo.generation.transformers_engine.worker import Worker
from hlo.records import AdapterVersion, Delta, Prompt, Sampling


class TransformersEngine:
    """Transformers and PEFT behind HLO's `Engine` protocol. Made by `TransformersEngine.start`."""

    def __init__(self, worker: Worker, info: EngineInfo, options: EngineOptions) -> None:
        self._worker = worker
        self._info = info
        self._options = options

    @classmethod
    async def start(cls, options: EngineOptions) -> TransformersEngine:
        """Load the model in the worker thread. `options.null` is not needed: base and adapters mix as they are.

        Raises `SettingsError`, `ModelError` or `EngineError`.
        """
        checks.check_options(options)
        worker = Worker(options)
        try:
            info = await asyncio.wrap_future(worker.started)
        except BaseException:  # also when cancelled: loading can not be stopped, and what it makes must not stay behind
            await worker.stop(0)
            raise
        return cls(worker, info, options)

    @property
    def info(self) -> EngineInfo:
        """What is running, as the loaded model itself says."""
        return self._info

    async def load(self, adapter: AdapterVersion) -> None:
        """Load an adapter between two rounds of the worker. One that is given up while it loads may still be loaded."""
        await self._worker.call(lambda rounds: rounds.model.adapters.load(adapter))

    async def unload(self, adapter: AdapterVersion) -> None:
        """Delete an adapter's weights. A request that uses it all the same fails with `AdapterError`."""
        await self._worker.call(lambda rounds: rounds.unload(adapter))

    async def generate(self, prompt: Prompt, sampling: Sampling) -> AsyncGenerator[Delta, None]:
        """Stream text deltas, one a token; closing the iterator frees the request's row before the next step."""
        sampling = checks.fit(prompt, sampling, self._info.max_model_len)
        checks.check_sampling(sampling)
        loop = asyncio.get_running_loop()
        outbox: asyncio.Queue[Delta | HLOError] = asyncio.Queue()

        def send(piece: Delta | HLOError) -> None:
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(outbox.put_nowait, piece)

        request = Request(prompt, sampling, send)
        try:
            self._worker.submit(request)
            while True:
                piece = await outbox.get()
                if isinstance(piece, HLOError):
                    raise piece
                yield piece
                if piece.finish_reason is not None:
                    return
        finally:
            request.given_up = True

    async def score(self, prompt: Prompt) -> tuple[float, ...]:
        """Natural-log probabilities, computed in float32, of the prompt's tokens after the first."""
        checks.fit(prompt, Sampling(), self._info.max_model_len)
        return await self._worker.call(lambda rounds: rounds.model.score(prompt))

    async def check_health(self) -> None:
        """Raise `EngineDead` when the worker has stopped, or is about to."""
        self._worker.check()

    async def close(self) -> None:
        """Stop the worker, giving running requests the grace period; the model is freed and no thread stays."""
        await self._worker.stop(self._options.shutdown_grace_s)
