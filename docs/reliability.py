"""Writes the table in docs/reliability.md: `python -m docs.reliability FIGURES`, or `nox -s reliability`.

FIGURES is what the tests that carry the marker `reliability` recorded (tests/figures.py), one JSON object a line.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

import msgspec
from msgspec import Struct

FILE = Path(__file__).with_name("reliability.md")
BEGIN, END = "<!-- figures: written by `nox -s reliability` -->\n", "<!-- end of figures -->"
Topic = Literal["load", "faults", "inputs"]
_TITLES: dict[Topic, str] = {"load": "Load held", "faults": "Faults survived", "inputs": "Inputs tried"}


class Recorded(Struct, frozen=True, forbid_unknown_fields=True):
    """One figure; `test` is the id of the test that found it."""

    topic: Topic
    what: str
    value: float | str
    outcome: str
    test: str


def read(figures: str) -> list[Recorded]:
    """What tests recorded. Raises `msgspec.ValidationError`."""
    return msgspec.json.decode(f"[{','.join(figures.splitlines())}]", type=list[Recorded])


def table(figures: Sequence[Recorded]) -> str:
    """The figures by topic, as Markdown, each with the file of its test."""
    lines = []
    for topic in get_args(Topic):
        if found := [one for one in figures if one.topic == topic]:
            lines += [f"### {_TITLES[topic]}", "", "| what was tried | figure | what came of it | test |"]
            lines += ["|---|---|---|---|", *map(_row, found), ""]
    return "\n".join(lines)


def render(page: str, figures: Sequence[Recorded], where: str) -> str:
    """The page with these figures; `where` says what they were found on."""
    head, begin, rest = page.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise LookupError(f"{FILE.name} has no place for the figures.")
    return f"{head}{begin}{where}\n\n{table(figures)}{end}{tail}"


def main() -> None:
    """Write the figures of one run into the page."""
    figures = read(Path(sys.argv[1]).read_text(encoding="utf-8"))
    where = f"One run on {os.cpu_count()} CPU cores, with Python {platform.python_version()}."
    FILE.write_text(render(FILE.read_text(encoding="utf-8"), figures, where), encoding="utf-8")


def _row(one: Recorded) -> str:
    file, _, name = one.test.partition("::")
    value = one.value if isinstance(one.value, str) else f"{one.value:,.12g}"
    cells = [one.what, value, one.outcome, f"[{name.partition('[')[0]}](../{file})"]
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


if __name__ == "__main__":
    main()
