"""A patient's words are in nothing that a server writes or sends, whatever goes wrong, at any log level.

Canaries, words that nothing but a client can have brought, go through every route and every way to fail: one for
questions, one for prompts, one for earlier turns. Then everything that the processes wrote and sent is searched.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import httpx
import psutil
import pytest
from msgspec import Struct

from hlo.generation.base_model import EMBEDDED_NAME, embedded_root
from hlo.generation.tokenizer import ChatTokenizer
from tests.e2e.server import Server, spawn, wait_ready
from tests.e2e.test_answers import ASKED
from tests.otlp import Receiver, receiving

CANARIES = ("zanthoribe", "quolmidast", "brivenchor")
QUESTION, PROMPT, TURN = CANARIES
NOSY = """
import logging
from hlo import hookimpl

@hookimpl
def hlo_question(question):
    if "please fail" in question.text:
        raise ValueError(f"I do not like {question.text}")

@hookimpl
def hlo_answer(question, answer):
    raise RuntimeError(f"{question.text} got {answer.text}")
"""


class Watched(Struct, frozen=True):
    """What there is to search: the server's folder, all that its receiver got, and its answers to clients."""

    folder: Path
    receiver: Receiver
    metrics: list[bytes]
    problems: list[bytes]
    answers: list[str]


def install(site: Path) -> None:
    """A plugin whose hooks raise with the words of questions and answers in their messages."""
    info = site / "hlo_nosy-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: hlo-nosy\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[hlo]\nnosy = hlo_nosy\n")
    (site / "hlo_nosy.py").write_text(NOSY)


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """A server at its most talkative, after canaries went through every route and every way to fail."""
    folder = tmp_path_factory.mktemp("private")
    install(folder / "site")
    with receiving("grpc") as receiver:
        environment = {
            "HLO_LOG_LEVEL": "debug",
            "HLO_LOG_FORMAT": "json",
            "HLO_AUDIT_LOG": str(folder / "audit.jsonl"),
            "HLO_AUDIT_KEY": "the key of these tests, no other",
            "HLO_MAX_QUESTION_CHARS": "400",
            "HLO_AMBIGUOUS": "ask",
            "PYTHONPATH": os.pathsep.join((str(folder / "site"), *filter(None, [os.environ.get("PYTHONPATH")]))),
            "PYTHONFAULTHANDLER": "1",
            **receiver.environment,
        }
        process, log = spawn(folder, **environment)
        try:
            server = Server(wait_ready(process, log), process, log)
            found = Watched(folder, receiver, [], [], [])
            ask_everything(server, found)
            crash(server, found)
            process.send_signal(signal.SIGTERM)
            process.wait(120)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        yield found


def ask_everything(server: Server, found: Watched) -> None:
    """Every route, with words that are answered, refused, malformed, too long, or that make plugins fail."""
    asked = {"question": f"{ASKED['cardiology']} {QUESTION}", "max_tokens": 8}
    turns = [{"question": f"{TURN} hurts", "answer": f"{TURN} too"}]
    chat = [{"role": "system", "content": TURN}, {"role": "user", "content": f"{ASKED['cardiology']} {QUESTION}"}]
    bodies: list[tuple[str, Mapping[str, object] | str]] = [
        ("/ask", asked),
        ("/ask", asked | {"question": f"please fail {QUESTION}"}),
        ("/ask", asked | {"turns": turns}),
        ("/ask", asked | {"specialty": "nobody"}),
        ("/ask", asked | {"question": QUESTION * 100}),
        ("/ask", asked | {"turns": [{"question": TURN * 100, "answer": TURN}]}),
        ("/ask", asked | {"max_tokens": QUESTION}),
        ("/ask", asked | {"temperature": 99}),
        ("/ask", asked | {"stop": [QUESTION]}),
        ("/ask", {"question": [QUESTION]}),
        ("/ask", {"text": QUESTION}),
        ("/ask", f'{{"question": "{QUESTION}"'),
        ("/ask", f'{{"question": "{QUESTION}\\ud800"}}'),
        ("/route", {"question": QUESTION}),
        ("/route", {"question": [QUESTION, f"please fail {QUESTION}", " "]}),
        ("/route", {"question": [QUESTION] * 300}),
        ("/generate", {"prompt": f"{PROMPT} {PROMPT}", "max_tokens": 8}),
        ("/generate", {"prompt": PROMPT, "adapter": "cardiology", "max_tokens": 8}),
        ("/generate", {"prompt": PROMPT, "adapter": "nobody"}),
        ("/generate", {"prompt": f"{PROMPT} " * 5000}),
        ("/generate", {"prompt": PROMPT, "top_p": 7}),
        ("/generate", {"prompt": {"words": PROMPT}}),
        ("/switch-adapter", {"adapter_name": "nobody", "why": PROMPT}),
        ("/v1/chat/completions", {"model": "auto", "messages": chat, "max_tokens": 8}),
        ("/v1/chat/completions", {"model": f"{QUESTION} hurts", "messages": chat}),
        ("/v1/chat/completions", {"model": "auto", "messages": [*chat, {"role": f"{TURN} too", "content": TURN}]}),
        ("/v1/chat/completions", {"model": "auto", "messages": chat, "tools": [QUESTION]}),
        ("/v1/completions", {"model": "base", "prompt": PROMPT, "max_tokens": 8}),
        ("/v1/completions", {"model": PROMPT, "prompt": [PROMPT, PROMPT]}),
        ("/nowhere", {"question": QUESTION}),
    ]
    with server.client() as client:
        for path, body in bodies:
            sent = {"content": body} if isinstance(body, str) else {"json": dict(body)}
            said = client.post(path, headers={"x-words": QUESTION}, **sent)
            (found.problems if said.status_code >= 400 else found.answers).append(said.content)  # type: ignore[arg-type]
        for path, body in (("/ask", asked), ("/generate", {"prompt": PROMPT, "max_tokens": 8})):
            with client.stream("POST", path, json={**body, "stream": True}) as stream:
                assert "event:" in "".join(stream.iter_text())
        with client.stream("POST", "/ask", json=asked | {"stream": True, "max_tokens": 400}) as left:
            next(left.iter_text())  # and then the client leaves
        for accept in ("text/plain", "application/openmetrics-text"):
            found.metrics.append(client.get("/metrics", headers={"accept": accept}).content)
        client.get("/specialties", params={"q": QUESTION})
        client.post(
            "/admin/specialties/reload", headers={"authorization": f"Bearer {QUESTION}", "origin": f"http://{QUESTION}"}
        )
        client.post("/admin/specialties/reload")


def crash(server: Server, found: Watched) -> None:
    """Kill the engine in the middle of an answer, and ask again."""
    body = {"question": f"{ASKED['cardiology']} {QUESTION}", "max_tokens": 400, "stream": True}
    with server.client() as client, contextlib.suppress(httpx.HTTPError):
        with client.stream("POST", "/ask", json=body) as stream:
            text = stream.iter_text()
            next(text)
            for child in psutil.Process(server.process.pid).children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):  # the reload's process for plugins is just ending
                    if "EngineCore" in " ".join(child.cmdline()) or "EngineCore" in child.name():
                        child.send_signal(signal.SIGABRT)
            found.problems.append("".join(text).encode())
        time.sleep(2)
        found.problems.append(client.post("/ask", json=body | {"stream": False}).content)


def everything(watched: Watched) -> dict[str, bytes]:
    """All that was written or sent, by where: the log, every file, spans, metrics and problems."""
    files = {
        str(path.relative_to(watched.folder)): path.read_bytes()
        for path in watched.folder.rglob("*")
        if path.is_file() and "site" not in path.parts
    }
    return {
        **files,
        "spans": b"".join(watched.receiver.bodies),
        "metrics": b"".join(watched.metrics),
        "problems": b"".join(part for part in watched.problems if b"event: delta" not in part),
    }


def test_the_canaries_went_everywhere(watched: Watched) -> None:
    """The search would find something: the routes answered and failed, the plugin raised, the engine died."""
    log = (watched.folder / "server.log").read_text()
    assert len(watched.answers) == 9
    assert len(watched.problems) >= 14
    assert "hlo_question of the plugin nosy failed: ValueError" in log
    assert "hlo_answer of the plugin nosy failed: RuntimeError" in log
    assert "EngineDead" in log
    assert b"hlo_hook_errors_total" in watched.metrics[0]
    assert watched.receiver.bodies
    assert b'"outcome":"abort"' in (watched.folder / "audit.jsonl").read_bytes()


@pytest.mark.parametrize("canary", CANARIES)
def test_no_word_is_written_or_sent(canary: str, watched: Watched) -> None:
    """No canary is in the log, a file, a span, a metric or a problem."""
    assert [place for place, content in everything(watched).items() if canary.encode() in content] == []


@pytest.mark.parametrize("canary", CANARIES)
def test_nor_are_its_tokens(canary: str, watched: Watched) -> None:
    """Nor are a canary's token ids, from which its words could be read again."""
    ids = ChatTokenizer.load(embedded_root() / "models" / EMBEDDED_NAME).encode_raw(canary)[-4:]
    written = ", ".join(map(str, ids)).encode()
    assert len(ids) == 4
    assert [place for place, content in everything(watched).items() if written in content] == []


def test_no_answer_is_written_or_sent(watched: Watched) -> None:
    """Nor is the text of an answer."""
    import json

    said = [json.loads(answer).get("answer", "") for answer in watched.answers]
    texts = [text.strip() for text in said if len(text.strip()) > 12]
    assert texts
    found = everything(watched)
    assert [place for text in texts for place, content in found.items() if text.encode() in content] == []
