"""Calls of hooks while questions are answered, which no plugin can spoil."""

from __future__ import annotations

import asyncio
import logging
import queue
from collections.abc import Callable, Sequence
from typing import Any

from hlo.plugins.hooks import Hook, Hooks
from hlo.records import Answer, Question, Screening
from hlo.threads import DaemonThread

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
        self._questions = tuple((hook, DaemonThread(f"hlo-question-{hook.plugin}")) for hook in hooks.question)
        self._answers = hooks.answer
        self._observing = DaemonThread("hlo-answer", _MOST_WAITING) if hooks.answer else None

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

    async def _ask(self, hook: Hook, thread: DaemonThread, question: Question, missed: CountError | None) -> Any:
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
