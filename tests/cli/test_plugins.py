"""`hlo plugins list`, on the tiny model."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from hlo.generation import adapters

if TYPE_CHECKING:
    from pathlib import Path

    from hlo.generation.base_model import BaseModel
    from tests.cli.conftest import Hlo
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
