"""What does tracing every question cost? `/ask` with all spans sent to a real receiver, against `/ask` without.

Two servers of the same model and adapters run in processes of their own, and the receiver in another. They are asked
in turn, round after round, while the other one idles; rounds change who goes first. `--gpu`: Mistral-7B's shape, 64
adapters, 256 clients; otherwise a small shape on the CPU. At most 2 % is what we want to pay.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import IO, Any

import msgspec
import psutil

from benchmarks import shaped, shapes
from benchmarks.ask_at_scale import GPU, TINY, Load, over_http, rate
from benchmarks.report import median, tell
from benchmarks.serving import serving
from hlo.service.server import event_loop
from tests.otlp import receiving

SHORT = msgspec.structs.replace(TINY, clients=4, tokens=16, window_s=8.0, rounds=6)
LONG = msgspec.structs.replace(GPU, window_s=8.0, rounds=5)


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
        engine |= {"gpu_memory_utilization": 0.45, "compilation_config": {"cudagraph_capture_sizes": shapes.GRAPHS}}
    else:
        engine |= {"enforce_eager": True, "dtype": "float32"}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        model = stack.enter_context(shaped.installed(folder, config, load.adapters))
        receiver = stack.enter_context(running("--receive"))
        variables = {"traced": {"OTEL_EXPORTER_OTLP_ENDPOINT": address(receiver)}, "plain": {}}
        given = ("--serve", str(model), json.dumps(engine))
        started = {side: stack.enter_context(running(*given, **more)) for side, more in variables.items()}
        servers = {side: (address(process), process) for side, process in started.items()}
        processes = 8 if gpu else 1
        pool = stack.enter_context(ProcessPoolExecutor(processes, mp_context=get_context("spawn")))
        rates, costs, questions = await measure(pool, servers, load, processes)
        await asyncio.sleep(6)  # longer than the exporter waits to send
        spans = json.loads(end(receiver))
    ratios = [one / other for one, other in zip(rates["traced"], rates["plain"], strict=True)]
    print(f"{questions} questions were traced; spans that came: {spans}")
    row = {
        "traced tokens/s": median(rates["traced"]),
        "plain tokens/s": median(rates["plain"]),
        "ratio": median(ratios),
        "lowest": min(ratios),
        "highest": max(ratios),
        "standard error": statistics.stdev(ratios) / len(ratios) ** 0.5,
        "limit": 0.98,
        "traced CPU ms": median(costs["traced"]),
        "plain CPU ms": median(costs["plain"]),
        "spans a question": sum(spans.get(name, 0) for name in STAGES) / questions,
    }
    tell("tracing", f"/ask with every question traced, over without; {load.clients} clients", [row])


STAGES = ("POST /ask", "route", "encode", "score", "prompt", "generate", "llm_request")


async def measure(
    pool: ProcessPoolExecutor, servers: dict[str, tuple[str, subprocess.Popen[str]]], load: Load, processes: int
) -> tuple[dict[str, list[float]], dict[str, list[float]], int]:
    """By side, each round's tokens per second and CPU milliseconds for a question; and how many were traced.

    The CPU's time is that of a server with its engine: what else runs on the machine hardly moves it. A first round
    warms both sides.
    """
    rates: dict[str, list[float]] = {side: [] for side in servers}
    costs: dict[str, list[float]] = {side: [] for side in servers}
    questions = 0
    for number in range(load.rounds + 1):
        for side in sorted(servers, reverse=number % 2 == 0):
            url, process = servers[side]
            before = cpu_s(process.pid)
            ended = await over_http(pool, "ask", url, load, processes)
            cost = (cpu_s(process.pid) - before) / sum(one.tokens for one in ended) * load.tokens * 1e3
            print(f"{side}: {rate(ended, load):,.0f} tokens/s, {cost:.2f} ms of CPU a question", flush=True)
            if number:
                rates[side].append(rate(ended, load))
                costs[side].append(cost)
            questions += len(ended) if side == "traced" else 0
    return rates, costs, questions


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
