"""The audit log: one line for each answer, that nobody without the key can change, add or take out unseen.

A line is a JSON object. Its last member, `mac`, is a keyed hash (HMAC-SHA256, RFC 2104) of all bytes before it, among
them the number of the record and the `mac` of the one before (B. Schneier and J. Kelsey, "Cryptographic Support for
Secure Logs on Untrusted Machines", USENIX Security 1998). The question is a keyed hash, never its words.
"""

from __future__ import annotations

import errno
import hashlib
import hmac
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

import msgspec
from msgspec import Struct

from hlo.errors import AuditError, SettingsError
from hlo.records import AdapterVersion, Route, Score, Usage

try:
    import fcntl
except ImportError:  # Windows: nothing keeps a second server from the same file there
    fcntl = None  # type: ignore[assignment]

_SCORES = 5  # of the nearest specialties that a record keeps
_MAC = b',"mac":"'
_MAC_END = b'"}'


class Record(Struct, frozen=True):
    """One answer. `time` is UTC (RFC 3339), `question` a keyed hash, `previous` the `mac` of the record before.

    `outcome` is `stop` or `length` for a whole answer, `abort`, `refused` or `error` for what became none. `caller` is
    the id of the caller's key, `adapter` and `adapter_sha256` say which weights answered (None: the base model's own).
    """

    number: int
    time: str
    trace_id: str
    caller: str | None
    specialty: str | None
    adapter: str | None
    adapter_sha256: str | None
    model: str
    route: str | None
    pinned_by: str | None
    scores: tuple[Score, ...]
    prompt_tokens: int
    completion_tokens: int
    outcome: str
    question: str
    previous: str


class Head(Struct, frozen=True):
    """The last record: its number and `mac`. Kept beside the log, it tells when records at the end are gone."""

    number: int = 0
    mac: str = ""


class Keys:
    """What is derived from the operator's key: one key for lines, one for heads, one for questions."""

    def __init__(self, secret: str) -> None:
        self._keys = {use: _hmac(secret.encode(), f"hlo audit {use}".encode()) for use in ("line", "head", "question")}

    def mac(self, use: str, content: bytes) -> str:
        """The keyed hash of `content`, in hexadecimal."""
        return _hmac(self._keys[use], content).hex()

    def question(self, text: str) -> str:
        """The keyed hash of a question: the same for the same words, and of no use without the key."""
        return self.mac("question", text.encode())

    def sealed(self, record: Record) -> bytes:
        """A record's line, without the line break."""
        content = msgspec.json.encode(record)[:-1]
        return content + _MAC + self.mac("line", content).encode() + _MAC_END

    def opened(self, line: bytes) -> tuple[Record, str] | None:
        """A line's record and `mac`; None where the `mac` is not that of the rest. Raises ValueError for no record."""
        content, found, rest = line.rpartition(_MAC)
        if not found or not rest.endswith(_MAC_END):
            raise ValueError("not a whole record")
        try:
            record = msgspec.json.decode(content + b"}", type=Record)
        except RecursionError as error:
            raise ValueError("nested too deep for a record") from error
        given = rest.removesuffix(_MAC_END)
        return (record, given.decode()) if hmac.compare_digest(given, self.mac("line", content).encode()) else None

    def head(self, head: Head) -> bytes:
        """What the file with the head holds."""
        content = msgspec.json.encode(head)[:-1]
        return content + b',"seal":"' + self.mac("head", content).encode() + _MAC_END


class Audit:
    """Appends to an audit log. One process has it at a time."""

    def __init__(self, path: Path, keys: Keys, file: BinaryIO, head: Head, max_bytes: int) -> None:
        self._path = path
        self._keys = keys
        self._file = file
        self._head = head
        self._max_bytes = max_bytes

    @classmethod
    def open(cls, path: Path, secret: str, max_bytes: int) -> Audit:
        """Open a log, or begin one. Raises `SettingsError` where another server has it, or another key wrote it."""
        keys = Keys(secret)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = _locked(path)
            try:
                return cls(path, keys, file, _last(path, keys), max_bytes)
            except BaseException:
                file.close()
                raise
        except BlockingIOError as error:
            raise SettingsError(
                f"HLO_AUDIT_LOG: another server writes to `{path}`.",
                remedy="Give each server a log of its own, or stop the other one.",
            ) from error
        except OSError as error:
            raise SettingsError(
                f"HLO_AUDIT_LOG: `{path}` can not be written: {error.strerror}.",
                remedy="Let the server's user write there, and make room where the disk is full.",
            ) from error

    @property
    def head(self) -> Head:
        """The last record."""
        return self._head

    def append(
        self,
        question: str,
        *,
        trace_id: str,
        route: Route | None,
        specialty: str | None,
        adapter: AdapterVersion | None,
        model: str,
        usage: Usage,
        outcome: str,
        caller: str | None = None,
    ) -> None:
        """Record an answer, or what became none. Raises `AuditError` where it can not be written."""
        record = Record(
            number=self._head.number + 1,
            time=datetime.now(UTC).isoformat(timespec="milliseconds"),
            trace_id=trace_id,
            caller=caller,
            specialty=specialty,
            adapter=adapter.name if adapter else None,
            adapter_sha256=adapter.sha256 if adapter else None,
            model=model,
            route=route.status if route else None,
            pinned_by=route.pinned_by if route else None,
            scores=route.scores[:_SCORES] if route else (),
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            outcome=outcome,
            question=self._keys.question(question),
            previous=self._head.mac,
        )
        line = self._keys.sealed(record)
        head = Head(record.number, line.rpartition(_MAC)[2].removesuffix(_MAC_END).decode())
        try:
            if self._file.tell() >= self._max_bytes:
                self._rotate()
            with _whole_or_not_at_all(self._file):
                if (written := self._file.write(line + b"\n")) <= len(line):  # a full disk takes a part, and says so
                    raise OSError(errno.ENOSPC, f"only {written} of {len(line) + 1} bytes could be written")
                _replace(head_path(self._path), self._keys.head(head))
            self._head = head
        except OSError as error:
            raise AuditError(
                f"The answer could not be recorded in the audit log: {error.strerror}.",
                remedy="Make room where HLO_AUDIT_LOG is, or let the server write there.",
            ) from error

    def close(self) -> None:
        """Write what the operating system still holds, and let others have the log."""
        with suppress(OSError):  # a pipe or a device has nothing to be written out
            os.fsync(self._file.fileno())
        self._file.close()

    def _rotate(self) -> None:
        first = next(_numbers(self._path, self._keys), self._head.number)
        os.fsync(self._file.fileno())
        away = self._path.with_suffix(f".{first:012}{self._path.suffix}")
        self._path.rename(away)
        try:
            fresh = _locked(self._path)
        except OSError:
            away.rename(self._path)
            raise
        self._file.close()
        self._file = fresh


def files(path: Path) -> list[Path]:
    """The files of a log, oldest first: those that were rotated away, then the one that is written to."""
    rotated = sorted(path.parent.glob(f"{path.stem}.{'[0-9]' * 12}{path.suffix}"))
    return [*rotated, *([path] if path.exists() else [])]


def head_path(path: Path) -> Path:
    """Where a log's head is kept."""
    return path.with_name(f"{path.name}.head")


def _hmac(key: bytes, content: bytes) -> bytes:
    return hmac.new(key, content, hashlib.sha256).digest()


def _locked(path: Path) -> BinaryIO:
    """The file, for appending, as nobody else's."""
    file = open(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600), "ab", buffering=0)  # noqa: SIM115
    try:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise
    file.seek(0, os.SEEK_END)
    return file


@contextmanager
def _whole_or_not_at_all(file: BinaryIO) -> Iterator[None]:
    """Take back what was appended inside the block when that fails: an answer that is not given was not recorded."""
    size = file.tell()
    try:
        yield
    except OSError:
        with suppress(OSError):  # a pipe or a device can not take back
            file.truncate(size)
            file.seek(size)
        raise


def _last(path: Path, keys: Keys) -> Head:
    """The last whole record of a log. A line that a crash cut off is ended, so that the next one stands by itself."""
    for file in reversed(files(path)):
        content = file.read_bytes()
        if content and not content.endswith(b"\n"):
            with file.open("ab") as torn:
                torn.write(b"\n")
        for line in reversed(content.split(b"\n")):
            try:
                found = keys.opened(line)
            except ValueError:
                continue
            if found is None:
                raise SettingsError(
                    f"HLO_AUDIT_LOG: the last record of `{file}` was changed, or written with another HLO_AUDIT_KEY.",
                    remedy="`hlo audit verify` says which; a new log can be begun at another place.",
                )
            return Head(found[0].number, found[1])
    return Head()


def _numbers(path: Path, keys: Keys) -> Iterator[int]:
    """The numbers of the records in a file."""
    with path.open("rb") as lines:
        for line in lines:
            with suppress(ValueError):
                if (found := keys.opened(line.rstrip(b"\n"))) is not None:
                    yield found[0].number


def _replace(path: Path, content: bytes) -> None:
    """Write a small file whole or not at all."""
    made = path.with_name(f"{path.name}.new")
    made.write_bytes(content)
    made.replace(path)
