"""`hlo serve`."""

from __future__ import annotations

from typing import Any

import click

from hlo.cli.options import read, settings_options


@click.command("serve")
@settings_options()
def command(**options: Any) -> None:
    """Serve questions over HTTP until Ctrl-C.

    Listens at once; /readyz says when questions can be answered. Every option is also a setting HLO_NAME in the
    environment or .env, and a key `name` in hlo.toml.
    """
    settings = read(options)
    from hlo.assemble import assemble
    from hlo.service.server import run

    run(settings, assemble)
