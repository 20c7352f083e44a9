"""`hlo plugins`: the group, and the commands that look at what is installed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click
import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hlo.cli.lazy import LazyGroup
from hlo.cli.options import read, settings_options
from hlo.cli.remote import connection

if TYPE_CHECKING:
    from hlo.catalog import Catalog

# Help texts are here, so that listing the commands imports none of them.
_ELSEWHERE = {
    "new": "Write a new specialty package: complete, tested, installable.",
    "check": "Examine a plugin, and show which questions it would take from whom.",
}


@click.group("plugins", cls=LazyGroup, elsewhere=_ELSEWHERE, prefix="hlo.cli.plugins_")
def command() -> None:
    """See, write, examine and reload the plugins that bring specialties."""


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@settings_options("model", "adapter_path", "plugins", "mode", "log_level")
def list_plugins(as_json: bool, **options: Any) -> None:
    """Check every installed specialty against the base model. Exits 1 when one is refused."""
    options["log_level"] = options["log_level"] or "error"
    settings = read(options)
    from hlo import catalog
    from hlo.assemble import collect, find_model, load_encoder
    from hlo.routing.bank import refuse_embeddings

    with Console(stderr=True).status("checking plugins and adapters"):
        model = find_model(settings)
        found, hooks = collect(settings, model)
        given = [entry.specialty for entry in found.entries.values() if entry.specialty.embeddings is not None]
        if given:
            found = catalog.keep(found, refuse_embeddings(given, load_encoder(settings, hooks)))
    if as_json:
        click.echo(msgspec.json.encode({"served": _rows(found), "refused": found.refusals, "off": found.off}).decode())
    else:
        _draw(found, model.name)
    if found.refusals:
        raise SystemExit(1)


@command.command("reload")
@click.option("--url", envvar="HLO_URL", default="http://127.0.0.1:8000", show_default=True, help="The server.")
def reload(url: str) -> None:
    """Tell a running server to serve what is installed now.

    Where it has API keys, HLO_API_KEY must hold one with the role admin.
    """
    with connection(url) as server:
        done = server.post("/admin/specialties/reload", {})
    for word in ("added", "changed", "removed", "kept"):
        click.echo(f"{word}: {', '.join(done[word]) or 'none'}")
    for refusal in done["refused"]:
        click.secho(f"refused {refusal['specialty'] or refusal['plugin']}: {refusal['reason']}", fg="red")
        click.echo(f"  {refusal['remedy']}")


def _rows(found: Catalog) -> list[dict[str, Any]]:
    return [
        {
            "specialty": name,
            "plugin": entry.plugin,
            "distribution": entry.distribution,
            "version": entry.version,
            "origin": entry.origin,
            "adapter": {
                "sha256": entry.adapter.sha256,
                "rank": entry.adapter.rank,
                "bytes": entry.adapter.size,
                "source": entry.adapter.source,
            },
            "examples": {part: len(some) for part, some in entry.specialty.examples.items()},
        }
        for name, entry in found.entries.items()
    ]


def _draw(found: Catalog, model: str) -> None:
    table = Table(title=f"Specialties on {model}", box=None, padding=(0, 2, 0, 0))
    for column in ("state", "specialty", "package", "from", "adapter"):
        table.add_column(column, overflow="fold")
    # Not markup: names and places are strangers' words.
    for name, entry in found.entries.items():
        adapter, weights = entry.adapter, ""
        if adapter.source.startswith("hf://"):
            weights = f" {adapter.source}"
        table.add_row(
            Text("served", "green"),
            Text(name),
            Text(f"{entry.distribution} {entry.version}"),
            Text(_short(entry.origin), "dim"),
            Text.assemble(adapter.sha256[:12], (weights, "dim")),
        )
    for refusal in found.refusals:
        table.add_row(Text("refused", "red"), Text(refusal.specialty or ""), Text(refusal.plugin))
    for name in found.off:
        table.add_row(Text("off", "dim"), Text(""), Text(name))
    Console().print(table)
    for refusal in found.refusals:
        click.echo(f"{refusal.specialty or refusal.plugin}: {refusal.reason}\n  {refusal.remedy}")


def _short(origin: str) -> str:
    """A package's origin in a word; `--json` has it in full."""
    if origin.startswith("editable "):
        return "editable"
    if "+" in origin.partition("://")[0]:
        return f"{origin.partition('+')[0]} {origin.rpartition('@')[2][:7]}"
    return origin.rpartition("/")[2] or "index"
