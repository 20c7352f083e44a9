"""The hooks: which of them a plugin has, and what they do with what they may be asked."""

from __future__ import annotations

import queue
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from hlo.plugins.hooks import Hook
from hlo.records import Question, Screening
from hlo.testing.catchment import all_examples
from hlo.testing.conformance.bench import Bench, Told, ok, trouble
from hlo.testing.conformance.probes import PROBES
from hlo.testing.subject import field


def hooks(bench: Bench) -> Iterator[Told]:
    """Whether it can be imported, and which hooks it has."""
    for point in bench.rivals:
        owner = field(point.dist, "Name") if point.dist else point.value
        yield trouble(
            f"The entry point `{point.name}` is taken by the installed package `{owner}`.",
            "Rename it, or uninstall that package: of two, HLO serves one.",
        )
    for refusal in bench.discovery.refusals:
        if refusal.plugin in bench.subject.plugins:
            yield trouble(f"{refusal.plugin}: {refusal.reason}", refusal.remedy)
    loaded = {offer.plugin for offer in bench.discovery.offers}
    for point in bench.subject.points:
        if point.name in loaded:
            found = sorted(name for name, value in vars(point.load()).items() if hasattr(value, "hlo_impl"))
            if found:
                yield ok(f"`{point.name}` implements {', '.join(found)}")
            else:
                yield trouble(f"`{point.value}` implements no hook.", "Mark one with `@hlo.hookimpl` in it.")
    yield from _question(bench)
    yield from _selective(bench)


def _question(bench: Bench) -> Iterator[Told]:
    """Calls `hlo_question` with what patients write, and with what nobody expects."""
    specialties = (*bench.declared, *bench.others.values())
    texts = [*PROBES, *(one.text for one in bench.questions)]
    texts += [text for one in specialties for text in all_examples(one)]
    del texts[500:]  # so that a slow hook is examined in minutes
    served = [one.name for one in specialties]
    for hook in bench.discovery.hooks.question:
        if hook.plugin not in bench.subject.plugins:
            continue
        said, faults = _screen(hook, texts, served, bench.settings.question_timeout_s)
        for fault, count in faults.items():
            yield trouble(
                f"{hook.plugin}: `hlo_question` {fault} for {count} of {len(texts)} questions.",
                "HLO would leave out what it says. Return a `Screening` or None, soon, for any text.",
            )
        if not faults:
            kinds = Counter(kind for one in said for kind in ("notice", "specialty", "refusal") if getattr(one, kind))
            yield ok(
                f"{hook.plugin}: of {len(texts)} questions, `hlo_question` puts a notice before {kinds['notice']}, "
                f"pins {kinds['specialty']} and refuses {kinds['refusal']}",
            )


def _screen(
    hook: Hook, texts: Sequence[str], served: Sequence[str], timeout_s: float
) -> tuple[list[Screening], Counter[str]]:
    """What the hook says of each text, and how often it did what: a hook that hangs is asked no more."""
    asked: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    results: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def work() -> None:
        while (text := asked.get()) is not None:
            try:
                results.put(hook(question=Question(text)))
            except BaseException as error:  # told below; also SystemExit, which would end this thread in silence
                results.put(error)

    # A daemon: a hook that never comes back must not keep the process from ending.
    threading.Thread(target=work, name="hlo-conformance", daemon=True).start()
    said: list[Screening] = []
    faults: Counter[str] = Counter()
    for text in texts:
        asked.put(text)
        try:
            one = results.get(timeout=timeout_s)
        except queue.Empty:
            faults[f"took longer than {timeout_s:g} s (HLO_QUESTION_TIMEOUT_S)"] += 1
            break
        if isinstance(one, BaseException):
            faults[f"raised {type(one).__name__}"] += 1
        elif isinstance(one, Screening):
            said.append(one)
            if one.specialty is not None and one.specialty not in served:
                faults[f"pinned `{one.specialty}`, which is not installed,"] += 1
        elif one is not None:
            faults[f"returned {type(one).__name__}"] += 1
    asked.put(None)
    return said, faults


def _selective(bench: Bench) -> Iterator[Told]:
    """An encoder's or engine's hook answers to its own name only: one that takes any would take all others' too."""
    found = bench.discovery.hooks
    for name, offering in (("hlo_encoder", found.encoder), ("hlo_engine", found.engine)):
        for hook in offering:
            if hook.plugin in bench.subject.plugins and hook(name="no-such-name") is not None:
                yield trouble(
                    f"{hook.plugin}: `{name}` answers to `no-such-name` too.",
                    "Return None for every name but your own.",
                )
