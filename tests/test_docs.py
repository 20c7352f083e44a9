"""The documentation tells what is: the reference is generated, its examples work, its links lead somewhere."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import click
import pytest

import hlo
from docs import generate
from docs.generate import slug
from hlo import Question, Screening, catalog, errors, hookspecs, plugins
from hlo.cli import route
from hlo.cli.main import cli
from hlo.plugins import Discovery
from tests.conftest import make_version

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
HOOKS = [name for name in vars(hookspecs) if name.startswith("hlo_")]
REFERENCE = generate.FILE.read_text(encoding="utf-8")
# What the examples in the docstrings take for granted.
PRELUDE = """
from hlo import Adapter, Screening, Specialty, hookimpl, read_examples
from hlo.testing import EchoEngine, HashingEncoder as MedicalEncoder


class RemoteEngine(EchoEngine):
    @classmethod
    async def start(cls, options):
        return cls()


class audit:
    written = []

    @classmethod
    def write(cls, *what):
        cls.written.append(what)

"""


def prose(text: str) -> str:
    """A page without its blocks of code."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def headings(page: Path) -> set[str]:
    """The anchors of a page."""
    return {slug(found) for found in re.findall(r"^#+ (.*)$", prose(page.read_text(encoding="utf-8")), re.MULTILINE)}


def links(page: Path) -> Iterator[tuple[str, str]]:
    """Path and anchor of each relative link of a page."""
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page.read_text(encoding="utf-8"))):
        if not re.match(r"[a-z]+:", target):
            path, _, anchor = target.partition("#")
            yield path, anchor


def commands(text: str) -> Iterator[list[str]]:
    """The words of each `hlo …` that a page names, in its console blocks and between backquotes."""
    for line in [*re.findall(r"^\$ (.*)$", text, re.MULTILINE), *re.findall(r"`(hlo [^`\n]+)`", text)]:
        for part in re.split(r"&&|\|\|?|2?>&?|&", line):
            words = shlex.split(part.replace("…", "x"), comments=True)
            while words and re.match(r"\w+=", words[0]):
                del words[0]
            if words and words[0] == "hlo":
                yield words[1:]


def example(name: str) -> str:
    """The example in a hook's docstring, from the reference."""
    entry = REFERENCE.split(f"\n### {name}\n")[1].split("\n##")[0]
    (found,) = re.findall(r"^```python\n(@hookimpl\n.*?)^```$", entry, re.MULTILINE | re.DOTALL)
    return str(found)


@pytest.fixture
def offered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Discovery]:
    """What HLO finds in a plugin whose hooks are the examples of all docstrings."""
    folder = tmp_path / "hlo_joints"
    folder.mkdir()
    (folder / "__init__.py").write_text(PRELUDE + "\n\n".join(map(example, HOOKS)), encoding="utf-8")
    (folder / "examples.toml").write_text('patients = ["my knee hurts"]\n', encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield plugins.discover([EntryPoint("joints", "hlo_joints", plugins.GROUP)])
    sys.modules.pop("hlo_joints", None)


def test_the_reference_is_what_is_generated() -> None:
    """The reference in the repository is the one that `nox -s docs` writes now."""
    assert generate.render() == REFERENCE, "run `python -m docs.generate`"


def test_the_same_source_gives_the_same_reference() -> None:
    """The reference has nothing of one run in it, such as an address in memory."""
    assert generate.render() == generate.render()
    assert " at 0x" not in REFERENCE


@pytest.mark.parametrize("name", [*HOOKS, *hlo.__all__, "Encoder", "Engine", "EngineOptions", "EngineInfo"])
def test_every_public_name_is_in_the_reference(name: str) -> None:
    """Each hook, each public name of `hlo` and each protocol has an entry and stands in the table of contents."""
    assert f"\n### {name}\n" in REFERENCE
    assert f"[{name}](#{slug(name)})" in REFERENCE.split("\n## ")[0]


def test_every_error_is_in_the_tree() -> None:
    """All errors are in the tree, each below the one that it is a kind of."""
    below: dict[int, str] = {}
    found = {}
    for line in re.findall(r"^```text\n(.*?)^```$", REFERENCE, re.MULTILINE | re.DOTALL)[0].splitlines():
        name = line.lstrip("│├└─ ")
        depth = (len(line) - len(name)) // 4
        below[depth] = name
        found[name] = below.get(depth - 1, "Exception")
    kinds = [one for one in vars(errors).values() if isinstance(one, type) and issubclass(one, errors.HLOError)]
    assert found == {one.__name__: one.__base__.__name__ for one in kinds if one.__base__}


def test_the_examples_make_a_plugin(offered: Discovery) -> None:
    """The examples of all hooks together are a plugin that HLO takes, with a specialty that can be declared."""
    assert offered.refusals == ()
    (specialty,) = offered.offers[0].specialties
    catalog.check_declaration(specialty)
    assert (specialty.name, dict(specialty.examples)) == ("joints", {"patients": ("my knee hurts",)})


def test_the_examples_do_what_they_show(offered: Discovery) -> None:
    """Encoder and engine answer to their names alone, the question's notice is given, and the answer is seen."""
    hooks, module = offered.hooks, sys.modules["hlo_joints"]
    ((encoder,), (engine,), (question,), (answer,)) = (hooks.encoder, hooks.engine, hooks.question, hooks.answer)
    assert [encoder(name=name) is None for name in ("medical", "other")] == [False, True]
    assert [engine(name=name) is None for name in ("remote", "other")] == [False, True]
    assert question(question=Question("i can't breathe")) == Screening(notice="Call an ambulance.")
    assert question(question=Question("my knee hurts")) is None
    given = hlo.Answer(
        text="Rest it.",
        route=hlo.Route("routed", "joints"),
        specialty="joints",
        adapter=make_version("joints"),
        model="m",
        usage=hlo.Usage(1, 2),
        timings=hlo.Timings(1.0, 2.0, 3.0),
        finish_reason="stop",
        trace_id="t",
    )
    answer(question=Question("my knee hurts"), answer=given)
    assert module.audit.written == [("t", "joints")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    """Each relative link of a page names a file that exists, and a heading in it where it has an anchor."""
    found = list(links(page))
    assert found, "is this rule still needed?"
    for path, anchor in found:
        target = page.parent / path if path else page
        assert target.exists(), path
        assert not anchor or anchor in headings(target), f"{path}#{anchor}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_exist(page: Path) -> None:
    """Each `hlo` command that a page names exists, with the options that it is given."""
    for words in commands(page.read_text(encoding="utf-8")):
        command: click.Command = cli
        for word in words:
            if isinstance(command, click.Group) and not word.startswith("-"):
                found = command.get_command(click.Context(command), word)
                if found is None and command.name == "route":
                    found = route.show  # what is none of its commands is a question
                assert found is not None, words
                command = found
            elif word.startswith("--") and word != "--help":
                assert word.partition("=")[0] in {one for param in command.params for one in param.opts}, words


def test_commands_are_found() -> None:
    """The reader of commands sees them in blocks, after a variable, between backquotes and before a pipe."""
    text = '$ hlo serve > log 2>&1 &\n$ HLO_MODE=production hlo serve\n$ x || hlo doctor | less\nso `hlo ask "…"` and\n'
    assert list(commands(text)) == [["serve"], ["serve"], ["doctor"], ["ask", "x"]]
