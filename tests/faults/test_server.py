"""A server around which things break: its encoder, its disk, its files, its clients and its clock."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.e2e.reference import ADAPTERS
from tests.e2e.server import Server, settings_only, wait_ready
from tests.e2e.test_answers import ASKED, events
from tests.faults import brittle
from tests.figures import Figure

pytestmark = pytest.mark.reliability

KEY = "the key of these tests, no other"
SHORT = {"max_tokens": 4}
HEAD = b"POST /ask HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 100\r\n"
ENVIRONMENT = {
    "HLO_ENGINE": "transformers",
    "HLO_ENCODER": "brittle",
    "HLO_ENCODER_TIMEOUT_S": "2",
    "HLO_PLUGINS": "brittle,cardiology,oncology,nephrology",
    "HLO_RECEIVE_TIMEOUT_S": "2",
    "HLO_SEND_TIMEOUT_S": "2",
    "HLO_SHUTDOWN_GRACE_S": "6",
    "HLO_AUDIT_KEY": KEY,
}


def start(folder: Path, *, port: str = "0", prelude: str = "", **changes: str) -> Server:
    """A server in `folder`, with adapters that may be spoilt; `prelude` is what its process does first."""
    log = folder / "server.log"
    given = ENVIRONMENT | {"HLO_ADAPTER_PATH": str(folder / "adapters")} | changes
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", f"{prelude}\nfrom hlo.cli import main\nmain()", "serve", "--port", port],
            cwd=folder,
            env=settings_only(folder, **given),
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        return Server(wait_ready(process, log), process, log)
    except BaseException:
        end(Server("", process, log))
        raise


def end(server: Server) -> None:
    """Kill what is left of a server."""
    if server.process.poll() is None:
        os.killpg(server.process.pid, signal.SIGKILL)
        server.process.wait()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the servers of this module keep everything."""
    made = tmp_path_factory.mktemp("faults")
    brittle.install(made / "site")
    shutil.copytree(ADAPTERS, made / "adapters", ignore=shutil.ignore_patterns("recipe"))
    return made


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    """A server that records what it answers, and refuses what it can not route."""
    started = start(folder, PYTHONPATH=_path(folder), HLO_AUDIT_LOG=str(folder / "audit.jsonl"))
    yield started
    end(started)


def _path(folder: Path) -> str:
    return os.pathsep.join((str(folder / "site"), *filter(None, [os.environ.get("PYTHONPATH")])))


def ask(server: Server, name: str = "cardiology", **fields: Any) -> httpx.Response:
    return server.post("/ask", {"question": ASKED[name], **SHORT, **fields})


def problem(response: httpx.Response, status: int, slug: str) -> dict[str, Any]:
    """What a response tells of, which must be that problem."""
    assert (response.status_code, response.json()["type"]) == (status, f"urn:hlo:problem:{slug}"), response.text
    found: dict[str, Any] = response.json()
    return found


@pytest.mark.parametrize("how", ["raise", "hang"])
def test_an_encoder_that_fails_costs_nobody_else(server: Server, folder: Path, figure: Figure, how: str) -> None:
    """What can not be routed is refused in time, pinned questions are answered, and routing comes back by itself."""
    (folder / "encoder").write_text(how)
    try:
        with ThreadPoolExecutor(8) as pool:
            asked = time.monotonic()
            refused = list(pool.map(lambda _: ask(server), range(16)))
            took = time.monotonic() - asked
            for response in refused:
                told = problem(response, 503, "encoder-error")
                assert int(response.headers["retry-after"]) > 0
                assert "chest" not in json.dumps(told)
            assert ask(server, specialty="cardiology").json()["specialty"] == "cardiology"
            problem(server.post("/route", {"question": "x"}), 503, "encoder-error")
            assert server.get("/readyz").status_code == 200
    finally:
        (folder / "encoder").unlink()
    mended, deadline = time.monotonic(), time.monotonic() + 60
    while (response := ask(server)).status_code != 200:
        assert time.monotonic() < deadline, response.text
    assert response.json()["specialty"] == "cardiology"
    assert server.metric("hlo_encoder_errors_total") >= 17
    assert "chest" not in server.log.read_text()
    figure(
        "faults",
        f"questions while the encoder {'hangs' if how == 'hang' else 'raises'}",
        len(refused),
        f"all refused in {took:.1f} s (2 s is its time-out), pinned ones answered, routed again"
        f" {time.monotonic() - mended:.1f} s after it was well",
    )


def test_a_full_disk_lets_no_answer_out_unrecorded(server: Server, folder: Path, figure: Figure) -> None:
    """Where the audit log can not grow, no answer is given, whole or streamed; with room again it has no gap."""
    ask(server)
    log = folder / "audit.jsonl"
    before = log.read_bytes()
    resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (len(before) + 100, resource.RLIM_INFINITY))
    try:
        for _ in range(8):
            told = problem(ask(server), 503, "audit-error")
            assert "HLO_AUDIT_LOG" in told["remedy"]
        found = events(ask(server, stream=True).text)
        assert found[-1][0] == "problem"
        assert found[-1][1]["type"] == "urn:hlo:problem:audit-error"
        assert log.read_bytes() == before
        assert server.get("/readyz").status_code == 200
    finally:
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert ask(server).status_code == 200
    verified = hlo(folder, "audit", "verify", HLO_AUDIT_LOG=str(log), HLO_AUDIT_KEY=KEY)
    assert verified.returncode == 0, verified.stdout + verified.stderr
    figure("faults", "answers while the disk of the audit log is full", 9, "none given, none recorded; the log holds")


@pytest.mark.parametrize("spoil", ["truncated", "deleted"])
def test_an_adapter_that_is_spoilt_while_it_is_served_goes_on(
    server: Server, folder: Path, figure: Figure, spoil: str
) -> None:
    """What is loaded is served on, word for word; a reload names the file and what to do, and keeps serving it too."""
    weights = folder / "adapters" / "oncology" / "adapter_model.safetensors"
    whole, before = weights.read_bytes(), ask(server, "oncology").json()
    if spoil == "deleted":
        weights.unlink()
    else:
        weights.write_bytes(whole[:1000])
    try:
        assert ask(server, "oncology").json()["answer"] == before["answer"]
        with server.client() as client:
            done = client.post("/admin/specialties/reload").json()
        assert done["kept"] == ["oncology"]
        (refused,) = done["refused"]
        assert str(weights.parent) in refused["reason"]
        assert refused["remedy"]
        after = ask(server, "oncology").json()
        assert (after["answer"], after["adapter"]) == (before["answer"], before["adapter"])
    finally:
        weights.write_bytes(whole)
    with server.client() as client:
        done = client.post("/admin/specialties/reload").json()
    assert (done["kept"], done["refused"]) == ([], [])
    figure("faults", f"adapter file {spoil} while it is served", 1, "served on; the reload names the file")


def test_a_checked_copy_that_is_spoilt_is_made_again(server: Server, folder: Path) -> None:
    """HLO's own copies of adapters are checked at each reload, and made anew from where they came."""
    (copy,) = (folder / "cache" / "adapters").glob(f"{ask(server, 'oncology').json()['adapter']['sha256']}")
    weights = copy / "adapter_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-4] + b"\0\0\0\0")
    with server.client() as client:
        assert client.post("/admin/specialties/reload").json()["refused"] == []
    assert (copy / "adapter_model.safetensors").read_bytes() == whole


@pytest.mark.parametrize("sent", [b"", HEAD[:40], HEAD + b'\r\n{"question": '], ids=["nothing", "head", "body"])
def test_half_of_a_request_is_not_waited_for(server: Server, figure: Figure, sent: bytes) -> None:
    """Connections on which half a request comes get 408 and are closed, while others are answered."""
    started, clients = time.monotonic(), [socket.create_connection(_place(server), timeout=30) for _ in range(50)]
    for client in clients:
        client.sendall(sent)
    assert ask(server).status_code == 200
    said = [_all_of(client) for client in clients]
    took = time.monotonic() - started
    assert all(one.startswith(b"HTTP/1.1 408 ") for one in said), said[0]
    if sent.startswith(HEAD):
        assert all(b"urn:hlo:problem:request-too-slow" in one for one in said)
    what = {0: "connections on which nothing comes", 40: "connections with half a head"}
    figure(
        "faults", what.get(len(sent), "requests with half a body"), len(said), f"408 within {took:.1f} s (2 s is set)"
    )


def test_a_client_that_goes_in_the_middle_of_its_body_is_no_error(server: Server) -> None:
    """Bodies that break off leave no error in the log, and nothing running."""
    for _ in range(5):
        with socket.create_connection(_place(server)) as client:
            client.sendall(HEAD + b'\r\n{"question": ')
    assert ask(server).status_code == 200
    server.wait_for("hlo_questions_running", 0)
    assert "unforeseen" not in server.log.read_text()
    assert "Traceback" not in server.log.read_text()


def test_clients_that_read_slowly_or_not_at_all_hold_up_nobody(server: Server, figure: Figure) -> None:
    """Who asks for much and takes nothing is cut off; who reads slowly gets all; others are answered meanwhile."""
    greedy = [socket.create_connection(_place(server), timeout=60) for _ in range(5)]
    ports = {client.getsockname()[1] for client in greedy}
    for client in greedy:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.sendall(b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n" * 1500)
    slow: list[str] = []

    def read_slowly() -> None:
        body = {"question": "x", "specialty": "nephrology", "max_tokens": 40, "temperature": 1.0, "stream": True}
        with server.client() as client, client.stream("POST", "/ask", json=body) as response:
            for piece in response.iter_raw(64):
                slow.append(piece.decode())
                time.sleep(0.05)

    reader = threading.Thread(target=read_slowly)
    reader.start()
    assert ask(server).status_code == 200
    deadline = time.monotonic() + 120
    while ports & {one.raddr.port for one in psutil.Process(server.process.pid).net_connections() if one.raddr}:
        assert time.monotonic() < deadline, "a client that takes nothing is never cut off"
        time.sleep(0.2)
    reader.join(60)
    assert events("".join(slow))[-1][0] == "answer"
    for client in greedy:
        client.close()
    figure(
        "faults", "clients that ask for much and read nothing", len(greedy), "cut off; others were answered meanwhile"
    )


@pytest.mark.parametrize("ahead", [86400.0, -86400.0], ids=["a_day_ahead", "a_day_back"])
def test_a_wall_clock_that_jumps_changes_nothing(server: Server, folder: Path, figure: Figure, ahead: float) -> None:
    """Questions that run while the clock is set are answered; no time-out fires, and no duration is of a day."""
    body = {"question": "x", "specialty": "nephrology", "max_tokens": 60, "temperature": 1.0, "stream": True}
    found: list[list[tuple[str, Any]]] = []
    runner = threading.Thread(target=lambda: found.append(events(server.post("/ask", body).text)))
    try:
        runner.start()
        server.wait_for("hlo_questions_running", 1)
        (folder / "clock").write_text(str(ahead))
        answer = ask(server).json()
        runner.join(60)
        assert found[0][-1][0] == "answer"
        for timings in (answer["timings"], found[0][-1][1]["timings"]):
            assert all(0 <= one < 3_600_000 for one in timings.values()), timings
        for family in ("routing", "first_token", "answer", "token"):
            for line in server.get("/metrics").text.splitlines():
                if line.startswith(f"hlo_{family}_seconds_sum"):
                    assert 0 <= float(line.rpartition(" ")[2]) < 3600, line
    finally:
        (folder / "clock").unlink(missing_ok=True)
    assert ask(server).status_code == 200
    figure(
        "faults", f"wall clock set a day {'ahead' if ahead > 0 else 'back'} under questions", 2, "no duration is wrong"
    )


def test_two_servers_share_a_folder(server: Server, folder: Path, figure: Figure) -> None:
    """A second server uses the same cache and adapters; the same audit log it is refused, with what to do.

    This one answers without its encoder; killed without warning, it starts again on the same port and log.
    """
    environment = ENVIRONMENT | {"HLO_ADAPTER_PATH": str(folder / "adapters"), "PYTHONPATH": _path(folder)}
    refused = hlo(folder, "serve", "--port", "0", HLO_AUDIT_LOG=str(folder / "audit.jsonl"), **environment)
    assert refused.returncode == 2
    assert "another server writes to" in refused.stderr
    assert "log of its own" in refused.stderr

    site = folder / "second"
    site.mkdir()
    (site / "cache").symlink_to(folder / "cache")
    own = {"HLO_AUDIT_LOG": str(site / "audit.jsonl"), "HLO_ENCODER_FAILURE": "base"}
    given = {"PYTHONPATH": _path(folder), "HLO_ADAPTER_PATH": str(folder / "adapters"), **own}
    second = start(site, **given)
    try:
        for one in (server, second):
            assert ask(one).json()["specialty"] == "cardiology"
        (site / "encoder").write_text("raise")
        unrouted = ask(second).json()
        assert (unrouted["route"]["status"], unrouted["specialty"]) == ("unrouted", None)
        assert [notice["plugin"] for notice in unrouted["notices"]] == ["hlo"]
        assert ask(server).json()["specialty"] == "cardiology"
        (site / "encoder").unlink()

        killed = time.monotonic()
        second.process.send_signal(signal.SIGKILL)
        second.process.wait()
        again = start(site, port=second.url.rpartition(":")[2], **given)
        second = again
        ready_s = time.monotonic() - killed
        assert ask(again).json()["specialty"] == "cardiology"
        verified = hlo(site, "audit", "verify", HLO_AUDIT_KEY=KEY, **own)
        assert verified.returncode == 0, verified.stdout + verified.stderr
    finally:
        end(second)
    figure(
        "faults",
        "two servers on one folder, cache and adapters",
        2,
        "both answer; one audit log is refused to the second",
    )
    figure(
        "faults", "server killed (SIGKILL) and started again", 1, f"ready after {ready_s:.0f} s; its audit log holds"
    )


def test_a_server_whose_cache_is_full_says_so(folder: Path, figure: Figure) -> None:
    """Adapters that can not be copied are refused by name with what to do; the server starts, and the base answers."""
    site = folder / "full"
    site.mkdir()
    given = {"PYTHONPATH": _path(folder), "HLO_ADAPTER_PATH": str(folder / "adapters"), "HLO_ENCODER": ""}
    server = start(site, prelude=_FULL, **given)
    try:
        refused = server.get("/readyz").json()["refused"]
        assert {one["specialty"] for one in refused} == {"cardiology", "oncology", "nephrology"}
        assert all("HLO_CACHE_DIR" in one["remedy"] for one in refused), refused
        assert ask(server).json()["specialty"] is None
        assert list((site / "cache" / "adapters").iterdir()) == []
    finally:
        end(server)
    figure(
        "faults", "start with a full disk under the cache", len(refused), "adapters refused by name; the base answers"
    )


def test_an_engine_that_does_not_come_back_ends_the_server(folder: Path, figure: Figure) -> None:
    """When its attempts are used up, the server ends with a clear error and status 1, so that it is started anew."""
    site = folder / "mortal"
    site.mkdir()
    given = {"PYTHONPATH": _path(folder), "HLO_ADAPTER_PATH": str(folder / "adapters")}
    server = start(site, **given, HLO_ENGINE="brittle", HLO_ENGINE_RESTARTS="3", HLO_ENGINE_RESTART_BACKOFF_S="0.2")
    try:
        died = time.monotonic()
        (site / "engine").write_text("dead")
        assert server.process.wait(60) == 1
        took = time.monotonic() - died
    finally:
        end(server)
    log = server.log.read_text()
    assert "The engine died, and did not come back in 3 attempts." in log
    assert log.count("restarting the engine") == 3
    assert "Traceback" not in log
    figure("faults", "attempts to start an engine that does not come back", 3, f"exit status 1 after {took:.1f} s")


def test_a_server_told_to_stop_under_load_ends_in_its_grace(server: Server, figure: Figure) -> None:
    """SIGTERM under many questions: each ends with an answer or is cut off, and the server exits with 0, quietly."""
    outcomes: Counter[str] = Counter()

    def run(number: int) -> None:
        body = {"question": "x", "specialty": "nephrology", "max_tokens": 30 + 12 * number, "temperature": 1.0}
        try:
            response = server.post("/ask", body | {"stream": number % 2 == 0})
        except httpx.HTTPError:
            outcomes["cut off"] += 1
        else:
            whole = "event: answer" in response.text or "timings" in response.text
            outcomes["answered" if whole else f"status {response.status_code}"] += 1

    threads = [threading.Thread(target=run, args=(number,)) for number in range(32)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 60
    while (running := server.metric("hlo_questions_running")) + outcomes.total() < len(threads):  # some may be over
        assert time.monotonic() < deadline, f"{running} run, {outcomes}"
        time.sleep(0.02)
    told = time.monotonic()
    server.process.send_signal(signal.SIGTERM)
    assert running > 0, outcomes
    assert server.process.wait(60) == 0
    took = time.monotonic() - told
    for thread in threads:
        thread.join(30)
    assert sum(outcomes.values()) == len(threads)
    assert "Traceback" not in server.log.read_text(), server.log.read_text()[-4000:]
    said = ", ".join(f"{number} {what}" for what, number in sorted(outcomes.items()))
    figure("faults", "questions when SIGTERM comes", len(threads), f"{said}; exit 0 after {took:.1f} s (6 s is set)")


# Files of the process can not grow beyond what an adapter takes.
_FULL = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (20000, resource.RLIM_INFINITY))"


def _place(server: Server) -> tuple[str, int]:
    host, _, port = server.url.removeprefix("http://").rpartition(":")
    return host, int(port)


def _all_of(client: socket.socket) -> bytes:
    with client:
        said = b""
        while piece := client.recv(65536):
            said += piece
        return said


def hlo(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "hlo", *arguments],
        cwd=folder,
        env=settings_only(folder, **environment),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
