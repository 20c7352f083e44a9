"""API keys: who may ask, who may administer, and how much. The file that they are kept in holds no key, only hashes.

A key is `hlo_ID_SECRET`. Its secret is 256 random bits, of which the SHA-256 is kept. Slow hashes (argon2, bcrypt) make
guessing dear where people choose the secret; nobody guesses one of 2**256, and a slow hash at each request would only
be a way to keep the server busy.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from hlo.errors import HLOError, SettingsError

try:
    import fcntl
except ImportError:  # Windows: two commands at once could undo each other's change there
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger("hlo")

Role = Literal["ask", "admin"]

_Hash = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
_AtLeastOne = Annotated[int, Meta(ge=1)]


class Key(Struct, frozen=True, forbid_unknown_fields=True):
    """What is kept of a key. `admin` may all that `ask` may, and more. Times are UTC (RFC 3339).

    `rate` is how many requests a minute it may make, `concurrent` how many at once; None: as many as it likes.
    """

    id: Annotated[str, Meta(pattern="^[0-9a-z]+$")]
    name: str
    role: Role
    sha256: _Hash
    created: str
    rate: _AtLeastOne | None = None
    concurrent: _AtLeastOne | None = None
    revoked: str | None = None

    @property
    def live(self) -> bool:
        """Whether it opens anything."""
        return self.revoked is None


class _File(Struct, frozen=True, forbid_unknown_fields=True):
    keys: tuple[Key, ...] = ()


class Keyring:
    """The keys of a file, read again whenever the file has changed.

    Without any key everything is open to who can reach the server. Once there has been one, nothing is any more, even
    when the last key is revoked or the file is lost.
    """

    def __init__(self, path: Path) -> None:
        """Read the file; one that is not there has no keys. Raises `SettingsError`."""
        self._path = path
        self._seen = _signature(path)
        self._keys = _live(read(path))
        self._closed = bool(self._keys)

    @property
    def closed(self) -> bool:
        """Whether a key is needed."""
        return self._closed

    def refresh(self) -> None:
        """Read the file again if it has changed. What can not be read changes nothing, and the log says why."""
        seen = _signature(self._path)
        if seen == self._seen:
            return
        self._seen = seen
        try:
            self._keys = _live(read(self._path))
        except HLOError as error:
            logger.error("the keys stay as they were: %s", error)
            return
        self._closed = self._closed or bool(self._keys)
        logger.info("keys: %d in force, read from %s", len(self._keys), self._path)

    def find(self, given: str) -> Key | None:
        """The key that was given, if it is in force. Takes as long for an unknown id as for a wrong secret."""
        number, _, secret = given.removeprefix("hlo_").partition("_")
        found = self._keys.get(number)
        wanted = found.sha256 if found else _NOBODYS
        return found if hmac.compare_digest(_hash(secret), wanted) else None


def make(name: str, role: Role, rate: int | None = None, concurrent: int | None = None) -> tuple[Key, str]:
    """A new key: what is to be kept of it, and the key itself, which is nowhere else."""
    number, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
    return Key(number, name, role, _hash(secret), _now(), rate, concurrent), f"hlo_{number}_{secret}"


def read(path: Path) -> tuple[Key, ...]:
    """The keys in a file, revoked ones too; none where there is no file. Raises `SettingsError`."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=_File).keys
    except FileNotFoundError:
        return ()
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise SettingsError(
            f"The keys in `{path}` can not be read: {error}.",
            remedy="Let the server's user read it, or put back what `hlo keys` wrote.",
        ) from error


def add(path: Path, key: Key) -> None:
    """Add a key to a file. Raises `SettingsError` where one of that name is in force."""
    with _changing(path) as keys:
        if any(one.live and one.name == key.name for one in keys):
            raise SettingsError(
                f"There is a key `{key.name}` already.", remedy="Choose another name, or revoke that one first."
            )
        keys.append(key)


def revoke(path: Path, which: str) -> Key:
    """Revoke the key of that id or name. Raises `SettingsError` where no such key is in force."""
    with _changing(path) as keys:
        for number, one in enumerate(keys):
            if one.live and which in (one.id, one.name):
                keys[number] = revoked = msgspec.structs.replace(one, revoked=_now())
                return revoked
    raise SettingsError(f"No key `{which}` is in force in `{path}`.", remedy="`hlo keys list` shows them.")


@contextmanager
def _changing(path: Path) -> Iterator[list[Key]]:
    """The keys of a file, to be changed by one process at a time; written whole or not at all."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(os.open(path.with_name(f"{path.name}.lock"), os.O_RDWR | os.O_CREAT, 0o600), "rb") as lock:
            if fcntl is not None:
                fcntl.flock(lock, fcntl.LOCK_EX)
            keys = list(read(path))
            yield keys
            _write(path, msgspec.json.format(msgspec.json.encode(_File(tuple(keys)))) + b"\n")
    except OSError as error:
        raise SettingsError(
            f"The keys in `{path}` can not be written: {error.strerror}.", remedy="Choose another HLO_KEYS_FILE."
        ) from error


def _write(path: Path, content: bytes) -> None:
    made = path.with_name(f"{path.name}.new")
    made.unlink(missing_ok=True)  # its mode would stay
    with open(os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    with suppress(FileNotFoundError, PermissionError):  # what root changes must stay the server's to read
        before = path.stat()
        os.chown(made, before.st_uid, before.st_gid)
    made.replace(path)


def _signature(path: Path) -> tuple[int, int, int] | None:
    """What changes with the file; not its time alone, since clocks jump."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def _live(keys: tuple[Key, ...]) -> dict[str, Key]:
    return {key.id: key for key in keys if key.live}


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


_NOBODYS = _hash(secrets.token_urlsafe(32))
