"""HLO and a new specialty as wheels in a clean environment: served, asked, and reloaded under load."""

from __future__ import annotations

import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from safetensors.torch import load_file, save_file

from hlo import scaffold
from tests.e2e.environment import ROOT, Environment, build, create, run
from tests.e2e.server import Server, running

SORE = "what can a rheumatology clinic do for a sore joint"


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """HLO's wheel, one of its plugins', and those of two versions of a new specialty with different adapters."""
    folder = tmp_path_factory.mktemp("wheels")
    build(ROOT, folder)
    build(ROOT / "plugins" / "hlo-cardiology", folder)
    source = scaffold.write("rheumatology", None, tmp_path_factory.mktemp("source")).folder
    build(source, folder)
    weights = next(source.rglob("adapter_model.safetensors"))
    save_file({key: value * (-2 if "lora_B" in key else 1) for key, value in load_file(weights).items()}, weights)
    project = source / "pyproject.toml"
    project.write_text(project.read_text(encoding="utf-8").replace('"0.1.0"', '"0.2.0"'), encoding="utf-8")
    build(source, folder)
    shutil.rmtree(source)  # nothing but the wheels is left
    return folder


@pytest.fixture(scope="module")
def environment(wheels: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """A clean environment with HLO, one of its plugins, and the first version of the new specialty."""
    made = create(tmp_path_factory.mktemp("environment") / "venv")
    made.install(*wheels.glob("hlo-*.whl"), *wheels.glob("hlo_cardiology-*.whl"), wheel(wheels, "0.1.0"))
    place = run(str(made.python), "-c", "import hlo; print(hlo.__file__)", environment=made.variables, cwd=made.folder)
    assert Path(place.strip()).is_relative_to(made.folder)
    return made


@pytest.fixture(scope="module")
def server(environment: Environment, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server in that environment."""
    folder = tmp_path_factory.mktemp("server")
    with running(folder, python=environment.python) as started:
        yield started


def wheel(wheels: Path, version: str) -> Path:
    """The new specialty's wheel of that version."""
    (found,) = wheels.glob(f"hlo_rheumatology-{version}-*.whl")
    return found


def reload(server: Server) -> dict[str, Any]:
    response = httpx.post(f"{server.url}/admin/specialties/reload", timeout=120)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


def test_a_wheel_from_the_scaffold_answers(server: Server) -> None:
    """The specialty that was installed as a wheel is served from its own package data, and gets its questions."""
    specialties = {one["name"]: one for one in server.get("/specialties").json()["specialties"]}
    assert sorted(specialties) == ["cardiology", "rheumatology"]
    assert specialties["rheumatology"]["version"] == "0.1.0"
    assert re.search(r"site-packages/hlo_rheumatology/adapter$", specialties["rheumatology"]["adapter_source"])
    answer = server.post("/ask", {"question": SORE, "max_tokens": 8}).json()
    assert (answer["specialty"], answer["adapter"]["name"]) == ("rheumatology", "rheumatology")


def test_the_console_comes_along(server: Server) -> None:
    """The page, all that it is made of, and an adapter's card are in the wheels."""
    with server.client() as client:
        page = client.get("/")
        parts = re.findall(r'(?:href|src)="(/console/[^"]+)"', page.text)
        assert len(parts) > 4
        assert {client.get(part).status_code for part in parts} == {200}
        assert "LoRA adapter for hlo-demo-10m" in client.get("/specialties/cardiology/card").text


class Load:
    """Clients that ask without end, and all that they were told."""

    def __init__(self, server: Server, clients: int) -> None:
        self.answers: list[tuple[int, dict[str, Any]]] = []
        self._server = server
        self._round = 0
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(number,)) for number in range(clients)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        self.wait(len(self._threads))
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def next_round(self) -> None:
        """From now on, questions are of the next round."""
        self._round += 1

    def wait(self, more: int) -> None:
        """Wait until so many more questions have been answered."""
        wanted = len(self.answers) + more
        while len(self.answers) < wanted:
            assert any(thread.is_alive() for thread in self._threads)
            self._stop.wait(0.05)

    def _ask(self, number: int) -> None:
        specialty = "rheumatology" if number % 4 else "cardiology"
        body = {"question": SORE, "specialty": specialty, "max_tokens": 24}
        with self._server.client() as client:
            while not self._stop.is_set():
                asked_in = self._round
                response = client.post("/ask", json=body)
                self.answers.append((asked_in, {"status": response.status_code} | response.json()))


def test_a_changed_adapter_comes_in_under_load(server: Server, environment: Environment, wheels: Path) -> None:
    """While eight clients ask without end, the plugin is upgraded, taken back, and removed.

    No request fails; each answer is what the version that it names says to the question; and from a reload's end on,
    every new question is answered by the new version.
    """
    alone = {"question": SORE, "specialty": "rheumatology", "max_tokens": 24}
    texts = {}
    for version in ("0.2.0", "0.1.0"):
        environment.install(wheel(wheels, version))
        assert reload(server)["refused"] == []
        answer = server.post("/ask", alone).json()
        texts[answer["adapter"]["sha256"]] = answer["answer"]
    first, second = answer["adapter"]["sha256"], next(iter(texts))
    assert first != second
    assert texts[first] != texts[second]
    with Load(server, 8) as load:
        for version in ("0.2.0", "0.1.0", "0.2.0"):
            environment.install(wheel(wheels, version))
            done = reload(server)
            assert (done["changed"], done["refused"]) == (["rheumatology"], [])
            load.next_round()
            load.wait(16)
    assert [answer for _, answer in load.answers if answer["status"] != 200] == []
    hers = [(asked_in, one) for asked_in, one in load.answers if one["specialty"] == "rheumatology"]
    assert {one["adapter"]["sha256"] for _, one in hers} == {first, second}
    assert [one for _, one in hers if one["answer"] != texts[one["adapter"]["sha256"]]] == []
    last = [one["adapter"]["sha256"] for asked_in, one in hers if asked_in == 3]
    assert len(last) > 4
    assert set(last) == {second}
    others = {(one["answer"], one["adapter"]["sha256"]) for _, one in load.answers if one["specialty"] == "cardiology"}
    assert len(others) == 1


def test_a_removed_plugin_is_gone(server: Server, environment: Environment) -> None:
    """Once it is uninstalled and reloaded, its questions go elsewhere, and to pin it is refused."""
    environment.uninstall("hlo-rheumatology")
    assert reload(server)["removed"] == ["rheumatology"]
    gone = server.post("/ask", {"question": SORE, "specialty": "rheumatology"})
    assert (gone.status_code, gone.json()["type"]) == (404, "urn:hlo:problem:unknown-specialty")
    assert server.post("/ask", {"question": SORE, "max_tokens": 4}).json()["specialty"] != "rheumatology"
