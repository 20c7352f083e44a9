"""`hlo route`."""

from __future__ import annotations

import asyncio
from typing import Any

import click
import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hlo.cli.options import read, settings_options
from hlo.cli.remote import connection
from hlo.errors import HLOError
from hlo.records import Route
from hlo.settings import Settings


@click.command("route")
@click.argument("questions", nargs=-1, required=True)
@click.option("--url", envvar="HLO_URL", help="Ask this server; default: load the encoder here.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, one route a line.")
@settings_options("encoder", "min_score", "min_margin", "log_level")
def command(questions: tuple[str, ...], url: str | None, as_json: bool, **options: Any) -> None:
    """Show where QUESTIONS would go and how close the other specialties came. Needs no engine."""
    if url:
        with connection(url) as server:
            found = server.post("/route", {"question": list(questions)})
        try:
            routes = msgspec.convert(found["routes"], tuple[Route, ...])
        except (KeyError, TypeError, msgspec.ValidationError) as error:
            raise HLOError(f"{url} does not answer like HLO.", remedy="Check --url, or upgrade the server.") from error
        if len(routes) != len(questions):
            raise HLOError(f"{url} does not answer like HLO.", remedy="Check --url, or upgrade the server.")
    else:
        options["log_level"] = options["log_level"] or "warning"
        routes = asyncio.run(_route_here(read(options), questions))
    for question, route in zip(questions, routes, strict=True):
        if as_json:
            click.echo(msgspec.json.encode(route).decode())
        else:
            _draw(question, route)


async def _route_here(settings: Settings, questions: tuple[str, ...]) -> tuple[Route, ...]:
    from hlo.assemble import assemble_router

    with Console(stderr=True).status("loading the encoder and the routing examples"):
        router, encoder = await assemble_router(settings)
    try:
        return await router.route_many(questions)
    finally:
        encoder.close()


def _draw(question: str, route: Route) -> None:
    chosen = route.specialty or "no specialty"
    # Not markup: a question may hold brackets.
    title = Text.assemble(question, "\n", (route.status, "bold"), f": {chosen}, margin {route.margin:.3f}")
    table = Table(title=title, title_justify="left")
    table.add_column("specialty")
    table.add_column("score", justify="right")
    table.add_column("")
    for one in route.scores:
        bar = "█" * round(max(one.score, 0) * 40)
        table.add_row(one.specialty, f"{one.score:.3f}", bar, style="bold" if one.specialty == route.specialty else "")
    Console().print(table)
