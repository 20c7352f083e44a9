"""Encodes concurrent questions in batches, off the event loop, without making a lone question wait.

An idle encoder starts at once; what arrives while it is busy goes into its next batch.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from itertools import accumulate, groupby
from operator import attrgetter
from typing import TYPE_CHECKING, Any, TypeVar

from msgspec import Struct

from hlo.contracts import Encoder
from hlo.errors import EncoderError, HLOError
from hlo.threads import DaemonThread

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

T = TypeVar("T")

logger = logging.getLogger("hlo")

_CLOSING_S = 5.0  # for a batch that is being encoded when the server stops

Watch = Callable[[int, int, int, int], None]
"""Hears, in the worker thread, when a batch began, was encoded and was done (`time.time_ns`), and its questions."""


class _Job(Struct, frozen=True, eq=False):
    questions: tuple[str, ...]
    then: Callable[[NDArray[np.float32]], Sequence[Any]] | None
    done: asyncio.Future[Any]
    watch: Watch | None = None


class BatchingEncoder:
    """An encoder for coroutines: each of its threads takes `max_batch` questions at a time, or one job that has more.

    Nobody waits longer than `timeout_s`, and nobody at all while every thread hangs in a batch for longer than that.
    """

    def __init__(self, encoder: Encoder, max_batch: int, timeout_s: float = 60.0) -> None:
        self.encoder = encoder
        self._max_batch = max_batch
        self._timeout_s = timeout_s
        self._workers = [DaemonThread("hlo-encoder") for _ in range(getattr(encoder, "threads", 1))]
        self._closed = False
        self._lock = threading.Lock()  # of what follows: threads take from it without going through an event loop
        self._jobs: deque[_Job] = deque()
        self._idle = list(self._workers)

    async def encode(self, questions: Sequence[str]) -> NDArray[np.float32]:
        """Unit vectors, shape (questions, dimension). Raises `EncoderError`."""
        vectors: NDArray[np.float32] = await self._do(_Job(tuple(questions), None, self._future()))
        return vectors

    async def encode_then(
        self,
        questions: Sequence[str],
        then: Callable[[NDArray[np.float32]], Sequence[T]],
        watch: Watch | None = None,
    ) -> Sequence[T]:
        """What `then` makes of the questions' vectors, one thing for each, in the worker thread.

        It is called once for all questions of a batch that are to have the same. Raises `EncoderError`.
        """
        found: Sequence[T] = await self._do(_Job(tuple(questions), then, self._future(), watch))
        return found

    def blocking(self) -> Encoder:
        """The same encoder for other threads; they wait while coroutines' questions go first between two batches."""
        return _Blocking(self, asyncio.get_running_loop(), self._max_batch)

    def close(self) -> None:
        """Stop the threads once their batches are done; one that hangs is left, and what waits is cancelled."""
        with self._lock:
            self._closed = True
            waiting = list(self._jobs)
            self._jobs.clear()
        for job in waiting:
            _tell([job], job.done.cancel)
        over = time.monotonic() + _CLOSING_S
        for worker in self._workers:
            worker.stop(max(over - time.monotonic(), 0))

    @staticmethod
    def _future() -> asyncio.Future[Any]:
        return asyncio.get_running_loop().create_future()

    async def _do(self, job: _Job) -> Any:
        if self._closed:
            raise EncoderError("The encoder was closed.", remedy="The server is stopping; ask another.")
        if all(worker.busy_s() > self._timeout_s for worker in self._workers):
            raise self._too_slow()
        with self._lock:
            self._jobs.append(job)
            worker = self._idle.pop() if self._idle else None
        if worker is not None:
            worker.put(partial(self._drain, worker))
        try:
            async with asyncio.timeout(self._timeout_s):
                return await job.done
        except TimeoutError:
            logger.error("%s", error := self._too_slow())
            raise error from None

    def _too_slow(self) -> EncoderError:
        return EncoderError(
            f"The encoder has not answered for {self._timeout_s:g} seconds.",
            remedy="Ask again later; HLO_ENCODER_TIMEOUT_S says how long to wait for it.",
        )

    def _drain(self, worker: DaemonThread) -> None:
        """Do the next batch, in the worker's thread, and see to the one after it, or wait for a question."""
        with self._lock:
            batch = self._take()
        tell = self._outcome(batch) if batch else None
        with self._lock:
            if self._jobs:
                worker.put(partial(self._drain, worker))  # begins once this has returned
            else:
                self._idle.append(worker)
        if tell is not None:  # last: the event loop that wakes needs the interpreter for itself
            _tell(batch, tell)

    def _outcome(self, batch: Sequence[_Job]) -> Callable[[], None]:
        """Do a batch: gives what tells those who wait the results, or the error."""
        try:
            return partial(_answer, batch, self._work(batch))
        except BaseException as error:  # also SystemExit: it must reach who waits, not end this thread
            logger.error("%s", _as_ours(error))
            return partial(_refuse, batch, error)  # each who waits; the next batch may fare better

    def _work(self, batch: Sequence[_Job]) -> list[Any]:
        """The results of a batch of jobs; neighbours with the same `then` share one call of it."""
        began, clock = time.time_ns(), time.perf_counter_ns()
        vectors = self.encoder.encode([question for job in batch for question in job.questions])
        encoded = began + time.perf_counter_ns() - clock  # whatever becomes of the wall clock meanwhile
        results: list[Any] = []
        start = 0
        for then, alike in groupby(batch, attrgetter("then")):
            sizes = [len(job.questions) for job in alike]
            rows = vectors[start : start + sum(sizes)]
            start += len(rows)
            found = rows if then is None else tuple(then(rows))
            ends = list(accumulate(sizes))
            results += [found[end - size : end] for end, size in zip(ends, sizes, strict=True)]
        scored = began + time.perf_counter_ns() - clock
        for job in batch:
            if job.watch is not None:
                job.watch(began, encoded, scored, len(vectors))
        return results

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
        self._at_once = len(batching._workers)

    def encode(self, questions: Sequence[str]) -> NDArray[np.float32]:
        """Unit vectors, shape (questions, dimension). Raises `EncoderError`."""
        import numpy as np

        batches = (questions[start : start + self._batch] for start in range(0, len(questions), self._batch))
        asked: deque[Future[NDArray[np.float32]]] = deque()
        rows = []
        for one in batches:
            asked.append(asyncio.run_coroutine_threadsafe(self._batching.encode(one), self._loop))
            if len(asked) == self._at_once:  # all threads are at work, and nobody waits behind many batches
                rows.append(asked.popleft().result())
        rows += [one.result() for one in asked]
        return np.concatenate(rows) if rows else np.zeros((0, self.dimension), dtype=np.float32)


def _tell(batch: Sequence[_Job], tell: Callable[[], object]) -> None:
    """Have the event loop of those who wait do `tell`, unless it has ended."""
    loop = batch[0].done.get_loop()
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(tell)


def _answer(batch: Sequence[_Job], results: Sequence[Any]) -> None:
    for job, result in zip(batch, results, strict=True):
        if not job.done.done():  # its caller may have gone
            job.done.set_result(result)


def _refuse(batch: Sequence[_Job], error: BaseException) -> None:
    for job in batch:
        if not job.done.done():
            job.done.set_exception(_as_ours(error))


def _as_ours(error: BaseException) -> HLOError:
    if isinstance(error, HLOError):
        return error
    # Not the error's own text: it may quote the question.
    ours = EncoderError(f"The encoder failed with {type(error).__name__}.", remedy="Ask again; see the server's log.")
    ours.__cause__ = error
    return ours
