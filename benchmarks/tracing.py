"""What does tracing every question cost? `/ask` with all spans sent to a real receiver, against `/ask` without.

One server is asked the same questions in turn with and without tracing, round after round, and rounds change who goes
first. Callers decide: the `traceparent` that they send says whether their question is sampled, and one that is not
makes no span, in HLO or in vLLM. So both sides have the same processes, the same memory and the same engine. The
receiver is a process of its own. `--gpu`: Mistral-7B's shape, 64 adapters, 256 clients; otherwise a small shape on the
CPU. At most 2 % is what we want to pay.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import secrets
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import IO, Any

import httpx
import msgspec
import psutil
from msgspec import Struct

from benchmarks import shaped, shapes
from benchmarks.ask_at_scale import GPU, TINY, Load
from benchmarks.report import median, tell
from benchmarks.serving import serving
from hlo.service.server import event_loop
from tests.otlp import receiving

QUESTIONS = 8  # that each client asks, one after the other, in a round


class Side(Struct, frozen=True):
    """What a round of one side showed: tokens per second, and the milliseconds of CPU that a question took."""

    rate: float
    cpu_ms: float


SHORT = msgspec.structs.replace(TINY, clients=4, tokens=16, rounds=60)
LONG = msgspec.structs.replace(GPU, rounds=8)


async def serve(model: Path, engine: dict[str, Any]) -> None:
    """Serve a shaped model until standard input ends; prints the address."""
    runtime = await shaped.start(shaped.settings(model, engine_arguments=engine, spare_adapters=0))
    async with serving(runtime) as url:
        print(f"address {url}", flush=True)
        await asyncio.to_thread(sys.stdin.read)


def receive() -> None:
    """Receive spans until standard input ends; prints the address, and then how many of each name came."""
    with receiving("grpc") as receiver:
        print(f"address {receiver.endpoint}", flush=True)
        sys.stdin.read()
        print(json.dumps(Counter(span.name for span in receiver.spans)), flush=True)


@contextmanager
def running(*arguments: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """A process of its own for one of the above; the names and values are added to its environment."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.tracing", *arguments],
        env=clean | environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
        end(process)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def address(process: subprocess.Popen[str]) -> str:
    """The address that a process prints once it is ready. Raises RuntimeError where it ends instead."""
    assert process.stdout is not None
    for line in process.stdout:
        print(line, end="", flush=True)
        if line.startswith("address "):
            return line.split()[1]
    raise RuntimeError("a server ended before it was ready")


def end(process: subprocess.Popen[str]) -> str:
    """Tell a process to stop, and what it had to say at last."""
    if process.poll() is not None:
        return ""
    stdin: IO[str] | None = process.stdin
    assert stdin is not None
    said, _ = process.communicate(timeout=120)
    return said


async def run(*, gpu: bool) -> None:
    """Measure, and tell."""
    load, config = (LONG, shapes.MISTRAL_7B) if gpu else (SHORT, shapes.TINY)
    engine: dict[str, Any] = {"max_model_len": 2048, "kv_cache_memory_bytes": (40 if gpu else 1) << 30}
    if gpu:
        engine |= {"gpu_memory_utilization": 0.9, "compilation_config": {"cudagraph_capture_sizes": shapes.GRAPHS}}
    else:
        engine |= {"enforce_eager": True, "dtype": "float32"}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        model = stack.enter_context(shaped.installed(folder, config, load.adapters))
        receiver = stack.enter_context(running("--receive"))
        sent = {"OTEL_EXPORTER_OTLP_ENDPOINT": address(receiver)}
        server = stack.enter_context(running("--serve", str(model), json.dumps(engine), **sent))
        url = address(server)
        processes = 8 if gpu else 1
        pool = stack.enter_context(ProcessPoolExecutor(processes, mp_context=get_context("spawn")))
        found = await measure(pool, url, server.pid, load, processes)
        await asyncio.sleep(6)  # longer than the exporter waits to send
        end(server)
        spans = json.loads(end(receiver))
    questions = (load.rounds + 1) * load.clients * QUESTIONS
    print(f"{questions} questions were traced; spans that came: {spans}")
    pairs = list(zip(found["traced"], found["plain"], strict=True))
    told: dict[str, Any] = {
        "spans a question": sum(spans.get(name, 0) for name in STAGES) / questions,
        "rounds": load.rounds,
    }
    speeds = row("tokens/s", [(one.rate, other.rate) for one, other in pairs])
    costs = row("CPU ms a question", [(one.cpu_ms, other.cpu_ms) for one, other in pairs])
    rows = [speeds | {"limit": 0.98} | told, costs | {"limit": 1.02} | told]
    tell("tracing", f"/ask with every question traced, over without; {load.clients} clients", rows)


def row(what: str, pairs: list[tuple[float, float]]) -> dict[str, Any]:
    """Both sides' medians, the mean of the rounds' ratios, and how far that may be off."""
    ratios = [traced / plain for traced, plain in pairs]
    return {
        "what": what,
        "traced": median([traced for traced, _ in pairs]),
        "plain": median([plain for _, plain in pairs]),
        "ratio": statistics.mean(ratios),
        "standard error": statistics.stdev(ratios) / len(ratios) ** 0.5,
    }


STAGES = ("POST /ask", "route", "encode", "score", "prompt", "generate", "llm_request")


async def measure(
    pool: ProcessPoolExecutor, url: str, server: int, load: Load, processes: int
) -> dict[str, list[Side]]:
    """Each side's rounds. A first round warms the server.

    The CPU's time is that of the server with its engine, and lasts until its spans are sent, but for the last few.
    """
    found: dict[str, list[Side]] = {"traced": [], "plain": []}
    loop = asyncio.get_running_loop()
    for number in range(load.rounds + 1):
        for side in sorted(found, reverse=number % 2 == 0):
            before, clock = cpu_s(server), time.perf_counter()
            parts = [range(first, load.clients, processes) for first in range(processes)]
            jobs = [loop.run_in_executor(pool, ask, url, load, part, number, side == "traced") for part in parts]
            tokens = sum(await asyncio.gather(*jobs))
            rate = tokens / (time.perf_counter() - clock)
            cost = (cpu_s(server) - before) / (load.clients * QUESTIONS) * 1e3
            print(f"{side}: {rate:,.0f} tokens/s, {cost:.2f} ms of CPU a question", flush=True)
            if number:
                found[side].append(Side(rate, cost))
    return found


def ask(url: str, load: Load, clients: range, turn: int, sampled: bool) -> int:
    """The work of one process of clients in one round; gives the tokens that came."""

    async def one(client: httpx.AsyncClient, number: int) -> int:
        chance, tokens = random.Random(f"{number} {turn}"), 0
        for _ in range(QUESTIONS):
            asked = shaped.question(chance.randrange(load.adapters), chance.randrange(10**9))
            parent = f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-{sampled:02d}"
            body = {"question": asked, "max_tokens": load.tokens}
            said = await client.post("/ask", json=body, headers={"traceparent": parent})
            tokens += said.raise_for_status().json()["usage"]["completion_tokens"]
        return tokens

    async def all_of_them() -> int:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        async with httpx.AsyncClient(base_url=url, timeout=300, limits=limits) as client:
            return sum(await asyncio.gather(*(one(client, number) for number in clients)))

    return asyncio.run(all_of_them())


def cpu_s(pid: int) -> float:
    """The CPU's time that a process and those under it have had, in seconds."""
    server = psutil.Process(pid)
    times = [one.cpu_times() for one in (server, *server.children(recursive=True))]
    return float(sum(one.user + one.system for one in times))


if __name__ == "__main__":
    if "--serve" in sys.argv:
        with asyncio.Runner(loop_factory=event_loop()) as runner:  # as `hlo serve`
            runner.run(serve(Path(sys.argv[2]), json.loads(sys.argv[3])))
    elif "--receive" in sys.argv:
        receive()
    else:
        asyncio.run(run(gpu="--gpu" in sys.argv))
