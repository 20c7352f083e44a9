"""A server whose engine process is killed: what its clients see, that it comes back by itself, and what it leaves."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.e2e.server import Server, spawn, wait_ready
from tests.e2e.test_answers import ASKED, events
from tests.figures import Figure

LONG = {"max_tokens": 400, "temperature": 2.0}  # an answer that is never over before the engine dies
CLIENTS = 8

pytestmark = pytest.mark.reliability


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with two specialties."""
    folder = tmp_path_factory.mktemp("engine")
    process, log = spawn(
        folder,
        HLO_PLUGINS="cardiology,oncology",
        HLO_ENGINE_RESTARTS="3",
        HLO_ENGINE_STALL_S="20",
        HLO_SHUTDOWN_GRACE_S="3",
    )
    try:
        yield Server(wait_ready(process, log), process, log)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def engine_processes(server: Server) -> list[psutil.Process]:
    """The engine's own processes: its core first, then its workers."""
    found = [one for one in psutil.Process(server.process.pid).children(recursive=True) if "VLLM" in one.name()]
    return sorted(found, key=lambda one: "EngineCore" not in one.name())


class Clients:
    """Clients in the middle of an answer, half of them reading a stream."""

    def __init__(self, server: Server) -> None:
        self.whole: list[httpx.Response] = []
        self.streamed: list[str] = []
        self._server = server
        self._began = threading.Semaphore(0)
        self._threads = [threading.Thread(target=self._ask, args=(number % 2 == 0,)) for number in range(CLIENTS)]
        for thread in self._threads:
            thread.start()
        for _ in range(CLIENTS // 2):
            assert self._began.acquire(timeout=60)
        server.wait_for("hlo_questions_running", CLIENTS)

    def _ask(self, stream: bool) -> None:
        body: dict[str, Any] = {"question": ASKED["cardiology"], **LONG, "stream": stream}
        if not stream:
            self.whole.append(self._server.post("/ask", body))
            return
        with self._server.client() as client, client.stream("POST", "/ask", json=body) as response:
            lines = []
            for line in response.iter_lines():
                lines.append(line)
                if line == "event: delta":
                    self._began.release()
            self.streamed.append("\n".join(lines))

    def done(self) -> None:
        """Wait for all to have their answers or problems."""
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive(), "a client waits for ever"


def until_ready(server: Server) -> None:
    """Wait until the engine runs again."""
    deadline = time.monotonic() + 240
    while server.get("/readyz").status_code != 200:
        assert server.process.poll() is None, server.log.read_text()[-4000:]
        assert time.monotonic() < deadline, server.log.read_text()[-4000:]
        time.sleep(0.2)


def test_a_killed_engine_comes_back(server: Server, figure: Figure) -> None:
    """Who waits gets a problem at once, who comes meanwhile is told when to come again; then all is as it was."""
    restarts = server.metric('hlo_engine_restarts_total{outcome="done"}')
    before = server.post("/ask", {"question": ASKED["oncology"], "max_tokens": 8}).json()
    clients = Clients(server)
    (copy,) = (server.log.parent / "cache" / "adapters").glob(before["adapter"]["sha256"])
    weights = copy / "adapter_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:1000])  # which nobody notices while it is loaded
    core, *workers = engine_processes(server)
    killed = time.monotonic()
    core.kill()
    clients.done()
    told_s = time.monotonic() - killed
    assert len(clients.whole) == len(clients.streamed) == CLIENTS // 2
    for response in clients.whole:
        assert (response.status_code, response.json()["type"]) == (503, "urn:hlo:problem:engine-dead")
        assert int(response.headers["retry-after"]) > 0
        assert "started anew" in response.json()["remedy"]
    for stream in clients.streamed:
        name, problem = events(stream)[-1]
        assert (name, problem["type"]) == ("problem", "urn:hlo:problem:engine-dead")
        assert problem["retry_after"] > 0

    with server.client() as client:
        meanwhile = client.get("/readyz")
        assert meanwhile.status_code == 503
        assert meanwhile.json()["stage"] == "restarting the engine, attempt 1 of 3"
        for body in ({"question": "x"}, {"question": "x", "stream": True}):
            refused = client.post("/ask", json=body)
            assert (refused.status_code, refused.json()["type"]) == (503, "urn:hlo:problem:not-ready")
            assert int(refused.headers["retry-after"]) > 0
        assert client.post("/admin/specialties/reload").status_code == 503
        assert client.get("/healthz").status_code == 200
        assert "hlo_ready 0.0" in client.get("/metrics").text
        assert client.post("/route", json={"question": ASKED["oncology"]}).json()["specialty"] == "oncology"

    until_ready(server)
    ready_s = time.monotonic() - killed
    assert server.post("/ask", {"question": ASKED["cardiology"], "max_tokens": 8}).status_code == 200
    spoilt = server.post("/ask", {"question": ASKED["oncology"], "max_tokens": 8})
    assert (spoilt.status_code, spoilt.json()["type"]) == (500, "urn:hlo:problem:adapter-error")
    assert str(copy) in spoilt.json()["detail"]
    with server.client() as client:
        done = client.post("/admin/specialties/reload")
    assert (done.status_code, done.json()["refused"]) == (200, [])
    again = server.post("/ask", {"question": ASKED["oncology"], "max_tokens": 8}).json()
    assert (again["answer"], again["adapter"]) == (before["answer"], before["adapter"])
    assert weights.read_bytes() == whole
    assert server.metric('hlo_engine_restarts_total{outcome="done"}') == restarts + 1
    assert server.metric("hlo_questions_running") == 0
    assert "vllm:request_success_total" in server.get("/metrics").text
    assert not [one for one in (core, *workers) if one.is_running()]
    assert len(engine_processes(server)) == 1 + len(workers)
    outcome = f"all told in {told_s:.1f} s, ready again by itself after {ready_s:.0f} s, same answers"
    figure("faults", "engine process killed under answers", CLIENTS, outcome)


def test_a_hanging_engine_is_ended_and_comes_back(server: Server, figure: Figure) -> None:
    """An engine whose processes stand still is taken for dead after a while, and what follows is what follows death."""
    before = server.post("/ask", {"question": ASKED["oncology"], "max_tokens": 8}).json()
    clients = Clients(server)
    still = engine_processes(server)
    stopped = time.monotonic()
    for process in still:
        process.suspend()
    clients.done()
    told_s = time.monotonic() - stopped
    for response in clients.whole:
        assert (response.status_code, response.json()["type"]) == (503, "urn:hlo:problem:engine-dead")
    for stream in clients.streamed:
        name, problem = events(stream)[-1]
        assert (name, problem["type"]) == ("problem", "urn:hlo:problem:engine-dead")
    until_ready(server)
    ready_s = time.monotonic() - stopped
    assert "the engine has not moved for" in server.log.read_text()
    assert not any(process.is_running() for process in still)
    again = server.post("/ask", {"question": ASKED["oncology"], "max_tokens": 8}).json()
    assert (again["answer"], again["adapter"]) == (before["answer"], before["adapter"])
    figure(
        "faults",
        "engine that stands still under answers",
        CLIENTS,
        f"all told after {told_s:.0f} s (20 s are set), ready again by itself after {ready_s:.0f} s, same answers",
    )


def test_clients_that_leave_in_mid_stream_cost_nothing(server: Server, figure: Figure) -> None:
    """The engine stops at its next step for each client that leaves, and nothing of them stays in either process."""
    running = 'vllm:num_requests_running{engine="0",model_name="hlo-demo-10m"}'
    used = 'vllm:kv_cache_usage_perc{engine="0",model_name="hlo-demo-10m"}'
    made = 'vllm:generation_tokens_total{engine="0",model_name="hlo-demo-10m"}'
    _leave(server, 4)  # what is made once, by the first of them
    server.wait_for(running, 0)
    process, before = psutil.Process(server.process.pid), server.metric(made)
    files = process.num_fds()
    for _ in range(5):
        _leave(server, CLIENTS)
    server.wait_for(running, 0)
    server.wait_for("hlo_questions_running", 0)
    server.wait_for(used, 0)
    tokens = server.metric(made) - before
    assert tokens < 5 * CLIENTS * LONG["max_tokens"] / 2
    deadline = time.monotonic() + 30
    while process.num_fds() > files:  # connections that are being closed
        assert time.monotonic() < deadline, (files, process.num_fds())
        time.sleep(0.1)
    assert server.post("/ask", {"question": ASKED["oncology"], "max_tokens": 8}).status_code == 200
    outcome = (
        f"{tokens / 5 / CLIENTS:.0f} of {LONG['max_tokens']} tokens made for each; no request, block or file stays"
    )
    figure("faults", "clients that leave in mid-stream", 5 * CLIENTS, outcome)


def test_a_killed_server_leaves_nothing_behind(server: Server, figure: Figure) -> None:
    """After SIGKILL the engine's processes end by themselves, and no shared memory of theirs stays."""
    process = psutil.Process(server.process.pid)
    children = process.children(recursive=True)
    mapped: set[str] = {one.path for each in (process, *children) for one in each.memory_maps()}
    shared = [path for path in mapped if path.startswith("/dev/shm/")]  # noqa: S108 - none is made here
    killed = time.monotonic()
    server.process.kill()
    server.process.wait()
    _, alive = psutil.wait_procs(children, timeout=60)
    took = time.monotonic() - killed
    assert not alive, f"left behind: {alive}"
    assert not [path for path in shared if Path(path).exists()]
    figure(
        "faults", "server process killed (SIGKILL)", len(children), f"its processes ended by themselves in {took:.1f} s"
    )


def _leave(server: Server, clients: int) -> None:
    """Begin to read that many streams, and leave them."""
    body = {"question": ASKED["cardiology"], **LONG, "stream": True}
    with server.client() as client, ExitStack() as streams:
        for _ in range(clients):
            lines = streams.enter_context(client.stream("POST", "/ask", json=body)).iter_lines()
            assert any(line == "event: delta" for line in lines)
