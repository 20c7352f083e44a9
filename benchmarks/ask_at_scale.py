"""What does `/ask` cost at 256 clients with 64 adapters: over the engine driven directly, and against `vllm serve`?

`python -m benchmarks.ask --gpu` takes the shape of Mistral-7B, `--tiny` a small one for a machine without a GPU. All
sides run in turn, beside each other in memory, with the same engine arguments, the same prompts and 128 new tokens.
`vllm serve` is told the adapter by its client; `/ask` finds it out. The clients are processes of their own.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import aclosing, contextmanager, suppress
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import httpx
import msgspec
from msgspec import Struct

from benchmarks import shaped, shapes
from benchmarks.report import median, tell
from benchmarks.serving import serving
from hlo.assemble import Runtime
from hlo.generation import prompting
from hlo.records import Sampling


class Load(Struct, frozen=True):
    """How hard, and for how long: clients come one by one in `ramp_s`, and what ends in the window after it counts."""

    adapters: int
    clients: int
    tokens: int
    ramp_s: float
    window_s: float
    rounds: int


GPU = Load(adapters=64, clients=256, tokens=128, ramp_s=3.0, window_s=10.0, rounds=2)
TINY = Load(adapters=8, clients=16, tokens=32, ramp_s=1.0, window_s=8.0, rounds=1)


class Ended(Struct, frozen=True):
    """A request that has ended: when (of `time.time`), tokens, seconds, and whether its specialty was the one meant."""

    at: float
    tokens: int
    seconds: float
    meant: bool = True


async def closed_loop(
    load: Load, clients: range, one: Callable[[int, int], Awaitable[Ended]], start: float
) -> list[Ended]:
    """Ask for a random specialty again and again from each client, until the window is over."""
    ended: list[Ended] = []
    stop = start + load.ramp_s + load.window_s

    async def client(number: int) -> None:
        chance = random.Random(number)
        await asyncio.sleep(max(start + load.ramp_s * number / load.clients - time.time(), 0))
        while time.time() < stop:
            ended.append(await one(chance.randrange(load.adapters), chance.randrange(10**9)))

    tasks = [asyncio.create_task(client(number)) for number in clients]
    await asyncio.sleep(max(stop - time.time(), 0))
    for task in tasks:
        task.cancel()
    for problem in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(problem, Exception):
            raise problem
    return ended


def http_clients(kind: str, url: str, load: Load, clients: range, start: float) -> list[Ended]:
    """The work of one process of clients; `kind` is `ask` or `vllm`."""

    async def run() -> list[Ended]:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        async with httpx.AsyncClient(base_url=url, timeout=300, limits=limits) as client:

            async def ask(which: int, turn: int) -> Ended:
                clock = time.time()
                body = {"question": shaped.question(which, turn), "max_tokens": load.tokens}
                said = (await client.post("/ask", json=body)).raise_for_status().json()
                meant = said["specialty"] == shaped.specialty(which)
                return Ended(time.time(), said["usage"]["completion_tokens"], time.time() - clock, meant)

            async def vllm(which: int, turn: int) -> Ended:
                clock = time.time()
                text = shaped.template(which).replace("{{ question }}", shaped.question(which, turn))
                body = {
                    "model": shaped.specialty(which),
                    "messages": [{"role": "user", "content": text}],
                    "max_tokens": load.tokens,
                    "temperature": 0,
                }
                said = (await client.post("/v1/chat/completions", json=body)).raise_for_status().json()
                return Ended(time.time(), said["usage"]["completion_tokens"], time.time() - clock)

            return await closed_loop(load, clients, ask if kind == "ask" else vllm, start)

    return asyncio.run(run())


async def direct(runtime: Runtime, load: Load) -> list[Ended]:
    """The same prompts to the engine itself, with known adapters and made before the clock runs."""
    tokenizer, entries = runtime.tokenizer, runtime.pipeline.catalog.entries
    made: dict[int, Any] = {}
    for which in range(load.adapters):
        entry = entries[shaped.specialty(which)]
        made[which] = [
            msgspec.structs.replace(
                prompting.build(shaped.question(which, turn), entry.specialty.template, tokenizer, entry.adapter),
                whole=True,
            )
            for turn in random.sample(range(10**9), 4096 // load.adapters)
        ]

    async def one(which: int, _: int) -> Ended:
        clock, tokens = time.time(), 0
        prompt = made[which].pop()  # each once: only the template is in the prefix cache, as for the other sides
        async with aclosing(runtime.pipeline.engine.generate(prompt, Sampling(max_tokens=load.tokens))) as deltas:
            async for delta in deltas:
                tokens += len(delta.token_ids)
        return Ended(time.time(), tokens, time.time() - clock)

    return await closed_loop(load, range(load.clients), one, time.time() + 0.2)


async def over_http(pool: ProcessPoolExecutor, kind: str, url: str, load: Load, processes: int) -> list[Ended]:
    """All clients of a server, in several processes."""
    start, loop = time.time() + 1.0, asyncio.get_running_loop()
    parts = [range(first, load.clients, processes) for first in range(processes)]
    jobs = [loop.run_in_executor(pool, http_clients, kind, url, load, part, start) for part in parts]
    return [ended for part in await asyncio.gather(*jobs) for ended in part]


def rate(ended: list[Ended], load: Load) -> float:
    """Tokens per second of what ended in the window, which is the last `window_s` of the round."""
    last = max(one.at for one in ended)
    inside = [one for one in ended if one.at > last - load.window_s]
    return sum(one.tokens for one in inside) / load.window_s


@contextmanager
def vllm_serve(model: Path, load: Load, arguments: dict[str, Any]) -> Iterator[str]:
    """vLLM's own server over the same model and adapters, in a process group of its own; gives its address at once.

    On leaving, its log is told if it never became ready.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    adapters = model.parent / "adapters"
    modules = [f"{shaped.specialty(one)}={adapters / f'adapter-{one:03}'}" for one in range(load.adapters)]
    options: list[str] = []
    for name, value in arguments.items():
        flag = f"--{name.replace('_', '-')}"
        options += [flag] if value is True else [flag, json.dumps(value) if isinstance(value, dict) else str(value)]
    log = (model.parent / "vllm-serve.log").open("wb")
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)),
            *("--host", "127.0.0.1", "--port", str(port), "--load-format", "dummy", "--disable-uvicorn-access-log"),
            *("--enable-lora", "--max-loras", str(load.adapters), "--max-lora-rank", "16"),
            *("--max-cpu-loras", str(load.adapters), "--lora-target-modules", *shapes.ATTENTION, *options),
            *("--lora-modules", *modules),
        ],
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        yield url
    except TimeoutError:
        print(f"vllm serve did not start:\n{Path(log.name).read_text(errors='replace')[-4000:]}", flush=True)
        raise
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
        log.close()


async def healthy(url: str, limit_s: float = 300) -> None:
    """Wait until a server answers `/health`. Raises TimeoutError."""
    async with asyncio.timeout(limit_s), httpx.AsyncClient(timeout=5) as client:
        while True:
            with suppress(httpx.HTTPError):
                if (await client.get(f"{url}/health")).status_code == 200:
                    return
            await asyncio.sleep(0.5)


async def run(*, gpu: bool) -> None:
    """Measure, and tell."""
    load = GPU if gpu else TINY
    config = shapes.MISTRAL_7B if gpu else shapes.TINY
    # Both engines stand on one device: fixed memory, so that neither measures what the other leaves.
    engine: dict[str, Any] = {"max_model_len": 2048, "kv_cache_memory_bytes": (40 if gpu else 1) << 30}
    if gpu:
        engine |= {"gpu_memory_utilization": 0.45, "compilation_config": {"cudagraph_capture_sizes": shapes.GRAPHS}}
    else:
        engine |= {"enforce_eager": True, "dtype": "float32"}
    processes = 8 if gpu else 1
    with tempfile.TemporaryDirectory() as folder, shaped.installed(Path(folder), config, load.adapters) as model:
        clock = time.perf_counter()
        with vllm_serve(model, load, engine) as peer:
            wanted = shaped.settings(model, engine_arguments=engine, spare_adapters=0)
            runtime = await shaped.start(wanted)
            print(f"HLO is ready after {time.perf_counter() - clock:.0f} s", flush=True)
            await healthy(peer)
            print(f"vllm serve is ready after {time.perf_counter() - clock:.0f} s", flush=True)
            with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
                async with serving(runtime) as url:
                    rows = await measure(runtime, load, pool, {"ask": url, "vllm": peer}, processes)
    tell("ask_at_scale", f"/ask at {load.clients} clients, {load.adapters} adapters", rows)


async def measure(
    runtime: Runtime, load: Load, pool: ProcessPoolExecutor, urls: dict[str, str], processes: int
) -> list[dict[str, object]]:
    """All sides in turn, `rounds` times; a first short round of each warms it."""
    rates: dict[str, list[float]] = {"direct": [], "ask": [], "vllm": []}
    seconds: dict[str, list[float]] = {side: [] for side in rates}
    meant: Counter[bool] = Counter()
    warm = msgspec.structs.replace(load, window_s=2.0)
    for number in range(load.rounds + 1):
        now = load if number else warm
        for side in rates:
            if side == "direct":
                ended = await direct(runtime, now)
            else:
                ended = await over_http(pool, side, urls[side], now, processes)
            print(f"{side}: {rate(ended, now):,.0f} tokens/s, {len(ended)} requests", flush=True)
            if number:
                rates[side].append(rate(ended, now))
                seconds[side] += [one.seconds for one in ended]
            if side == "ask":
                meant.update(one.meant for one in ended)
    share = meant[True] / meant.total()
    print(f"{share:.1%} of the questions went to the specialty that was meant")
    limits = {"ask over direct": ("ask", "direct", 0.97), "ask over vllm serve": ("ask", "vllm", 1.0)}
    return [
        {
            "what": what,
            "tokens/s": median(rates[one]),
            "against": median(rates[other]),
            "ratio": median([a / b for a, b in zip(rates[one], rates[other], strict=True)]),
            "limit": limit,
            "median s": median(seconds[one]),
            "against s": median(seconds[other]),
        }
        for what, (one, other, limit) in limits.items()
    ]
