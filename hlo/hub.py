"""Model hubs: references to what lies there, the lock file that pins it, and the local cache.

The only importer of huggingface_hub, whose own environment variables say where the hub and the cache are and how to
reach them: HF_ENDPOINT, HF_TOKEN, HF_HOME or HF_HUB_CACHE, HF_HUB_OFFLINE, HF_HUB_DISABLE_XET, HTTPS_PROXY.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import logging
import os
import re
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal
from urllib.parse import quote, unquote

import msgspec
from msgspec import Meta, Struct, field

from hlo.errors import HubError

SCHEME = "hf://"

logger = logging.getLogger("hlo")

# The special revisions may stand unencoded, as in huggingface_hub's `parse_hf_uri`.
_REFERENCE = re.compile(r"([^/@]*)/([^/@]*)(?:@(refs/(?:convert|pr)/[^/]+|[^/]*))?(?:/(.*))?", re.DOTALL)
_NAME = re.compile(r"\w(?:[\w.-]{0,94}\w)?", re.ASCII)
_OTHER_KINDS = ("models", "datasets", "spaces", "kernels", "buckets")
_NO_REVISION = re.compile(r"[\s\x00-\x1f\x7f~^:?*\[\\]|\.\.|//|@\{|^[/.-]|/\.|[/.]$")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_TIMEOUT_S = 30
_GIB = 2**30


class Reference(Struct, frozen=True):
    """A place on a model hub: a repository, a revision (None: the default branch), and a folder in it ("": its root).

    `str()` of it is `hf://org/repo@revision/folder`, with the revision percent-encoded.
    """

    repo: str
    revision: str | None = None
    folder: str = ""

    def __str__(self) -> str:
        revision = "" if self.revision is None else f"@{quote(self.revision, safe='')}"
        return f"{SCHEME}{self.repo}{revision}{'/' if self.folder else ''}{self.folder}"

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Read `hf://org/repo[@revision][/folder...]`, as huggingface_hub's HfFileSystem does. Raises `HubError`."""
        match = _REFERENCE.fullmatch(text.removeprefix(SCHEME))
        if not text.startswith(SCHEME) or match is None:
            raise _malformed(text, f"it is not `{SCHEME}org/repo@revision`")
        org, name, revision, folder = match[1], match[2], match[3], (match[4] or "").removesuffix("/")
        if org in _OTHER_KINDS:
            raise _malformed(text, f"`{org}/` is no organisation; only models are fetched, and without such a prefix")
        for part in (org, name):
            if not _NAME.fullmatch(part) or "--" in part or ".." in part or part.endswith(".git"):
                raise _malformed(text, f"`{part}` can not be the name of an organisation or a repository")
        if revision is not None:
            revision = unquote(revision)
            if not revision:
                raise _malformed(text, "nothing stands after the `@`")
            if _NO_REVISION.search(revision):
                raise _malformed(text, f"`{revision}` can not be a commit, a tag or a branch")
        if folder and not _safe(folder):
            raise _malformed(text, f"`{folder}` is no folder inside the repository")
        return cls(f"{org}/{name}", revision, folder)

    @classmethod
    def of_model(cls, name: str, revision: str | None = None) -> Reference:
        """Read a hub's `org/name`, or an `hf://` reference to a model. Raises `HubError`."""
        if name.startswith(SCHEME):
            reference = cls.parse(name)
            if revision and reference.revision:
                raise HubError(
                    f"`{name}` has a revision already; another is `{revision}`.",
                    remedy="Give the revision in one place only.",
                )
        else:
            reference = cls.parse(f"{SCHEME}{name}")
            if reference.folder or reference.revision is not None:
                raise _malformed(name, "a hub's model is `org/name`")
        return cls.parse(str(cls(reference.repo, revision or reference.revision, reference.folder)))

    @property
    def commit(self) -> str | None:
        """The revision, if it is a full commit, which never means anything else tomorrow."""
        return self.revision if self.revision and _COMMIT.fullmatch(self.revision) else None

    def at(self, commit: str) -> Reference:
        """The same place at one commit."""
        return Reference(self.repo, commit, self.folder)


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
        except (OSError, ValueError) as error:
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
                if not _safe(name):
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


class Remote(Struct, frozen=True):
    """What a hub says of a file: its size in bytes, the SHA-256 of one in Git LFS, and git's own hash of any other."""

    size: int
    sha256: str | None
    blob: str | None


class Plan(Struct, frozen=True):
    """What a fetch would need. `absent` are the files, of `files`, whose content is not in the cache yet."""

    reference: Reference
    commit: str
    files: Mapping[str, Remote]
    absent: frozenset[str]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files.values())

    @property
    def missing(self) -> int:
        """Bytes that are not in the cache yet."""
        return sum(self.files[name].size for name in self.absent)


class Snapshot(Struct, frozen=True):
    """A reference's files in the cache. `folder` is the reference's own, inside the repository's.

    Files in it are links; what they lead to lies in one of the folders of `boundary`.
    """

    folder: Path
    commit: str
    boundary: tuple[Path, ...]


class _Unreachable(HubError):
    """No hub answers; what is in the cache may still do."""


class Hub(Struct, frozen=True):
    """A model hub and its local cache, seen through a lock file; in production, only what is pinned is had from it.

    Pinned is what names a full commit, or stands in the lock file. None for `endpoint` and `cache` means what
    huggingface_hub takes from the environment.
    """

    lock: Lock = Lock()
    production: bool = False
    endpoint: str | None = None
    cache: Path | None = None
    _verified: set[tuple[str, str]] = field(default_factory=set)

    @classmethod
    def open(cls, lock_file: Path, *, production: bool) -> Hub:
        """The hub of the environment, seen through this lock file. Raises `HubError`."""
        return cls(Lock.read(lock_file), production)

    def snapshot(self, reference: Reference, patterns: Collection[str], ignore: Collection[str] = ()) -> Snapshot:
        """The files of `reference` that match one of `patterns` and none of `ignore`, fetched where they are missing.

        Patterns are relative to the reference's folder; `*` matches `/` too. What is pinned and complete in the cache
        is had without any network. Files whose hash the lock file has are verified, once for each `Hub`. Raises
        `HubError`.
        """
        locked = self.lock.references.get(str(reference))
        commit = locked.commit if locked else reference.commit
        if commit is None:
            commit = self._newest(reference)
        root = self._repository(reference) / "snapshots" / commit
        wanted = _Filter(reference.folder, patterns, ignore)
        if not self._complete(reference, root, wanted, locked):
            try:
                self.fetch(self.plan(reference.at(commit), patterns, ignore), locked)
            except _Unreachable:
                # Another program may have filled the cache, without a list of what belongs there.
                if locked or not any(wanted(name) for name in _names(root)):
                    raise
                logger.warning("%s: using what the cache has of it, since no hub can be reached", reference)
        if locked:
            self._verify(reference, root, {name: file for name, file in locked.files.items() if wanted(name)})
        folder = root / reference.folder
        return Snapshot(folder, commit, (self._repository(reference), self.folder / "blobs"))

    def plan(
        self,
        reference: Reference,
        patterns: Collection[str],
        ignore: Collection[str] = (),
        *,
        upgrade: bool = False,
    ) -> Plan:
        """Ask the hub what a fetch would need, and download nothing. Raises `HubError`.

        The commit is the one that the lock file has, or with `upgrade` what the reference means now.
        """
        locked = None if upgrade else self.lock.references.get(str(reference))
        wanted = _Filter(reference.folder, patterns, ignore)
        with self._mapped(reference):
            from huggingface_hub import HfApi

            info = HfApi(endpoint=self.endpoint).model_info(
                reference.repo,
                revision=locked.commit if locked else reference.revision,
                files_metadata=True,
                timeout=_TIMEOUT_S,
            )
        files = {
            one.rfilename: Remote(one.size or 0, one.lfs.sha256 if one.lfs else None, one.blob_id)
            for one in info.siblings or ()
            if _safe(one.rfilename) and wanted(one.rfilename)
        }
        if not files or info.sha is None:
            raise HubError(
                f"{reference} holds no file like {', '.join(f'`{pattern}`' for pattern in patterns)}.",
                remedy="Check the folder and the revision of the reference.",
            )
        repository = self._repository(reference)
        absent = frozenset(
            name
            for name, file in files.items()
            if not (repository / "snapshots" / info.sha / name).is_file()
            and not (repository / "blobs" / (file.sha256 or file.blob or "?")).is_file()
        )
        return Plan(reference, info.sha, files, absent)

    def fetch(self, plan: Plan, locked: Locked | None = None) -> Locked:
        """Download what is missing of a plan, with a progress bar, and verify all of it; returns what to lock.

        A file that is not what the hub says is fetched again, once. Files must also be what `locked` says, if it has
        them at this commit. Raises `HubError`.
        """
        self.check_room(plan.missing)
        root = self._repository(plan.reference) / "snapshots" / plan.commit
        wrong: dict[str, str] = {}
        for _ in range(2):
            with self._mapped(plan.reference):
                from huggingface_hub import snapshot_download

                snapshot_download(
                    plan.reference.repo,
                    revision=plan.commit,
                    cache_dir=self.folder,
                    endpoint=self.endpoint,
                    allow_patterns=[glob.escape(name) for name in plan.files],
                )
                wrong = {name: said for name, file in plan.files.items() if (said := _differs(root / name, file))}
                for name in wrong:
                    (root / name).resolve().unlink(missing_ok=True)
                    (root / name).unlink(missing_ok=True)
            if not wrong:
                break
        else:
            name, said = next(iter(wrong.items()))
            raise HubError(
                f"`{name}` of {plan.reference} at {plan.commit} is damaged, twice: {said}.",
                remedy="Try again later, or look for a proxy that changes downloads.",
            )
        if locked is not None and locked.commit == plan.commit:
            self._verify(plan.reference, root, {n: file for n, file in locked.files.items() if n in plan.files})
        with self._mapped(plan.reference):
            return Locked(
                plan.commit,
                {name: LockedFile(_sha256(root / name), (root / name).stat().st_size) for name in plan.files},
            )

    def check_room(self, missing: int) -> None:
        """Raise `HubError` when `missing` bytes do not fit where the cache lies."""
        free = self.free
        if missing > free:
            raise HubError(
                f"{missing / _GIB:.2f} GiB ({missing:,} bytes) are to be fetched, but `{self.folder}` has room for "
                f"{free / _GIB:.2f} GiB ({free:,} bytes).",
                remedy="Free some, or set HF_HOME to a folder on a larger disk.",
            )

    @property
    def folder(self) -> Path:
        """Where the cache lies."""
        from huggingface_hub import constants

        return Path(self.cache or constants.HF_HUB_CACHE).expanduser().resolve()

    @property
    def free(self) -> int:
        """Bytes that are free where the cache lies, or is going to lie."""
        folder = self.folder
        return shutil.disk_usage(next(one for one in (folder, *folder.parents) if one.is_dir())).free

    @property
    def url(self) -> str:
        """The hub's address."""
        from huggingface_hub import constants

        return self.endpoint or constants.ENDPOINT

    def _newest(self, reference: Reference) -> str:
        """The commit that an unpinned reference means now; without a hub, what it meant when last asked."""
        if self.production:
            raise HubError(
                f"{reference} is not pinned, which HLO_MODE=production asks for: it can mean something else tomorrow.",
                remedy=f"`hlo models fetch` writes `{self.lock.path}`, which pins it; or name a commit after the `@`.",
            )
        with self._mapped(reference):
            from huggingface_hub import HfApi

            commit = (
                HfApi(endpoint=self.endpoint)
                .resolve_revision(reference.repo, revision=reference.revision, cache_dir=self.folder)
                .resolved
            )
        logger.warning("%s is not pinned: taking commit %s; `hlo models fetch` writes a lock file", reference, commit)
        return commit

    def _repository(self, reference: Reference) -> Path:
        """The repository's folder in the cache."""
        return self.folder / f"models--{reference.repo.replace('/', '--')}"

    def _complete(self, reference: Reference, root: Path, wanted: _Filter, locked: Locked | None) -> bool:
        """Whether the cache is known to hold every wanted file of one commit."""
        from huggingface_hub import get_cached_repo_tree
        from huggingface_hub.errors import CachedRepoTreeNotFoundError

        if locked is not None:
            names: Iterable[str] = locked.files
        else:
            try:
                names = [
                    one.path for one in get_cached_repo_tree(reference.repo, revision=root.name, cache_dir=self.folder)
                ]
            except CachedRepoTreeNotFoundError:
                return False
        found = [(root / name).is_file() for name in names if wanted(name)]
        return bool(found) and all(found)

    def _verify(self, reference: Reference, root: Path, files: Mapping[str, LockedFile]) -> None:
        """Raise `HubError` when a file is not what the lock file says; hashes each file once."""
        for name, file in files.items():
            if (str(root / name), file.sha256) in self._verified:
                continue
            with self._mapped(reference):
                found = _sha256(root / name)
            if found != file.sha256:
                raise HubError(
                    f"`{root / name}` has the SHA-256 {found}; `{self.lock.path}` has {file.sha256} for {reference}.",
                    remedy="Do not serve it. `hlo models fetch` fetches a damaged file again; if it refuses too, ask "
                    "who changed it.",
                )
            self._verified.add((str(root / name), file.sha256))

    @contextmanager
    def _mapped(self, reference: Reference) -> Iterator[None]:
        """Turn whatever huggingface_hub raises into a `HubError`."""
        try:
            yield
        except Exception as error:  # its own errors, its HTTP client's and its native downloader's share no base
            raise self._explain(reference, error) from error

    def _explain(self, reference: Reference, error: Exception) -> HubError:
        """Say what went wrong; huggingface_hub's reason may be the cause of what it raised."""
        from huggingface_hub import errors

        chain: list[BaseException] = [error]
        while (cause := chain[-1].__cause__) is not None:
            chain.append(cause)

        def first(*kinds: type[BaseException]) -> BaseException | None:
            return next((one for one in chain if isinstance(one, kinds)), None)

        repo = f"{self.url}/{reference.repo}"
        if first(errors.OfflineModeIsEnabled):
            return _Unreachable(
                f"{reference} is not in the cache `{self.folder}`, and HF_HUB_OFFLINE forbids to ask the hub.",
                remedy="Fetch it with `hlo models fetch` where there is a network, or unset HF_HUB_OFFLINE.",
            )
        if first(errors.GatedRepoError):
            return HubError(
                f"{reference} is gated: the hub asks for its terms to be accepted.",
                remedy=f"Accept them at {repo}, and set HF_TOKEN to a token of that account.",
            )
        if first(errors.RevisionNotFoundError):
            return HubError(
                f"{reference.repo} has no revision `{reference.revision or 'main'}` on {self.url}.",
                remedy=f"Look at {repo}/commits for those that it has.",
            )
        if first(errors.RepositoryNotFoundError):
            return HubError(
                f"{self.url} has no repository `{reference.repo}`, or it is private.",
                remedy="Check the name; for a private one, set HF_TOKEN to a token that may read it.",
            )
        if (answer := first(errors.HfHubHTTPError)) is not None:
            return self._refused(reference, answer.response.status_code)  # type: ignore[attr-defined]
        full = next((one for one in chain if getattr(one, "errno", None) in (errno.ENOSPC, errno.EDQUOT)), None)
        if full is not None:
            return HubError(
                f"The disk of the cache `{self.folder}` is full; {reference} was not fetched in full.",
                remedy="Free some, or set HF_HOME to a folder on a larger disk; then fetch again.",
            )
        why = f"{type(chain[-1]).__name__}: {chain[-1]}"
        # Its HTTP client is another library from version 2 on; both times its error is imported there.
        if first(errors.HTTPError, ConnectionError, TimeoutError, errors.RevisionResolutionError):  # type: ignore[attr-defined]
            return _Unreachable(
                f"{self.url} can not be reached ({why}), and the cache `{self.folder}` does not hold {reference}.",
                remedy="Check the network, HTTPS_PROXY and HF_ENDPOINT; or fetch it elsewhere and copy the cache.",
            )
        return HubError(
            f"{reference} can not be fetched into `{self.folder}`: {why}.",
            remedy="Check that this user may write there, and fetch again.",
        )

    def _refused(self, reference: Reference, status: int) -> HubError:
        """What an HTTP status of the hub means."""
        if status in (401, 403):
            return HubError(
                f"{self.url} refuses access to {reference} (HTTP {status}).",
                remedy="Set HF_TOKEN to a token that may read it; is the present one expired?",
            )
        if status == 404:
            return HubError(f"{self.url} does not have {reference} (HTTP 404).", remedy="Check the reference.")
        kind = _Unreachable if status >= 500 or status == 429 else HubError
        return kind(f"{self.url} answered HTTP {status} for {reference}.", remedy="Try again later.")


class _Filter(Struct, frozen=True):
    """Chooses files of a repository by their path."""

    folder: str
    patterns: Collection[str]
    ignore: Collection[str]

    def __call__(self, name: str) -> bool:
        if self.folder:
            if not name.startswith(f"{self.folder}/"):
                return False
            name = name[len(self.folder) + 1 :]
        if any(fnmatchcase(name, pattern) for pattern in self.ignore):
            return False
        return any(fnmatchcase(name, pattern) for pattern in self.patterns)


def _safe(path: str) -> bool:
    """Whether a path stays inside the folder that it is relative to."""
    parts = path.split("/")
    return path.isprintable() and "\\" not in path and not any(part in ("", ".", "..") for part in parts)


def _malformed(text: str, why: str) -> HubError:
    return HubError(
        f"`{text}` is no reference to a model hub: {why}.",
        remedy=f"Write `{SCHEME}org/repo@commit`, with a folder of the repository after it where there is one.",
    )


def _no_lock(path: Path, why: str) -> HubError:
    return HubError(
        f"The lock file `{path}` can not be used: {why}.",
        remedy="Restore it from version control, or delete it and run `hlo models fetch`.",
    )


def _names(root: Path) -> Iterator[str]:
    """The files below a folder, by their path in it."""
    for path in root.rglob("*"):
        if path.is_file():
            yield PurePosixPath(path.relative_to(root)).as_posix()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _differs(path: Path, file: Remote) -> str:
    """How a file differs from what the hub says of it; "" when it does not."""
    if (size := path.stat().st_size) != file.size:
        return f"it has {size:,} bytes; the hub says {file.size:,}"
    if file.sha256 is not None:
        found = _sha256(path)
        return "" if found == file.sha256 else f"it has the SHA-256 {found}; the hub says {file.sha256}"
    content = path.read_bytes()
    found = hashlib.sha1(f"blob {len(content)}\0".encode() + content, usedforsecurity=False).hexdigest()
    return "" if file.blob in (None, found) else f"it has the git hash {found}; the hub says {file.blob}"
