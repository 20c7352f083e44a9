"""`hlo doctor`, on the tiny model."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from hlo.cli.findings import draw
from hlo.records import Finding
from tests.vllm_stub import StubServer, stubs_beside

if TYPE_CHECKING:
    from pathlib import Path

    from hlo.generation.base_model import BaseModel
    from tests.cli.conftest import Hlo
    from tests.conftest import MakeAdapter, Plugins


def findings(out: str) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for one in json.loads(out):
        found.setdefault(one["topic"], []).append(one)
    return found


@pytest.fixture
def arguments(tiny_model: BaseModel, tmp_path: Path) -> list[str]:
    """Settings for the tiny model, and no encoder."""
    adapters = str(tmp_path / "adapters")
    return [
        "--json",
        "--device",
        "cpu",
        "--model",
        str(tiny_model.folder),
        "--adapter-path",
        adapters,
        "--encoder",
        adapters,
    ]


def test_what_is_found_is_told(
    arguments: list[str], hlo: Hlo, plugins: Plugins, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    """The model, the adapters, memory and speed are told, each with a state; trouble exits 1."""
    make_adapter(tmp_path / "adapters" / "heart")
    plugins("heart", "heart", reference="heart")
    plugins("ghost", "ghost", reference="nowhere")
    done = hlo("doctor", *arguments)
    found = findings(done.out)
    assert done.status == 1
    assert found["model"][0]["state"] == "ok"
    assert "tiny" in found["model"][0]["text"]
    assert "1 can be served" in found["adapters"][0]["text"]
    assert str(tmp_path / "adapters") in found["adapters"][0]["text"]
    assert (found["adapters"][1]["state"], "`nowhere` was not found" in found["adapters"][1]["text"]) == (
        "trouble",
        True,
    )
    assert found["memory"][0]["state"] == "ok"
    assert found["encoder"][0]["state"] == "trouble"


def test_who_may_ask_is_told(arguments: list[str], hlo: Hlo, plugins: Plugins, clean_environment: Path) -> None:
    """Without a key the doctor says that only this machine may ask, and warns where others were meant to."""
    asked = [hlo("doctor", *arguments), hlo("doctor", *arguments, "--host", "0.0.0.0")]  # noqa: S104
    here, there = (findings(one.out)["keys"][0] for one in asked)
    assert (here["state"], there["state"]) == ("ok", "warning")
    assert "hlo keys new" in there["remedy"]
    hlo("keys", "new", "ward 7", "--role", "admin")
    assert findings(hlo("doctor", *arguments).out)["keys"][0]["text"].startswith("1 in force, 1 of them")
    (clean_environment / "hlo.keys").write_text("{")
    assert findings(hlo("doctor", *arguments).out)["keys"][0]["state"] == "trouble"


@pytest.mark.parametrize(("gib", "state"), [("100", "ok"), ("0.5", "trouble")])
def test_memory_is_advised_for_another_gpu(
    gib: str, state: str, arguments: list[str], hlo: Hlo, plugins: Plugins
) -> None:
    """For a GPU that is not here, what fits is estimated, and what to lower is told where it does not."""
    assert plugins
    memory = findings(hlo("doctor", "--gpu-gib", gib, *arguments).out)["memory"][0]
    assert memory["state"] == state
    assert f"GPU of {gib} GiB" in memory["text"]
    assert ("a GPU of 6 GiB" in memory["remedy"]) == (state != "ok")


def test_the_parts_of_memory_are_a_table(arguments: list[str], hlo: Hlo, plugins: Plugins) -> None:
    """For people, the parts of the prediction are a table, and what fits is another where it does not."""
    assert plugins
    printed = hlo("doctor", "--gpu-gib", "1", "--max-num-batched-tokens", "100000", *arguments[1:]).out
    for part in ("weights", "adapters: 2 slots of rank 64", "activation", "CUDA graphs", "KV cache"):
        assert part in printed
    assert "What fits, the least change first" in printed


def test_the_room_for_adapters_is_told(arguments: list[str], hlo: Hlo, plugins: Plugins) -> None:
    """How many adapters the engine will have room for is told, and why."""
    assert plugins
    told = [one["text"] for one in findings(hlo("doctor", "--spare-adapters", "3", *arguments).out)["adapters"]]
    assert any("room for 3 adapters (0 installed, HLO_SPARE_ADAPTERS=3)" in text for text in told)


def test_servers_are_looked_at(
    arguments: list[str], hlo: Hlo, plugins: Plugins, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    """Of each server that generates it is told what it is, or what is wrong and what to do; memory here is left out."""
    make_adapter(tmp_path / "adapters" / "heart")
    plugins("heart", "heart", reference="heart")
    good, fixed, old, gone = StubServer(), StubServer(lets_load=False), StubServer(version="0.25.1"), StubServer(port=9)
    with stubs_beside(good, fixed, old):
        urls = ",".join(one.url for one in (good, fixed, old, gone))
        found = findings(hlo("doctor", "--engine-urls", urls, *arguments).out)
    assert "in front of 4 servers" in found["engine"][0]["text"]
    assert [one["state"] for one in found["servers"]] == ["ok", "trouble", "trouble", "trouble"]
    texts = [one["text"] for one in found["servers"]]
    assert "512 tokens of context, places for 64 adapters" in texts[0]
    assert "--lora-modules heart@" in found["servers"][1]["remedy"]
    assert "0.32 or newer" in texts[2]
    assert "can not be reached" in texts[3]
    assert "memory" not in found
    assert good.adapters == {}, "nothing is loaded by looking"


def test_a_missing_model_is_trouble(hlo: Hlo, plugins: Plugins, tmp_path: Path) -> None:
    """A model that is not there is trouble with its remedy, and the rest is examined all the same."""
    assert plugins
    done = hlo("doctor", "--json", "--device", "cpu", "--model", "./no/folder", "--encoder", str(tmp_path))
    found = findings(done.out)
    assert done.status == 1
    assert (found["model"][0]["state"], "HLO_MODEL" in found["model"][0]["remedy"]) == ("trouble", True)
    assert "encoder" in found


@pytest.mark.parametrize(
    ("vllm", "peft", "state", "said"),
    [
        ("0.32", "0.17", "ok", "vllm 0.32"),
        (None, "0.17", "warning", "transformers 0.17"),
        (None, None, "trouble", "vLLM is not installed"),
    ],
)
def test_the_engine_that_would_run_is_told(
    vllm: str | None,
    peft: str | None,
    state: str,
    said: str,
    hlo: Hlo,
    arguments: list[str],
    plugins: Plugins,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """vLLM is fine, the engine `transformers` is worth a warning, and no engine at all is trouble."""
    assert plugins
    monkeypatch.setattr("hlo.generation.vllm_engine.version", lambda: vllm)
    monkeypatch.setattr("hlo.generation.transformers_engine.version", lambda: peft)
    (engine,) = findings(hlo("doctor", *arguments).out)["engine"]
    assert (engine["state"], said in engine["text"]) == (state, True)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ({"SC_PAGE_SIZE": 1, "SC_AVPHYS_PAGES": 2, "SC_PHYS_PAGES": 3}, "GiB free"),
        ({"SC_PAGE_SIZE": 1, "SC_PHYS_PAGES": 3}, "GiB in all"),
        ({}, "does not tell"),
    ],
)
def test_memory_is_told_as_far_as_the_system_knows_it(
    names: dict[str, int],
    said: str,
    hlo: Hlo,
    arguments: list[str],
    plugins: Plugins,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On systems that do not know what memory is free, or know nothing of it, the doctor says what it can."""
    assert plugins
    monkeypatch.setattr("os.sysconf_names", names)
    (memory,) = findings(hlo("doctor", *arguments).out)["memory"]
    assert said in memory["text"]


def test_brackets_are_printed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Text and remedy are printed as they are: `hlo[gpu]` keeps what stands in its brackets."""
    monkeypatch.setenv("COLUMNS", "200")
    draw([Finding("engine", "trouble", "No [/INST] here.", "`pip install 'hlo[gpu]'`")])
    printed = capsys.readouterr().out
    assert "No [/INST] here." in printed
    assert "`pip install 'hlo[gpu]'`" in printed


@pytest.mark.parametrize(("absent", "told"), [("vllm-bnb-plugin", True), ("bitsandbytes", True), ("nothing", False)])
def test_what_8_bit_needs_on_a_cpu(
    absent: str, told: bool, arguments: list[str], hlo: Hlo, plugins: Plugins, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU int8 weights need bitsandbytes and vLLM's plugin for it, and the remedy says how to install them."""
    monkeypatch.setattr("hlo.cli.doctor._version", lambda name: None if name == absent else "1")
    found = findings(hlo("doctor", "--quantize", "true", *arguments).out)
    remedies = [one["remedy"] for one in found["engine"] if "vllm-bnb-plugin" in one["text"]]
    assert bool(remedies) is told
    assert all("--no-deps vllm-bnb-plugin bitsandbytes" in remedy for remedy in remedies)
