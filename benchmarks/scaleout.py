"""What do more engines bring, and what does sending each adapter's requests to one of them?

`python -m benchmarks.scaleout` runs one `vllm serve`, then two, on a CPU behind the engine `openai`, with the
demonstration model, fewer places than adapters, and requests sent by adapter affinity or in turn. Both share the
machine's cores there: that shows what the engine costs, not what a second machine brings. `--gpu` takes Mistral-7B's
shape on two GPUs of one machine: one of them, a copy of the model on each, and the model divided among both.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

from msgspec import Struct

from benchmarks import shaped, shapes
from benchmarks.ask_at_scale import Ended, Load, closed_loop, rate
from benchmarks.report import median, tell
from benchmarks.starvation import Bench
from hlo.contracts import EngineOptions, Servers
from hlo.generation import adapters, affinity, base_model
from hlo.generation.adapters import Located
from hlo.generation.openai_engine.engine import OpenAIEngine
from hlo.generation.openai_engine.pool import Choose, Pool
from hlo.generation.openai_engine.server import VllmServer
from hlo.generation.prompting import Tokenizer
from hlo.generation.tokenizer import ChatTokenizer
from hlo.records import AdapterVersion, Prompt, Sampling
from tests.e2e.vllm_servers import VllmProcess, vllm_servers

CPU = Load(adapters=11, clients=8, tokens=16, ramp_s=1, window_s=10, rounds=2)
GPU = Load(adapters=16, clients=256, tokens=128, ramp_s=3, window_s=10, rounds=2)
SLOTS = 5  # of which the adapter of zeros has one


class Side(Struct, frozen=True):
    """One way to serve: so many servers, chosen so."""

    name: str
    servers: int
    choose: Choose


def in_turn() -> Choose:
    """What a plain load balancer does: each request goes to the next server."""
    turns = itertools.count()
    return lambda _, running: sorted(running)[next(turns) % len(running)]


class Asking:
    """Asks an engine for raw continuations, each of a new question."""

    def __init__(self, engine: OpenAIEngine, versions: list[AdapterVersion], tokenizer: Tokenizer, load: Load) -> None:
        self._engine = engine
        self._versions = versions
        self._tokenizer = tokenizer
        self._load = load

    async def one(self, which: int, turn: int) -> Ended:
        """A whole answer of an adapter's."""
        clock, tokens = time.time(), 0
        ids = self._tokenizer.encode_raw(f"<s>[INST] {shaped.question(which, turn)} [/INST]")
        prompt, sampling = Prompt(ids, self._versions[which], whole=True), Sampling(max_tokens=self._load.tokens)
        async with aclosing(self._engine.generate(prompt, sampling)) as deltas:
            async for delta in deltas:
                tokens += len(delta.token_ids)
        return Ended(time.time(), tokens, time.time() - clock)


@asynccontextmanager
async def engine(
    processes: list[VllmProcess], side: Side, versions: list[AdapterVersion]
) -> AsyncIterator[OpenAIEngine]:
    """The engine `openai` over the first of the processes, with all adapters."""
    model = base_model.find("")
    store = versions[0].path.parent.parent
    kinds = frozenset(versions[0].modules)
    options = EngineOptions(
        model=model.folder,
        name=model.name,
        device="cpu",
        dtype="float32",
        quantization="none",
        slots=len(versions),
        rank=max(one.rank for one in versions),
        kinds=tuple(sorted(kinds)),
        null=adapters.null(model.linears, model.name, kinds, store),
    )
    servers = Servers(tuple(one.url for one in processes[: side.servers]))
    pool = Pool([VllmServer(url, servers, options) for url in servers.urls], side.choose)
    await pool.start(60)
    made = OpenAIEngine(pool, options)
    try:
        for version in versions:
            await made.load(version)
        yield made
    finally:
        await made.close()


async def on_cpu() -> None:
    """One server and two, with and without affinity."""
    model, tokenizer = base_model.find(""), ChatTokenizer.load(base_model.find("").folder)
    names = sorted(path.parent.name for path in (base_model.embedded_root() / "adapters").glob("*/adapter_config.json"))
    sides = [
        Side("1 server", 1, affinity.choose),
        Side("2 servers, by adapter", 2, affinity.choose),
        Side("2 servers, in turn", 2, in_turn()),
    ]
    rates: dict[str, list[float]] = {side.name: [] for side in sides}
    loads: dict[str, list[float]] = {side.name: [] for side in sides}
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        versions = [
            adapters.check(
                Located.at(base_model.embedded_root() / "adapters" / name), name, model.linears, model.name, folder
            )
            for name in names
        ]
        with vllm_servers(folder, 2, slots=SLOTS) as processes:
            for process in processes:
                process.wait()
            for number, side in itertools.product(range(CPU.rounds), sides):
                async with engine(processes, side, versions) as started:
                    before = sum(started.activity.turns.values())
                    ask = Asking(started, versions, tokenizer, CPU)
                    ended = await closed_loop(CPU, range(CPU.clients), ask.one, time.time() + 0.2)
                    turns = sum(started.activity.turns.values()) - before
                rates[side.name].append(rate(ended, CPU))
                loads[side.name].append(turns / len(ended))
                print(f"round {number}, {side.name}: {rate(ended, CPU):.0f} tokens/s, {turns} loads", flush=True)
    rows = [
        {
            "servers": side.name,
            "tokens/s": median(rates[side.name]),
            "of 1 server": median(rates[side.name]) / median(rates["1 server"]),
            "adapter loads a request": median(loads[side.name]),
        }
        for side in sides
    ]
    tell("scaleout", f"{CPU.clients} clients, {len(names)} adapters, {SLOTS - 1} places for them on each server", rows)


async def on_gpus() -> None:
    """One GPU, data parallelism over two, tensor parallelism over two: throughput, and the speed of one request."""
    arguments: dict[str, Any] = {
        "max_model_len": 2048,
        "compilation_config": {"cudagraph_capture_sizes": shapes.GRAPHS},
    }
    ways: dict[str, dict[str, Any]] = {
        "1 GPU": {},
        "2 GPUs, a copy each": {"data_parallel_size": 2},
        "2 GPUs, divided": {"tensor_parallel_size": 2},
    }
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as made, shaped.installed(Path(made), shapes.MISTRAL_7B, GPU.adapters) as model:
        for name, more in ways.items():
            runtime = await shaped.start(shaped.settings(model, engine_arguments=arguments, spare_adapters=0, **more))
            try:
                bench = Bench(runtime, GPU.tokens)
                await bench.one(0)
                alone = median([(await bench.one(random.randrange(GPU.adapters))).seconds for _ in range(3)])
                rounds = [
                    rate(await closed_loop(GPU, range(GPU.clients), bench.one, time.time() + 0.2), GPU)
                    for _ in range(GPU.rounds)
                ]
            finally:
                await runtime.close()
            rows.append({"engine": name, "tokens/s": median(rounds), "tokens/s alone": GPU.tokens / alone})
            rows[-1] |= {"of 1 GPU": rows[-1]["tokens/s"] / rows[0]["tokens/s"]}
            print(rows[-1], flush=True)
    tell("scaleout_gpu", f"Mistral-7B's shape, {GPU.clients} clients, {GPU.adapters} adapters", rows)


if __name__ == "__main__":
    asyncio.run(on_gpus() if "--gpu" in sys.argv else on_cpu())
