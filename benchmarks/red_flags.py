"""Does `hlo-redflags` see emergencies, and how often does it cry wolf? Recall and false alarms, per kind.

Reads benchmarks/data/red_flags.jsonl, or a file of the same columns (`question`, `emergency`, `kind`) that is named as
an argument. A question counts as seen when it gets any notice: which notice is a matter of its own (`right notice`).
False alarms are also counted on own_words_dev.jsonl, less those questions that own_words_red_flags.jsonl calls an
emergency or urgent. Intervals are Wilson's (1927), 95 %.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
from hlo_redflags.rules import RULES
from msgspec import Struct

from benchmarks.report import tell

DATA = Path(__file__).parent / "data"
Z95 = 1.959964  # the 97.5 % point of the normal distribution


class Labelled(Struct, frozen=True):
    """A question, whether it tells of an emergency, and of which kind (or what it only looks like)."""

    question: str
    emergency: bool
    kind: str | None = None


class Judged(Struct, frozen=True):
    """A question of own_words_dev.jsonl that is no routine: `emergency`, or `urgent` (a notice does no harm)."""

    question: str
    level: str


class Asked(Struct, frozen=True):
    """The part of a row of own_words_dev.jsonl that matters here."""

    question: str


def wilson(hits: int, total: int) -> tuple[float, float]:
    """The 95 % interval of a proportion, in [0, 1]; (0, 1) when nothing was counted."""
    if not total:
        return 0.0, 1.0
    share, square = hits / total, Z95**2
    middle = (share + square / (2 * total)) / (1 + square / total)
    half = Z95 / (1 + square / total) * math.sqrt(share * (1 - share) / total + square / (4 * total**2))
    return max(0.0, middle - half), min(1.0, middle + half)


def row(measure: str, kind: str, hits: int, total: int, right: int | str = "") -> dict[str, object]:
    """One row of the table; shares in per cent."""
    low, high = wilson(hits, total)
    return {
        "measure": measure,
        "kind": kind,
        "hits": hits,
        "of": total,
        "%": f"{100 * hits / total:.1f}" if total else "",
        "95 % interval": f"{100 * low:.1f} - {100 * high:.1f}",
        "right notice": right,
    }


def measure(questions: Sequence[Labelled]) -> Iterator[dict[str, object]]:
    """Recall of emergencies and false alarms of the others, together and per kind."""
    for name, wanted in (("recall", True), ("false alarms", False)):
        some = [one for one in questions if one.emergency is wanted]
        found = [RULES.find(one.question) for one in some]
        for kind in ("all", *sorted({one.kind or "" for one in some})):
            mine = [(one, told) for one, told in zip(some, found, strict=True) if kind in ("all", one.kind or "")]
            right = sum(bool(told) and told[0] == one.kind for one, told in mine)
            yield row(name, kind, sum(bool(told) for _, told in mine), len(mine), right if wanted else "")


def own_words() -> Iterator[dict[str, object]]:
    """False alarms on the routine questions of own_words_dev.jsonl, and what is said of the others."""
    levels = {one.question: one.level for one in read(DATA / "own_words_red_flags.jsonl", Judged)}
    counts: dict[str, list[bool]] = {"routine": [], "urgent": [], "emergency": []}
    for one in read(DATA / "own_words_dev.jsonl", Asked):
        counts[levels.get(one.question, "routine")].append(bool(RULES.find(one.question)))
    for level, told in counts.items():
        name = {"routine": "false alarms", "urgent": "notices", "emergency": "recall"}[level]
        yield row(name, f"own_words_dev: {level}", sum(told), len(told))


def read(path: Path, kind: type[Any]) -> Iterable[Any]:
    """The records of a file of JSON lines."""
    return msgspec.json.Decoder(kind).decode_lines(path.read_bytes())


def run(path: Path) -> None:
    """Measure, and tell."""
    rows = [*measure(list(read(path, Labelled))), *own_words()]
    tell("red_flags", f"Does hlo-redflags see emergencies, and how often does it cry wolf? ({path.name})", rows)


if __name__ == "__main__":
    run(Path(sys.argv[1]) if len(sys.argv) > 1 else DATA / "red_flags.jsonl")
