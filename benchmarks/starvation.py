"""Does any adapter starve where there are fewer slots than adapters, and what do turns and new adapters cost?

`python -m benchmarks.starvation --gpu` takes the shape of Mistral-7B; without it, a small one for a machine without a
GPU. vLLM alone is the same engine with the turns taken away; what it has not begun at the end of the window counts as
having waited until then.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import msgspec
from msgspec import Struct

from benchmarks import shaped, shapes
from benchmarks.ask_at_scale import Ended, Load, closed_loop, rate
from benchmarks.report import median, tell
from hlo.assemble import Runtime
from hlo.generation import prompting
from hlo.generation.admission import Admission
from hlo.records import Prompt, Sampling
from hlo.settings import Settings


class Size(Struct, frozen=True):
    """How much of all: `hot` streams for each adapter that has many, `streams` that decode while adapters come.

    `context` is the longest prompt and answer together, in tokens.
    """

    load: Load
    slots: int
    hot: int
    streams: int
    skew_s: float
    churn_s: float
    context: int


GPU = Size(
    Load(16, 256, 128, ramp_s=3, window_s=10, rounds=1), slots=8, hot=4, streams=64, skew_s=8, churn_s=6, context=4096
)
TINY = Size(
    Load(16, 32, 32, ramp_s=2, window_s=8, rounds=1), slots=8, hot=2, streams=8, skew_s=8, churn_s=5, context=2048
)


class Bench:
    """Asks an engine directly, as `/ask` would once it has routed."""

    def __init__(self, runtime: Runtime, tokens: int) -> None:
        self.engine = runtime.pipeline.engine
        self._runtime = runtime
        self._tokens = tokens
        self._turns = itertools.count(random.randrange(10**9))

    def prompt(self, which: int) -> Prompt:
        """A new question of a specialty."""
        entry = self._runtime.pipeline.catalog.entries[shaped.specialty(which)]
        text = shaped.question(which, next(self._turns))
        return prompting.build(text, entry.specialty.template, self._runtime.tokenizer, entry.adapter)

    async def one(self, which: int, _: int = 0) -> Ended:
        """A whole answer; when it ended, its tokens, and the seconds that it took."""
        clock, tokens = time.time(), 0
        prompt = msgspec.structs.replace(self.prompt(which), whole=True)
        async with aclosing(self.engine.generate(prompt, Sampling(max_tokens=self._tokens))) as deltas:
            async for delta in deltas:
                tokens += len(delta.token_ids)
        return Ended(time.time(), tokens, time.time() - clock)

    async def first(self, which: int, tokens: int = 0) -> float:
        """The seconds to the first token of an answer, which is read to its end."""
        clock, first = time.perf_counter(), None
        sampling = Sampling(max_tokens=tokens or self._tokens)
        async with aclosing(self.engine.generate(self.prompt(which), sampling)) as deltas:
            async for _ in deltas:
                first = first or time.perf_counter() - clock
        return first or time.perf_counter() - clock


async def throughput(runtime: Runtime, size: Size) -> float:
    """Tokens per second, every client asking for a random adapter each time."""
    bench = Bench(runtime, size.load.tokens)
    ended = await closed_loop(size.load, range(size.load.clients), bench.one, time.time() + 0.2)
    return rate(ended, size.load)


async def waits(runtime: Runtime, size: Size, hot: int) -> dict[int, list[float]]:
    """The seconds to first tokens by adapter: `hot` of them always have several streams, the others one now and then.

    What has not begun when the window is over has waited so far.
    """
    bench, found, open_since = Bench(runtime, size.load.tokens), defaultdict(list), {}

    async def stream(number: int, which: int, pause: float) -> None:
        chance = random.Random(number)
        while True:
            await asyncio.sleep(chance.uniform(0, 2 * pause))
            open_since[number] = (which, time.perf_counter())
            found[which].append(await bench.first(which))
            del open_since[number]

    many = [which for which in range(hot) for _ in range(size.hot)]
    rare = list(range(hot, size.load.adapters))
    tasks = [asyncio.create_task(stream(number, which, 0.0)) for number, which in enumerate(many)]
    await asyncio.sleep(1)  # those that have many are there first
    tasks += [asyncio.create_task(stream(len(many) + number, which, 0.5)) for number, which in enumerate(rare)]
    await asyncio.sleep(size.skew_s)
    over = time.perf_counter()
    for which, since in open_since.values():
        if not found[which] or which in rare:
            found[which].append(over - since)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return found


def worst(found: dict[int, list[float]]) -> tuple[float, float, float]:
    """The largest mean wait of an adapter, the median one, and the longest single wait."""
    means = [sum(seconds) / len(seconds) for seconds in found.values()]
    return max(means), median(means), max(max(seconds) for seconds in found.values())


class Gaps(Struct, frozen=True):
    """The 99th percentile of seconds between tokens with an adapter each second, and undisturbed, before and after."""

    disturbed: float
    quiet: float


async def churn(runtime: Runtime, size: Size) -> tuple[Gaps, Gaps]:
    """What running streams notice of adapters that come: read ahead by HLO, and by vLLM itself between two steps.

    The streams began at different times, so that old ones and new ones are always the same mixture.
    """
    bench = Bench(runtime, size.load.tokens)
    version = runtime.pipeline.catalog.entries[shaped.specialty(0)].adapter
    longest = size.context - 256
    gaps: list[float] = []

    async def stream(number: int) -> None:
        tokens = longest * (number + 1) // size.streams
        while True:
            last = None
            prompt = bench.prompt(number % (size.load.adapters - 1))
            async with aclosing(bench.engine.generate(prompt, Sampling(max_tokens=max(tokens, 16)))) as deltas:
                async for _ in deltas:
                    now = time.perf_counter()
                    if last is not None:
                        gaps.append(now - last)
                    last = now
            tokens = longest

    async def quiet() -> float:
        gaps.clear()
        await asyncio.sleep(size.churn_s)
        return percentile(gaps, 0.99)

    async def add(label: str) -> float:
        gaps.clear()
        took = []
        for number in range(int(size.churn_s)):
            clock = time.perf_counter()
            await bench.engine.load(msgspec.structs.replace(version, name=f"{label}_{number}"))
            took.append(time.perf_counter() - clock)
            await asyncio.sleep(max(1 - took[-1], 0))
        print(
            f"{label}: an adapter took {median(took) * 1000:.0f} ms; longest gap {max(gaps) * 1000:.0f} ms", flush=True
        )
        return percentile(gaps, 0.99)

    async def nothing(_: object) -> None:
        pass

    tasks = [asyncio.create_task(stream(number)) for number in range(size.streams)]
    await asyncio.sleep(3)
    before, ahead, between = await quiet(), await add("ahead"), await quiet()
    with patch.object(shaped.engine(runtime), "_read_ahead", nothing):
        by_vllm = await add("by_vllm")
    after = await quiet()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return Gaps(ahead, (before + between) / 2), Gaps(by_vllm, (between + after) / 2)


async def cold(runtime: Runtime, size: Size) -> tuple[float, float]:
    """The median seconds to the first token of an adapter without a slot, and again right after it has one."""
    bench = Bench(runtime, size.load.tokens)
    without, again = [], []
    for number in range(2 * size.load.adapters):
        which = number % size.load.adapters  # by turns, so that each has lost its slot when it comes again
        found = await bench.first(which, tokens=4)
        if number >= size.load.adapters:
            without.append(found)
            again.append(await bench.first(which, tokens=4))
    return median(without), median(again)


@contextmanager
def vllm_alone(runtime: Runtime) -> Iterator[None]:
    """The same engine without HLO's turns."""
    with patch.object(shaped.engine(runtime), "_admission", Admission(None, 1)):
        yield


@asynccontextmanager
async def started(settings: Settings) -> AsyncIterator[Runtime]:
    """HLO with those settings, as long as the block lasts."""
    runtime = await shaped.start(settings)
    try:
        yield runtime
    finally:
        await runtime.close()


def percentile(values: list[float], share: float) -> float:
    """The value below which that share lies."""
    return sorted(values)[min(int(len(values) * share), len(values) - 1)]


async def run(*, gpu: bool) -> None:
    """Measure, and tell."""
    size = GPU if gpu else TINY
    config = shapes.MISTRAL_7B if gpu else shapes.TINY
    graphs = {"compilation_config": {"cudagraph_capture_sizes": shapes.GRAPHS}}
    engine: dict[str, Any] = graphs if gpu else {"dtype": "float32"}
    spare = 2 * int(size.churn_s)
    rows: list[dict[str, object]] = []

    def row(what: str, value: float, against: float, ratio: float, limit: str) -> None:
        rows.append({"what": what, "value": value, "against": against, "ratio": ratio, "limit": limit})
        print(f"{what}: {value:.4g} against {against:.4g}: {ratio:.3g} ({limit})", flush=True)

    with tempfile.TemporaryDirectory() as folder, shaped.installed(Path(folder), config, size.load.adapters) as model:
        common: dict[str, Any] = {"engine_arguments": engine, "max_model_len": size.context}
        # Room for those that come is in memory: they take the slot of the one adapter that no stream uses.
        slots = size.load.adapters
        async with started(shaped.settings(model, spare_adapters=spare, adapter_slots=slots, **common)) as runtime:
            all_slots = await throughput(runtime, size)
            ahead, by_vllm = await churn(runtime, size)
        for what, gaps, limit in (
            ("an adapter a second: p99 between tokens", ahead, "<= 1.3"),
            ("the same, read by vLLM in its loop", by_vllm, ""),
        ):
            row(what, gaps.disturbed, gaps.quiet, gaps.disturbed / gaps.quiet, limit)
        async with started(shaped.settings(model, spare_adapters=0, adapter_slots=size.slots, **common)) as runtime:
            fewer = await throughput(runtime, size)
            row("throughput, 16 adapters on 8 slots / on 16", fewer, all_slots, fewer / all_slots, ">= 0.8")
            with vllm_alone(runtime):
                alone = await throughput(runtime, size)
            row("the same, vLLM alone", alone, all_slots, alone / all_slots, "")
            for hot in (1, size.slots):
                most, middle, longest = worst(await waits(runtime, size, hot))
                row(f"{hot} hot: worst wait / median, longest {longest:.2g} s", most, middle, most / middle, "<= 5")
                with vllm_alone(runtime):
                    most, middle, longest = worst(await waits(runtime, size, hot))
                row(f"the same, vLLM alone, longest {longest:.2g} s", most, middle, most / middle, "")
            without, again = await cold(runtime, size)
            row("first token without a slot - with one", without, again, without - again, "<= 0.1 s")
    tell("starvation", f"{size.load.adapters} adapters on {size.slots} slots", rows)


if __name__ == "__main__":
    asyncio.run(run(gpu="--gpu" in sys.argv))
