"""Real `vllm serve` processes with the embedded model, on a CPU."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from hlo.generation.base_model import EMBEDDED_NAME, embedded_root
from tests.e2e.server import START_LIMIT_S
from tests.ports import free_port

MODEL = embedded_root() / "models" / EMBEDDED_NAME


class VllmProcess:
    """One server, which can be killed and started again at the same address."""

    def __init__(self, folder: Path, *, slots: int) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = folder / f"vllm-{self.port}.log"
        self._slots = slots
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; `wait` waits until it answers."""
        settings = {
            "OMP_NUM_THREADS": "1",
            "TORCHDYNAMO_DISABLE": "1",
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        }
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(MODEL)),
                    *("--served-model-name", "demo", "--host", "127.0.0.1", "--port", str(self.port)),
                    *("--enable-lora", "--max-loras", str(self._slots), "--max-lora-rank", "8"),
                    *("--dtype", "float32", "--enforce-eager", "--max-num-seqs", "64"),
                ],
                env={name: value for name, value in os.environ.items() if not name.startswith("HLO_")} | settings,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait(self) -> None:
        """Wait until it answers."""
        deadline = time.monotonic() + START_LIMIT_S
        while True:
            assert self._process is not None
            assert self._process.poll() is None, self.log.read_text(errors="replace")[-4000:]
            assert time.monotonic() < deadline, self.log.read_text(errors="replace")[-4000:]
            try:
                if httpx.get(f"{self.url}/health", timeout=5).status_code == 200:
                    return
            except httpx.TransportError:
                time.sleep(0.5)

    def kill(self) -> None:
        """Kill it with all of its children, as a want of memory or a power cut would."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


@contextmanager
def vllm_servers(folder: Path, count: int, *, slots: int) -> Iterator[list[VllmProcess]]:
    """Start some side by side, and leave none behind; each has places for `slots` adapters at once.

    They do not answer yet: `wait` for each.
    """
    servers = [VllmProcess(folder, slots=slots) for _ in range(count)]
    try:
        for server in servers:
            server.start()
        yield servers
    finally:
        for server in servers:
            server.kill()
