"""A command group of which commands are modules of their own, so that listing them imports none."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import click


class LazyGroup(click.Group):
    """Finds a command's module by its name: command `export-encoder` of prefix `hlo.cli.models_` by that name's `_`.

    `elsewhere` maps the commands' names to their help texts, which are given here so that nothing is imported to list
    them.
    """

    def __init__(self, *args: Any, elsewhere: Mapping[str, str], prefix: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.elsewhere = elsewhere
        self._prefix = prefix

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The group's own commands, then those of other modules."""
        return [*super().list_commands(ctx), *self.elsewhere]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name, imported if need be."""
        if cmd_name not in self.elsewhere:
            return super().get_command(ctx, cmd_name)
        found: click.Command = importlib.import_module(f"{self._prefix}{cmd_name.replace('-', '_')}").command
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The table of commands in the group's help."""
        own = [(name, one.get_short_help_str(90)) for name, one in self.commands.items()]
        with formatter.section("Commands"):
            formatter.write_dl([*own, *self.elsewhere.items()])
