"""`hlo models fetch`, against a stub of a model hub."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from hlo.generation import adapters
from tests.hub_stub import serving, sha256

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hlo.generation.base_model import BaseModel
    from tests.cli.conftest import Hlo
    from tests.conftest import MakeAdapter, Plugins
    from tests.hub_stub import StubHub

HEART, BASE = "hf://clinic/heart@main", "hf://clinic/tiny"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[StubHub]:
    """A stub of a model hub, and an empty cache."""
    with serving(tmp_path / "cache") as stub:
        yield stub


@pytest.fixture
def arguments(tiny_model: BaseModel, tmp_path: Path) -> list[str]:
    """The tiny model as base, nothing that would be fetched for the encoder, and a store of the test's own."""
    encoder = tmp_path / "encoder"
    encoder.mkdir()
    return ["--model", str(tiny_model.folder), "--encoder", str(encoder), "--cache-dir", str(tmp_path / "store")]


def on_disk() -> dict[str, Any]:
    """The references in the lock file."""
    references: dict[str, Any] = json.loads(Path("hlo.lock").read_text(encoding="utf-8"))["references"]
    return references


def test_everything_on_a_hub_is_fetched_and_locked(
    hlo: Hlo, hub: StubHub, plugins: Plugins, make_adapter: MakeAdapter, tiny_model: BaseModel, tmp_path: Path
) -> None:
    """Base model, encoder and adapters are told, fetched and verified; the lock file has each commit and hash."""
    folder = make_adapter(tmp_path / "heart")
    commits = {
        BASE: hub.push_folder("clinic/tiny", tiny_model.folder),
        "hf://clinic/encoder": hub.push("clinic/encoder", {"modules.json": b"[]", "model.safetensors": b"weights"}),
        HEART: hub.push_folder("clinic/heart", folder),
    }
    plugins("heart", "heart", reference=HEART)
    plugins("local", "local", reference="somewhere")
    arguments = ["--model", "clinic/tiny", "--encoder", "clinic/encoder", "--cache-dir", str(tmp_path / "store")]
    done = hlo("models", "fetch", *arguments)
    assert done.status == 0, done.out + done.err
    assert {text: locked["commit"] for text, locked in on_disk().items()} == commits
    weights = (folder / adapters.WEIGHTS).read_bytes()
    assert on_disk()[HEART]["files"][adapters.WEIGHTS] == {"sha256": sha256(weights), "size": len(weights)}
    assert set(on_disk()[BASE]["files"]) == {path.name for path in tiny_model.folder.iterdir()}
    for text, commit in commits.items():
        (row,) = [line for line in done.out.splitlines() if f" {text} " in line]
        assert commit[:12] in row
    assert f"free in {hub.cache}" in done.out
    assert "3 of 3 fetched and verified" in done.out
    assert "local" not in done.out
    again = hlo("models", "fetch", "--dry-run", *arguments)
    assert again.out.count("in the cache") == 3


def test_a_dry_run_fetches_nothing(
    hlo: Hlo, hub: StubHub, plugins: Plugins, make_adapter: MakeAdapter, tmp_path: Path, arguments: list[str]
) -> None:
    """With --dry-run sizes and commits are told, and neither a file nor the lock file is written."""
    folder = make_adapter(tmp_path / "heart")
    commit = hub.push_folder("clinic/heart", folder)
    plugins("heart", "heart", reference=HEART)
    done = hlo("models", "fetch", "--dry-run", "--json", *arguments)
    assert done.status == 0
    told = json.loads(done.out)
    size = sum(path.stat().st_size for path in folder.iterdir())
    (row,) = told["models"]
    assert (row["what"], row["reference"], row["state"]) == ("adapter heart", HEART, "planned")
    assert (row["commit"], row["size"], row["absent"], told["needed"]) == (commit, size, size, size)
    assert (told["cache"], told["lock_file"]) == (str(hub.cache), "hlo.lock")
    assert hub.downloads() == []
    assert not hub.cache.exists()
    assert not Path("hlo.lock").exists()


def test_nothing_to_fetch_is_told(hlo: Hlo, hub: StubHub, plugins: Plugins, arguments: list[str]) -> None:
    """When everything is local, that is told without a request, and the status is 0."""
    plugins("local", "local", reference="somewhere")
    done = hlo("models", "fetch", *arguments)
    assert done.status == 0
    assert "lies on a model hub" in done.out
    assert hub.asked == []


def test_one_failure_leaves_the_others(
    hlo: Hlo, hub: StubHub, plugins: Plugins, make_adapter: MakeAdapter, tmp_path: Path, arguments: list[str]
) -> None:
    """What can not be fetched is told with reason and remedy, and the status is 1; the rest is fetched and locked."""
    hub.push_folder("clinic/heart", make_adapter(tmp_path / "heart"))
    hub.push_folder("clinic/gated", make_adapter(tmp_path / "gated", rank=8))
    hub.gated.add("clinic/gated")
    plugins("absent", "absent", reference="hf://clinic/absent")
    plugins("gated", "gated", reference="hf://clinic/gated")
    plugins("heart", "heart", reference=HEART)
    plugins("malformed", "malformed", reference="hf://clinic")
    done = hlo("models", "fetch", *arguments)
    assert done.status == 1
    assert "has no repository `clinic/absent`" in done.out
    assert "hf://clinic/gated is gated" in done.out
    assert "HF_TOKEN" in done.out
    assert "`hf://clinic` is no reference" in done.out
    assert "1 of 4 fetched" in done.out
    assert set(on_disk()) == {HEART}


def test_an_adapter_of_another_base_is_told(
    hlo: Hlo, hub: StubHub, plugins: Plugins, make_adapter: MakeAdapter, tmp_path: Path, arguments: list[str]
) -> None:
    """What was fetched but is no adapter of the base model, or above the highest rank, is told with status 1."""
    hub.push_folder(
        "clinic/heart", make_adapter(tmp_path / "heart", config={"base_model_name_or_path": "clinic/other"})
    )
    hub.push_folder("clinic/wide", make_adapter(tmp_path / "wide", rank=16))
    plugins("heart", "heart", reference=HEART)
    plugins("wide", "wide", reference="hf://clinic/wide")
    done = hlo("models", "fetch", "--json", "--max-lora-rank", "8", *arguments)
    assert done.status == 1
    heart, wide = json.loads(done.out)["models"]
    assert (heart["state"], wide["state"]) == ("failed", "failed")
    assert "was trained for the base model `other`" in heart["reason"]
    assert "HLO_MAX_LORA_RANK=8" in wide["reason"]


def test_a_lock_stays_until_it_is_upgraded(
    hlo: Hlo, hub: StubHub, plugins: Plugins, make_adapter: MakeAdapter, tmp_path: Path, arguments: list[str]
) -> None:
    """A branch that moved stays at its locked commit, also for an empty cache; --upgrade locks what it means now."""
    old = hub.push_folder("clinic/heart", make_adapter(tmp_path / "heart"))
    plugins("heart", "heart", reference=HEART)
    assert hlo("models", "fetch", *arguments).status == 0
    new = hub.push_folder("clinic/heart", make_adapter(tmp_path / "heart", rank=8))
    shutil.rmtree(hub.cache)
    before = Path("hlo.lock").read_bytes()
    assert hlo("models", "fetch", *arguments).status == 0
    assert Path("hlo.lock").read_bytes() == before
    assert on_disk()[HEART]["commit"] == old
    assert hlo("models", "fetch", "--upgrade", *arguments).status == 0
    assert on_disk()[HEART]["commit"] == new


def test_a_disk_that_is_too_small_is_told_before(
    hlo: Hlo,
    hub: StubHub,
    plugins: Plugins,
    make_adapter: MakeAdapter,
    tmp_path: Path,
    arguments: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """When all that is missing does not fit the disk, nothing is fetched; content that is shared counts once."""
    folder = make_adapter(tmp_path / "heart")
    hub.push_folder("clinic/heart", folder)
    size = sum(path.stat().st_size for path in folder.iterdir())
    plugins("heart", "heart", reference=HEART)
    plugins("twin", "twin", reference="hf://clinic/heart")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(size, 1, size - 1))
    done = hlo("models", "fetch", *arguments)
    assert done.status == 1
    assert f"({size:,} bytes)" in done.err
    assert f"({size - 1:,} bytes)" in done.err
    assert hub.downloads() == []
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(size, 0, size))
    assert hlo("models", "fetch", *arguments).status == 0


def test_a_malformed_lock_file_is_told(hlo: Hlo, hub: StubHub, arguments: list[str]) -> None:
    """A lock file that can not be read stops the fetch, and stays as it is."""
    Path("hlo.lock").write_text("{", encoding="utf-8")
    done = hlo("models", "fetch", *arguments)
    assert done.status == 1
    assert "`hlo.lock` can not be used" in done.err
    assert Path("hlo.lock").read_text(encoding="utf-8") == "{"
    assert hub.asked == []


def test_a_lock_file_is_not_changed_against_its_hashes(
    hlo: Hlo, hub: StubHub, plugins: Plugins, make_adapter: MakeAdapter, tmp_path: Path, arguments: list[str]
) -> None:
    """When a hub has other content at a locked commit, that is refused, and the lock file keeps its hashes."""
    hub.push_folder("clinic/heart", make_adapter(tmp_path / "heart"))
    plugins("heart", "heart", reference=HEART)
    assert hlo("models", "fetch", *arguments).status == 0
    path = Path("hlo.lock")
    table = json.loads(path.read_text(encoding="utf-8"))
    table["references"][HEART]["files"][adapters.CONFIG]["sha256"] = "0" * 64
    path.write_text(json.dumps(table), encoding="utf-8")
    done = hlo("models", "fetch", *arguments)
    assert done.status == 1
    assert "Do not serve it" in done.out
    assert on_disk()[HEART]["files"][adapters.CONFIG]["sha256"] == "0" * 64
