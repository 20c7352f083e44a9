"""Starting, refusing, draining, stopping, and the command line: each with real processes."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from tests.e2e.reference import ADAPTERS
from tests.e2e.server import Server, running, settings_only, spawn, stop
from tests.e2e.test_answers import ASKED, SPECIALTIES, events


def _spoil(adapters: Path) -> dict[str, str]:
    """Copy the embedded adapters and spoil four of them; what each one's refusal must speak of."""
    shutil.copytree(ADAPTERS, adapters, ignore=shutil.ignore_patterns("recipe"))
    weights = adapters / "cardiology" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])

    def rewrite(name: str, scale: float) -> None:
        path = adapters / name / "adapter_model.safetensors"
        save_file({key: (value.float() * scale).contiguous() for key, value in load_file(path).items()}, path)

    rewrite("oncology", 0.0)
    rewrite("neurology", float("nan"))
    rewrite("genetics", 1e-6)  # finite, not zero, and too small to change anything
    shutil.rmtree(adapters / "hematology")
    return {
        "cardiology": "is damaged",
        "oncology": "changes nothing",
        "neurology": "NaN",
        "genetics": "changes nothing",
        "hematology": "was not found",
    }


def test_bad_adapters_are_refused_by_name_and_the_rest_serve(tmp_path: Path) -> None:
    """A damaged, an empty, a NaN, an ineffective and a missing adapter are refused with their reasons; others answer.

    The same server refuses everyday questions, and finishes the answers that are running when it is told to stop.
    """
    adapters = tmp_path / "adapters"
    reasons = _spoil(adapters)
    with running(tmp_path, ADAPTER_PATH=str(adapters), HLO_OUT_OF_SCOPE="refuse") as server:
        ready = server.get("/readyz").json()
        assert sorted(ready["specialties"]) == sorted(set(SPECIALTIES) - set(reasons))
        refused = {one["specialty"]: one for one in ready["refused"]}
        assert sorted(refused) == sorted(reasons)
        for name, words in reasons.items():
            assert words in refused[name]["reason"], refused[name]
            assert refused[name]["remedy"]
        answer = server.post("/ask", {"question": ASKED["nephrology"], "max_tokens": 8}).json()
        assert answer["adapter"]["name"] == "nephrology"
        problem = server.post("/ask", {"question": "what is a good recipe for banana bread"})
        assert problem.status_code == 422
        assert problem.json()["type"] == "urn:hlo:problem:out-of-scope"
        _finishes_what_it_began(server)


def _finishes_what_it_began(server: Server) -> None:
    """Stop a server with SIGTERM while an answer is streaming: the whole answer still arrives."""
    body = {"question": "x", "specialty": "nephrology", "max_tokens": 200, "temperature": 2.0, "stream": True}
    began, lines = threading.Event(), list[str]()

    def listen() -> None:
        with server.client() as client, client.stream("POST", "/ask", json=body) as response:
            for line in response.iter_lines():
                lines.append(line)
                began.set()

    listener = threading.Thread(target=listen)
    listener.start()
    assert began.wait(30)
    stop(server.process, signal.SIGTERM)
    listener.join(30)
    found = events("\n".join(lines))
    assert found[-1][0] == "answer", found[-1]
    assert found[-1][1]["finish_reason"] in ("stop", "length")


def _hlo(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "hlo", *arguments],
        cwd=cwd,
        env=settings_only(cwd, **environment),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_the_command_line_asks_a_server(server: Server, tmp_path: Path) -> None:
    """`hlo ask --url` prints the answer, and who gave it; `hlo route --url` shows the scores."""
    asked = _hlo("ask", "--url", server.url, ASKED["cardiology"], cwd=tmp_path)
    assert asked.returncode == 0, asked.stderr
    assert asked.stdout.strip()
    assert "cardiology" in asked.stderr
    routed = _hlo("route", "--url", server.url, ASKED["oncology"], cwd=tmp_path)
    assert "routed" in routed.stdout
    assert "oncology" in routed.stdout
    wrong = _hlo("ask", "--url", server.url, "--specialty", "dermatology", "x", cwd=tmp_path)
    assert wrong.returncode == 1
    assert "No specialty `dermatology` is installed" in wrong.stderr


def test_the_command_line_asks_without_a_server(tmp_path: Path) -> None:
    """`hlo ask` starts an engine in process, answers, and leaves cleanly."""
    words = ("--specialty", "cardiology", "what is a heart attack")
    asked = _hlo("ask", *words, cwd=tmp_path, HLO_PLUGINS="cardiology")
    assert asked.returncode == 0, asked.stderr
    assert asked.stdout.strip()
    assert "adapter cardiology" in asked.stderr
    assert "Traceback" not in asked.stderr


def test_the_doctor_finds_nothing_wrong_and_says_what_is(tmp_path: Path) -> None:
    """`hlo doctor` exits 0 on this installation, and 1 with the places it looked in when an adapter is missing."""
    import json

    well = _hlo("doctor", "--json", cwd=tmp_path)
    findings: list[dict[str, Any]] = json.loads(well.stdout)
    assert well.returncode == 0, findings
    assert {"engine", "model", "adapters", "memory", "encoder", "speed"} <= {one["topic"] for one in findings}
    (tmp_path / "hlo.toml").write_text(f'model = "{ADAPTERS.parent / "models" / "hlo-demo-10m"}"\n')
    ill = _hlo("doctor", "--json", cwd=tmp_path)
    troubles = [one for one in json.loads(ill.stdout) if one["state"] == "trouble"]
    assert ill.returncode == 1
    assert any(str(tmp_path / "adapters" / "cardiology") in one["text"] for one in troubles)
    small = _hlo("doctor", "--json", "--gpu-gib", "1", cwd=tmp_path)
    (memory,) = (one for one in json.loads(small.stdout) if one["topic"] == "memory")
    assert memory["state"] == "trouble"
    assert memory["remedy"].startswith("Set HLO_GPU_MEMORY_UTILIZATION=")  # what CUDA itself takes leaves less than 0.9


def test_a_taken_port_is_told_before_anything_is_loaded(server: Server, tmp_path: Path) -> None:
    """A port in use ends in one clear message and exit status 2."""
    port = server.url.rpartition(":")[2]
    taken = _hlo("serve", "--port", port, cwd=tmp_path)
    assert taken.returncode == 2
    assert f"Can not listen on 127.0.0.1:{port}" in taken.stderr
    assert "HLO_PORT" in taken.stderr


def test_a_server_told_to_stop_while_it_starts_leaves_nothing_behind(tmp_path: Path) -> None:
    """SIGINT during start-up ends the server, without orphans."""
    process, log = spawn(tmp_path)
    while "starting the engine" not in log.read_text(errors="replace"):
        assert process.poll() is None, log.read_text(errors="replace")
        threading.Event().wait(0.2)
    stop(process, signal.SIGINT)
