"""Does memory stay flat? A server is asked for as long as you like, in every way there is, and its memory is watched.

`python -m benchmarks.soak --requests 20000`: whole answers and streams, streams that are left in the middle, questions
that are refused, malformed or late, routes, raw prompts, wrong keys. What the server and its engine's processes take
(resident set) is read as it goes; the growth is that of a line through the last three quarters, when all caches are
full. `HLO_ENGINE` chooses the engine; by default `transformers`, which starts soonest.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
from msgspec import Struct

from benchmarks.report import tell
from hlo import keys

CLIENTS = 8
SAMPLES = 40
START_LIMIT_S = 300
HEART = "my chest feels tight when I climb the stairs"


class Sample(Struct, frozen=True):
    """The memory of the server and all its processes after so many requests, in bytes."""

    requests: int
    memory: int


class Soaked(Struct, frozen=True):
    """What came of it: memory as it went, and how often each status was given."""

    samples: list[Sample]
    statuses: dict[str, int]
    seconds: float

    @property
    def first(self) -> float:
        """MiB after the first quarter of the requests."""
        return self._settled()[0].memory / 2**20

    @property
    def last(self) -> float:
        """MiB at the end."""
        return self.samples[-1].memory / 2**20

    @property
    def growth(self) -> float:
        """Bytes a request, after the first quarter."""
        settled = self._settled()
        line = statistics.linear_regression([one.requests for one in settled], [one.memory for one in settled])
        return float(line.slope)

    def _settled(self) -> list[Sample]:
        return self.samples[len(self.samples) // 4 :]


async def one(client: httpx.AsyncClient, chance: random.Random) -> str:
    """One request of some kind; its status, or that it was left."""
    tokens = {"max_tokens": chance.choice([1, 2, 4]), "temperature": 1.0}
    text = f"{HEART} {chance.randrange(10**6)}"
    kind = chance.randrange(12)
    if kind == 0:  # a client that leaves
        body = {"question": text, "stream": True, "max_tokens": 200, "temperature": 2.0}
        async with client.stream("POST", "/ask", json=body) as response:
            async for _ in response.aiter_raw():
                break
        return "left"
    if kind == 1:
        async with client.stream("POST", "/ask", json={"question": text, "stream": True, **tokens}) as response:
            async for _ in response.aiter_raw():
                pass
        return str(response.status_code)
    path, body, more = "/ask", {"question": text, **tokens}, dict[str, Any]()
    if kind == 2:
        body = {"question": text, "max_tokens": 200, "temperature": 2.0, "timeout_s": 0.01}
    elif kind == 3:
        body = {"question": text, "specialty": f"nobody {chance.randrange(10**6)}"}
    elif kind == 4:
        body = {"question": "x" * 5000}
    elif kind == 5:
        path, body = "/generate", {"prompt": text, "adapter": chance.choice(["base", "oncology"]), **tokens}
    elif kind == 6:
        path, body = "/route", {"question": [text, HEART]}
    elif kind == 7:
        more = {"headers": {"authorization": f"Bearer hlo_{chance.randrange(10**6)}_x"}}
    elif kind == 8:
        path = f"/{chance.randrange(10**6)}"
    return str((await client.post(path, json=body, **more)).status_code)


async def soak(url: str, key: str, process: psutil.Process, requests: int) -> Soaked:
    """Make that many requests, and watch the memory of a process and its children."""
    statuses: Counter[str] = Counter()
    samples: list[Sample] = []
    left = iter(range(requests))

    async def ask(number: int, client: httpx.AsyncClient) -> None:
        chance = random.Random(number)
        for done in left:
            if done % max(requests // SAMPLES, 1) == 0:
                samples.append(Sample(done, await asyncio.to_thread(memory, process)))
            statuses[await one(client, chance)] += 1

    clock = time.monotonic()
    limits = httpx.Limits(max_connections=2 * CLIENTS)
    headers = {"authorization": f"Bearer {key}"}
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=120, limits=limits) as client:
        await asyncio.gather(*(ask(number, client) for number in range(CLIENTS)))
    samples.append(Sample(requests, memory(process)))
    return Soaked(samples, dict(statuses), time.monotonic() - clock)


def memory(process: psutil.Process) -> int:
    """The resident memory of a process and all below it, in bytes; what they share counts once for each."""
    return sum(one.memory_info().rss for one in (process, *process.children(recursive=True)))


@contextmanager
def server(folder: Path) -> Iterator[tuple[str, str, psutil.Process]]:
    """A server of its own, with a key and an audit log; its address, the key, and its process."""
    kept, key = keys.make("soak", "ask")
    keys.add(folder / "hlo.keys", kept)
    environment = {"HLO_ENGINE": "transformers"} | os.environ | {"HLO_CACHE_DIR": str(folder / "cache")}
    environment |= {
        "HLO_AUDIT_LOG": str(folder / "audit.jsonl"),
        "HLO_AUDIT_KEY": "of no use to anybody, but a long key",
    }
    log = folder / "server.log"
    with log.open("wb") as output:
        command = [sys.executable, "-m", "hlo", "serve", "--port", "0"]
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=output, stderr=output)
    try:
        yield _ready(log, process), key, psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(60)


def _ready(log: Path, process: subprocess.Popen[bytes]) -> str:
    limit = time.monotonic() + START_LIMIT_S
    while time.monotonic() < limit and process.poll() is None:
        found = re.search(r"listening on (\S+)", log.read_text())
        if found and httpx.get(f"{found[1]}/readyz", timeout=30).is_success:
            return found[1]
        time.sleep(0.2)
    raise RuntimeError(log.read_text()[-2000:])


def main() -> None:
    """Soak, and tell."""
    given = argparse.ArgumentParser()
    given.add_argument("--requests", type=int, default=2000)
    requests = given.parse_args().requests
    with tempfile.TemporaryDirectory() as folder, server(Path(folder)) as (url, key, process):
        found = asyncio.run(soak(url, key, process, requests))
    tell(
        "soak",
        "Does memory stay flat?",
        [
            {
                "requests": requests,
                "seconds": found.seconds,
                "MiB after a quarter": found.first,
                "MiB at the end": found.last,
                "bytes a request": found.growth,
                "statuses": " ".join(f"{status}:{number}" for status, number in sorted(found.statuses.items())),
            }
        ],
    )


if __name__ == "__main__":
    main()
