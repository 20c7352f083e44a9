"""HLO on a real local Ray, with two replicas: `nox -s ray` runs this."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest

from tests.e2e.reference import BASE, Reference
from tests.e2e.server import START_LIMIT_S, settings_only
from tests.e2e.test_answers import SPECIALTIES
from tests.ports import free_port

pytest.importorskip("ray", reason="Ray is not installed: `nox -s ray` installs it")

ROOT = Path(__file__).parents[2]
PROMPT = "<s>[INST] my chest feels tight on the stairs [/INST]"
ADAPTERS = ["cardiology", "neurology", "oncology", "nephrology"]
TOKENS = 16


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file that has all that Ray and HLO write."""
    return tmp_path_factory.mktemp("ray") / "serve.log"


@pytest.fixture(scope="module")
def url(log: Path) -> Iterator[str]:
    """`serve run` with two replicas of the engine `transformers`, as a process of its own; gives HLO's address."""
    folder = log.parent
    port = free_port()
    config = folder / "serve.yaml"
    config.write_text(
        json.dumps(
            {
                "http_options": {"host": "127.0.0.1", "port": port},
                "applications": [
                    {
                        "name": "hlo",
                        "route_prefix": "/",
                        "import_path": "deploy.ray.app:build",
                        "args": {"replicas": 2, "cpus": 0.5},
                    }
                ],
            }
        )
    )
    environment = settings_only(folder, HLO_ENGINE="transformers", RAY_USAGE_STATS_ENABLED="0")
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), environment.get("PYTHONPATH"))))
    environment["RAY_DEDUP_LOGS"] = "0"
    with log.open("wb") as output, tempfile.TemporaryDirectory(prefix="ray-") as short:  # socket paths are short
        process = subprocess.Popen(
            [sys.executable, "-m", "ray.serve.scripts", "run", str(config)],
            cwd=ROOT,
            env=environment | {"RAY_TMPDIR": short},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            address = f"http://127.0.0.1:{port}"
            wait(address, process, log)
            yield address
        finally:
            children = psutil.Process(process.pid).children(recursive=True)
            process.send_signal(signal.SIGINT)
            try:
                process.wait(60)
            finally:
                _, alive = psutil.wait_procs(children, timeout=20)
                for one in alive:
                    one.kill()
        assert not alive, f"left behind: {alive}"


def wait(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until HLO is ready."""
    deadline = time.monotonic() + START_LIMIT_S
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text(errors="replace")[-4000:]
        try:
            if httpx.get(f"{address}/readyz", timeout=30).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.5)
    raise AssertionError(log.read_text(errors="replace")[-6000:])


def loads(log: Path) -> Counter[str]:
    """How many replicas each adapter was loaded on."""
    return Counter(re.findall(r"this replica has the adapter (\w+)@", log.read_text(errors="replace")))


def generate(url: str, adapter: str) -> str:
    body = {"prompt": PROMPT, "adapter": adapter, "max_tokens": TOKENS}
    return str(httpx.post(f"{url}/generate", json=body, timeout=120).raise_for_status().json()["text"])


def test_requests_go_where_their_adapter_is(url: str, log: Path) -> None:
    """Each adapter was loaded at the start, and asked for again and again it is loaded nowhere else."""
    time.sleep(3)  # replicas tell Ray what they have once a second
    before = loads(log)
    once = [name for name, count in before.items() if count == 1]
    assert len(before) == len(SPECIALTIES)
    assert len(once) > 3, before
    for name in once * 4:
        generate(url, name)
    time.sleep(1)
    assert loads(log) == before


def test_answers_are_those_of_the_reference(url: str) -> None:
    """Base and adapters, asked for at the same time over both replicas, say what they say under PEFT."""
    names = [BASE, *ADAPTERS] * 3
    with ThreadPoolExecutor(8) as pool:
        said = list(pool.map(lambda name: generate(url, name), names))
    reference = Reference(ADAPTERS)
    wanted = {name: reference.greedy(PROMPT, name, TOKENS) for name in [BASE, *ADAPTERS]}
    assert len(set(wanted.values())) > len(ADAPTERS) // 2
    assert said == [wanted[name] for name in names]


def test_a_question_is_routed_and_streamed(url: str) -> None:
    """The ingress is HLO's whole app: a question is routed, and its answer comes in pieces."""
    body = {"question": "my chest feels tight when I climb the stairs", "max_tokens": TOKENS, "stream": True}
    with httpx.stream("POST", f"{url}/ask", json=body, timeout=120) as response:
        events = [line.removeprefix("event: ") for line in response.iter_lines() if line.startswith("event: ")]
    assert (events[0], events[-1]) == ("route", "answer")
    assert events.count("delta") > 3
    assert httpx.get(f"{url}/readyz").json()["engine"]["engine"] == "ray/transformers"


def test_what_is_wrong_is_told_as_ever(url: str) -> None:
    """An error that a replica raises reaches the client as the problem that it is anywhere else."""
    found = httpx.post(f"{url}/generate", json={"prompt": "x" * 5000, "max_tokens": 1000}, timeout=120)
    assert (found.status_code, found.json()["type"]) == (413, "urn:hlo:problem:prompt-too-long")
