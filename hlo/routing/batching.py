"""Encodes concurrent questions in batches, off the event loop, without making a lone question wait.

An idle encoder starts at once; what arrives while it is busy goes into its next batch.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from msgspec import Struct

from hlo.contracts import Encoder
from hlo.errors import EncoderError, HLOError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class _Job(Struct, frozen=True, eq=False):
    questions: tuple[str, ...]
    done: asyncio.Future[NDArray[np.float32]]


class BatchingEncoder:
    """An encoder for coroutines: one worker thread, `max_batch` questions at a time (more only if one job has more)."""

    def __init__(self, encoder: Encoder, max_batch: int) -> None:
        self.encoder = encoder
        self._max_batch = max_batch
        self._jobs: deque[_Job] = deque()
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="hlo-encoder")
        self._drain: asyncio.Task[None] | None = None

    async def encode(self, questions: Sequence[str]) -> NDArray[np.float32]:
        """Unit vectors, shape (questions, dimension). Raises `EncoderError`."""
        job = _Job(tuple(questions), asyncio.get_running_loop().create_future())
        self._jobs.append(job)
        if self._drain is None or self._drain.done():
            self._drain = asyncio.create_task(self._run())
        return await job.done

    def blocking(self) -> Encoder:
        """The same encoder for other threads; they wait while coroutines' questions go first between two batches."""
        return _Blocking(self, asyncio.get_running_loop(), self._max_batch)

    def close(self) -> None:
        """Stop the worker thread once its batch is done."""
        self._worker.shutdown(wait=True, cancel_futures=True)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while batch := self._take():
            questions = [question for job in batch for question in job.questions]
            try:
                vectors = await loop.run_in_executor(self._worker, self.encoder.encode, questions)
            except asyncio.CancelledError:
                for job in batch:
                    job.done.cancel()
                raise
            except Exception as error:  # told to each who waits; the next batch may fare better
                for job in batch:
                    if not job.done.done():
                        job.done.set_exception(_as_ours(error))
                continue
            start = 0
            for job in batch:
                if not job.done.done():
                    job.done.set_result(vectors[start : start + len(job.questions)])
                start += len(job.questions)

    def _take(self) -> list[_Job]:
        """The next batch: whole jobs, oldest first, without those whose caller has gone."""
        batch: list[_Job] = []
        size = 0
        while self._jobs and (not batch or size + len(self._jobs[0].questions) <= self._max_batch):
            job = self._jobs.popleft()
            if not job.done.cancelled():
                batch.append(job)
                size += len(job.questions)
        return batch


class _Blocking:
    """An `Encoder` that sends its questions through a `BatchingEncoder`, a batch at a time."""

    def __init__(self, batching: BatchingEncoder, loop: asyncio.AbstractEventLoop, batch: int) -> None:
        self.name = batching.encoder.name
        self.fingerprint = batching.encoder.fingerprint
        self.dimension = batching.encoder.dimension
        self._batching = batching
        self._loop = loop
        self._batch = batch

    def encode(self, questions: Sequence[str]) -> NDArray[np.float32]:
        """Unit vectors, shape (questions, dimension). Raises `EncoderError`."""
        import numpy as np

        batches = [questions[start : start + self._batch] for start in range(0, len(questions), self._batch)]
        rows = [asyncio.run_coroutine_threadsafe(self._batching.encode(one), self._loop).result() for one in batches]
        return np.concatenate(rows) if rows else np.zeros((0, self.dimension), dtype=np.float32)


def _as_ours(error: Exception) -> HLOError:
    if isinstance(error, HLOError):
        return error
    # Not the error's own text: it may quote the question.
    ours = EncoderError(f"The encoder failed with {type(error).__name__}.", remedy="Ask again; see the server's log.")
    ours.__cause__ = error
    return ours
