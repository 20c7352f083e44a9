"""`hlo plugins`: the list, on the tiny model; and the reload, of a stub of a server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from hlo.generation import adapters

if TYPE_CHECKING:
    from pathlib import Path

    from hlo.generation.base_model import BaseModel
    from tests.cli.conftest import Hlo, Stub
    from tests.conftest import MakeAdapter, Plugins


def test_served_and_refused_are_listed(
    hlo: Hlo, plugins: Plugins, make_adapter: MakeAdapter, tiny_model: BaseModel, tmp_path: Path
) -> None:
    """What is served is listed with its package and adapter, what is refused with its reason; then the status is 1."""
    folder = make_adapter(tmp_path / "adapters" / "heart")
    plugins("heart", "heart", reference="heart")
    plugins("ghost", "ghost", reference="nowhere")
    arguments = ["--model", str(tiny_model.folder), "--adapter-path", str(tmp_path / "adapters")]
    done = hlo("plugins", "list", "--json", *arguments)
    assert done.status == 1
    found = json.loads(done.out)
    (served,) = found["served"]
    assert (served["specialty"], served["distribution"], served["version"]) == ("heart", "hlo-test-heart", "1.5")
    assert served["adapter"]["sha256"] == adapters.content_hash(folder)
    (refused,) = found["refused"]
    assert refused["specialty"] == "ghost"
    assert "`nowhere` was not found" in refused["reason"]
    drawn = hlo("plugins", "list", *arguments)
    assert drawn.status == 1
    assert "ghost: Adapter `nowhere` was not found" in drawn.out
    assert adapters.content_hash(folder)[:12] in drawn.out


def test_nothing_refused_exits_0(
    hlo: Hlo, plugins: Plugins, make_adapter: MakeAdapter, tiny_model: BaseModel, tmp_path: Path
) -> None:
    """When every installed specialty can be served, the status is 0."""
    make_adapter(tmp_path / "adapters" / "heart")
    plugins("heart", "heart", reference="heart")
    done = hlo("plugins", "list", "--model", str(tiny_model.folder), "--adapter-path", str(tmp_path / "adapters"))
    assert done.status == 0
    assert "served" in done.out


def test_what_is_left_out_and_where_all_comes_from_is_listed(
    hlo: Hlo, plugins: Plugins, make_adapter: MakeAdapter, tiny_model: BaseModel, tmp_path: Path
) -> None:
    """Plugins that HLO_PLUGINS leaves out are listed as off; what is served has the place of its weights."""
    folder = make_adapter(tmp_path / "adapters" / "heart")
    plugins("heart", "heart", reference="heart")
    plugins("odd[red]", "odd", reference="nowhere")
    arguments = ["--model", str(tiny_model.folder), "--adapter-path", str(tmp_path / "adapters")]
    done = hlo("plugins", "list", "--json", "--plugins", "-odd[red]", *arguments)
    found = json.loads(done.out)
    assert (done.status, found["off"], found["refused"]) == (0, ["odd[red]"], [])
    assert found["served"][0]["adapter"]["source"] == str(folder)
    drawn = hlo("plugins", "list", "--plugins", "-odd[red]", *arguments)
    assert "odd[red]" in drawn.out


def test_embeddings_of_another_encoder_are_refused_in_the_list(
    hlo: Hlo, plugins: Plugins, make_adapter: MakeAdapter, tiny_model: BaseModel, tmp_path: Path
) -> None:
    """The list knows of embeddings that another encoder made, though nothing else in it needs an encoder."""
    make_adapter(tmp_path / "adapters" / "heart")
    plugins("heart", "heart", reference="heart")
    module = tmp_path / "plugins" / "hlo_test_heart.py"
    text = module.read_text(encoding="utf-8").replace(
        "examples=", "embeddings=Embeddings('x', {'p': [[1.0]]}), examples="
    )
    module.write_text(text.replace("import Adapter", "import Adapter, Embeddings"), encoding="utf-8")
    arguments = ["--model", str(tiny_model.folder), "--adapter-path", str(tmp_path / "adapters")]
    done = hlo("plugins", "list", "--json", *arguments)
    (refused,) = json.loads(done.out)["refused"]
    assert (done.status, refused["specialty"]) == (1, "heart")
    assert "were made by the encoder `x`" in refused["reason"]


RELOADED = {
    "added": ["dermatology"],
    "changed": [],
    "removed": [],
    "kept": ["oncology"],
    "refused": [{"plugin": "oncology", "specialty": None, "reason": "It hangs.", "remedy": "Mend it."}],
}


def test_reload(hlo: Hlo, stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    """`hlo plugins reload` sends the key that HLO_API_KEY holds, and tells what the server did."""
    monkeypatch.setenv("HLO_API_KEY", "correct horse battery")
    stub.gives(RELOADED)
    done = hlo("plugins", "reload", "--url", stub.url)
    assert done.status == 0
    assert stub.asked == [("/admin/specialties/reload", {})]
    assert stub.headers[-1]["authorization"] == "Bearer correct horse battery"
    for words in ("added: dermatology", "changed: none", "kept: oncology", "refused oncology: It hangs.", "Mend it."):
        assert words in done.out


def test_reload_without_a_key(hlo: Hlo, stub: Stub) -> None:
    """Without HLO_API_KEY no key is sent, and what the server says of that is told."""
    stub.gives({"detail": "This server wants a key.", "remedy": "Send one."}, 401, "application/problem+json")
    done = hlo("plugins", "reload", "--url", stub.url)
    assert (done.status, "authorization" in stub.headers[-1]) == (1, False)
    assert "This server wants a key." in done.err


@pytest.mark.parametrize("arguments", [["--help"], ["plugins", "--help"], ["serve", "--help"]])
def test_help_imports_no_plugin(arguments: list[str], tmp_path: Path) -> None:
    """With fifty plugins installed, help imports none of them: it stays as fast as without."""
    for number in range(50):
        info = tmp_path / f"hlo_slow_{number}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: hlo-slow-{number}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[hlo]\nslow{number} = hlo_slow_{number}\n")
        (tmp_path / f"hlo_slow_{number}.py").write_text("raise SystemExit('imported')\n")
    command = [sys.executable, "-X", "importtime", "-m", "hlo", *arguments]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "Usage:" in done.stdout
    assert "hlo.cli" in done.stderr
    assert "hlo_slow" not in done.stderr
