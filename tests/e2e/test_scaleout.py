"""HLO in front of two real `vllm serve`, of which one is killed under load.

The tests of this file run in order: each begins with the servers as the one before left them.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Iterator

import httpx
import pytest
from msgspec import Struct

from tests.e2e.reference import BASE, Said, engine
from tests.e2e.server import Server, running
from tests.e2e.test_answers import SPECIALTIES
from tests.e2e.vllm_servers import VllmProcess, vllm_servers
from tests.figures import Figure

TOKENS = 24
PROMPTS = ("<s>[INST] my chest feels tight on the stairs [/INST]", "<s>[INST] a lump that does not hurt [/INST]")
WORK = [(prompt, adapter) for prompt in PROMPTS for adapter in [BASE, *SPECIALTIES]]
LIMIT_S = 90


class Setup(Struct, frozen=True):
    """HLO and the servers behind it."""

    hlo: Server
    servers: list[VllmProcess]

    def up(self, server: VllmProcess) -> float:
        """What HLO's metrics say of a server."""
        return self.hlo.metric(f'hlo_engine_server_up{{server="{server.url}"}}')

    def requests(self, outcome: str) -> dict[str, float]:
        """Requests that ended so, by server."""
        line = 'hlo_engine_server_requests_total{{outcome="{}",server="{}"}}'
        return {one.url: self.hlo.metric(line.format(outcome, one.url)) for one in self.servers}


class Ended(Struct, frozen=True):
    """What came of one request: the status, the text, and the kind of problem, if any, after how many words."""

    status: int
    text: str = ""
    problem: str = ""
    deltas: int = 0


@pytest.fixture(scope="module")
def wanted(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Said]:
    """What the engine `transformers` says to all of `WORK`."""

    async def ask() -> list[Said]:
        async with engine(SPECIALTIES, tmp_path_factory.mktemp("store")) as found:
            return list(await asyncio.gather(*(found.say(prompt, adapter, TOKENS) for prompt, adapter in WORK)))

    return dict(zip(WORK, asyncio.run(ask()), strict=True))


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setup]:
    """Two servers of vLLM's, with places for all adapters and the one of zeros, and HLO in front, started with them."""
    folder = tmp_path_factory.mktemp("scaleout")
    with (
        vllm_servers(folder, 2, slots=len(SPECIALTIES) + 1) as servers,
        running(folder, HLO_ENGINE_URLS=",".join(one.url for one in servers)) as hlo,
    ):
        for one in servers:
            one.wait()
            hlo.wait_for(f'hlo_engine_server_up{{server="{one.url}"}}', 1)
        yield Setup(hlo, servers)


async def generate(client: httpx.AsyncClient, prompt: str, adapter: str, *, stream: bool) -> Ended:
    """One request to `/generate`."""
    body = {"prompt": prompt, "adapter": adapter, "max_tokens": TOKENS, "stream": stream}
    async with client.stream("POST", "/generate", json=body) as response:
        await response.aread()
    if not stream or response.status_code != 200:
        said = response.json()
        return Ended(response.status_code, said.get("text", ""), said.get("type", ""))
    text, deltas, problem = "", 0, ""
    for event in response.text.split("\n\n"):
        name, _, data = event.partition("\ndata: ")
        if name == "event: delta" and (piece := json.loads(data)["text"]):
            text, deltas = text + piece, deltas + 1
        elif name == "event: problem":
            problem = json.loads(data)["type"]
    return Ended(200, text, problem, deltas)


def everything(hlo: Server, *, stream: bool) -> list[Ended]:
    """All of `WORK` at once, in any order."""

    async def ask() -> list[Ended]:
        async with httpx.AsyncClient(base_url=hlo.url, timeout=LIMIT_S) as client:
            order = random.Random(stream).sample(range(len(WORK)), len(WORK))
            ended = await asyncio.gather(*(generate(client, *WORK[number], stream=stream) for number in order))
            return [one for _, one in sorted(zip(order, ended, strict=True))]

    return asyncio.run(ask())


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_answers_are_those_of_the_reference(setup: Setup, wanted: dict[tuple[str, str], Said], stream: bool) -> None:
    """Base and every adapter, mixed in one batch on each server, say what they say under PEFT."""
    assert [one.text for one in everything(setup.hlo, stream=stream)] == [said.text for said in wanted.values()]


def test_questions_are_answered_and_each_adapter_has_one_server(setup: Setup) -> None:
    """A question is routed and answered as with an engine of HLO's own; repeated, it goes to the same server."""
    before = setup.requests("done")
    for _ in range(3):
        answer = setup.hlo.post("/ask", {"question": "my chest feels tight when I climb the stairs", "max_tokens": 8})
        assert answer.status_code == 200, answer.text
        assert answer.json()["specialty"] == "cardiology"
    after = setup.requests("done")
    assert sorted(after[url] - before[url] for url in after) == [0, 3]
    assert all(setup.up(one) == 1 for one in setup.servers)
    assert min(before.values()) > 0, "both servers had work"


@pytest.mark.reliability
def test_a_server_is_killed_under_load(setup: Setup, wanted: dict[tuple[str, str], Said], figure: Figure) -> None:
    """What had not begun to stream is answered by the other server; what had begun ends with a problem that says so."""
    victim, _ = setup.servers

    async def attack() -> tuple[list[tuple[tuple[str, str], bool, Ended]], int]:
        ended: list[tuple[tuple[str, str], bool, Ended]] = []
        killed_at = 0

        async def ask(client: httpx.AsyncClient, chance: random.Random) -> None:
            while time.monotonic() < until:
                work, stream = chance.choice(WORK), chance.random() < 0.5
                ended.append((work, stream, await generate(client, *work, stream=stream)))

        until = time.monotonic() + 10
        async with httpx.AsyncClient(base_url=setup.hlo.url, timeout=LIMIT_S) as client:
            clients = [asyncio.create_task(ask(client, random.Random(number))) for number in range(16)]
            await asyncio.sleep(4)
            killed_at = len(ended)
            await asyncio.to_thread(victim.kill)
            await asyncio.gather(*clients)
        return ended, killed_at

    ended, killed_at = asyncio.run(attack())
    broken = [one for _, _, one in ended if one.problem]
    assert 0 < killed_at < len(ended)
    assert {one.status for _, _, one in ended} == {200}
    assert all(stream and one.deltas for _, stream, one in ended if one.problem), "only what had begun to stream fails"
    assert {one.problem for one in broken} <= {"urn:hlo:problem:engine-error"}
    for work, _, one in ended:
        if one.problem:
            assert wanted[work].text.startswith(one.text)
        else:
            assert one.text == wanted[work].text
    setup.hlo.wait_for(f'hlo_engine_server_up{{server="{victim.url}"}}', 0)
    moved = sum(setup.requests("moved").values())
    assert moved + len(broken) > 0, "the server that was killed had work"
    figure(
        "faults", "one of two vLLM servers killed under load: requests", len(ended), "right to the letter, but the next"
    )
    figure("faults", "requests that had not begun, moved to the other server", int(moved), "answered")
    figure("faults", "streams that had begun on it", len(broken), "end with a problem that says so")


def test_one_server_is_enough(setup: Setup, wanted: dict[tuple[str, str], Said]) -> None:
    """With one server left HLO is ready, and all adapters answer as before."""
    with setup.hlo.client() as client:
        assert client.get("/readyz").status_code == 200
    assert [one.text for one in everything(setup.hlo, stream=False)] == [said.text for said in wanted.values()]


@pytest.mark.reliability
def test_a_server_that_comes_back_is_used_again(
    setup: Setup, wanted: dict[tuple[str, str], Said], figure: Figure
) -> None:
    """A server that is started again gets its adapters, then its requests, and says what it said before."""
    victim, _ = setup.servers
    before, clock = setup.requests("done")[victim.url], time.monotonic()
    victim.start()
    victim.wait()
    started = time.monotonic()
    while setup.up(victim) != 1:
        assert time.monotonic() < started + LIMIT_S
        time.sleep(0.2)
    assert Counter(one.text for one in everything(setup.hlo, stream=False)) == Counter(
        said.text for said in wanted.values()
    )
    assert setup.requests("done")[victim.url] > before
    figure(
        "faults", "a killed vLLM server started again", f"{started - clock:.0f} s to start", "has its adapters again"
    )


@pytest.mark.reliability
def test_all_servers_are_killed(setup: Setup, figure: Figure) -> None:
    """With no server left questions are refused at once, for the time being, and HLO lives."""
    for one in setup.servers:
        one.kill()
    answer = setup.hlo.post("/ask", {"question": "my chest feels tight when I climb the stairs"})
    assert (answer.status_code, answer.json()["type"]) == (503, "urn:hlo:problem:not-ready")
    assert int(answer.headers["retry-after"]) > 0
    with setup.hlo.client() as client:
        assert client.get("/readyz").status_code == 503
        assert client.get("/healthz").status_code == 200
    figure("faults", "both vLLM servers killed", "503 at once", "HLO lives, and is ready again when a server is")
