"""`hlo audit`: check the audit log, and find a question in it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click
import msgspec

from hlo.cli.options import read, settings_options
from hlo.errors import SettingsError


@click.group("audit")
def command() -> None:
    """Check the audit log, and find a question in it."""


@command.command("verify")
@click.option("--after", type=click.IntRange(0), default=0, help="Number of the last record that you archived away.")
@click.option("--expect", metavar="NUMBER:MAC", help="A head that you noted down; that record must be there still.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@settings_options("audit_log")
def verify(after: int, expect: str | None, as_json: bool, **options: Any) -> None:
    """Find lines that were changed, added, taken out or cut off. Exits 1 when there are any.

    Note down the head that this prints, on another machine: it proves later that nothing before it is gone.
    """
    path, secret = _log(options)
    from hlo.telemetry.audit import Head
    from hlo.telemetry.audit_check import check

    expected = None
    if expect is not None:
        number, _, mac = expect.partition(":")
        if not number.isdecimal() or not mac:
            raise SettingsError(f"--expect is NUMBER:MAC; got `{expect}`.", remedy="Copy it from an earlier check.")
        expected = Head(int(number), mac)
    found = check(path, secret, after=after, expected=expected)
    if as_json:
        click.echo(msgspec.json.encode(found).decode())
    else:
        for fault in found.faults:
            place = f"{fault.file}, line {fault.line}" if fault.line else fault.file
            click.echo(f"{place}: {fault.what}")
        click.echo(f"{found.records} records as they were written, from {found.first} to {found.last.number}")
        click.echo(f"head: {found.last.number}:{found.last.mac}")
    if found.faults:
        raise SystemExit(1)


@command.command("hash")
@settings_options("audit_log")
def hash_question(**options: Any) -> None:
    """Print the keyed hash of a question, read from standard input: what its records carry as `question`."""
    _, secret = _log(options)
    from hlo.telemetry.audit import Keys

    click.echo(Keys(secret).question(sys.stdin.read().removesuffix("\n")))


def _log(options: dict[str, Any]) -> tuple[Path, str]:
    """The log's place and key. Raises `SettingsError`."""
    settings = read(options)
    if settings.audit_log is None or settings.audit_key is None:
        raise SettingsError(
            "There is no audit log: HLO_AUDIT_LOG or HLO_AUDIT_KEY is not set.",
            remedy="Set both, as for the server.",
        )
    return settings.audit_log, settings.audit_key.get_secret_value()
