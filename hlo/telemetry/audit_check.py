"""Checks an audit log: whether a line was changed, added, taken out or cut off."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
from msgspec import Struct

from hlo.telemetry.audit import Head, Keys, Record, files, head_path


class Fault(Struct, frozen=True):
    """Something that is wrong with a log: in which file and line (0: none in particular), and what."""

    file: str
    line: int
    what: str


class Checked(Struct, frozen=True):
    """What was found: how many records are as they were written, the first one's number, the last one, and faults."""

    records: int
    first: int
    last: Head
    faults: tuple[Fault, ...]


def check(path: Path, secret: str, *, after: int = 0, expected: Head | None = None) -> Checked:
    """Check every line of a log and of what was rotated away from it.

    `after` is the number of the last record that was archived elsewhere. `expected` is a record that was noted down
    earlier, and must be there still: without one, whoever can put back an old log with its head is not found out.
    """
    keys, walk = Keys(secret), _Walk(after)
    for file in files(path):
        with file.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                walk.take(file, number, line.rstrip(b"\n"), keys)
                if expected is not None and walk.last == expected:
                    expected = None
    walk.faults += _end(path, keys, walk.last, expected)
    return Checked(walk.records, walk.first, walk.last, tuple(walk.faults))


class _Walk:
    """Goes through the lines in order."""

    def __init__(self, after: int) -> None:
        self.records = 0
        self.first = 0
        self.faults: list[Fault] = []
        self.last = Head(after)
        self._trusted = after == 0  # whether `last.mac` is known

    def take(self, file: Path, number: int, line: bytes, keys: Keys) -> None:
        """Look at one line."""
        try:
            found = keys.opened(line)
        except (ValueError, UnicodeDecodeError):
            self.faults.append(Fault(str(file), number, "this is no whole record"))
            return
        if found is None:
            self.faults.append(Fault(str(file), number, "this record was changed, or written with another key"))
            self.last, self._trusted = Head(self.last.number + 1), False
            return
        record, mac = found
        self.faults += [Fault(str(file), number, what) for what in self._breaks(record)]
        self.records += 1
        self.first = self.first or record.number
        self.last, self._trusted = Head(record.number, mac), True

    def _breaks(self, record: Record) -> Iterator[str]:
        """What keeps a record from being the next one."""
        missing = record.number - self.last.number - 1
        if missing > 0:
            yield f"{missing} {'record is' if missing == 1 else 'records are'} missing before this one"
        elif missing < 0:
            yield f"record {record.number} comes again, or too late"
        elif self._trusted and record.previous != self.last.mac:
            yield "this record does not follow the one before it"


def _end(path: Path, keys: Keys, last: Head, expected: Head | None) -> Iterator[Fault]:
    """What is wrong with the end of a log."""
    if expected is not None:
        yield Fault(str(path), 0, f"record {expected.number} is not the one that was noted down")
    file = head_path(path)
    if not file.exists():
        if last.number:
            yield Fault(str(file), 0, "the head is missing: whether records at the end are gone can not be told")
        return
    content = file.read_bytes()
    try:
        head = msgspec.json.decode(content, type=Head)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        head = None
    if head is None or keys.head(head) != content:
        yield Fault(str(file), 0, "the head was changed, or written with another key")
    elif head.number > last.number:
        gone = head.number - last.number
        yield Fault(str(path), 0, f"{gone} {'record is' if gone == 1 else 'records are'} missing at the end")
