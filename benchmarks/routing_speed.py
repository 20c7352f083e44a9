"""What does routing cost? The router beside its encoder alone, and `/route` over HTTP beside semantic-router.

The peer has the same examples and the weights of the plain encoder in float32, as it runs them; HLO has that encoder
too, exported in int8, and its own. HLO is asked over HTTP; the peer is asked in its own process, with no HTTP and no
clients beside it, and behind the HTTP server and framework that HLO has. They take turns, round after round, so that
what else the machine does meets them all; a ratio is the median of the rounds', with the least and the largest.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import multiprocessing
import os
import re
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import msgspec
import psutil
from rich.console import Console

from benchmarks.report import median, tell
from benchmarks.routing import DATA, PLAIN, Row, read
from benchmarks.serving import serving
from hlo.assemble import Runtime, assemble, declarations
from hlo.routing import onnx_export, sentence_encoder
from hlo.service.server import event_loop
from hlo.settings import Settings, load_settings
from hlo.telemetry.metrics import Metrics

CLIENTS = (1, 8, 32)
SECONDS = 5.0
ROUNDS = 5
IN_PROCESS, OVER_HTTP = "semantic-router in process", "semantic-router over HTTP"


class Measured(msgspec.Struct, frozen=True):
    """Questions per second, milliseconds of CPU time for each, and, where clients saw it, the median's milliseconds."""

    rate: float
    cpu_ms: float
    median_ms: float | None = None


Measure = Callable[[int], Awaitable[Measured]]


def questions() -> list[str]:
    """A hundred questions in patients' own words, of all lengths."""
    return [one.question for one in read(DATA / "own_words_dev.jsonl", Row) if one.specialty][::3][:100]


def http_rate(url: str, clients: int, seconds: float) -> tuple[float, float]:
    """The questions per second that a route answers, and the median milliseconds of one.

    The clients speak HTTP/1.1 by hand: httpx takes 3 ms of a core for each request, which the server needs here.
    """
    host, _, place = url.removeprefix("http://").partition(":")
    port, _, path = place.partition("/")
    bodies = [json.dumps({"question": question}).encode() for question in questions()]
    times: list[float] = []

    async def one(number: int) -> None:
        reader, writer = await asyncio.open_connection(host, int(port))
        for body in itertools.islice(itertools.cycle(bodies), number, None):
            clock = time.perf_counter()
            if clock > end:
                break
            head = f"POST /{path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            answer = await reader.readuntil(b"\r\n\r\n")
            assert answer.startswith(b"HTTP/1.1 200"), answer
            length = re.search(rb"content-length: (\d+)", answer.lower())
            assert length
            await reader.readexactly(int(length[1]))
            times.append((time.perf_counter() - clock) * 1000)
        writer.close()

    async def all_of_them() -> None:
        await asyncio.gather(*(one(number) for number in range(clients)))

    end = time.perf_counter() + seconds
    asyncio.run(all_of_them())
    return len(times) / seconds, median(times)


async def router_times(runtime: Runtime, label: str) -> dict[str, object]:
    """The median milliseconds of the encoder and of the whole router, one question at a time, alternating."""
    encoder, router = runtime.encoder.encoder, runtime.pipeline.edition.router
    rounds = []
    for _ in range(ROUNDS):
        alone, whole = [], []
        for question in questions():
            clock = time.perf_counter()
            await asyncio.to_thread(encoder.encode, [question])
            alone.append((time.perf_counter() - clock) * 1000)
            clock = time.perf_counter()
            await router.route(question)
            whole.append((time.perf_counter() - clock) * 1000)
        rounds.append((median(alone), median(whole)))
    return {
        "encoder": label,
        "encoder ms": median([alone for alone, _ in rounds]),
        "router ms": median([whole for _, whole in rounds]),
        "router / encoder": spread([whole / alone for alone, whole in rounds]),
    }


def spread(values: list[float]) -> str:
    """The median, the least and the largest."""
    return f"{median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


@asynccontextmanager
async def serving_peer(pool: ProcessPoolExecutor) -> AsyncIterator[Mapping[str, Measure]]:
    """Serve the peer, and give the ways to measure it, by their names; none where PEER_PYTHON is not set."""
    python = os.environ.get("PEER_PYTHON")
    if not python:
        Console().print("PEER_PYTHON is not set: semantic-router is left out")
        yield {}
        return
    specialties, _ = declarations(load_settings())
    asked = {
        "encoder": str(sentence_encoder.locate(PLAIN)),
        "routes": {one.name: [text for part in one.examples.values() for text in part] for one in specialties},
    }
    Console().print("the peer embeds the examples")
    command = [python, "-m", "benchmarks.peer_server"]
    root = Path(__file__).parents[1]
    with subprocess.Popen(  # noqa: ASYNC220 - nothing else is to be done until it listens
        command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as peer:
        assert peer.stdin
        assert peer.stdout
        json.dump(asked, peer.stdin)
        peer.stdin.close()
        url = (await asyncio.to_thread(peer.stdout.readline)).strip()
        assert url, "the peer failed; see above"
        loop = asyncio.get_running_loop()

        async def in_process(clients: int) -> Measured:
            async with httpx.AsyncClient(timeout=60 + 4 * SECONDS) as client:
                wanted = {"questions": questions(), "clients": clients, "seconds": SECONDS}
                return Measured(**(await client.post(f"{url}/in-process", json=wanted)).json())

        async def over_http(clients: int) -> Measured:
            found = []
            for way in ("threads", "tasks"):
                before = busy_s(peer.pid)
                rate, lone = await loop.run_in_executor(pool, http_rate, f"{url}/{way}", clients, SECONDS)
                found.append(Measured(rate, (busy_s(peer.pid) - before) * 1000 / (rate * SECONDS), lone))
            return max(found, key=lambda one: one.rate)

        try:
            yield {IN_PROCESS: in_process, OVER_HTTP: over_http}
        finally:
            peer.terminate()


def busy_s(pid: int) -> float:
    """The seconds of CPU time that a process has spent."""
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


async def measure(
    settings: Settings, label: str, pool: ProcessPoolExecutor, peer: Mapping[str, Measure]
) -> tuple[list[dict[str, object]], dict[str, object]]:
    """One encoder's rows, with the peer's of the same rounds, and the router beside that encoder alone."""
    runtime = await assemble(settings, Metrics(), lambda stage: print(stage, flush=True))
    loop = asyncio.get_running_loop()
    async with serving(runtime) as url:

        async def own(clients: int) -> Measured:
            before = busy_s(os.getpid())
            rate, lone = await loop.run_in_executor(pool, http_rate, f"{url}/route", clients, SECONDS)
            return Measured(rate, (busy_s(os.getpid()) - before) * 1000 / (rate * SECONDS), lone)

        overhead = await router_times(runtime, label)
        await loop.run_in_executor(pool, http_rate, f"{url}/route", 2, 1.0)
        ways: dict[str, Measure] = {f"/route, {label}": own, **peer}
        found: dict[tuple[int, str], list[Measured]] = {(clients, way): [] for clients in CLIENTS for way in ways}
        for number, clients in itertools.product(range(ROUNDS), CLIENTS):
            print(f"round {number + 1} of {ROUNDS}, {clients} clients", flush=True)
            for way, ask in ways.items():
                found[clients, way].append(await ask(clients))
    return [row(clients, way, found) for clients, way in found], overhead


def row(clients: int, way: str, found: Mapping[tuple[int, str], list[Measured]]) -> dict[str, object]:
    """What the rounds showed of one way at one number of clients."""
    one = found[clients, way]
    seen = [each.median_ms for each in one if each.median_ms is not None]
    told: dict[str, object] = {
        "what": way,
        "clients": clients,
        "questions per s": median([each.rate for each in one]),
        "CPU ms each": median([each.cpu_ms for each in one]),
        "median ms": median(seen) if seen else "",
    }
    for peer in (IN_PROCESS, OVER_HTTP):
        rounds = zip(one, found.get((clients, peer), ()), strict=False)
        ratios = [own.rate / its.rate for own, its in rounds] if way not in (IN_PROCESS, OVER_HTTP) else []
        told[f"times {peer.removeprefix('semantic-router ')}"] = spread(ratios) if ratios else ""
    return told


async def measure_all(work: Path, plain: Path) -> None:
    """Measure, and tell."""
    rows: list[dict[str, object]] = []
    overheads = []
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        async with serving_peer(pool) as peer:
            for label, encoder in (("plain encoder in int8", str(plain)), ("HLO's encoder", "")):
                settings = load_settings(port=0, cache_dir=work, log_level="warning", encoder=encoder)
                some, overhead = await measure(settings, label, pool, peer)
                rows += some
                overheads.append(overhead)
    tell("routing_speed", "What does routing cost? The peer is asked in the same rounds", rows)
    tell("routing_overhead", "What does routing cost beside the encoder? One question at a time", overheads)


def main() -> None:
    """Measure, and tell."""
    with tempfile.TemporaryDirectory() as work:
        plain = Path(work, "plain")
        Console().print("exporting the plain encoder to int8")
        onnx_export.export(sentence_encoder.locate(PLAIN), plain, base=PLAIN)
        with asyncio.Runner(loop_factory=event_loop()) as runner:  # as `hlo serve` has it
            runner.run(measure_all(Path(work), plain))


if __name__ == "__main__":
    main()
