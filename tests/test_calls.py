"""Calls of plugins' hooks: what one does wrong is counted, and nobody else notices."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from hlo.plugins.calls import HookCalls
from hlo.plugins.hooks import Hook, Hooks
from hlo.records import Answer, Question, Route, Screening, Timings, Usage

if TYPE_CHECKING:
    from tests.conftest import Until

QUESTION = Question("canarywords")
ANSWER = Answer("canarywords", Route("out_of_scope", None), None, None, "m", Usage(1, 1), Timings(1, 1, 1), "stop", "0")


class Errors(list[tuple[str, str]]):
    """The plugin and hook of each failed call."""

    def add(self, plugin: str, hook: str) -> None:
        """Remember one."""
        self.append((plugin, hook))


def asking(errors: Errors, timeout_s: float = 30.0, **functions: Callable[[Question], Any]) -> HookCalls:
    """Calls of `hlo_question` of some plugins."""
    hooks = tuple(Hook(name, function, ("question",)) for name, function in functions.items())
    return HookCalls(Hooks(question=hooks), timeout_s, errors.add)


def fail(error: BaseException) -> Callable[[Question], Any]:
    def hook(question: Question) -> Any:
        raise error

    return hook


@pytest.mark.parametrize(
    "bad",
    [
        fail(ValueError("canarywords")),
        fail(SystemExit(1)),
        fail(StopIteration()),
        fail(KeyboardInterrupt()),
        lambda question: question.text,
        lambda question: Screening(specialty="dermatology"),
    ],
)
async def test_a_bad_hook_is_left_out(bad: Callable[[Question], Any], caplog: pytest.LogCaptureFixture) -> None:
    """A hook that raises, or says nonsense, is left out and counted; the others are heard, and no word is logged."""
    errors, good = Errors(), Screening(notice="x", specialty="cardiology")
    calls = asking(errors, a=lambda question: good, bad=bad, c=lambda question: None)
    assert await calls.screen(QUESTION, ["cardiology"]) == (("a", good),)
    assert await calls.screen(QUESTION, ["cardiology"]) == (("a", good),)
    calls.close(30)
    assert errors == [("bad", "hlo_question")] * 2
    assert "canarywords" not in caplog.text


async def test_a_hook_that_hangs_is_left_out() -> None:
    """A hook that hangs is left out: of the question that it hangs in, and at once of those after, until it is back."""
    errors, go, entered = Errors(), threading.Event(), threading.Event()

    def hang(question: Question) -> Screening:
        entered.set()
        go.wait(60)
        return Screening(notice="late")

    calls = asking(errors, 0.05, hangs=hang)
    assert await calls.screen(QUESTION, []) == ()
    assert entered.is_set()
    assert await calls.screen(QUESTION, []) == ()
    assert errors == [("hangs", "hlo_question")] * 2
    go.set()
    async with asyncio.timeout(30):
        while not await calls.screen(QUESTION, []):  # noqa: ASYNC110 - the thread's return has no event
            await asyncio.sleep(0.01)
    calls.close(30)


async def test_without_hooks_nothing_is_called() -> None:
    """Without hooks there is nothing to say, and no thread."""
    before = threading.active_count()
    calls = HookCalls(Hooks(), 1, Errors().add)
    assert not calls.screens
    assert await calls.screen(QUESTION, []) == ()
    calls.observe(QUESTION, ANSWER)
    assert threading.active_count() == before
    calls.close(0)


@pytest.mark.parametrize("kind", [ValueError, SystemExit, KeyboardInterrupt])
async def test_observers_are_isolated(
    kind: type[BaseException], until: Until, caplog: pytest.LogCaptureFixture
) -> None:
    """An observer that raises is counted, and the next one still sees the answer."""
    errors, seen = Errors(), list[Answer]()

    def bad(answer: Answer) -> None:
        raise kind(answer.text)

    good = Hook("good", lambda answer: seen.append(answer), ("answer",))
    calls = HookCalls(Hooks(answer=(Hook("bad", bad, ("answer",)), good)), 1, errors.add)
    calls.observe(QUESTION, ANSWER)
    await until(lambda: seen)
    calls.close(30)
    assert (seen, errors) == ([ANSWER], [("bad", "hlo_answer")])
    assert "canarywords" not in caplog.text


async def test_observers_never_keep_an_answer_waiting() -> None:
    """While an observer hangs, answers are given all the same; beyond a thousand they are not kept for it."""
    errors, go, seen = Errors(), threading.Event(), list[int]()

    def slow(answer: Answer) -> None:
        go.wait(60)
        seen.append(1)

    calls = HookCalls(Hooks(answer=(Hook("slow", slow, ("answer",)),)), 1, errors.add)
    for _ in range(1100):
        calls.observe(QUESTION, ANSWER)
    assert 99 <= len(errors) <= 100  # one may have been taken from the queue already
    go.set()
    await asyncio.to_thread(calls.close, 30)
    assert len(seen) + len(errors) == 1100


def test_closing_does_not_wait_for_what_hangs() -> None:
    """Closing waits for observers no longer than it is told, and leaves only daemon threads behind."""
    entered, go = threading.Event(), threading.Event()

    def hang(answer: Answer) -> None:
        entered.set()
        go.wait(60)

    calls = HookCalls(Hooks(answer=(Hook("hangs", hang, ("answer",)),)), 1, Errors().add)
    calls.observe(QUESTION, ANSWER)
    assert entered.wait(30)
    calls.close(0.01)
    (left,) = [thread for thread in threading.enumerate() if thread.name == "hlo-answer"]
    assert left.daemon
    go.set()
    left.join(30)
