"""A stub of a model hub that speaks as much HTTP as huggingface_hub asks for."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from hlo.hub import Hub, Lock

_LFS = (".safetensors", ".bin", ".model")


def sha256(content: bytes) -> str:
    """The SHA-256 of some bytes, as hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def _git(content: bytes) -> str:
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content, usedforsecurity=False).hexdigest()


@dataclass(frozen=True)
class Asked:
    """One request that the stub got."""

    method: str
    path: str
    range: str | None
    token: str | None


@dataclass
class StubHub:
    """What the stub holds and how it misbehaves; `cut` and `served` are by file name.

    `cut` closes the connection after that many bytes, once. `served` is what is sent in place of a file, whatever the
    hub says of it. `gated` repositories and every `status` but 200 are refused.
    """

    url: str
    cache: Path
    repos: dict[str, dict[str, dict[str, bytes]]] = field(default_factory=dict)
    refs: dict[tuple[str, str], str] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    cut: dict[str, int] = field(default_factory=dict)
    served: dict[str, list[bytes]] = field(default_factory=dict)
    status: int = 200
    asked: list[Asked] = field(default_factory=list)

    def push(self, repo: str, files: dict[str, bytes], branch: str = "main") -> str:
        """Make a commit of these files, the branch's newest; returns its hash."""
        seed = json.dumps([repo, len(self.repos.get(repo, {})), sorted((name, _git(it)) for name, it in files.items())])
        commit = hashlib.sha1(seed.encode(), usedforsecurity=False).hexdigest()
        self.repos.setdefault(repo, {})[commit] = files
        self.refs[repo, branch] = commit
        return commit

    def push_folder(self, repo: str, folder: Path, under: str = "") -> str:
        """Make a commit of a folder's files, all of them below `under`."""
        return self.push(
            repo,
            {
                f"{under}{path.relative_to(folder).as_posix()}": path.read_bytes()
                for path in folder.rglob("*")
                if path.is_file()
            },
        )

    def commit(self, repo: str, revision: str) -> str | None:
        """The commit that a revision means now."""
        return revision if revision in self.repos[repo] else self.refs.get((repo, revision))

    def downloads(self) -> list[str]:
        """The files that were asked for, in order."""
        return [one.path.rpartition("/")[2] for one in self.asked if one.method == "GET" and "/resolve/" in one.path]

    def open(self, lock: Lock | None = None, *, production: bool = False) -> Hub:
        """A hub that sees the stub, with a cache of its own."""
        return Hub(lock or Lock(), production, self.url, self.cache)


class _Handler(BaseHTTPRequestHandler):
    stub: StubHub

    def do_HEAD(self) -> None:
        """Answer with headers alone."""
        self.do_GET()

    def do_GET(self) -> None:
        """Answer what huggingface_hub asks."""
        path = urlsplit(self.path).path
        self.stub.asked.append(Asked(self.command, path, self.headers.get("Range"), self.headers.get("Authorization")))
        if self.stub.status != 200:
            return self._refuse(self.stub.status)
        if path.startswith("/api/models/"):
            org, name, *rest = path.removeprefix("/api/models/").split("/")
            repo, kind, revision = (
                f"{org}/{name}",
                rest[0] if rest else "revision",
                unquote(rest[1]) if rest[1:] else "main",
            )
        else:
            repo, _, tail = path[1:].partition("/resolve/")
            kind, (revision, _, file) = "resolve", tail.partition("/")
            revision = unquote(revision)
        if repo not in self.stub.repos:
            return self._refuse(404, "RepoNotFound")
        commit = self.stub.commit(repo, revision)
        if commit is None:
            return self._refuse(404, "RevisionNotFound")
        files = self.stub.repos[repo][commit]
        if kind == "revision":
            blobs = parse_qs(urlsplit(self.path).query).get("blobs") == ["true"]
            return self._json(
                {"id": repo, "sha": commit, "siblings": [self._sibling(n, it, blobs) for n, it in files.items()]}
            )
        if kind == "tree":
            return self._json([self._entry(name, content) for name, content in files.items()])
        if repo in self.stub.gated:
            return self._refuse(403, "GatedRepo")
        if unquote(file) not in files:
            return self._refuse(404, "EntryNotFound")
        return self._file(unquote(file), files[unquote(file)], commit)

    def _sibling(self, name: str, content: bytes, blobs: bool) -> dict[str, object]:
        found: dict[str, object] = {"rfilename": name}
        if blobs:
            found |= {"size": len(content), "blobId": _git(content)}
            if name.endswith(_LFS):
                found["lfs"] = {"size": len(content), "sha256": sha256(content), "pointerSize": 134}
        return found

    def _entry(self, name: str, content: bytes) -> dict[str, object]:
        found: dict[str, object] = {"type": "file", "path": name, "size": len(content), "oid": _git(content)}
        if name.endswith(_LFS):
            found["lfs"] = {"oid": sha256(content), "size": len(content), "pointerSize": 134}
        return found

    def _file(self, name: str, content: bytes, commit: str) -> None:
        etag = sha256(content) if name.endswith(_LFS) else _git(content)
        if self.command == "GET" and self.stub.served.get(name):
            content = self.stub.served[name].pop(0)
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").rstrip("-"))
        self.send_response(206 if start else 200)
        self.send_header("ETag", f'"{etag}"')
        self.send_header("X-Repo-Commit", commit)
        if name.endswith(_LFS):
            self.send_header("X-Linked-Etag", f'"{etag}"')
            self.send_header("X-Linked-Size", str(len(content)))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content[start : self.stub.cut.pop(name, len(content))])

    def _json(self, found: object) -> None:
        body = json.dumps(found).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _refuse(self, status: int, code: str = "") -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def serving(cache: Path) -> Iterator[StubHub]:
    """Serve a stub of a model hub; huggingface_hub sees it, and the empty cache, wherever it looks."""
    import huggingface_hub

    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server, pytest.MonkeyPatch.context() as patch:
        stub = StubHub(f"http://127.0.0.1:{server.server_port}", cache)
        patch.setattr(server, "RequestHandlerClass", type("Handler", (_Handler,), {"stub": stub}))
        # What HF_ENDPOINT and HF_HUB_CACHE set, which are read when huggingface_hub is imported.
        for name, value in {
            "ENDPOINT": stub.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": f"{stub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}",
            "HF_HUB_CACHE": str(stub.cache),
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": True,
        }.items():
            patch.setattr(f"huggingface_hub.constants.{name}", value)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield stub
        finally:
            huggingface_hub.close_session()
            server.shutdown()
            thread.join()
