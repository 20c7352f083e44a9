"""References to what lies on a model hub: `hf://org/repo@revision/folder`."""

from __future__ import annotations

import re
from urllib.parse import quote, unquote

from msgspec import Struct

from hlo.errors import HubError

SCHEME = "hf://"

# The special revisions may stand unencoded, as in huggingface_hub's `parse_hf_uri`.
_REFERENCE = re.compile(r"([^/@]*)/([^/@]*)(?:@(refs/(?:convert|pr)/[^/]+|[^/]*))?(?:/(.*))?", re.DOTALL)
_NAME = re.compile(r"\w(?:[\w.-]{0,94}\w)?", re.ASCII)
_OTHER_KINDS = ("models", "datasets", "spaces", "kernels", "buckets")
_NO_REVISION = re.compile(r"[\s\x00-\x1f\x7f~^:?*\[\\]|\.\.|//|@\{|^[/.-]|/\.|[/.]$")
_COMMIT = re.compile(r"[0-9a-f]{40}")


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
        if folder and not is_safe(folder):
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


def is_safe(path: str) -> bool:
    """Whether a path stays inside the folder that it is relative to."""
    parts = path.split("/")
    return path.isprintable() and "\\" not in path and not any(part in ("", ".", "..") for part in parts)


def _malformed(text: str, why: str) -> HubError:
    return HubError(
        f"`{text}` is no reference to a model hub: {why}.",
        remedy=f"Write `{SCHEME}org/repo@commit`, with a folder of the repository after it where there is one.",
    )
