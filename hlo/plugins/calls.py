"""Calls of hooks while questions are answered, which no plugin can spoil."""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from hlo.plugins.hooks import Hook, Hooks
from hlo.records import Answer, Question, Screening

logger = logging.getLogger("hlo")

_MOST_WAITING = 1000

CountError = Callable[[str, str], None]
"""Hears the plugin and the hook of each call that failed."""


class HookCalls:
    """Calls the question and answer hooks, each plugin in threads of its own; what fails is counted and left out.

    The threads are daemons: one that hangs can not keep the process from ending.
    """

    def __init__(self, hooks: Hooks, timeout_s: float, count_error: CountError) -> None:
        self._timeout_s = timeout_s
        self._count_error = count_error
        self._questions = tuple((hook, _Thread(f"hlo-question-{hook.plugin}")) for hook in hooks.question)
        self._answers = hooks.answer
        self._observing = _Thread("hlo-answer", _MOST_WAITING) if hooks.answer else None

    @property
    def screens(self) -> bool:
        """Whether any plugin wants to see questions."""
        return bool(self._questions)

    async def screen(
        self, question: Question, specialties: Sequence[str], missed: CountError | None = None
    ) -> tuple[tuple[str, Screening], ...]:
        """What the plugins say of a question, with their names; `specialties` are those that can be pinned.

        `missed` hears the plugin and the kind of error of each call that failed.
        """
        if not self._questions:
            return ()
        said = await asyncio.gather(*(self._ask(hook, thread, question, missed) for hook, thread in self._questions))
        found = []
        for (hook, _), screening in zip(self._questions, said, strict=True):
            if screening is None:
                continue
            if not isinstance(screening, Screening) or screening.specialty not in (None, *specialties):
                self._failed(hook.plugin, "hlo_question", "WrongAnswer")
                continue
            found.append((hook.plugin, screening))
        return tuple(found)

    def observe(self, question: Question, answer: Answer) -> None:
        """Show a whole answer to the observers; returns at once."""
        if self._observing is None:
            return
        try:
            self._observing.put(lambda: self._show(question, answer))
        except queue.Full:
            for hook in self._answers:
                self._failed(hook.plugin, "hlo_answer", "Full")

    def close(self, grace_s: float) -> None:
        """Let observers finish what waits, for `grace_s` seconds at most."""
        for _, thread in self._questions:
            thread.stop(0)
        if self._observing is not None:
            self._observing.stop(grace_s)

    async def _ask(self, hook: Hook, thread: _Thread, question: Question, missed: CountError | None) -> Any:
        try:
            if thread.busy_s() > self._timeout_s:  # hanging in an earlier question: this one need not wait for it too
                raise TimeoutError
            return await asyncio.wait_for(thread.call(lambda: hook(question=question)), self._timeout_s)
        except Exception as error:  # a stranger's hook can raise anything; the question goes on
            self._failed(hook.plugin, "hlo_question", type(error).__name__)
            if missed is not None:
                missed(hook.plugin, type(error).__name__)
            return None

    def _show(self, question: Question, answer: Answer) -> None:
        for hook in self._answers:
            try:
                hook(question=question, answer=answer)
            except BaseException as error:  # also SystemExit: the thread is for all observers, and for later answers
                self._failed(hook.plugin, "hlo_answer", type(error).__name__)

    def _failed(self, plugin: str, hook: str, kind: str) -> None:
        # The kind alone: the text of a stranger's error may repeat the question.
        logger.error("%s of the plugin %s failed: %s", hook, plugin, kind)
        self._count_error(plugin, hook)


class _Thread:
    """A daemon thread that does one thing after the other."""

    def __init__(self, name: str, most_waiting: int = 0) -> None:
        self._work: queue.Queue[Callable[[], None] | None] = queue.Queue(most_waiting)
        self._busy_since: float | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def busy_s(self) -> float:
        """How long it has been at what it does now, in seconds; 0 when it waits."""
        since = self._busy_since
        return time.monotonic() - since if since is not None else 0.0

    def put(self, work: Callable[[], None]) -> None:
        """Do `work` later. Raises `queue.Full`."""
        self._work.put_nowait(work)

    async def call(self, function: Callable[[], Any]) -> Any:
        """Do `function` and return what it returns, or raise what it raises."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Any] = loop.create_future()

        def tell(result: Any, error: BaseException | None) -> None:
            if done.done():  # given up by then
                return
            if error is not None:
                done.set_exception(error)
            else:
                done.set_result(result)

        def work() -> None:
            if done.cancelled():
                return
            result, failed = None, None
            try:
                result = function()
            except BaseException as error:  # also SystemExit: it must reach who waits, not end this thread
                plain = isinstance(error, Exception) and not isinstance(error, StopIteration)
                failed = error if plain else RuntimeError(type(error).__name__)
            if not loop.is_closed():
                loop.call_soon_threadsafe(tell, result, failed)

        self.put(work)
        return await done

    def stop(self, grace_s: float) -> None:
        """Take no more work; wait `grace_s` seconds at most for what is waiting."""
        deadline = time.monotonic() + grace_s
        try:
            self._work.put(None, timeout=max(grace_s, 0.01))
        except queue.Full:
            return
        self._thread.join(max(deadline - time.monotonic(), 0))

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            self._busy_since = time.monotonic()
            work()
            self._busy_since = None
