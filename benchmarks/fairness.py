"""Do those who ask rarely wait for one who asks much, and what does the line that sees to it cost?

One key, or one specialty, is hot: it keeps eight times as many questions under way as the engine computes at once.
Three calm ones ask one question now and then. The same engine, with HLO's line in front of it and without: then it gets
all questions at once, and its own queue is first come, first served. Rounds alternate. `HLO_ENGINE` and
`HLO_MAX_NUM_SEQS` choose the engine; by default `transformers`, four at a time.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
import time
from collections.abc import Callable
from contextlib import aclosing
from typing import Any

from msgspec import Struct
from rich.progress import track

from benchmarks.report import median, tell
from hlo.assemble import Runtime, assemble
from hlo.deadline import Terms
from hlo.generation.line import Line
from hlo.records import Answer, Delta, Question, SamplingOverrides
from hlo.settings import load_settings
from hlo.telemetry.metrics import Metrics

TOKENS = 16
WINDOW_S = 6.0
ROUNDS = 2
HOT = "cardiology"
CALM = ("nephrology", "oncology", "pulmonology")
ALONE = 12
"""Questions one after the other, for the cost of the line where nobody waits."""


class Round(Struct, frozen=True):
    """The seconds to first tokens of calm questions and of hot ones, and the tokens of all a second."""

    calm: list[float]
    hot: list[float]
    rate: float


async def ask(runtime: Runtime, specialty: str, key: str | None) -> tuple[float, float, int]:
    """One question, to its end; the seconds to its first token and to its last, and its tokens."""
    question = Question("why does it hurt so much?", specialty, SamplingOverrides(TOKENS, 1.0, stop=()))
    clock, first, tokens = time.perf_counter(), None, 0
    async with aclosing(runtime.pipeline.ask(question, terms=Terms(key))) as events:
        async for event in events:
            if first is None and isinstance(event, Delta):
                first = time.perf_counter() - clock
            elif isinstance(event, Answer):
                tokens = event.usage.completion_tokens
    took = time.perf_counter() - clock
    return first or took, took, tokens


async def crowd(runtime: Runtime, *, keys: bool) -> Round:
    """A window in which one is hot: a key, or a specialty where there are no keys."""
    calm: list[float] = []
    hot: list[float] = []
    over = time.perf_counter() + WINDOW_S
    tokens = 0

    async def eager() -> None:
        nonlocal tokens
        while time.perf_counter() < over:
            first, _, written = await ask(runtime, HOT, "hot" if keys else None)
            hot.append(first)
            tokens += written

    async def rare(number: int) -> None:
        nonlocal tokens
        chance = random.Random(number)
        await asyncio.sleep(1)  # the hot one is there first
        while time.perf_counter() < over:
            await asyncio.sleep(chance.uniform(0, 1))
            specialty, key = (HOT, f"calm {number}") if keys else (CALM[number], None)
            first, _, written = await ask(runtime, specialty, key)
            calm.append(first)
            tokens += written

    batch = runtime.pipeline.engine.info.max_num_seqs or 8
    clock = time.perf_counter()
    await asyncio.gather(*(eager() for _ in range(8 * batch)), *(rare(number) for number in range(len(CALM))))
    return Round(calm, hot, tokens / (time.perf_counter() - clock))


def high(values: list[float]) -> float:
    """The 95th percentile."""
    return sorted(values)[min(int(len(values) * 0.95), len(values) - 1)]


def row(what: str, way: str, rounds: list[Round]) -> dict[str, Any]:
    """What came of one way."""
    calm = [seconds for one in rounds for seconds in one.calm]
    hot = [seconds for one in rounds for seconds in one.hot]
    return {
        "hot is": what,
        "way": way,
        "calm: first token, median s": median(calm),
        "calm: 95 %": high(calm),
        "hot: median s": median(hot),
        "tokens/s": median([one.rate for one in rounds]),
    }


async def main() -> None:
    """Measure, and tell."""
    with tempfile.TemporaryDirectory() as cache:
        given = load_settings()
        more: dict[str, Any] = {"engine": "transformers"} if "engine" not in given.model_fields_set else {}
        more |= {"max_num_seqs": 4} if given.max_num_seqs is None else {}
        runtime = await assemble(load_settings(**more, cache_dir=cache, log_level="warning"), Metrics(), lambda _: None)
        try:
            batch = runtime.pipeline.engine.info.max_num_seqs
            ways: dict[str, Callable[[], Line]] = {
                "HLO's line": lambda: Line.before(batch, 4096),
                "the engine's own queue": Line,
            }
            rounds: dict[tuple[str, str], list[Round]] = {}
            alone: dict[str, list[float]] = {way: [] for way in ways}
            for _ in track(range(ROUNDS)):
                for way, line in ways.items():
                    runtime.pipeline.line = line()
                    for what, keys in (("a key", True), ("a specialty", False)):
                        rounds.setdefault((what, way), []).append(await crowd(runtime, keys=keys))
                    alone[way] += [(await ask(runtime, HOT, "a"))[1] for _ in range(ALONE)]
        finally:
            await runtime.close()
    tell("fairness", "Do those who ask rarely wait?", [row(*place, found) for place, found in rounds.items()])
    rows = [{"way": way, "one question alone, median ms": median(took) * 1000} for way, took in alone.items()]
    tell("fairness_alone", "What does the line cost where nobody waits?", rows)


if __name__ == "__main__":
    asyncio.run(main())
