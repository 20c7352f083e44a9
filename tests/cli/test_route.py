"""`hlo route` against a server."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.cli.conftest import Hlo, Stub

PROBLEM = {"type": "urn:hlo:problem:not-ready", "status": 503, "detail": "It is starting.", "remedy": "Wait a little."}


def route(status: str = "routed", specialty: str | None = "cardiology") -> dict[str, Any]:
    scores = [{"specialty": "cardiology", "score": 0.75}, {"specialty": "oncology", "score": -0.25}]
    return {"status": status, "specialty": specialty, "scores": scores, "margin": 1.0, "pinned_by": None}


def test_routes_are_drawn(hlo: Hlo, stub: Stub) -> None:
    """Each question is shown with its route, the margin and every score, in one request."""
    stub.gives({"routes": [route(), route("out_of_scope", None)]})
    done = hlo("route", "--url", stub.url, "My heart hurts", "Where do I park?")
    assert (done.status, done.err) == (0, "")
    assert stub.asked == [("/route", {"question": ["My heart hurts", "Where do I park?"]})]
    for text in ("My heart hurts", "routed: cardiology, margin 1.000", "0.750", "-0.250", "Where do I park?"):
        assert text in done.out
    assert "out_of_scope: no specialty" in done.out


def test_json_is_one_route_a_line(hlo: Hlo, stub: Stub) -> None:
    """With `--json` each line is one route, as the server gave it."""
    stub.gives({"routes": [route(), route("ambiguous")]})
    done = hlo("route", "--json", "--url", stub.url, "a", "b")
    assert [json.loads(line) for line in done.out.splitlines()] == [route(), route("ambiguous")]


def test_the_url_may_stand_in_the_environment(hlo: Hlo, stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    """`HLO_URL` is as good as `--url`."""
    monkeypatch.setenv("HLO_URL", stub.url)
    stub.gives({"routes": [route()]})
    assert hlo("route", "a").status == 0
    assert len(stub.asked) == 1


@pytest.mark.parametrize("question", ["What is [/INST]?", "[bold]Why[/bold]", "a [red] rash", "[/]", "\\[x]"])
def test_a_question_is_printed_as_it_is(question: str, hlo: Hlo, stub: Stub) -> None:
    """A question with brackets in it is printed as it is, and never read as markup."""
    stub.gives({"routes": [route()]})
    done = hlo("route", "--url", stub.url, question)
    assert done.status == 0
    assert question in done.out


def test_a_problem_exits_1(hlo: Hlo, stub: Stub) -> None:
    """A problem exits 1 with its detail and its remedy."""
    stub.gives(PROBLEM, 503, "application/problem+json")
    done = hlo("route", "--url", stub.url, "a")
    assert (done.status, done.out) == (1, "")
    assert "error: It is starting." in done.err
    assert "remedy: Wait a little." in done.err


@pytest.mark.parametrize("body", ["<html>Bad gateway</html>", "", "[]", '"x"', "{}"])
def test_an_error_that_is_no_problem_exits_1(body: str, hlo: Hlo, stub: Stub) -> None:
    """An error of something else than HLO, such as a proxy, exits 1 with its status."""
    stub.gives(body, 502, "text/html")
    done = hlo("route", "--url", stub.url, "a")
    assert done.status == 1
    assert "502" in done.err


@pytest.mark.parametrize("body", ["<html>Welcome!</html>", "", "[]", "{}", '{"routes": [{"x": 1}]}', '{"routes": []}'])
def test_an_answer_of_another_server_exits_1(body: str, hlo: Hlo, stub: Stub) -> None:
    """A server that is not HLO's exits 1 with a message, not a traceback."""
    stub.gives(body, 200, "text/html")
    done = hlo("route", "--url", stub.url, "a")
    assert done.status == 1
    assert "error:" in done.err


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "not a url", "ftp://127.0.0.1", "http://[", "127.0.0.1:8000"])
def test_nobody_there_exits_1(url: str, hlo: Hlo) -> None:
    """An address at which no server can answer exits 1 with the address and how to start one."""
    done = hlo("route", "--url", url, "a")
    assert done.status == 1
    assert f"error: No server answers at {url}" in done.err
    assert "hlo serve" in done.err
