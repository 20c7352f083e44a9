"""Writes the table of metrics in docs/observability.md: `python -m docs.metrics`, or `nox -s docs`."""

from __future__ import annotations

from pathlib import Path

from hlo.telemetry.families import COUNTED, STANDING, Family

FILE = Path(__file__).with_name("observability.md")
BEGIN, END = "<!-- metrics: written by `nox -s docs` -->\n", "<!-- end of metrics -->"
_SUFFIXES = {"counter": "_total", "info": "_info"}


def table() -> str:
    """Every metric of HLO's own, as Markdown."""
    lines = ["| metric | kind | labels | what it tells |", "|---|---|---|---|"]
    for family in (*COUNTED, *STANDING):
        labels = ", ".join(f"`{label}`" for label in family.labels)
        lines.append(f"| `{_name(family)}` | {_kind(family)} | {labels} | {family.text} |")
    return "\n".join(lines) + "\n"


def render(page: str) -> str:
    """The page with the table as it should be."""
    head, _, rest = page.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not end:
        raise LookupError(f"{FILE.name} has no place for the table of metrics.")
    return f"{head}{BEGIN}{table()}{end}{tail}"


def main() -> None:
    """Write the table into the page."""
    FILE.write_text(render(FILE.read_text(encoding="utf-8")), encoding="utf-8")


def _name(family: Family) -> str:
    return family.name + _SUFFIXES.get(family.kind, "")


def _kind(family: Family) -> str:
    return f"{family.kind}, exemplars" if family.exemplars else family.kind


if __name__ == "__main__":
    main()
