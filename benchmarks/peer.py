"""The peer: semantic-router with its local index, run by the Python of an environment of its own.

Reads one JSON object from standard input: `encoder` (a folder), `routes` (names and their examples), `questions`,
`clients` and `seconds`. Writes one to standard output: the choice for each question, the median milliseconds of a lone
question, and the questions per second at each number of clients, by threads and by coroutines, whichever is better.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import statistics
import sys
import threading
import time
from typing import Any


def main() -> None:
    """Build the router, ask it, and tell."""
    asked = json.load(sys.stdin)
    from semantic_router import IndexedRouter, Route  # type: ignore[import-not-found]
    from semantic_router.encoders import HuggingFaceEncoder  # type: ignore[import-not-found]

    encoder = HuggingFaceEncoder(name=asked["encoder"])
    routes = [Route(name=name, utterances=texts) for name, texts in asked["routes"].items()]
    router = IndexedRouter(encoder=encoder, routes=routes)
    chosen = [choice(router, question) for question in asked["questions"]]
    few = asked["questions"][:100]
    lone = []
    for question in few:
        clock = time.perf_counter()
        router(question)
        lone.append((time.perf_counter() - clock) * 1000)
    rates = {
        str(clients): max(
            threads(router, few, clients, asked["seconds"]), tasks(router, few, clients, asked["seconds"])
        )
        for clients in asked["clients"]
    }
    json.dump({"chosen": chosen, "median_ms": statistics.median(lone), "rates": rates}, sys.stdout)


def choice(router: Any, question: str) -> str | None:
    """The name of the route that the router would take without a threshold."""
    scores = asyncio.run(router._scores(question))
    return max(scores, key=scores.__getitem__) if scores else None


def threads(router: Any, questions: list[str], clients: int, seconds: float) -> float:
    """Questions per second, each client a thread."""
    done = itertools.count()
    end = time.perf_counter() + seconds

    def client(number: int) -> None:
        for question in itertools.islice(itertools.cycle(questions), number, None):
            if time.perf_counter() > end:
                return
            router(question)
            next(done)

    workers = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return next(done) / seconds


def tasks(router: Any, questions: list[str], clients: int, seconds: float) -> float:
    """Questions per second, each client a coroutine."""
    done = 0
    end = time.perf_counter() + seconds

    async def client(number: int) -> None:
        nonlocal done
        for question in itertools.islice(itertools.cycle(questions), number, None):
            if time.perf_counter() > end:
                return
            await router.acall(question)
            done += 1

    async def all_of_them() -> None:
        await asyncio.gather(*(client(number) for number in range(clients)))

    asyncio.run(all_of_them())
    return done / seconds


if __name__ == "__main__":
    main()
