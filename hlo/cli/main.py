"""The command group: turns errors into a message and an exit status."""

from __future__ import annotations

import sys

import click

import hlo
from hlo.cli.lazy import LazyGroup
from hlo.errors import HLOError, SettingsError

# Help texts are here, so that listing the commands imports none of them.
_COMMANDS = {
    "serve": "Serve questions over HTTP.",
    "ask": "Ask one question, of a server or of an engine started for it.",
    "route": "Show where questions would go, without answering them.",
    "plugins": "See, write, examine and reload the plugins that bring specialties.",
    "keys": "Make, list and revoke API keys.",
    "models": "Fetch the base model, the encoder and adapters from a model hub; export an encoder.",
    "bench": "Tune HLO's kernels for this machine's GPU.",
    "demo": "Start a server, ask it four questions, and keep serving.",
    "audit": "Check the audit log, and find a question in it.",
    "doctor": "Examine this machine and these settings; help with memory, adapters and speed.",
}


@click.group(
    cls=LazyGroup, elsewhere=_COMMANDS, prefix="hlo.cli.", context_settings={"help_option_names": ["-h", "--help"]}
)
@click.version_option(hlo.__version__, prog_name="hlo")
def cli() -> None:
    """One medical LLM, many specialists, one endpoint.

    Settings come from options, HLO_* environment variables, .env and hlo.toml, in that order.
    """


def main() -> None:
    """Run the command line; exit 2 for wrong settings, 1 for what failed."""
    try:
        cli(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)
    except HLOError as error:
        click.echo(f"{click.style('error:', fg='red', bold=True)} {error.message}", err=True)
        if error.remedy:
            click.echo(f"{click.style('remedy:', fg='green', bold=True)} {error.remedy}", err=True)
        sys.exit(2 if isinstance(error, SettingsError) else 1)
