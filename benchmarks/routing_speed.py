"""What does routing cost? The router beside its encoder alone, and `/route` over HTTP beside semantic-router.

The peer has the same examples and the weights of the plain encoder in float32, as it runs them; HLO has that encoder
too, exported in int8, and its own. Both are asked at 1, 8 and 32 clients, in one run.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import multiprocessing
import re
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from rich.console import Console

from benchmarks.report import median, tell
from benchmarks.routing import DATA, PLAIN, Row, ask_peer, read
from benchmarks.serving import serving
from hlo.assemble import Runtime, assemble, declarations
from hlo.routing import onnx_export, sentence_encoder
from hlo.settings import Settings, load_settings
from hlo.telemetry.metrics import Metrics

CLIENTS = (1, 8, 32)
SECONDS = 5.0


def questions() -> list[str]:
    """A hundred questions in patients' own words, of all lengths."""
    return [one.question for one in read(DATA / "own_words_dev.jsonl", Row) if one.specialty][::3][:100]


def http_rate(url: str, clients: int, seconds: float) -> tuple[float, float]:
    """The questions per second that `/route` answers, and the median milliseconds of one.

    The clients speak HTTP/1.1 by hand: httpx takes 3 ms of a core for each request, which the server needs here.
    """
    host, port = url.removeprefix("http://").split(":")
    bodies = [json.dumps({"question": question}).encode() for question in questions()]
    times: list[float] = []

    async def one(number: int) -> None:
        reader, writer = await asyncio.open_connection(host, int(port))
        for body in itertools.islice(itertools.cycle(bodies), number, None):
            clock = time.perf_counter()
            if clock > end:
                break
            writer.write(b"POST /route HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200"), head
            length = re.search(rb"content-length: (\d+)", head.lower())
            assert length
            await reader.readexactly(int(length[1]))
            times.append((time.perf_counter() - clock) * 1000)
        writer.close()

    async def all_of_them() -> None:
        await asyncio.gather(*(one(number) for number in range(clients)))

    end = time.perf_counter() + seconds
    asyncio.run(all_of_them())
    return len(times) / seconds, median(times)


async def router_times(runtime: Runtime) -> tuple[float, float]:
    """The median milliseconds of the encoder and of the whole router, one question at a time, alternating."""
    encoder, router = runtime.encoder.encoder, runtime.pipeline.edition.router
    alone, whole = [], []
    for question in questions() * 3:
        clock = time.perf_counter()
        await asyncio.to_thread(encoder.encode, [question])
        alone.append((time.perf_counter() - clock) * 1000)
        clock = time.perf_counter()
        await router.route(question)
        whole.append((time.perf_counter() - clock) * 1000)
    return median(alone), median(whole)


async def measure(settings: Settings, label: str) -> list[dict[str, object]]:
    """One encoder's rows."""
    runtime = await assemble(settings, Metrics(), lambda stage: print(stage, flush=True))
    rows: list[dict[str, object]] = []
    loop = asyncio.get_running_loop()
    async with serving(runtime) as url:
        alone, whole = await router_times(runtime)
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            await loop.run_in_executor(pool, http_rate, url, 2, 1.0)
            for clients in CLIENTS:
                rate, lone = await loop.run_in_executor(pool, http_rate, url, clients, SECONDS)
                rows.append(
                    {
                        "what": label,
                        "clients": clients,
                        "questions per s": rate,
                        "median ms": lone,
                        "encoder ms": alone if clients == 1 else "",
                        "router ms": whole if clients == 1 else "",
                        "router / encoder": whole / alone if clients == 1 else "",
                    }
                )
    return rows


def main() -> None:
    """Measure, and tell."""
    with tempfile.TemporaryDirectory() as work:
        plain = Path(work, "plain")
        Console().print("exporting the plain encoder to int8")
        onnx_export.export(sentence_encoder.locate(PLAIN), plain, base=PLAIN)
        rows: list[dict[str, object]] = []
        for label, encoder in (("/route, plain encoder in int8", str(plain)), ("/route, HLO's encoder", "")):
            settings = load_settings(port=0, cache_dir=work, log_level="warning", encoder=encoder)
            rows += asyncio.run(measure(settings, label))
        peer = ask_peer(declarations(load_settings())[0], questions(), SECONDS)
    for clients, rate in (peer or {"rates": {}})["rates"].items():
        lone = peer["median_ms"] if peer and clients == "1" else ""
        rows.append(dict.fromkeys(rows[0], "") | {"what": "semantic-router", "clients": int(clients)})
        rows[-1] |= {"questions per s": rate, "median ms": lone}
    for row in rows:
        rate = (peer or {"rates": {}})["rates"].get(str(row["clients"]))
        row["times the peer's"] = float(str(row["questions per s"])) / rate if rate else ""
    tell("routing_speed", "What does routing cost?", rows)


if __name__ == "__main__":
    main()
