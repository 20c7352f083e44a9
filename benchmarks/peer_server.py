"""The peer behind HTTP, with the server and the framework that HLO has: run by the Python of the peer's environment.

Reads one JSON object from standard input: `encoder` (a folder) and `routes` (names and their examples). Writes the
address to standard output once it listens. `POST /threads` and `POST /tasks` route one `question`, in a worker thread
or on the event loop; `POST /in-process` has no HTTP between the questions: it asks them by itself, by `clients` that
are threads or coroutines, for `seconds`, and tells the better rate and the milliseconds of CPU time of each question.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

import uvicorn
import uvloop
from litestar import Litestar, post

from benchmarks.peer import tasks, threads


def app(router: Any) -> Litestar:
    """The routes around a router."""

    @post("/threads", status_code=200, sync_to_thread=True)
    def by_threads(data: dict[str, str]) -> dict[str, str | None]:
        return {"specialty": router(data["question"]).name}

    @post("/tasks", status_code=200)
    async def by_tasks(data: dict[str, str]) -> dict[str, str | None]:
        return {"specialty": (await router.acall(data["question"])).name}

    @post("/in-process", status_code=200, sync_to_thread=True)
    def in_process(data: dict[str, Any]) -> dict[str, float]:
        best = {"rate": 0.0, "cpu_ms": 0.0}
        for way in (threads, tasks):
            cpu = time.process_time()
            rate = way(router, data["questions"], data["clients"], data["seconds"])
            cpu_ms = (time.process_time() - cpu) * 1000 / max(rate * data["seconds"], 1)
            best = max(best, {"rate": rate, "cpu_ms": cpu_ms}, key=lambda one: one["rate"])
        return best

    return Litestar([by_threads, by_tasks, in_process], openapi_config=None)


async def main() -> None:
    """Build the router and serve it until the process is ended."""
    asked = json.load(sys.stdin)
    import torch
    from semantic_router import IndexedRouter, Route  # type: ignore[import-not-found]
    from semantic_router.encoders import HuggingFaceEncoder  # type: ignore[import-not-found]

    routes = [Route(name=name, utterances=texts) for name, texts in asked["routes"].items()]
    usual = torch.get_num_threads()
    torch.set_num_threads(1)  # embedding the examples is not measured, and on busy cores takes minutes with two
    router = IndexedRouter(encoder=HuggingFaceEncoder(name=asked["encoder"]), routes=routes)
    torch.set_num_threads(usual)
    server = uvicorn.Server(uvicorn.Config(app(router), port=0, log_level="warning", access_log=False))
    serving = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
        await asyncio.sleep(0.05)
    print(f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}", flush=True)
    await serving


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:  # as HLO is served
        runner.run(main())
