"""Reads a specialty's routing examples from a file in its package."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from importlib import resources
from types import MappingProxyType

from hlo.errors import PluginError


def read_examples(package: str, filename: str = "examples.toml") -> Mapping[str, tuple[str, ...]]:
    """Read a specialty's routing examples from a TOML file inside `package`: one array of questions per part.

    Raises `PluginError` when the file is missing, is not TOML, or holds anything but arrays of strings.
    """
    try:
        with resources.files(package).joinpath(filename).open("rb") as file:
            table = tomllib.load(file)
    except (FileNotFoundError, ModuleNotFoundError) as error:
        raise PluginError(f"`{package}` holds no file `{filename}`.", remedy="Add it to the package's data.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise PluginError(f"`{filename}` in `{package}` is not TOML: {error}.", remedy="Mend that line.") from error
    for part, questions in table.items():
        if not isinstance(questions, list) or not all(isinstance(one, str) for one in questions):
            raise PluginError(
                f"`{filename}` in `{package}`: `{part}` must be an array of strings.",
                remedy='Write `patients = ["…", "…"]`.',
            )
    return MappingProxyType({part: tuple(questions) for part, questions in table.items()})
