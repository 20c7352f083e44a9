"""What do many specialties cost? The comparison, without the encoder, and a second start of the router.

The comparison is measured in CPU time: it has one core, and who else is at work on the machine is not to count.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import psutil
from rich.progress import track
from threadpoolctl import threadpool_limits

from benchmarks.report import median, tell
from hlo.records import Adapter, Specialty
from hlo.routing import bank
from hlo.routing.bank import Bank, Group
from hlo.routing.cache import CachedEncoder
from hlo.routing.decision import Scale, Thresholds, decide

if TYPE_CHECKING:
    from numpy.typing import NDArray

DIMENSION = 384
EXAMPLES = 100


class Drawn:
    """Unit vectors drawn by chance in the place of an encoder's; counts what it encodes."""

    name = fingerprint = "drawn"
    dimension = DIMENSION

    def __init__(self) -> None:
        self.encoded = 0

    def encode(self, questions: Sequence[str]) -> NDArray[np.float32]:
        """Unit vectors, shape (questions, 384)."""
        self.encoded += len(questions)
        return units(np.random.default_rng(len(questions)), len(questions))


def units(chance: np.random.Generator, rows: int) -> NDArray[np.float32]:
    """Unit vectors drawn by chance."""
    drawn = chance.standard_normal((rows, DIMENSION), dtype=np.float32)
    return np.asarray(drawn / np.linalg.norm(drawn, axis=1, keepdims=True))


def compare(specialties: int) -> dict[str, object]:
    """The comparison and the decision among that many specialties of a hundred examples each."""
    chance = np.random.default_rng(0)
    before = psutil.Process().memory_info().rss
    clock = time.perf_counter()
    groups = []
    for number in track(range(specialties), f"{specialties} specialties"):
        examples = units(chance, EXAMPLES)
        mean = examples.mean(axis=0)
        groups.append(Group(f"s{number:05}", examples, mean / np.linalg.norm(mean)))
    among = Bank.of(groups, dimension=DIMENSION)
    del groups
    made = time.perf_counter() - clock
    questions = units(chance, 320)
    thresholds = Thresholds(0.15, 0.5)
    lone, batched = [], []
    for question in questions:
        clock = time.thread_time()
        decide(among.compare(question[None])[0], Scale(), thresholds)
        lone.append((time.thread_time() - clock) * 1000)
    for start in range(0, len(questions), 32):
        clock = time.thread_time()
        for one in among.compare(questions[start : start + 32]):
            decide(one, Scale(), thresholds)
        batched.append((time.thread_time() - clock) * 1000 / 32)
    return {
        "specialties": specialties,
        "alone, ms": median(lone),
        "in batches of 32, ms each": median(batched),
        "memory, MiB": (psutil.Process().memory_info().rss - before) / 2**20,
        "made in s": made,
    }


def second_start(specialties: int) -> dict[str, object]:
    """A router's start with all embeddings on disk."""
    declared = [
        Specialty(
            name=f"s{number:04}",
            title=f"S {number}",
            adapter=Adapter("x"),
            examples={"patients": tuple(f"question {number} {index}" for index in range(EXAMPLES))},
        )
        for number in range(specialties)
    ]
    with tempfile.TemporaryDirectory() as folder:
        rows: list[float] = []
        for _ in range(2):
            encoder = Drawn()
            cached = CachedEncoder(encoder, Path(folder))
            clock = time.perf_counter()
            Bank.of([bank.group(one, cached) for one in declared], dimension=DIMENSION)
            rows.append(time.perf_counter() - clock)
    return {
        "specialties": specialties,
        "examples": specialties * EXAMPLES,
        "first start, s": rows[0],
        "second start, s": rows[1],
        "encoded at the second": encoder.encoded,
    }


def main() -> None:
    """Measure, and tell."""
    threadpool_limits(1, user_api="blas")  # as HLO does
    tell("routing_scale", "What does routing cost but for the encoder?", [compare(n) for n in (10, 100, 1000, 10_000)])
    tell("routing_start", "What does a second start cost?", [second_start(1000)])


if __name__ == "__main__":
    main()
