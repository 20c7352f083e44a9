"""What every plugin must keep, looked at one by one: each check tells what it found, and none stops the others.

A bad plugin raises nothing here. Its faults are findings, in words that its author can act on.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from msgspec import Struct

from hlo import plugins
from hlo.contracts import Encoder
from hlo.errors import HLOError
from hlo.records import Finding
from hlo.settings import Settings
from hlo.testing.catchment import Asked, Audit
from hlo.testing.conformance import hooks, package, routing, specialty, weights
from hlo.testing.conformance.bench import Bench, Check
from hlo.testing.subject import Subject

CHECKS: Mapping[str, Check] = {
    "metadata": package.metadata,
    "hooks": hooks.hooks,
    "declaration": specialty.declaration,
    "template": specialty.template,
    "adapter": weights.adapter,
    "effect": weights.effect,
    "examples": routing.examples,
    "licence": package.licence,
    "size": package.size,
    "catchment": routing.catchment,
}
"""Every check, by the topic of its findings, in the order in which they are made."""


class Examination(Struct, frozen=True):
    """What was found, in the order of the checks, and the catchment audit, where one could be made."""

    findings: tuple[Finding, ...]
    audit: Audit | None = None

    @property
    def trouble(self) -> bool:
        """Whether anything will not work."""
        return any(one.state == "trouble" for one in self.findings)


def examine(
    subject: Subject,
    settings: Settings,
    *,
    questions: Sequence[Asked] = (),
    max_moved: float = 0.05,
    engine: bool = True,
    encoder: Encoder | None = None,
    report: Callable[[str], None] = lambda _: None,
) -> Examination:
    """Examine a plugin among those that are installed; its code runs in this process.

    `questions` are the operator's, for the audit. `max_moved` is the share of its questions, from 0 to 1, that another
    specialty may lose. Without `engine`, no engine is started. `encoder` takes the place of the one that the settings
    name, and `report` hears what is being looked at. Raises `SettingsError` for settings that contradict themselves.
    """
    neighbours, _, _ = plugins.choose(subject.others(), settings.plugins)
    bench = Bench(subject, settings, neighbours, questions, max_moved, engine, encoder)
    findings: list[Finding] = []
    told: set[str] = set()
    for topic, check in CHECKS.items():
        report(f"examining {subject.place}: {topic}")
        findings += _isolated(topic, check, bench, told)
    return Examination(tuple(findings), bench.audit)


def _isolated(topic: str, check: Check, bench: Bench, told: set[str]) -> Iterator[Finding]:
    """What a check finds; what stops it is a finding too, told in full once."""
    try:
        for state, text, remedy in check(bench):
            yield Finding(topic, state, text, remedy)
    except HLOError as error:
        if error.message in told:
            yield Finding(topic, "warning", f"Not examined, because of what was told above: {error.message}")
        else:
            told.add(error.message)
            yield Finding(topic, "trouble", error.message, error.remedy)
    except (Exception, SystemExit) as error:  # a stranger's code can make a check raise anything
        # Not the error's own text: it may quote a question.
        last = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(last.filename).name}, line {last.lineno}"
        text = f"{type(error).__name__} in {place} stopped this check."
        yield Finding(topic, "trouble", text, "Mend the plugin's code there.")
