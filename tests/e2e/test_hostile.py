"""Hostile plugins: each refused with a message of its own, while the good ones answer."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.e2e import hostile
from tests.e2e.reference import ADAPTERS
from tests.e2e.server import running
from tests.e2e.test_answers import ASKED, SPECIALTIES


def test_hostile_plugins_are_refused_and_the_good_ones_answer(tmp_path: Path) -> None:
    """Of some forty plugins that hang, crash, lie or bring bad weights, each is refused by name; the others serve."""
    adapters = tmp_path / "adapters"
    shutil.copytree(ADAPTERS, adapters, ignore=shutil.ignore_patterns("recipe"))
    wanted = hostile.install(tmp_path / "site", adapters)
    assert len(wanted) >= 30
    with running(
        tmp_path,
        ADAPTER_PATH=str(adapters),
        PYTHONPATH=str(tmp_path / "site"),
        HLO_PLUGIN_TIMEOUT_S="8",
        HLO_ENGINE="transformers",
        HLO_MODE="production",
        HLO_PLUGINS="-genetics",
    ) as server:
        ready = server.get("/readyz").json()
        good = sorted(set(SPECIALTIES) - {"genetics"})
        assert sorted(ready["specialties"]) == good
        refused = {one["plugin"]: one for one in ready["refused"]}
        assert sorted(refused) == sorted(wanted)
        missed = {name: refused[name] for name, said in wanted.items() if said not in refused[name]["reason"]}
        assert missed == {}
        assert len({one["reason"] for one in refused.values()}) == len(wanted)
        assert all(one["remedy"] for one in refused.values())
        assert server.get("/specialties").json()["off"] == ["genetics"]
        for name in good:
            answer = server.post("/ask", {"question": ASKED[name], "specialty": name, "max_tokens": 8}).json()
            assert answer["adapter"]["name"] == name
