"""The lock file: what references meant, and the hashes of what came, when `hlo models fetch` fetched it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct, field

from hlo.errors import HubError
from hlo.hub.reference import Reference, is_safe


class LockedFile(Struct, frozen=True, forbid_unknown_fields=True):
    """What was fetched of one file; `size` is in bytes."""

    sha256: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
    size: Annotated[int, Meta(ge=0)]


class Locked(Struct, frozen=True, forbid_unknown_fields=True):
    """What one reference meant when it was fetched; files are named by their path in the repository."""

    commit: Annotated[str, Meta(pattern="^[0-9a-f]{40}$")]
    files: dict[str, LockedFile]


class _LockFile(Struct, frozen=True, forbid_unknown_fields=True):
    version: Literal[1]
    references: dict[str, Locked]


class Lock(Struct, frozen=True):
    """The lock file: what every reference meant when `hlo models fetch` fetched it. `path` is for messages."""

    references: Mapping[str, Locked] = field(default_factory=dict)
    path: Path = Path("hlo.lock")

    @classmethod
    def read(cls, path: Path) -> Lock:
        """Read a lock file; one that is not there holds nothing. Raises `HubError` naming the file and the place."""
        path = path.expanduser()
        try:
            found = msgspec.json.decode(path.read_bytes(), type=_LockFile)
        except FileNotFoundError:
            return cls({}, path)
        except (OSError, ValueError, RecursionError) as error:
            raise _no_lock(path, f"{error}") from error
        for text, locked in found.references.items():
            place = f"$.references[`{text}`]"
            try:
                reference = Reference.parse(text)
            except HubError as error:
                raise _no_lock(path, f"{error.message} - at `{place}`") from error
            if reference.commit not in (None, locked.commit):
                raise _no_lock(path, f"the reference names another commit - at `{place}.commit`")
            for name in locked.files:
                if not is_safe(name):
                    raise _no_lock(path, f"`{name}` is no path inside a repository - at `{place}.files`")
        return cls(found.references, path)

    def write(self) -> None:
        """Write the lock file, whole or not at all. Raises `HubError`."""
        content = msgspec.json.encode(_LockFile(1, dict(self.references)), order="sorted")
        partial = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        try:
            with partial.open("wb") as file:
                file.write(msgspec.json.format(content, indent=2) + b"\n")
                file.flush()
                os.fsync(file.fileno())
            partial.replace(self.path)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise HubError(
                f"The lock file `{self.path}` can not be written: {error.strerror}.",
                remedy="Set HLO_LOCK_FILE to a place where this user may write.",
            ) from error

    def having(self, reference: Reference, locked: Locked) -> Lock:
        """The lock with this reference too; files that were locked at the same commit before stay."""
        before = self.references.get(str(reference))
        if before is not None and before.commit == locked.commit:
            locked = Locked(locked.commit, before.files | locked.files)
        return Lock({**self.references, str(reference): locked}, self.path)


def _no_lock(path: Path, why: str) -> HubError:
    return HubError(
        f"The lock file `{path}` can not be used: {why}.",
        remedy="Restore it from version control, or delete it and run `hlo models fetch`.",
    )
