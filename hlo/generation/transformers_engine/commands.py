"""What the worker can be told: a request to answer, or a call to make between two rounds.

Each can be done, with what the worker has, or fail; what fails is told to the one who waits.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Generic, TypeVar

from hlo.errors import HLOError
from hlo.records import Delta, Prompt, Sampling

if TYPE_CHECKING:
    from hlo.generation.transformers_engine.rounds import Rounds

T = TypeVar("T")


class Request:
    """What one caller of `generate` waits for. `send` takes the answer's pieces, in any thread, or what went wrong."""

    def __init__(self, prompt: Prompt, sampling: Sampling, send: Callable[[Delta | HLOError], None]) -> None:
        self.prompt = prompt
        self.sampling = sampling
        self.send = send
        self.given_up = False
        self.asked = time.monotonic()

    def do(self, rounds: Rounds) -> None:
        """Take part from the next round on, or wait for room."""
        rounds.admit(self)

    def fail(self, error: HLOError) -> None:
        """Tell the caller."""
        self.send(error)


class Call(Generic[T]):
    """Work between two rounds; `done` has what it returns. Work that was given up before it began is not done."""

    def __init__(self, work: Callable[[Rounds], T]) -> None:
        self.done: Future[T] = Future()
        self._work = work

    def do(self, rounds: Rounds) -> None:
        """Do it, unless the caller has gone."""
        if self.done.set_running_or_notify_cancel():
            self.done.set_result(self._work(rounds))

    def fail(self, error: HLOError) -> None:
        """Tell the caller, unless that one has gone."""
        if self.done.running() or self.done.set_running_or_notify_cancel():
            self.done.set_exception(error)
