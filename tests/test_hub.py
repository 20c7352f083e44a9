"""Model hubs: references, the lock file, and what is fetched, kept, verified and refused, over real HTTP."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from hlo.errors import HubError
from hlo.hub import Hub, Lock, Locked, LockedFile, Reference
from tests.hub_stub import serving, sha256

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.hub_stub import StubHub

REPO = "clinic/heart"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {"config.json": b'{"a": 1}', "weights.safetensors": bytes(range(256)) * 64, "notes.md": b"# Heart"}
PATTERNS = ("*.json", "*.safetensors")
WEIGHTS = FILES["weights.safetensors"]
MAIN = Reference(REPO, "main")


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[StubHub]:
    """A stub of a model hub, and an empty cache."""
    with serving(tmp_path / "cache") as stub:
        yield stub


def locked(commit: str, files: dict[str, bytes] | None = None) -> Locked:
    """What a lock file has of these files."""
    return Locked(commit, {name: LockedFile(sha256(it), len(it)) for name, it in (files or {}).items()})


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("hf://org/repo", Reference("org/repo")),
        ("hf://org/repo@main", Reference("org/repo", "main")),
        (f"hf://org/repo@{COMMIT}", Reference("org/repo", COMMIT)),
        ("hf://Org-1/re.po_2@v1.0/adapters/heart", Reference("Org-1/re.po_2", "v1.0", "adapters/heart")),
        ("hf://org/repo/adapters/heart", Reference("org/repo", None, "adapters/heart")),
        ("hf://org/repo@refs%2Fpr%2F1/heart", Reference("org/repo", "refs/pr/1", "heart")),
        ("hf://org/repo@feature%2Fx", Reference("org/repo", "feature/x")),
    ],
)
def test_references_are_read_and_written(text: str, reference: Reference) -> None:
    """A reference has a repository, a percent-encoded revision and a folder, and is written as it was read."""
    assert Reference.parse(text) == reference
    assert str(reference) == text


@pytest.mark.parametrize(
    ("text", "written"),
    [("hf://org/repo@refs/pr/1/heart", "hf://org/repo@refs%2Fpr%2F1/heart"), ("hf://org/repo/", "hf://org/repo")],
)
def test_two_spellings_are_one_reference(text: str, written: str) -> None:
    """What huggingface_hub takes for the same place is one reference, so that the lock file has it once."""
    assert str(Reference.parse(text)) == written


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("hf://", "it is not"),
        ("hf:/org/repo", "it is not"),
        ("https://example.org/org/repo", "it is not"),
        ("org/repo", "it is not"),
        ("hf://repo", "it is not"),
        ("hf:///repo", "can not be the name"),
        ("hf://org/", "can not be the name"),
        ("hf://org//repo", "can not be the name"),
        ("hf://../repo", "can not be the name"),
        ("hf://org/..", "can not be the name"),
        ("hf://org/a--b", "can not be the name"),
        ("hf://org/re po", "can not be the name"),
        ("hf://org/repo\n", "can not be the name"),
        ("hf://org/" + "x" * 97, "can not be the name"),
        ("hf://datasets/org/repo", "only models"),
        ("hf://models/org/repo", "only models"),
        ("hf://org/repo@", "nothing stands after"),
        ("hf://org/repo@/heart", "nothing stands after"),
        ("hf://org/repo@..%2F..%2Fx", "can not be a commit"),
        ("hf://org/repo@%2Fetc", "can not be a commit"),
        ("hf://org/repo@a%20b", "can not be a commit"),
        ("hf://org/repo@a%00b", "can not be a commit"),
        ("hf://org/repo@main/../../x", "no folder inside"),
        ("hf://org/repo@main//x", "no folder inside"),
        ("hf://org/repo@main/./x", "no folder inside"),
        ("hf://org/repo@main/a\\b", "no folder inside"),
        ("hf://org/repo@main/a\0b", "no folder inside"),
        ("hf://org/repo/..", "no folder inside"),
    ],
)
def test_malformed_references_are_refused(text: str, said: str) -> None:
    """A reference with a part missing, or that leads out of its repository, is refused with what is wrong."""
    with pytest.raises(HubError, match="is no reference to a model hub") as caught:
        Reference.parse(text)
    assert said in caught.value.message
    assert "hf://org/repo@commit" in caught.value.remedy


def test_a_lock_file_is_written_sorted_and_read_back(tmp_path: Path) -> None:
    """A lock file has a version, sorted keys and a last newline, reads as what was written, and leaves nothing else."""
    lock = Lock({}, tmp_path / "hlo.lock")
    for name in ("zeta", "alpha"):
        lock = lock.having(Reference(f"org/{name}", "main"), locked(COMMIT, FILES))
    lock.write()
    text = lock.path.read_text(encoding="utf-8")
    table = json.loads(text)
    assert text.endswith("}\n")
    assert table["version"] == 1
    assert list(table["references"]) == ["hf://org/alpha@main", "hf://org/zeta@main"]
    file = table["references"]["hf://org/alpha@main"]["files"]["weights.safetensors"]
    assert file == {"sha256": sha256(WEIGHTS), "size": len(WEIGHTS)}
    assert Lock.read(lock.path) == lock
    assert os.listdir(tmp_path) == ["hlo.lock"]


def test_a_failed_write_leaves_the_old_lock_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the lock file can not be written in full, the old one stays as it was, and nothing lies beside it."""
    lock = Lock({}, tmp_path / "hlo.lock")
    lock.write()
    before = lock.path.read_bytes()

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(HubError, match=r"hlo\.lock.*No space left"):
        lock.having(MAIN, locked(COMMIT)).write()
    assert lock.path.read_bytes() == before
    assert os.listdir(tmp_path) == ["hlo.lock"]


def test_no_lock_file_pins_nothing(tmp_path: Path) -> None:
    """A lock file that is not there is one without references."""
    assert Lock.read(tmp_path / "hlo.lock").references == {}


@pytest.mark.parametrize(
    ("content", "place"),
    [
        ("{", "truncated"),
        ("\udcff", "is malformed"),
        ("[]", "Expected `object`"),
        ("{}", "`version`"),
        ({"version": 2, "references": {}}, "$.version"),
        ({"version": 1, "references": {}, "more": 1}, "more"),
        ({"version": 1, "references": []}, "$.references"),
        ({"version": 1, "references": {"hf://a/b": {"commit": "main", "files": {}}}}, ".commit"),
        ({"version": 1, "references": {"hf://a/b": {"commit": COMMIT}}}, "`files`"),
        ({"version": 1, "references": {"a/b": {"commit": COMMIT, "files": {}}}}, "$.references[`a/b`]"),
        ({"version": 1, "references": {f"hf://a/b@{'f' * 40}": {"commit": COMMIT, "files": {}}}}, "another commit"),
        (
            {"version": 1, "references": {"hf://a/b": {"commit": COMMIT, "files": {"x": {"sha256": "0", "size": 1}}}}},
            ".sha256",
        ),
        (
            {
                "version": 1,
                "references": {"hf://a/b": {"commit": COMMIT, "files": {"../x": {"sha256": "0" * 64, "size": 1}}}},
            },
            "`../x`",
        ),
    ],
    ids=str,
)
def test_malformed_lock_files_are_refused(content: Any, place: str, tmp_path: Path) -> None:
    """A lock file that is malformed, or of another version, is refused by its name and the place in it."""
    path = tmp_path / "hlo.lock"
    text = content if isinstance(content, str) else json.dumps(content)
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(HubError) as caught:
        Lock.read(path)
    assert str(path) in caught.value.message
    assert place in caught.value.message
    assert "hlo models fetch" in caught.value.remedy


def test_what_is_wanted_is_fetched_and_nothing_else(hub: StubHub) -> None:
    """The files that match are fetched at their commit, byte for byte; others and ignored ones stay on the hub."""
    commit = hub.push(REPO, FILES | {"onnx/more.json": b"{}"})
    found = hub.open().snapshot(Reference(REPO, commit), PATTERNS, ("onnx/*",))
    assert found.commit == commit
    assert {path.name: path.read_bytes() for path in found.folder.iterdir()} == {
        "config.json": FILES["config.json"],
        "weights.safetensors": WEIGHTS,
    }


def test_a_folder_of_a_repository_is_fetched_alone(hub: StubHub) -> None:
    """With a folder in the reference, only that folder's files are fetched, and patterns are relative to it."""
    hub.push(REPO, {"a/x.json": b"a", "ab/x.json": b"b", "x.json": b"c", "a/deep/y.json": b"d"})
    found = hub.open().snapshot(Reference(REPO, "main", "a"), ("*x.json",))
    assert (found.folder / "x.json").read_bytes() == b"a"
    assert hub.downloads() == ["x.json"]


@pytest.mark.parametrize("pin", ["commit", "lock"])
def test_what_is_pinned_needs_no_network_again(pin: str, hub: StubHub) -> None:
    """A pinned reference that was fetched is had from the cache without a single request, in production too."""
    commit = hub.push(REPO, FILES)
    reference = Reference(REPO, commit if pin == "commit" else "main")
    lock = Lock() if pin == "commit" else Lock().having(reference, locked(commit))
    first = hub.open(lock).snapshot(reference, PATTERNS)
    if pin == "lock":
        lock = Lock().having(reference, locked(commit, {name: FILES[name] for name in ("config.json",)}))
    hub.asked.clear()
    assert hub.open(lock, production=True).snapshot(reference, PATTERNS) == first
    assert hub.asked == []


@pytest.mark.parametrize("reference", [Reference(REPO), MAIN], ids=str)
def test_what_is_unpinned_is_told(reference: Reference, hub: StubHub, caplog: pytest.LogCaptureFixture) -> None:
    """In development an unpinned reference means what the hub has now, with a warning that names it and the commit."""
    for version in (b"1", b"2"):
        commit = hub.push(REPO, {"config.json": version})
        caplog.clear()
        with caplog.at_level(logging.WARNING, "hlo"):
            found = hub.open().snapshot(reference, PATTERNS)
        assert (found.folder / "config.json").read_bytes() == version
        (record,) = [one for one in caplog.records if one.name == "hlo"]
        assert f"{reference} is not pinned" in record.getMessage()
        assert commit in record.getMessage()


@pytest.mark.parametrize("reference", [Reference(REPO), MAIN, Reference(REPO, COMMIT[:12])], ids=str)
def test_production_refuses_what_is_unpinned(reference: Reference, hub: StubHub) -> None:
    """In production what names no full commit and is in no lock file is refused, without a request."""
    hub.push(REPO, FILES)
    with pytest.raises(HubError, match=f"{reference} is not pinned") as caught:
        hub.open(production=True).snapshot(reference, PATTERNS)
    assert "`hlo models fetch`" in caught.value.remedy
    assert hub.asked == []


def test_a_branch_that_moved_is_as_it_was_locked(hub: StubHub) -> None:
    """The lock file's commit holds, also in an empty cache, whatever its branch means by now."""
    old = hub.push(REPO, FILES)
    hub.push(REPO, {"config.json": b"moved"})
    found = hub.open(Lock().having(MAIN, locked(old)), production=True).snapshot(MAIN, PATTERNS)
    assert found.commit == old
    assert (found.folder / "config.json").read_bytes() == FILES["config.json"]


@pytest.mark.parametrize("missing", ["pointer", "content"])
def test_an_incomplete_cache_is_completed(missing: str, hub: StubHub) -> None:
    """A file that is missing in the cache is fetched again, and only that one."""
    commit = hub.push(REPO, FILES)
    reference = Reference(REPO, commit)
    lock = Lock().having(reference, locked(commit, FILES))
    path = hub.open(lock).snapshot(reference, ("*",)).folder / "weights.safetensors"
    if missing == "content":
        path.resolve().unlink()
    path.unlink()
    hub.asked.clear()
    for one in (hub.open(), hub.open(lock)):
        one.snapshot(reference, ("*",))
        assert path.read_bytes() == WEIGHTS
    assert hub.downloads() == (["weights.safetensors"] if missing == "content" else [])


def test_a_download_that_is_cut_is_resumed(hub: StubHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the connection breaks in the middle of a file, the rest of it is asked for, and the file is right."""
    commit = hub.push(REPO, FILES)
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 250)  # what is less than a chunk is lost
    hub.cut["weights.safetensors"] = 1000
    found = hub.open().snapshot(Reference(REPO, commit), PATTERNS)
    assert (found.folder / "weights.safetensors").read_bytes() == WEIGHTS
    ranges = [one.range for one in hub.asked if one.method == "GET" and one.path.endswith("weights.safetensors")]
    assert ranges == [None, "bytes=1000-"]


@pytest.mark.parametrize("name", ["weights.safetensors", "config.json"])
def test_a_damaged_download_is_fetched_again(name: str, hub: StubHub) -> None:
    """A file that is not what the hub says of it is fetched a second time, and then is right."""
    commit = hub.push(REPO, FILES)
    hub.served[name] = [b"x" * len(FILES[name])]
    found = hub.open().snapshot(Reference(REPO, commit), PATTERNS)
    assert (found.folder / name).read_bytes() == FILES[name]
    assert hub.downloads().count(name) == 2


@pytest.mark.parametrize(
    ("name", "kind"), [("weights.safetensors", "SHA-256"), ("config.json", "git hash")], ids=["lfs", "git"]
)
def test_a_download_that_stays_damaged_is_refused(name: str, kind: str, hub: StubHub) -> None:
    """A file that twice is not what the hub says is refused with both hashes, and does not stay in the cache."""
    commit = hub.push(REPO, FILES)
    hub.served[name] = [b"x" * len(FILES[name])] * 2
    with pytest.raises(HubError, match=f"`{name}` of .* is damaged, twice: it has the {kind}"):
        hub.open().snapshot(Reference(REPO, commit), PATTERNS)
    assert list(hub.cache.rglob(name)) == []


@pytest.mark.parametrize("at", ["start", "fetch"])
def test_a_hash_that_is_not_the_locked_one_is_refused(at: str, hub: StubHub) -> None:
    """A file whose hash is not the lock file's is refused with its path and both hashes, from cache and from hub."""
    commit = hub.push(REPO, FILES)
    if at == "start":
        hub.open().snapshot(Reference(REPO, commit), PATTERNS)
    lock = Lock().having(MAIN, locked(commit, FILES | {"weights.safetensors": b"another"}))
    with pytest.raises(HubError) as caught:
        hub.open(lock).snapshot(MAIN, PATTERNS)
    for part in ("weights.safetensors", sha256(WEIGHTS), sha256(b"another"), "hlo.lock"):
        assert part in caught.value.message
    assert "Do not serve it" in caught.value.remedy


def test_files_are_verified_once(hub: StubHub) -> None:
    """One hub verifies a file once; the next start verifies it again, and sees that it was changed since."""
    commit = hub.push(REPO, FILES)
    lock = Lock().having(MAIN, locked(commit, FILES))
    one = hub.open(lock)
    path = one.snapshot(MAIN, PATTERNS).folder / "weights.safetensors"
    path.resolve().write_bytes(b"tampered")
    one.snapshot(MAIN, PATTERNS)
    with pytest.raises(HubError, match=sha256(b"tampered")):
        hub.open(lock).snapshot(MAIN, PATTERNS)


def test_a_damaged_cache_is_mended_by_a_fetch(hub: StubHub) -> None:
    """A fetch replaces a file in the cache that is not what the hub says of it."""
    commit = hub.push(REPO, FILES)
    one = hub.open(Lock().having(MAIN, locked(commit, FILES)))
    path = one.snapshot(MAIN, PATTERNS).folder / "weights.safetensors"
    path.resolve().write_bytes(b"tampered")
    fetched = one.fetch(one.plan(MAIN, PATTERNS))
    assert fetched.files["weights.safetensors"].sha256 == sha256(WEIGHTS)
    assert path.read_bytes() == WEIGHTS


def test_a_plan_says_what_is_missing_and_fetches_nothing(hub: StubHub) -> None:
    """A plan has commit, files and sizes, and the bytes that the cache lacks, whichever commit they came with."""
    commit = hub.push(REPO, FILES)
    one = hub.open()
    plan = one.plan(MAIN, ("*",))
    assert (plan.commit, set(plan.files)) == (commit, set(FILES))
    assert plan.size == plan.missing == sum(map(len, FILES.values()))
    assert hub.downloads() == []
    assert not hub.cache.exists()
    one.fetch(plan)
    assert one.plan(MAIN, ("*",)).missing == 0
    hub.push(REPO, FILES | {"config.json": b"longer than before"})
    assert one.plan(MAIN, ("*",)).missing == len(b"longer than before")


def test_a_fetch_keeps_the_locked_commit_unless_told(hub: StubHub) -> None:
    """A plan is for the commit in the lock file; with `upgrade`, for what the reference means now."""
    old = hub.push(REPO, FILES)
    new = hub.push(REPO, {"config.json": b"moved"})
    one = hub.open(Lock().having(MAIN, locked(old)))
    assert one.plan(MAIN, PATTERNS).commit == old
    assert one.plan(MAIN, PATTERNS, upgrade=True).commit == new


def test_two_uses_of_a_reference_are_locked_together() -> None:
    """Files locked for the same reference at the same commit are added to each other; another commit replaces them."""
    lock = Lock().having(MAIN, locked(COMMIT, {"a": b"1"})).having(MAIN, locked(COMMIT, {"b": b"2"}))
    assert set(lock.references[str(MAIN)].files) == {"a", "b"}
    assert set(lock.having(MAIN, locked("f" * 40, {"c": b"3"})).references[str(MAIN)].files) == {"c"}


@pytest.mark.parametrize(
    ("trouble", "said", "remedy"),
    [
        ("gated", "is gated", "HF_TOKEN"),
        ("repository", "has no repository `clinic/heart`", "HF_TOKEN"),
        ("revision", "has no revision `nope`", "/commits"),
        ("folder", "holds no file like `*.json`", "Check the folder"),
        (401, "refuses access", "HF_TOKEN"),
        (403, "refuses access", "HF_TOKEN"),
        (503, "answered HTTP 503", "later"),
        ("closed", "can not be reached", "HF_ENDPOINT"),
        ("offline", "HF_HUB_OFFLINE forbids", "hlo models fetch"),
    ],
    ids=str,
)
def test_what_a_hub_does_not_give_is_told(
    trouble: object, said: str, remedy: str, hub: StubHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each way in which a hub gives nothing has a message of its own, with the repository and a remedy."""
    commit = "" if trouble == "repository" else hub.push(REPO, FILES)
    reference = Reference(REPO, commit or COMMIT)
    one = hub.open()
    if trouble == "gated":
        hub.gated.add(REPO)
    elif trouble == "revision":
        reference = Reference(REPO, "nope")
    elif trouble == "folder":
        reference = Reference(REPO, commit, "nowhere")
    elif trouble == "closed":
        one = Hub(Lock(), False, "http://127.0.0.1:9", hub.cache)
    elif trouble == "offline":
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    elif isinstance(trouble, int):
        hub.status = trouble
    with pytest.raises(HubError) as caught:
        one.snapshot(reference, PATTERNS)
    assert said in caught.value.message
    assert REPO in caught.value.message
    assert remedy in caught.value.remedy


@pytest.mark.parametrize("trouble", ["closed", "offline", 503])
@pytest.mark.parametrize("pin", ["commit", "branch"])
def test_what_was_fetched_is_there_without_a_hub(
    pin: str, trouble: object, hub: StubHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was fetched once is had without a hub; an unpinned reference then means what it meant last."""
    commit = hub.push(REPO, FILES)
    reference = Reference(REPO, commit if pin == "commit" else "main")
    first = hub.open().snapshot(reference, PATTERNS)
    one = hub.open()
    if trouble == "closed":
        one = Hub(Lock(), False, "http://127.0.0.1:9", hub.cache)
    elif trouble == "offline":
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    else:
        hub.status = 503
    assert one.snapshot(reference, PATTERNS) == first


def test_what_another_program_fetched_is_used_without_a_hub(hub: StubHub) -> None:
    """Without a hub, files that another program put into the cache are used, though nothing lists them."""
    commit = hub.push(REPO, FILES)
    hub.open().snapshot(Reference(REPO, commit), PATTERNS)
    moved = hub.cache.rename(hub.cache.with_name("other"))
    shutil.rmtree(moved / "models--clinic--heart" / "trees")
    one = Hub(Lock(), False, "http://127.0.0.1:9", moved)
    assert (one.snapshot(Reference(REPO, commit), PATTERNS).folder / "config.json").is_file()
    with pytest.raises(HubError, match="can not be reached"):
        one.snapshot(Reference(REPO, commit), ("*.txt",))


def test_the_environment_says_where_hub_and_cache_are(hub: StubHub, tmp_path: Path) -> None:
    """HF_ENDPOINT, HF_HOME and HF_TOKEN are understood, and with HF_HUB_OFFLINE=1 the cache is enough."""
    commit = hub.push(REPO, FILES)
    code = (
        "from hlo.hub import Hub, Reference\n"
        f"print(Hub().snapshot(Reference({REPO!r}, {commit!r}), ('*.json',)).folder)\n"
    )
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    online = kept | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": "hf_secret"}
    for environment in (online, online | {"HF_HUB_OFFLINE": "1"}):
        asked = len(hub.asked)
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        folder = Path(done.stdout.strip())
        assert folder.is_relative_to(tmp_path / "home" / "hub")
        assert (folder / "config.json").read_bytes() == FILES["config.json"]
        assert (len(hub.asked) == asked) == ("HF_HUB_OFFLINE" in environment)
    assert {one.token for one in hub.asked if REPO in one.path} == {"Bearer hf_secret"}


def test_a_disk_that_is_too_small_is_told_before(hub: StubHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """When what is missing does not fit the disk, nothing is downloaded, and both numbers are told."""
    commit = hub.push(REPO, FILES)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1000))
    with pytest.raises(HubError) as caught:
        hub.open().snapshot(Reference(REPO, commit), ("*.safetensors",))
    assert "16,384 bytes" in caught.value.message
    assert "1,000 bytes" in caught.value.message
    assert "HF_HOME" in caught.value.remedy
    assert hub.downloads() == []


@pytest.mark.parametrize(("number", "said"), [(errno.ENOSPC, "is full"), (errno.EACCES, "can not be fetched into")])
def test_a_disk_that_fails_is_told(number: int, said: str, hub: StubHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that fills up meanwhile, or a cache that may not be written, is told with the cache's place."""
    commit = hub.push(REPO, FILES)

    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("huggingface_hub.file_download.http_get", fail)
    with pytest.raises(HubError, match=said) as caught:
        hub.open().snapshot(Reference(REPO, commit), PATTERNS)
    assert str(hub.cache) in caught.value.message
