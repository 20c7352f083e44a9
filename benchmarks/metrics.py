"""What do metrics cost? Microseconds for each answer and each decision, beside routing one question, in one run.

And what a scrape costs, by the number of specialties that have been asked.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from benchmarks.report import median, tell
from hlo.assemble import assemble_router
from hlo.records import Answer, Route, Score, Timings, Usage
from hlo.settings import load_settings
from hlo.telemetry.metrics import Metrics

QUESTION = "my chest feels tight when I climb the stairs"
TRACE = "0af7651916cd43dd8448eb211c80319c"
ROUNDS = 9
EACH = 500
OPENMETRICS = "application/openmetrics-text;version=1.0.0"


def route(specialty: str) -> Route:
    """A decision for a specialty."""
    return Route("routed", specialty, (Score(specialty, 0.7, 0.9), Score("other", 0.3, 0.05)), 0.4, 0.05)


def answer(specialty: str) -> Answer:
    """An answer of a specialty's."""
    times = Timings(3.0, 20.0, 300.0)
    return Answer("x", route(specialty), specialty, None, "m", Usage(30, 32), times, "stop", TRACE)


def count(metrics: Metrics, specialty: str, one: Answer, trace: str | None) -> None:
    """All that is counted of one answer by `/ask`."""
    metrics.started()
    metrics.routed(one.route, 0.003, trace)
    metrics.answered(one, specialty, 16, 0.001, trace)
    metrics.finished(specialty, "routed", "stop")
    metrics.responded("/ask", 200)


def microseconds(work: Callable[[], object]) -> float:
    """The time of one call: the median of rounds of many."""
    rounds = []
    for _ in range(ROUNDS):
        clock = time.perf_counter()
        for _ in range(EACH):
            work()
        rounds.append((time.perf_counter() - clock) / EACH * 1e6)
    return median(rounds)


async def routing() -> float:
    """The time to route one question with the encoder and the specialties that are installed, in microseconds."""
    router, encoder = await assemble_router(load_settings())
    try:
        rounds = []
        for _ in range(ROUNDS):
            clock = time.perf_counter()
            for _ in range(20):
                await router.route(QUESTION)
            rounds.append((time.perf_counter() - clock) / 20 * 1e6)
        return median(rounds)
    finally:
        encoder.close()


def main() -> None:
    """Measure, and tell."""
    beside = asyncio.run(routing())
    metrics = Metrics()
    metrics.drifts.expect("examples", {"a": (10,) * 10})
    one, decision = answer("a"), route("a")
    rows: list[dict[str, Any]] = []
    for what, work in (
        ("an answer", lambda: count(metrics, "a", one, None)),
        ("an answer, with exemplars", lambda: count(metrics, "a", one, TRACE)),
        ("a decision of /route", lambda: metrics.routed(decision, 0.003)),
    ):
        took = microseconds(work)
        rows.append({"what": what, "us": took, "routing us": beside, "of routing": took / beside})
    tell("metrics", "What do metrics cost, beside routing one question?", rows)
    scrapes: list[dict[str, Any]] = []
    for specialties in (11, 100, 1000):
        metrics = Metrics()
        for number in range(specialties):
            count(metrics, f"s{number}", answer(f"s{number}"), TRACE)
        clock = time.perf_counter()
        text = metrics.render()
        plain = time.perf_counter() - clock
        clock = time.perf_counter()
        metrics.render(accept=OPENMETRICS)
        took = time.perf_counter() - clock
        lines = text.count(b"\n")
        scrapes.append(
            {"specialties": specialties, "lines": lines, "text ms": plain * 1e3, "OpenMetrics ms": took * 1e3}
        )
    tell("metrics_scrape", "What does a scrape cost (in a thread beside the event loop)?", scrapes)


if __name__ == "__main__":
    main()
