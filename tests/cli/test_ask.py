"""`hlo ask` against a server."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.cli.conftest import Hlo, Stub

ROUTE = {
    "status": "routed",
    "specialty": "cardiology",
    "scores": [{"specialty": "cardiology", "score": 0.5, "probability": 0.75}],
    "margin": 0.5,
    "out_of_scope": 0.25,
    "candidates": [],
    "pinned_by": None,
}
ANSWER: dict[str, Any] = {
    "answer": "Rest, ätsch.\n",
    "specialty": "cardiology",
    "route": ROUTE,
    "adapter": {"name": "cardiology", "sha256": "0123456789abcdef"},
    "model": "echo",
    "usage": {"prompt_tokens": 1, "completion_tokens": 7},
    "timings": {"route_ms": 1.0, "first_token_ms": 2.0, "total_ms": 1500.0},
    "finish_reason": "stop",
    "trace_id": "0" * 32,
}
PROBLEM = {"type": "urn:hlo:problem:x", "status": 500, "detail": "The engine died.", "remedy": "Restart it."}


def stream(*events: tuple[str, Any]) -> str:
    return "".join(f"event: {name}\ndata: {json.dumps(data)}\n\n" for name, data in events)


def test_the_answer_is_printed(hlo: Hlo, stub: Stub) -> None:
    """The answer alone goes to standard output; the route, and who answered, go to standard error."""
    deltas = [("delta", {"text": "Rest, "}), ("delta", {"text": "ätsch.\n"})]
    stub.gives(stream(("route", ROUTE), *deltas, ("answer", ANSWER)), 200, "text/event-stream")
    done = hlo("ask", "--url", stub.url, "My heart hurts")
    assert (done.status, done.out) == (0, "Rest, ätsch.\n\n")
    assert stub.asked == [("/ask", {"question": "My heart hurts", "stream": True})]
    assert "routed: cardiology  (cardiology 0.75, none of them 0.25)" in done.err
    assert "model echo, adapter cardiology 0123456789ab, 7 tokens in 1.5 s" in done.err


def test_the_base_model_is_called_so(hlo: Hlo, stub: Stub) -> None:
    """An answer without a specialty is said to be the base model's."""
    route = ROUTE | {"status": "out_of_scope", "specialty": None}
    answer = ANSWER | {"specialty": None, "adapter": None, "route": route}
    stub.gives(stream(("route", route), ("answer", answer)), 200, "text/event-stream")
    done = hlo("ask", "--url", stub.url, "Where do I park?")
    assert "out_of_scope: base model" in done.err
    assert "adapter none" in done.err


def test_a_specialty_is_pinned(hlo: Hlo, stub: Stub) -> None:
    """`--specialty` goes with the question."""
    stub.gives(stream(("route", ROUTE), ("answer", ANSWER)), 200, "text/event-stream")
    hlo("ask", "--url", stub.url, "--specialty", "oncology", "My heart hurts")
    assert stub.asked[0][1] == {"question": "My heart hurts", "stream": True, "specialty": "oncology"}


def test_a_problem_exits_1(hlo: Hlo, stub: Stub) -> None:
    """A problem before the stream exits 1 with its detail and its remedy."""
    stub.gives(PROBLEM, 500, "application/problem+json")
    done = hlo("ask", "--url", stub.url, "a")
    assert (done.status, done.out) == (1, "")
    assert "The engine died." in done.err
    assert "Restart it." in done.err


def test_a_problem_in_the_stream_exits_1(hlo: Hlo, stub: Stub) -> None:
    """A problem within the stream exits 1 with its detail and its remedy, after what was said."""
    events = stream(("route", ROUTE), ("delta", {"text": "Rest"}), ("problem", PROBLEM))
    stub.gives(events, 200, "text/event-stream")
    done = hlo("ask", "--url", stub.url, "a")
    assert (done.status, done.out.strip()) == (1, "Rest")
    assert "The engine died." in done.err
    assert "Restart it." in done.err


@pytest.mark.parametrize("body", ["", stream(("route", ROUTE), ("delta", {"text": "Rest"}))])
def test_a_stream_that_breaks_off_exits_1(body: str, hlo: Hlo, stub: Stub) -> None:
    """A stream that ends without an answer exits 1: half an answer is not an answer."""
    stub.gives(body, 200, "text/event-stream")
    assert hlo("ask", "--url", stub.url, "a").status == 1


def test_nobody_there_exits_1(hlo: Hlo) -> None:
    """An address at which no server answers exits 1 with the address and how to start one."""
    done = hlo("ask", "--url", "http://127.0.0.1:9", "a")
    assert done.status == 1
    assert "error: No server answers at http://127.0.0.1:9" in done.err
    assert "remedy: Start one with `hlo serve`." in done.err
