"""A real server process for the tests: started, waited for, stopped, and checked for what it leaves behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
from msgspec import Struct

from tests.embeddings import cache_dir

START_LIMIT_S = 600
STOP_LIMIT_S = 90


class Server(Struct, frozen=True):
    """A running server: its address, its process, and the file that has all it wrote."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    def client(self) -> httpx.Client:
        """A client for it."""
        return httpx.Client(base_url=self.url, timeout=120)

    def get(self, path: str, **options: Any) -> httpx.Response:
        """Get something, with the patience that a busy machine needs."""
        with self.client() as client:
            return client.get(path, **options)

    def post(self, path: str, body: Mapping[str, Any]) -> httpx.Response:
        """Send one request."""
        with self.client() as client:
            return client.post(path, json=body)

    def metric(self, line: str) -> float:
        """The value of one line of `/metrics`, 0 when it is not there."""
        with self.client() as client:
            for found in client.get("/metrics").text.splitlines():
                if found.startswith(line + " "):
                    return float(found.rpartition(" ")[2])
        return 0.0

    def wait_for(self, line: str, value: float) -> None:
        """Wait until a metric has a value."""
        deadline = time.monotonic() + 60
        while (found := self.metric(line)) != value:
            assert time.monotonic() < deadline, f"{line} stayed at {found}, not {value}"
            time.sleep(0.1)


def settings_only(folder: Path, **environment: str) -> dict[str, str]:
    """The process's environment with no HLO setting but a cache in `folder`, and `environment`."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("HLO_")}
    return clean | {"HLO_CACHE_DIR": str(cache_dir(folder))} | environment


def spawn(
    folder: Path, *, python: Path = Path(sys.executable), **environment: str
) -> tuple[subprocess.Popen[bytes], Path]:
    """Start a server process in `folder`; the process, and the file that has all it writes."""
    log = folder / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(python), "-m", "hlo", "serve", "--port", "0"],
            cwd=folder,
            env=settings_only(folder, **environment),
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return process, log


@contextmanager
def running(folder: Path, *, python: Path = Path(sys.executable), **environment: str) -> Iterator[Server]:
    """Start a server with its files in `folder`, and stop it. It must leave no process and print no traceback."""
    process, log = spawn(folder, python=python, **environment)
    try:
        yield Server(wait_ready(process, log), process, log)
        if process.poll() is None:
            stop(process, signal.SIGTERM)
        assert "Traceback" not in log.read_text(errors="replace"), log.read_text(errors="replace")[-4000:]
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def stop(process: subprocess.Popen[bytes], how: signal.Signals) -> None:
    """Tell a server to stop; it must exit with 0 and take its children along."""
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(how)
    assert process.wait(STOP_LIMIT_S) == 0
    _, alive = psutil.wait_procs(children, timeout=30)
    assert not alive, f"left behind: {alive}"


def wait_ready(process: subprocess.Popen[bytes], log: Path) -> str:
    """Wait until a server answers questions; its address."""
    url = wait_listening(process, log)
    deadline = time.monotonic() + START_LIMIT_S
    while httpx.get(f"{url}/readyz", timeout=30).status_code != 200:
        assert process.poll() is None, f"the server stopped:\n{log.read_text(errors='replace')[-4000:]}"
        assert time.monotonic() < deadline, (
            f"not ready in {START_LIMIT_S} s:\n{log.read_text(errors='replace')[-4000:]}"
        )
        time.sleep(0.5)
    return url


def wait_listening(process: subprocess.Popen[bytes], log: Path) -> str:
    """Wait until a server listens, ready or not; its address."""
    deadline = time.monotonic() + START_LIMIT_S
    while "listening on " not in (text := log.read_text(errors="replace")):
        assert process.poll() is None, f"the server stopped:\n{text[-4000:]}"
        assert time.monotonic() < deadline, f"not listening in {START_LIMIT_S} s:\n{text[-4000:]}"
        time.sleep(0.1)
    return re.split(r"[\s\"]", text.split("listening on ", 1)[1], maxsplit=1)[0]
