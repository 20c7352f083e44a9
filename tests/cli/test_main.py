"""The command `hlo`: what it lists, and how it ends."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
import pytest

import hlo as package
from hlo.cli.lazy import LazyGroup
from hlo.cli.main import _COMMANDS

if TYPE_CHECKING:
    from tests.cli.conftest import Hlo


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_lists_every_command(flag: str, hlo: Hlo) -> None:
    """`hlo --help` lists every command with what it does, and where settings come from."""
    done = hlo(flag)
    assert done.status == 0
    for name, text in _COMMANDS.items():
        assert name in done.out
        assert " ".join(text.split()[:4]) in " ".join(done.out.split())
    assert "hlo.toml" in done.out


def test_every_module_of_commands_is_listed() -> None:
    """Each module of `hlo.cli` that holds a command is listed, and each command that is listed has its module."""
    folder = Path(package.__file__).parent / "cli"
    with_command = {
        path.stem
        for path in folder.glob("*.py")
        if isinstance(getattr(importlib.import_module(f"hlo.cli.{path.stem}"), "command", None), click.Command)
    }
    groups = {name: importlib.import_module(f"hlo.cli.{name}").command for name in _COMMANDS}
    inner = {
        f"{outer}_{name.replace('-', '_')}"
        for outer, group in groups.items()
        if isinstance(group, LazyGroup)
        for name in group.elsewhere
    }
    assert {"plugins_check", "route_explain"} <= inner
    assert with_command == set(_COMMANDS) | inner


@pytest.mark.parametrize("name", list(_COMMANDS))
def test_every_command_has_help(name: str, hlo: Hlo) -> None:
    """Every command explains itself and each of its options."""
    done = hlo(name, "--help")
    assert done.status == 0
    assert f"hlo {name} " in done.out.splitlines()[0]
    command: click.Command = importlib.import_module(f"hlo.cli.{name}").command
    assert [param.name for param in command.params if isinstance(param, click.Option) and not param.help] == []


def test_version(hlo: Hlo) -> None:
    """`hlo --version` prints the package's version."""
    assert package.__version__ in hlo("--version").out


def test_module_is_the_command() -> None:
    """`python -m hlo` is `hlo`."""
    done = subprocess.run([sys.executable, "-m", "hlo", "--version"], capture_output=True, text=True, check=True)
    assert package.__version__ in done.stdout


@pytest.mark.parametrize(
    "arguments", [["dance"], ["--dance"], ["route"], ["ask"], ["ask", "a", "b"], ["serve", "--port", "many"]], ids=str
)
def test_wrong_usage_exits_2(arguments: list[str], hlo: Hlo) -> None:
    """A wrong command, option or argument exits 2 with a message and no traceback."""
    done = hlo(*arguments)
    assert done.status == 2
    assert "Error:" in done.err
    assert "Traceback" not in done.err


def test_an_unknown_setting_exits_2(hlo: Hlo, monkeypatch: pytest.MonkeyPatch) -> None:
    """A misspelt setting in the environment exits 2 with its name and the name that was meant."""
    monkeypatch.setenv("HLO_PORTT", "1")
    done = hlo("serve")
    assert done.status == 2
    assert "`HLO_PORTT`" in done.err
    assert "`HLO_PORT`" in done.err
    assert "Traceback" not in done.err


def test_an_unknown_key_in_a_file_exits_2(hlo: Hlo) -> None:
    """A misspelt key in `hlo.toml` exits 2, for the commands that read settings."""
    Path("hlo.toml").write_text("prot = 1\n", encoding="utf-8")
    for arguments in (["serve"], ["plugins", "list"], ["route", "x"], ["ask", "x"], ["doctor"]):
        done = hlo(*arguments)
        assert done.status == 2, arguments
        assert "`prot` in hlo.toml" in done.err
        assert done.out == ""


@pytest.mark.parametrize("arguments", [["--min-score", "7"], ["--device", "tpu"]], ids=str)
def test_a_malformed_option_exits_2(arguments: list[str], hlo: Hlo) -> None:
    """An option out of range exits 2 with the name of its setting."""
    done = hlo("serve", *arguments)
    assert done.status == 2
    assert arguments[0].strip("-").replace("-", "_") in done.err.replace("-", "_")


def test_a_missing_model_exits_1(hlo: Hlo) -> None:
    """A base model that is not there exits 1 with the remedy."""
    done = hlo("plugins", "list", "--model", "./no/such/folder")
    assert done.status == 1
    assert "error: `./no/such/folder`" in done.err
    assert "remedy: Check HLO_MODEL" in done.err
