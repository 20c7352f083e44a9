"""The tutorial, executed as its reader would: top to bottom, in an empty folder and a clean environment of wheels."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import psutil
import pytest
from msgspec import Struct

from tests.e2e.environment import ROOT, Environment, build, create
from tests.embeddings import cache_dir
from tests.ports import free_port

TUTORIAL = ROOT / "docs" / "tutorial.md"
COMMAND_LIMIT_S = 300
_BLOCK = re.compile(
    r"(?:^<!-- (?P<mark>.*?) -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)
_NUMBER = re.compile(r"\b[0-9a-f]{12}\b|\d+(?:\.\d+)*")
_UNEXECUTED = "not executed"


class File(Struct, frozen=True):
    """A file that the reader writes."""

    path: str
    text: str


class Command(Struct, frozen=True):
    """A command that the reader types, and the lines that the tutorial shows below it."""

    line: str
    shown: tuple[str, ...]


class Done(Struct, frozen=True):
    """A command that was executed, its exit status, and all that it printed."""

    command: Command
    status: int
    output: str


class Walk(Struct, frozen=True):
    """The whole tutorial, executed up to the first command that failed. `left` are processes that were still there."""

    folder: Path
    done: tuple[Done, ...]
    left: tuple[str, ...]

    def printed(self, beginning: str) -> str:
        """What the only command with this beginning printed."""
        (found,) = [one.output for one in self.done if one.command.line.startswith(beginning)]
        return found


def blocks(text: str) -> Iterator[tuple[str, str, str]]:
    """Mark, language and text of each fenced block."""
    for match in _BLOCK.finditer(text):
        yield match["mark"] or "", match["language"], match["text"]


def steps(text: str) -> Iterator[File | Command]:
    """What the reader does, in order."""
    for mark, language, content in blocks(text):
        if mark.startswith("file: "):
            yield File(mark.removeprefix("file: "), content)
        elif language == "console" and mark != _UNEXECUTED:
            for part in re.split(r"^\$ ", content, flags=re.MULTILINE)[1:]:
                line, *shown = part.splitlines()
                yield Command(line, tuple(shown))


class Shell:
    """One bash for the whole tutorial, so that variables and background jobs live on from block to block."""

    def __init__(self, folder: Path, variables: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            ["bash"],
            cwd=folder,
            env=variables,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, command: Command) -> Done:
        """Type a command, and wait until it is done; one that is not by the limit ends the shell."""
        assert self._process.stdin
        assert self._process.stdout
        mark = f"done-{uuid.uuid4().hex}"
        watch = threading.Timer(COMMAND_LIMIT_S, self.kill)
        watch.start()
        try:
            self._process.stdin.write(f"{{ {command.line}\n}} < /dev/null; printf '\\n%s %d\\n' {mark} $?\n")
            self._process.stdin.flush()
            lines: list[str] = []
            for line in self._process.stdout:
                if line.startswith(mark):
                    return Done(command, int(line.split()[1]), "".join(lines))
                lines.append(line)
        finally:
            watch.cancel()
        return Done(command, -1, "".join(lines) + f"\n(given up after {COMMAND_LIMIT_S} s, or the shell ended)")

    def session(self) -> tuple[psutil.Process, ...]:
        """The processes that it started and that are still there, wherever their parents are."""
        found = []
        for process in psutil.process_iter():
            try:
                if os.getsid(process.pid) == self._process.pid != process.pid:
                    found.append(process)
            except ProcessLookupError:
                continue
        return tuple(found)

    def kill(self) -> None:
        """End it and all that it started."""
        for process in self.session():
            process.kill()
        if self._process.poll() is None:
            os.kill(self._process.pid, signal.SIGKILL)

    def close(self) -> tuple[str, ...]:
        """End it; returns the commands of the processes that the tutorial left running."""
        _, left = psutil.wait_procs(self.session(), timeout=10)
        told = tuple(" ".join(process.cmdline()) for process in left)
        self.kill()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream
            stream.close()
        self._process.wait()
        return told


def variables(environment: Environment, folder: Path) -> dict[str, str]:
    """What a reader's shell would have, with a free port, and without a way to any index or hub."""
    kept = {name: value for name, value in environment.variables.items() if not name.startswith(("PYTEST_", "PIP_"))}
    return kept | {
        "COLUMNS": "100",
        "HF_HUB_OFFLINE": "1",
        "HLO_CACHE_DIR": str(cache_dir(folder)),
        "HLO_PORT": str(free_port()),
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_NO_BUILD_ISOLATION": "0",  # pip takes this for the value of `build_isolation`
        "PIP_NO_INDEX": "1",
    }


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """What the tutorial's own first block would install."""
    wheels = tmp_path_factory.mktemp("wheels")
    made = create(tmp_path_factory.mktemp("environment") / "venv")
    made.install(build(ROOT, wheels), build(ROOT / "plugins" / "hlo-cardiology", wheels))
    return made


@pytest.fixture(scope="module")
def walk(environment: Environment, tmp_path_factory: pytest.TempPathFactory) -> Walk:
    """The tutorial, executed."""
    folder = tmp_path_factory.mktemp("tutorial")
    shell = Shell(folder, variables(environment, tmp_path_factory.mktemp("home")))
    done: list[Done] = []
    try:
        for step in steps(TUTORIAL.read_text(encoding="utf-8")):
            if isinstance(step, File):
                (folder / step.path).parent.mkdir(parents=True, exist_ok=True)
                (folder / step.path).write_text(step.text, encoding="utf-8")
            else:
                done.append(shell.run(step))
                if done[-1].status != 0:
                    break
    finally:
        left = shell.close()
    return Walk(folder, tuple(done), left)


def differs(shown: tuple[str, ...], output: str) -> str | None:
    """The first shown line that was not printed after the one before it; numbers may be others, `…` is anything."""
    lines = iter([_plain(line) for line in output.splitlines()])
    for line in shown:
        wanted = re.compile(".*".join(re.escape(_plain(part)) for part in line.split("…")))
        if not any(wanted.fullmatch(found) for found in lines):
            return line
    return None


def _plain(line: str) -> str:
    return _NUMBER.sub("#", " ".join(line.split()))


def adapter(output: str) -> str:
    """The hash of rheumatology's adapter, as `hlo ask` prints it."""
    (found,) = re.findall(r"^model \S+, adapter rheumatology ([0-9a-f]{12}), ", output, re.MULTILINE)
    return str(found)


def test_every_block_is_executed_or_says_so() -> None:
    """Each fenced block is a file, commands to execute, or marked as not executed."""
    text = TUTORIAL.read_text(encoding="utf-8")
    found = list(blocks(text))
    assert len(found) == text.count("\n```") / 2
    for mark, language, content in found:
        assert mark.startswith("file: ") or mark == _UNEXECUTED or (mark, language) == ("", "console"), content


@pytest.mark.parametrize(
    ("shown", "output", "wanted"),
    [
        (("a 1", "…", "c …"), "x\na 2\nb\nc d\n", None),
        (("a", "b"), "b\na\n", "b"),
        (("kept …",), "kep t\n", "kept …"),
    ],
)
def test_shown_lines_are_compared_in_order(shown: tuple[str, ...], output: str, wanted: str | None) -> None:
    """A shown line that was not printed, or was printed before the one above it, is found."""
    assert differs(shown, output) == wanted


def test_every_command_succeeds(walk: Walk) -> None:
    """Each command of the tutorial exits with 0, up to the last."""
    failed = [one for one in walk.done if one.status != 0]
    assert not failed, f"{failed[0].command.line}\n{failed[0].output[-6000:]}"
    commands = [step for step in steps(TUTORIAL.read_text(encoding="utf-8")) if isinstance(step, Command)]
    assert [one.command for one in walk.done] == commands


def test_what_the_tutorial_shows_was_printed(walk: Walk) -> None:
    """The lines below each command are what it prints, but for numbers and what `…` leaves out."""
    wrong = {one.command.line: differs(one.command.shown, one.output) for one in walk.done}
    assert {line: shown for line, shown in wrong.items() if shown is not None} == {}


def test_the_first_examples_take_too_much_and_the_second_do_not(walk: Walk) -> None:
    """The check fails on a share of questions that a neighbour would lose, and passes once that is mended."""
    first = walk.printed("hlo plugins check hlo-rheumatology --no-engine")
    assert re.search(r"^ trouble +catchment +`cardiology` would lose", first, re.MULTILINE)
    assert first.rstrip().endswith("exit status 1")
    second = walk.printed("hlo plugins check hlo-rheumatology --questions")
    assert " trouble " not in second
    assert re.search(r"^ ok +effect +`rheumatology`", second, re.MULTILINE)
    assert re.search(r"^ ok +catchment .* questions would go elsewhere than now", second, re.MULTILINE)


def test_the_report_tells_what_moved(walk: Walk) -> None:
    """The report is a page that holds the audit's title and a question that would move."""
    page = (walk.folder / "audit.html").read_text(encoding="utf-8")
    assert "Who gets whose questions" in page
    assert "white then blue" in page


def test_the_packages_own_tests_passed(walk: Walk) -> None:
    """The tests that the scaffold wrote pass on the installed wheel."""
    assert re.search(r"^3 passed in ", walk.printed("python -m pytest"), re.MULTILINE)


def test_the_sore_joint_went_to_rheumatology(walk: Walk) -> None:
    """A question about a joint is routed to the new specialty and answered by its adapter; one about a heart is not."""
    answer = walk.printed('hlo ask "what can be done for a sore finger joint')
    assert answer.startswith("routed: rheumatology  (")
    assert adapter(answer) in walk.printed("hlo plugins check hlo-rheumatology --questions")
    other: dict[str, Any] = json.loads(walk.printed('curl -s "$HLO_URL/ask"'))
    assert (other["specialty"], other["adapter"]["name"]) == ("cardiology", "cardiology")


def test_the_reload_brought_another_adapter(walk: Walk) -> None:
    """After training, a new version and a reload, another adapter answers; the wheel says where it came from."""
    first, _ = [one.output for one in walk.done if one.command.line == "hlo plugins reload"]
    assert "\nchanged: rheumatology\nremoved: none\nkept: none\n" in first
    before = adapter(walk.printed('hlo ask "what can be done for a sore finger joint'))
    answer = walk.printed('hlo ask "my knuckles are swollen')
    assert adapter(answer) != before
    assert "Stiffness that lasts longer than half an hour" in answer  # as it was taught
    with ZipFile(walk.folder / "dist" / "hlo_rheumatology-0.2.0-py3-none-any.whl") as wheel:
        config = json.loads(wheel.read("hlo_rheumatology/adapter/adapter_config.json"))
        card = wheel.read("hlo_rheumatology/adapter/README.md").decode()
    assert config["base_model_name_or_path"] == "hlo-demo-10m"
    assert "/" not in card.split("---")[1]


def test_the_second_plugin_pins_and_warns(walk: Walk) -> None:
    """The second plugin's notice is put ahead of the answer that cardiology gives, and no word of it is logged."""
    lines = walk.printed('hlo ask "one leg is twice the size').splitlines()
    assert lines[:2] == ["routed: cardiology", "One swollen leg can be a clot: have it looked at today."]
    log = (walk.folder / "server.log").read_text(encoding="utf-8")
    assert re.search(r"one_leg: [0-9a-f]{32}: cardiology, pinned by one_leg\n", log)
    assert "knee operation" not in log
    assert "Traceback" not in log


def test_nothing_is_left_running(walk: Walk) -> None:
    """When the tutorial ends, so have its server and everything that it started."""
    assert walk.left == ()
