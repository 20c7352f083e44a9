"""`hlo route` against a server, and what is a question and what a command."""

from __future__ import annotations

import importlib
import json
from typing import TYPE_CHECKING, Any

import click
import pytest

if TYPE_CHECKING:
    from tests.cli.conftest import Hlo, Stub

PROBLEM = {"type": "urn:hlo:problem:not-ready", "status": 503, "detail": "It is starting.", "remedy": "Wait a little."}


def route(status: str = "routed", specialty: str | None = "cardiology") -> dict[str, Any]:
    return {
        "status": status,
        "specialty": specialty,
        "scores": [
            {"specialty": "cardiology", "score": 0.75, "probability": 0.625},
            {"specialty": "oncology", "score": -0.25, "probability": 0.125},
        ],
        "margin": 1.0,
        "out_of_scope": 0.25,
        "candidates": ["cardiology", "oncology"] if status == "ambiguous" else [],
        "pinned_by": None,
    }


def test_routes_are_drawn(hlo: Hlo, stub: Stub) -> None:
    """Each question is shown with its route, the margin, every score and probability, in one request."""
    stub.gives({"routes": [route(), route("out_of_scope", None)]})
    done = hlo("route", "--url", stub.url, "My heart hurts", "Where do I park?")
    assert (done.status, done.err) == (0, "")
    assert stub.asked == [("/route", {"question": ["My heart hurts", "Where do I park?"]})]
    for text in ("My heart hurts", "routed: cardiology, margin 1.000", "0.750", "-0.250", "Where do I park?"):
        assert text in done.out
    assert "out_of_scope: no specialty" in done.out
    assert "between" not in done.out
    bars = {line.split("│")[1].strip(): line.count("█") for line in done.out.splitlines() if "│" in line}
    assert bars == {"cardiology": 19, "oncology": 4, "none of them": 8}
    for probability in ("0.625", "0.125", "0.250"):
        assert probability in done.out


def test_an_ambiguous_route_names_its_candidates(hlo: Hlo, stub: Stub) -> None:
    """An ambiguous route says between which specialties the question lies."""
    stub.gives({"routes": [route("ambiguous")]})
    assert (
        "ambiguous: cardiology, margin 1.000, between cardiology, oncology" in hlo("route", "--url", stub.url, "a").out
    )


def test_a_pinned_route_is_drawn(hlo: Hlo, stub: Stub) -> None:
    """A route without scores is shown, and an older server's, which knows no probabilities, too."""
    old = {"status": "routed", "specialty": "a", "scores": [{"specialty": "a", "score": 0.5}], "margin": 0.5}
    stub.gives({"routes": [{"status": "routed", "specialty": "a", "pinned_by": "request"}, old]})
    done = hlo("route", "--url", stub.url, "a", "b")
    assert (done.status, done.out.count("routed: a")) == (0, 2)


@pytest.mark.parametrize(
    "arguments",
    [
        ("--", "calibrate"),
        ("--", "explain", "evaluate"),
        ("calibrate this",),
        ("a", "calibrate"),
        ("--json", "explain"),
        ("--json", "--", "--help"),
        ("Calibrate",),
    ],
    ids=str,
)
def test_what_is_no_command_is_a_question(
    arguments: tuple[str, ...], hlo: Hlo, stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only a first argument that is a command's name is a command; after two dashes everything is a question."""
    monkeypatch.setenv("HLO_URL", stub.url)
    questions = [one for one in arguments if one not in ("--", "--json")]
    stub.gives({"routes": [route() for _ in questions]})
    assert hlo("route", *arguments).status == 0
    assert stub.asked == [("/route", {"question": questions})]


@pytest.mark.parametrize("name", ["calibrate", "evaluate", "explain"])
def test_commands_have_help(name: str, hlo: Hlo) -> None:
    """Each command below `hlo route` is listed there, explains itself and all its options, and wants its argument."""
    assert name in hlo("route", "--help").out
    done = hlo("route", name, "--help")
    assert (done.status, done.err) == (0, "")
    assert f"hlo route {name} " in done.out.splitlines()[0]
    command = importlib.import_module(f"hlo.cli.route_{name}").command
    assert [one.name for one in command.params if isinstance(one, click.Option) and not one.help] == []
    missing = hlo("route", name)
    assert missing.status == 2
    assert "Missing argument" in missing.err


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_shows_both_uses(flag: str, hlo: Hlo) -> None:
    """The help shows the use with questions and its options, and how to ask for what is a command's name."""
    done = hlo("route", flag)
    assert (done.status, done.err) == (0, "")
    for text in ("hlo route [OPTIONS] QUESTIONS...", "hlo route COMMAND", "--json", "--url"):
        assert text in done.out
    assert "hlo route -- explain" in " ".join(done.out.split())


def test_wrong_usage_is_that_of_questions(hlo: Hlo) -> None:
    """Without a question, and with an unknown option, the usage shown is that with questions."""
    for arguments in ((), ("--what", "a")):
        done = hlo("route", *arguments)
        assert done.status == 2
        assert done.err.splitlines()[0].endswith("hlo route [OPTIONS] QUESTIONS...")


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
