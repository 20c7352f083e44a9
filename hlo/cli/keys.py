"""`hlo keys`: make, list and revoke API keys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import msgspec
from rich.console import Console
from rich.table import Table

from hlo import keys
from hlo.cli.options import read, settings_options


@click.group("keys")
def command() -> None:
    """Make, list and revoke the keys that clients send as `Authorization: Bearer KEY`.

    They are kept in HLO_KEYS_FILE, as hashes. A running server heeds every change at once.
    """


@command.command("new")
@click.argument("name")
@click.option("--role", type=click.Choice(["ask", "admin"]), default="ask", show_default=True, help="What it may do.")
@click.option("--rate", type=click.IntRange(1), help="Most requests a minute. Default: no limit.")
@click.option("--concurrent", type=click.IntRange(1), help="Most requests at once. Default: no limit.")
@settings_options("keys_file")
def new(name: str, role: keys.Role, rate: int | None, concurrent: int | None, **options: Any) -> None:
    """Make a key for NAME and print it. It is shown this once: only its hash is kept."""
    path = _file(options)
    made, secret = keys.make(name, role, rate, concurrent)
    keys.add(path, made)
    click.echo(secret)
    click.echo(f"key {made.id} for {name}, role {role}, in {path}: it can not be shown again", err=True)


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@settings_options("keys_file")
def show(as_json: bool, **options: Any) -> None:
    """List all keys, revoked ones too."""
    found = keys.read(_file(options))
    if as_json:
        rows = [{name: value for name, value in msgspec.to_builtins(one).items() if name != "sha256"} for one in found]
        click.echo(msgspec.json.encode(rows).decode())
        return
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("id", "name", "role", "a minute", "at once", "created", "revoked"):
        table.add_column(column)
    for one in found:
        limits = ("" if limit is None else str(limit) for limit in (one.rate, one.concurrent))
        table.add_row(one.id, one.name, one.role, *limits, one.created, one.revoked or "")
    Console().print(table)


@command.command("revoke")
@click.argument("key")
@settings_options("keys_file")
def revoke(key: str, **options: Any) -> None:
    """Revoke the key of that id or name: a running server refuses it from the next request on."""
    gone = keys.revoke(_file(options), key)
    click.echo(f"revoked {gone.id} ({gone.name})")


def _file(options: dict[str, Any]) -> Path:
    return read(options).keys_file.expanduser()
