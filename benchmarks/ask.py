"""What does `/ask` cost over the engine driven directly? Requests per second at 1, 8 and 32 clients, in one run.

Both sides use the same engine, the same prompts and the same number of tokens. HTTP clients run in a process of their
own. Rounds alternate between the two sides, and the median round counts. `--gpu` and `--tiny`: see `ask_at_scale`.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import aclosing

import httpx
from rich.progress import track

from benchmarks import ask_at_scale
from benchmarks.report import median, tell
from benchmarks.serving import serving
from hlo.assemble import Runtime, assemble
from hlo.generation import prompting
from hlo.generation.tokenizer import ChatTokenizer
from hlo.records import Prompt, Sampling
from hlo.service.server import event_loop
from hlo.settings import load_settings
from hlo.telemetry.metrics import Metrics

TOKENS = 32
CLIENTS = (1, 8, 32)
ROUNDS = 5
QUESTIONS = (
    ("cardiology", "my chest feels tight when I climb the stairs"),
    ("nephrology", "my urine is foamy and my kidneys lose protein"),
    ("oncology", "they found a lump in my breast and want a biopsy"),
    ("pulmonology", "I wheeze at night and my inhaler does not help"),
)


def http_round(url: str, clients: int, requests: int) -> float:
    """Send `requests` questions from `clients` connections; the requests per second."""

    async def one(client: httpx.AsyncClient, numbers: list[int]) -> None:
        while numbers:
            _, question = QUESTIONS[numbers.pop() % len(QUESTIONS)]
            response = await client.post("/ask", json={"question": question, "max_tokens": TOKENS})
            assert response.status_code == 200, response.text

    async def all_of_them() -> float:
        numbers = list(range(requests))
        limits = httpx.Limits(max_connections=clients, max_keepalive_connections=clients)
        async with httpx.AsyncClient(base_url=url, timeout=300, limits=limits) as client:
            clock = time.perf_counter()
            await asyncio.gather(*(one(client, numbers) for _ in range(clients)))
            return requests / (time.perf_counter() - clock)

    return asyncio.run(all_of_them())


async def direct_round(runtime: Runtime, prompts: list[Prompt], clients: int, requests: int) -> float:
    """The same work without HTTP, routing and prompting; the requests per second."""
    numbers = list(range(requests))

    async def one() -> None:
        while numbers:
            prompt = prompts[numbers.pop() % len(prompts)]
            async with aclosing(runtime.pipeline.engine.generate(prompt, Sampling(max_tokens=TOKENS))) as deltas:
                async for _ in deltas:
                    pass

    clock = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(clients)))
    return requests / (time.perf_counter() - clock)


async def run() -> None:
    """Measure, and tell."""
    with tempfile.TemporaryDirectory() as cache:
        settings = load_settings(port=0, cache_dir=cache, log_level="warning")
        clock = time.perf_counter()
        runtime = await assemble(settings, Metrics(), lambda stage: print(stage, flush=True))
        started = time.perf_counter() - clock
        print(f"ready after {started:.1f} s")
        async with serving(runtime) as url:
            rows = await measure(runtime, url)
        rows[0]["start-up s"] = started
        for row in rows[1:]:
            row["start-up s"] = ""
        tell("ask", "What does /ask cost over the engine driven directly?", rows)


async def measure(runtime: Runtime, url: str) -> list[dict[str, object]]:
    """Alternate rounds of both sides."""
    tokenizer = ChatTokenizer.load(runtime.model.folder)
    entries = runtime.pipeline.catalog.entries
    prompts = [
        prompting.build(question, entries[name].specialty.template, tokenizer, entries[name].adapter)
        for name, question in QUESTIONS
    ]
    rows: list[dict[str, object]] = []
    loop = asyncio.get_running_loop()
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        await loop.run_in_executor(pool, http_round, url, 4, 8)  # warm both sides
        for clients in CLIENTS:
            requests = 8 + 4 * clients
            http, direct = [], []
            for _ in track(range(ROUNDS), f"{clients} clients"):
                direct.append(await direct_round(runtime, prompts, clients, requests))
                http.append(await loop.run_in_executor(pool, http_round, url, clients, requests))
            rows.append(
                {
                    "clients": clients,
                    "/ask per s": median(http),
                    "engine per s": median(direct),
                    "ratio": median([a / b for a, b in zip(http, direct, strict=True)]),
                    "ratios": json.dumps([round(a / b, 2) for a, b in zip(http, direct, strict=True)]),
                }
            )
    return rows


if __name__ == "__main__":
    at_scale = "--gpu" in sys.argv or "--tiny" in sys.argv
    measuring = ask_at_scale.run(gpu="--gpu" in sys.argv) if at_scale else run()
    with asyncio.Runner(loop_factory=event_loop()) as runner:  # as `hlo serve`
        runner.run(measuring)
