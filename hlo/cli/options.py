"""Options that commands share, and the log's format."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeVar, get_args, get_origin

import click

from hlo import logs
from hlo.settings import PUBLIC, Settings, load_settings

F = TypeVar("F", bound=Callable[..., Any])


def settings_options(*names: str) -> Callable[[F], F]:
    """Add an option for each named setting, with the setting's own help and default.

    All of them, when none is named, but for secrets: everybody on a machine sees a command's arguments.
    """

    def decorate(function: F) -> F:
        for name in reversed(names or PUBLIC):
            field = Settings.model_fields[name]
            default = field.get_default()
            shown = "" if default is None or default == "" else f"  [default: {default}]"
            function = click.option(
                f"--{name.replace('_', '-')}",
                name,
                default=None,
                type=_click_type(field.annotation),
                help=f"{field.description}{shown}",
            )(function)
        return function

    return decorate


def read(options: dict[str, Any]) -> Settings:
    """The settings, with the given options before all else, and the log configured by them."""
    settings = load_settings(**options)
    logs.configure(settings.log_level, settings.log_format)
    return settings


def _click_type(annotation: Any) -> Any:
    options = [one for one in get_args(annotation) if one is not type(None)]
    if get_origin(annotation) is Literal:
        return click.Choice([str(one) for one in options])
    if options:  # an optional type
        return _click_type(options[0])
    return annotation if annotation in (int, float, bool) else click.STRING
