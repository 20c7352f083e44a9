"""A model hub and its local cache: what is there, what a fetch would need, the fetch itself, and its verification."""

from __future__ import annotations

import glob
import hashlib
import logging
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from msgspec import Struct, field

from hlo.errors import HubError
from hlo.hub.failures import Unreachable, explain
from hlo.hub.lock import Lock, Locked, LockedFile
from hlo.hub.reference import Reference, is_safe

logger = logging.getLogger("hlo")

_TIMEOUT_S = 30
_GIB = 2**30


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
            except Unreachable:
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
            if is_safe(one.rfilename) and wanted(one.rfilename)
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
            raise explain(reference, error, self.url, self.folder) from error


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
