"""`hlo plugins`."""

from __future__ import annotations

from typing import Any

import click
import msgspec
from rich.console import Console
from rich.table import Table

from hlo.cli.options import read, settings_options


@click.group("plugins")
def command() -> None:
    """What is installed, and what was refused and why."""


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@settings_options("model", "adapter_path", "log_level")
def list_plugins(as_json: bool, **options: Any) -> None:
    """Check every installed specialty against the base model. Exits 1 when one is refused."""
    options["log_level"] = options["log_level"] or "warning"
    settings = read(options)
    from hlo.assemble import collect, find_model

    with Console(stderr=True).status("checking plugins and adapters"):
        model = find_model(settings)
        catalog = collect(settings, model)
    if as_json:
        rows = [
            {
                "specialty": name,
                "plugin": entry.plugin,
                "distribution": entry.distribution,
                "version": entry.version,
                "adapter": {"sha256": entry.adapter.sha256, "rank": entry.adapter.rank, "bytes": entry.adapter.size},
                "examples": {part: len(some) for part, some in entry.specialty.examples.items()},
            }
            for name, entry in catalog.entries.items()
        ]
        click.echo(msgspec.json.encode({"served": rows, "refused": catalog.refusals}).decode())
    else:
        table = Table(title=f"Specialties on {model.name}")
        for column in ("state", "specialty", "package", "version", "adapter", "rank", "examples"):
            table.add_column(column)
        for name, entry in catalog.entries.items():
            examples = str(sum(len(part) for part in entry.specialty.examples.values()))
            adapter = entry.adapter
            table.add_row(
                "served", name, entry.distribution, entry.version, adapter.sha256[:12], str(adapter.rank), examples
            )
        for refusal in catalog.refusals:
            table.add_row("[red]refused[/]", refusal.specialty or "", refusal.plugin, "", "", "", "")
        Console().print(table)
        for refusal in catalog.refusals:
            click.echo(f"{refusal.specialty or refusal.plugin}: {refusal.reason}\n  {refusal.remedy}")
    if catalog.refusals:
        raise SystemExit(1)
