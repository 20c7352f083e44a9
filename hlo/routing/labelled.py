"""Labelled questions: JSON lines that say which specialty ought to get each question, or that none fits."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from pathlib import Path

from msgspec import Struct

from hlo.errors import SettingsError

_REMEDY = 'Write {"question": "…", "specialty": "…"} in each line, with null where no specialty fits.'


class Labelled(Struct, frozen=True):
    """A question and the specialty that ought to get it (None: no specialty fits), and those that are right too.

    `line` is its line in the file that it was read from, counted from 1; 0: it was in none.
    """

    text: str
    specialty: str | None
    also: tuple[str, ...] = ()
    line: int = 0

    def accepts(self, place: str | None) -> bool:
        """Whether this specialty, or none of them (None), is right."""
        return place == self.specialty or place in self.also


def read(file: Path, *, partly: bool = False) -> tuple[Labelled, ...]:
    """The questions of a file of JSON lines `{"question": …, "specialty": name or null, "also": [names]}`.

    Other keys are ignored, and a question that is repeated with the same label counts once. With `partly`, `specialty`
    may be left out. Raises `SettingsError` with the file and the line's number, and never its words.
    """
    found: dict[str, Labelled] = {}
    for number, line in lines(file):
        one = _decode(file, number, line, partly=partly)
        first = found.setdefault(one.text, one)
        if (first.specialty, set(first.also)) != (one.specialty, set(one.also)):
            raise SettingsError(
                f"Line {number} of `{file}` repeats the question of line {first.line} with another label.",
                remedy='Keep one of them; name further specialties that are right in "also".',
            )
    return tuple(found.values())


def lines(file: Path) -> tuple[tuple[int, str], ...]:
    """The lines that are not empty, with their numbers from 1. Raises `SettingsError`."""
    try:
        told = file.read_text(encoding="utf-8-sig").split("\n")  # not at U+2028, which JSON may hold
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise SettingsError(f"`{file}` can not be read: {reason}.", remedy="Save the questions in UTF-8.") from error
    return tuple((number, line.strip()) for number, line in enumerate(told, 1) if line.strip())


def refuse_strangers(file: Path, questions: Iterable[Labelled], names: Collection[str]) -> None:
    """Raise `SettingsError` for the first label that is none of the specialties `names`."""
    for one in questions:
        for name in (one.specialty, *one.also):
            if name is not None and name not in names:
                installed = ", ".join(sorted(names)) or "none"
                raise SettingsError(
                    f"Line {one.line} of `{file}` names the specialty `{name}`, which is not installed.",
                    remedy=f"Install it, or write null where none fits. Installed: {installed}.",
                )


def _decode(file: Path, number: int, line: str, *, partly: bool) -> Labelled:
    try:
        told = json.loads(line)
        json.dumps(told, ensure_ascii=False).encode()  # JSON can hold lone surrogates, which no encoder takes
    except (ValueError, RecursionError):
        told = None
    if not (isinstance(told, dict) and isinstance(told.get("question"), str) and told["question"].strip()):
        raise SettingsError(f"Line {number} of `{file}` is no question.", remedy=_REMEDY)
    if not partly and "specialty" not in told:
        raise SettingsError(f"Line {number} of `{file}` has no `specialty`.", remedy=_REMEDY)
    specialty, also = told.get("specialty"), told.get("also") or []
    if not (specialty is None or (isinstance(specialty, str) and specialty)):
        raise SettingsError(f"The `specialty` in line {number} of `{file}` is no name and not null.", remedy=_REMEDY)
    if not (isinstance(also, list) and all(isinstance(name, str) and name for name in also)):
        raise SettingsError(
            f"The `also` in line {number} of `{file}` is no list of names.", remedy='Write "also": ["…"].'
        )
    return Labelled(told["question"], specialty, tuple(also), number)
