"""Options made from settings."""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any

import click
import pytest
from click.testing import CliRunner

from hlo.cli.options import read, settings_options
from hlo.settings import PUBLIC, Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

ALL = list(PUBLIC)


def options(command: click.Command) -> dict[str, click.Option]:
    return {param.name: param for param in command.params if isinstance(param, click.Option) and param.name}


@click.command
@settings_options()
def everything(**given: Any) -> None:
    """Print what was given."""
    click.echo(repr({name: value for name, value in given.items() if value is not None}))


@pytest.mark.parametrize("name", ALL)
def test_every_setting_is_an_option(name: str) -> None:
    """Every setting is an option under its own name, with its own description, unset unless given."""
    option = options(everything)[name]
    assert option.opts == [f"--{name.replace('_', '-')}"]
    assert (option.help or "").startswith(str(Settings.model_fields[name].description))
    assert option.default is None


@pytest.mark.parametrize("name", ["serve", "doctor"])
def test_commands_that_take_every_setting(name: str) -> None:
    """The server and the doctor take every setting as an option."""
    command: click.Command = importlib.import_module(f"hlo.cli.{name}").command
    assert set(ALL) <= set(options(command))


def test_defaults_are_shown() -> None:
    """An option's help shows the setting's default, where there is one to show."""
    found = options(everything)
    assert "[default: 8000]" in (found["port"].help or "")
    assert "[default: auto]" in (found["device"].help or "")
    assert "[default" not in (found["revision"].help or "")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], {}),
        (["--port", "0"], {"port": 0}),
        (["--quantize", "false"], {"quantize": False}),
        (["--enforce-eager", "true"], {"enforce_eager": True}),
        (["--min-in-scope", "0.5"], {"min_in_scope": 0.5}),
        (["--max-model-len", "64"], {"max_model_len": 64}),
        (["--adapter-path", "x"], {"adapter_path": "x"}),
        (["--out-of-scope", "refuse"], {"out_of_scope": "refuse"}),
        (["--ambiguous", "ask"], {"ambiguous": "ask"}),
        (["--background", "false"], {"background": False}),
    ],
    ids=str,
)
def test_values_have_their_settings_type(arguments: list[str], expected: dict[str, Any]) -> None:
    """An option's value has its setting's type, and what is not given is None."""
    done = CliRunner().invoke(everything, arguments)
    assert (done.exit_code, done.output) == (0, f"{expected!r}\n")


def test_choices_are_the_settings_own() -> None:
    """A setting with a closed set of values is an option with these choices."""
    choice = options(everything)["quantization"].type
    assert isinstance(choice, click.Choice)
    assert list(choice.choices) == ["none", "int8", "int8_weight_only", "bitsandbytes", "fp8_per_channel"]


def test_named_settings_alone() -> None:
    """A command that names settings has options for these alone, in that order."""

    @click.command
    @settings_options("port", "host")
    def some() -> None:
        """Nothing."""

    assert list(options(some)) == ["port", "host"]


@pytest.fixture
def restored_logging() -> Iterator[None]:
    """Logging as it was, afterwards."""
    loggers = [logging.getLogger(name) for name in (None, "httpx", "uvicorn", "vllm")]
    levels, handlers = [one.level for one in loggers], list(loggers[0].handlers)
    yield
    loggers[0].handlers[:] = handlers
    for one, level in zip(loggers, levels, strict=True):
        one.setLevel(level)


@pytest.mark.usefixtures("clean_environment", "restored_logging")
def test_read_configures_the_log() -> None:
    """Reading the settings sets the log's level, and keeps other libraries quiet unless all is to be heard."""
    assert read({"log_level": "error", "port": None}).log_level == "error"
    assert logging.getLogger().level == logging.ERROR
    assert logging.getLogger("vllm").level == logging.WARNING
