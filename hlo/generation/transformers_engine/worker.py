"""The thread that owns the model, and the only way to it."""

from __future__ import annotations

import asyncio
import logging
import os
import queue
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from hlo.contracts import EngineInfo, EngineOptions
from hlo.errors import EngineDead, HLOError
from hlo.generation.transformers_engine.commands import Call, Request

if TYPE_CHECKING:
    from hlo.generation.transformers_engine.rounds import Rounds

T = TypeVar("T")

logger = logging.getLogger("hlo")


class Worker:
    """Loads the model in a thread of its own and serves it there. `started` has the engine's information, or the error.

    From outside come commands, through the inbox. All else is the thread's.
    """

    def __init__(self, options: EngineOptions) -> None:
        self.started: Future[EngineInfo] = _uncancellable()
        self._finished: Future[None] = _uncancellable()
        self._options = options
        self._inbox: queue.SimpleQueue[Request | Call[Any]] = queue.SimpleQueue()
        self._gate = threading.Lock()  # guards `_refusal`: once it is there, nothing comes into the inbox
        self._refusal: str | None = None
        self._deadline: float | None = None
        # A daemon: an engine that nobody closed must not keep the process from ending.
        self._thread = threading.Thread(target=self._run, name="hlo-transformers", daemon=True)
        self._thread.start()

    def submit(self, command: Request | Call[Any]) -> None:
        """Hand a command to the worker. Raises `EngineDead` when it takes none any more."""
        with self._gate:
            self.check()
            self._inbox.put(command)

    async def call(self, work: Callable[[Rounds], T]) -> T:
        """Have `work` done between two rounds; what has not begun when the caller gives up is not done."""
        call = Call(work)
        self.submit(call)
        return await asyncio.wrap_future(call.done)

    def check(self) -> None:
        """Raise `EngineDead` when the worker takes nothing any more."""
        if self._refusal is not None:
            raise _dead(self._refusal)

    async def stop(self, grace_s: float) -> None:
        """Let running requests end for `grace_s` seconds, cut off the others, and wait for the thread's end."""

        def stop(rounds: Rounds) -> None:
            self._deadline = time.monotonic() + grace_s

        with self._gate:
            if self._refusal is None:
                self._refusal = "The engine was closed."
                self._inbox.put(Call(stop))
        await asyncio.wrap_future(self._finished)
        self._thread.join()

    def _run(self) -> None:
        try:
            rounds = self._load()
        except BaseException as error:  # the one who starts the engine must hear of it, whatever it is
            self.started.set_exception(error)
        else:
            self.started.set_result(rounds.model.info)
            try:
                self._serve(rounds)
            except BaseException as error:  # so must all who wait
                logger.error(_obituary(error))
                self._die(rounds, _obituary(error))
        self._finished.set_result(None)

    def _load(self) -> Rounds:
        import torch

        from hlo.generation.transformers_engine.model import Model
        from hlo.generation.transformers_engine.rounds import Rounds

        torch.set_num_threads(max(1, (os.cpu_count() or 2) // 2))
        model = Model(self._options)
        return Rounds(model, max_rows=model.info.max_num_seqs or 1)

    def _serve(self, rounds: Rounds) -> None:
        """Rounds, and between them what came in, until told to stop; then for as long as the grace lasts."""
        while True:
            for command in self._arrived(wait=self._deadline is None and not rounds.rows):
                self._do(command, rounds)
            if self._deadline is not None and (not rounds.rows or time.monotonic() >= self._deadline):
                break
            rounds.step()
        for row in rounds.rows:
            row.abort()

    def _arrived(self, *, wait: bool) -> Iterator[Request | Call[Any]]:
        """All that has come in; `wait` for the first."""
        while wait or not self._inbox.empty():
            yield self._inbox.get()
            wait = False

    def _do(self, command: Request | Call[Any], rounds: Rounds) -> None:
        try:
            command.do(rounds)
        except HLOError as error:
            command.fail(error)
        except BaseException as error:  # this command stands nowhere else: `_die` would not find it
            command.fail(_dead(_obituary(error)))
            raise

    def _die(self, rounds: Rounds, obituary: str) -> None:
        """Let nothing in any more, and tell all who wait why."""
        with self._gate:
            self._refusal = obituary
        for command in (*rounds.rows, *self._arrived(wait=False)):
            command.fail(_dead(obituary))


def _uncancellable() -> Future[Any]:
    """A future that goes on when a coroutine that waits for it is cancelled."""
    future: Future[Any] = Future()
    future.set_running_or_notify_cancel()
    return future


def _obituary(error: BaseException) -> str:
    """What the worker died of, and where. Not the error's own text: it may quote the prompt."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"The engine's worker stopped: {type(error).__name__} in {Path(last.filename).name}, line {last.lineno}."


def _dead(why: str) -> EngineDead:
    return EngineDead(why, remedy="Restart HLO.")
