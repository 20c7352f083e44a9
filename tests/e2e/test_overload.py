"""Keys, overload, deadlines and fairness, with a real server and the engine `transformers`, two rows at a time."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from msgspec import Struct
from playwright.sync_api import expect

from benchmarks.soak import soak
from hlo import keys
from hlo.keys import Key
from tests.e2e.browser import chromium, visiting
from tests.e2e.server import Server, running
from tests.e2e.test_answers import ASKED, events
from tests.figures import Figure
from tests.otlp import Receiver, receiving

pytestmark = pytest.mark.reliability

LINE = 12
LEAK_MIB = 32  # less than a tenth of a MiB a request; what a leak of prompts or answers would not keep to


class Guarded(Struct, frozen=True):
    """A server with keys: where its spans go, its folder, what is kept of each key, and the keys."""

    server: Server
    receiver: Receiver
    folder: Path
    kept: dict[str, Key]
    keys: dict[str, str]

    def client(self, name: str) -> httpx.Client:
        """A client with that key."""
        headers = {"authorization": f"Bearer {self.keys[name]}"}
        return httpx.Client(base_url=self.server.url, headers=headers, timeout=120)

    def ask(self, name: str, **body: Any) -> tuple[int, float, httpx.Response]:
        """Ask with that key; the status, when the answer was there, and the answer."""
        with self.client(name) as client:
            response = client.post("/ask", json={"question": ASKED["cardiology"]} | body)
        return response.status_code, time.monotonic(), response

    def metric(self, line: str) -> float:
        """The value of a line of `/metrics`; 0 where there is none."""
        with self.client("prometheus") as client:
            for found in client.get("/metrics").text.splitlines():
                if found.startswith(f"{line} "):
                    return float(found.rpartition(" ")[2])
        return 0.0

    def until(self, condition: Callable[[], object]) -> None:
        """Wait for something to happen in the server."""
        limit = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < limit, "it never came"
            time.sleep(0.02)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    """The server; it must be idle again at the end of the module."""
    folder = tmp_path_factory.mktemp("guarded")
    kept, secrets = {}, {}
    for name in ("hot", "calm", "prometheus", "it"):
        kept[name], secrets[name] = keys.make(name, "admin" if name == "it" else "ask")
        keys.add(folder / "hlo.keys", kept[name])
    environment: dict[str, Any] = {
        "HLO_ENGINE": "transformers",
        "HLO_MAX_NUM_SEQS": "2",
        "HLO_MAX_QUEUED_REQUESTS": str(LINE),
        "HLO_LOG_LEVEL": "debug",
        "HLO_LOG_FORMAT": "json",
        "HLO_AUDIT_LOG": str(folder / "audit.jsonl"),
        "HLO_AUDIT_KEY": "the key of these tests, no other",
    }
    with receiving("grpc") as receiver, running(folder, **(environment | receiver.environment)) as server:
        found = Guarded(server, receiver, folder, kept, secrets)
        yield found
        found.until(lambda: found.metric("hlo_questions_running") == found.metric("hlo_questions_waiting") == 0)


def test_who_has_no_key_gets_nothing(guarded: Guarded) -> None:
    """Without a key, with a wrong or a revoked one there is no answer; revoking needs no restart."""
    made, secret = keys.make("for a while", "ask")
    keys.add(guarded.folder / "hlo.keys", made)
    headers = {"authorization": f"Bearer {secret}"}
    body = {"question": ASKED["cardiology"], "max_tokens": 2}
    with httpx.Client(base_url=guarded.server.url, timeout=60) as client:
        assert client.post("/ask", json=body).status_code == 401
        assert client.post("/ask", json=body, headers={"authorization": f"Bearer {secret}x"}).status_code == 401
        assert client.post("/ask", json=body, headers=headers).status_code == 200
        assert client.post("/switch-adapter", json={"adapter_name": "base"}, headers=headers).status_code == 403
        keys.revoke(guarded.folder / "hlo.keys", "for a while")
        assert client.post("/ask", json=body, headers=headers).status_code == 401
        assert client.get("/readyz").json()["specialties"] == []


def test_the_console_asks_for_a_key(guarded: Guarded) -> None:
    """The console asks for the key that the server wants, tells of a wrong one, and asks again for a revoked one."""
    made, secret = keys.make("ward", "ask")
    keys.add(guarded.folder / "hlo.keys", made)
    with chromium() as browser, visiting(browser, guarded.server.url, 8) as visit:
        page = visit.page
        field = page.locator("#key-field")
        expect(field).to_be_focused()
        page.keyboard.type(f"{secret}x")
        page.keyboard.press("Enter")
        expect(page.locator("#key-why")).to_contain_text("key")
        expect(field).to_be_focused()
        page.keyboard.type(secret)
        page.keyboard.press("Enter")
        expect(page.locator("#specialty")).to_contain_text("Cardiology")
        visit.ask(ASKED["cardiology"])
        expect(page.locator(".evidence .who")).to_have_text("Cardiology")
        assert page.evaluate("[localStorage.length, document.cookie]") == [0, ""]
        keys.revoke(guarded.folder / "hlo.keys", "ward")
        page.locator("#question").fill(ASKED["oncology"])
        page.keyboard.press("Enter")
        expect(field).to_be_focused()


def test_a_full_line_refuses_at_once_and_the_others_finish(guarded: Guarded, figure: Figure) -> None:
    """Beyond what engine and line hold, questions get 503 and Retry-After at once; the others are answered."""
    number, tokens = 60, {"max_tokens": 24, "temperature": 1.5}
    with ThreadPoolExecutor(number) as pool:
        began = time.monotonic()
        asked = [pool.submit(guarded.ask, "hot", **tokens) for _ in range(number)]
        done = [one.result() for one in asked]
    refused = [(at, response) for status, at, response in done if status == 503]
    answered = [at for status, at, _ in done if status == 200]
    assert len(refused) + len(answered) == number
    assert len(answered) >= LINE // 2
    assert all(int(response.headers["retry-after"]) >= 1 for _, response in refused)
    assert all(response.json()["type"] == "urn:hlo:problem:overloaded" for _, response in refused)
    # Refused long before the line was worked off: nobody of them waited for a turn.
    early = sum(at < sorted(answered)[len(answered) // 2] for at, _ in refused)
    assert early == len(refused)
    latest = max(at for at, _ in refused) - began
    figure(
        "load",
        f"{number} questions at once, of one key, where 2 run and {LINE} may wait",
        f"{len(answered)} answered, {len(refused)} refused",
        f"503 with Retry-After, the last after {latest:.2f} s; the last answer after {max(answered) - began:.1f} s",
    )


def test_a_calm_key_does_not_wait_for_a_hot_one(guarded: Guarded, figure: Figure) -> None:
    """While one key keeps the line full, another's question is taken, and answered before those that came before it."""
    over = threading.Event()
    hot: list[float] = []

    def keep_asking() -> None:
        while not over.is_set():
            status, at, _ = guarded.ask("hot", max_tokens=12, temperature=1.5)
            if status == 200:
                hot.append(at)
            else:
                time.sleep(0.05)

    threads = [threading.Thread(target=keep_asking) for _ in range(16)]
    for one in threads:
        one.start()
    ahead = []
    try:
        for _ in range(4):
            guarded.until(lambda: guarded.metric("hlo_questions_waiting") >= LINE / 2)
            waiting, since = guarded.metric("hlo_questions_waiting"), time.monotonic()
            status, at, _ = guarded.ask("calm", max_tokens=12, temperature=1.5)
            assert status == 200
            ahead.append((waiting, sum(since < one < at for one in hot)))
    finally:
        over.set()
        for one in threads:
            one.join()
    # Two run, and one more is in the engine; besides, its own answer takes as long as two or three of theirs.
    assert all(passed < waiting for waiting, passed in ahead), ahead
    figure(
        "load",
        "A question of a calm key, while a hot key has 16 clients and the line is full",
        f"{max(waiting for waiting, _ in ahead):.0f} waiting",
        f"answered after at most {max(passed for _, passed in ahead)} of the hot key's",
    )


def test_a_deadline_holds_in_the_engine_and_in_the_line(guarded: Guarded) -> None:
    """What is late is 504, whole or streamed, running or waiting, and the engine is free for others at once."""
    endless = {"max_tokens": 400, "temperature": 2.0, "timeout_s": 1.0}
    assert guarded.ask("calm", **endless)[0] == 504
    guarded.until(lambda: guarded.metric("hlo_questions_running") == 0)
    streamed = guarded.ask("calm", **endless, stream=True)[2]
    found = events(streamed.text)
    assert (streamed.status_code, found[0][0], found[-1][0]) == (200, "route", "problem")
    assert found[-1][1]["type"] == "urn:hlo:problem:deadline-exceeded"
    long = {"max_tokens": 24, "temperature": 2.0}
    with ThreadPoolExecutor(8) as pool:
        others: list[Future[tuple[int, float, httpx.Response]]] = [
            pool.submit(guarded.ask, "hot", **long) for _ in range(6)
        ]
        guarded.until(lambda: guarded.metric("hlo_questions_waiting") >= 1)
        assert guarded.ask("hot", **long, timeout_s=0.05)[0] == 504
        assert [one.result()[0] for one in others] == [200] * 6
    assert guarded.ask("calm", max_tokens=2)[0] == 200


def test_memory_stays_flat(guarded: Guarded, figure: Figure) -> None:
    """After some hundred requests of every kind, left, late and malformed ones too, the server is no larger."""
    process = psutil.Process(guarded.server.process.pid)
    found = asyncio.run(soak(guarded.server.url, guarded.keys["calm"], process, 480))
    assert {"left", "200", "400", "401", "404", "504"} <= found.statuses.keys()
    assert not {"500", "502"} & found.statuses.keys()
    assert found.last - found.first < LEAK_MIB
    figure(
        "load",
        f"480 requests of every kind, left, late and wrong ones too, in {found.seconds:.0f} s: memory of the server",
        f"{found.first:.0f} MiB after a quarter, {found.last:.0f} MiB at the end",
        "no growth to speak of",
    )


def test_no_key_is_written(guarded: Guarded, figure: Figure) -> None:
    """No key, right or wrong, is in anything that the server wrote: log at debug level, spans, audit log, keys file."""
    wrong = f"{guarded.keys['it'][:-6]}canary"
    with httpx.Client(base_url=guarded.server.url, timeout=60) as client:
        headers = {"authorization": f"Bearer {wrong}"}
        told = [client.get("/specialties", headers=headers).text, client.post("/ask", json={}, headers=headers).text]
    with guarded.client("it") as client:
        told += [client.get("/metrics").text, client.get("/readyz").text, client.post("/ask", json={"a": 1}).text]
    secrets = [one.split("_", 2)[2] for one in (*guarded.keys.values(), wrong)]
    files = [path for path in guarded.folder.rglob("*") if path.is_file()]
    written = [path.read_bytes() for path in files] + [text.encode() for text in told] + guarded.receiver.bodies
    assert guarded.receiver.bodies
    assert {"server.log", "audit.jsonl", "hlo.keys"} <= {path.name for path in files}
    assert [secret for secret in secrets for content in written if secret.encode() in content] == []
    callers = {json.loads(line)["caller"] for line in (guarded.folder / "audit.jsonl").read_text().splitlines()}
    assert {guarded.kept["hot"].id, guarded.kept["calm"].id} <= callers
    size = sum(len(content) for content in written)
    figure("inputs", "Bytes written and sent under keys, searched for them", float(size), "no key is in them")
