"""`hlo route`: questions, or one of the commands that measure and tune routing."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import click
import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hlo.cli.lazy import LazyGroup
from hlo.cli.options import read, settings_options
from hlo.cli.remote import connection
from hlo.errors import HLOError
from hlo.records import Route
from hlo.settings import Settings

# Help texts are here, so that listing the commands imports none of them.
_ELSEWHERE = {
    "calibrate": "Fit the thresholds to labelled questions, with a guarantee for more like them.",
    "evaluate": "Measure routing with labelled questions.",
    "explain": "Show why one question goes where it goes.",
}
_BAR = 30


class _Group(LazyGroup):
    """A group that is a command too: what is none of its commands is a question.

    Only the first argument is looked at, so `hlo route -- explain` asks where the question "explain" would go.
    """

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        if args and (args[0] in _ELSEWHERE or args[0] in ("-h", "--help")):
            return super().make_context(info_name, args, parent, **extra)
        return show.make_context(info_name, args, parent, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        return super().invoke(ctx) if ctx.command is self else ctx.command.invoke(ctx)

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write_usage(ctx.command_path, "[OPTIONS] QUESTIONS...")
        formatter.write_usage(ctx.command_path, "COMMAND [ARGS]...", prefix="       ")

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        show.format_options(ctx, formatter)
        with formatter.section("Commands"):
            formatter.write_dl(list(_ELSEWHERE.items()))


@click.command("route")
@click.argument("questions", nargs=-1, required=True)
@click.option("--url", envvar="HLO_URL", help="Ask this server; default: load the encoder here.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, one route a line.")
@settings_options("encoder", "background", "min_in_scope", "min_probability", "calibration", "log_level")
def show(questions: tuple[str, ...], url: str | None, as_json: bool, **options: Any) -> None:
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
            draw(question, route)


@click.group("route", cls=_Group, elsewhere=_ELSEWHERE, prefix="hlo.cli.route_")
def command() -> None:
    """Show where QUESTIONS would go and how close the other specialties came. Needs no engine.

    A question that is the name of a command goes after two dashes: hlo route -- explain
    """


async def _route_here(settings: Settings, questions: Sequence[str]) -> tuple[Route, ...]:
    from hlo.assemble import assemble_router

    with Console(stderr=True).status("loading the encoder and the routing examples"):
        router, encoder = await assemble_router(settings)
    try:
        return await router.route_many(questions)
    finally:
        encoder.close()


def draw(question: str, route: Route) -> None:
    """Print a route: where it goes, and each specialty's probability and score."""
    chosen = route.specialty or "no specialty"
    told = [f": {chosen}, margin {route.margin:.3f}"]
    if route.candidates:
        told.append(f", between {', '.join(route.candidates)}")
    # Not markup: a question may hold brackets.
    title = Text.assemble(question, "\n", (route.status, "bold"), *told)
    table = Table(title=title, title_justify="left")
    table.add_column("specialty")
    table.add_column("probability", justify="right")
    table.add_column("", min_width=_BAR)
    table.add_column("score", justify="right")
    for one in route.scores:
        style = "bold" if one.specialty == route.specialty else "" if one.specialty in route.candidates else "dim"
        table.add_row(
            Text(one.specialty), f"{one.probability:.3f}", _bar(one.probability), f"{one.score:.3f}", style=style
        )
    if route.scores:
        style = "bold" if route.status == "out_of_scope" else "dim"
        table.add_row("none of them", f"{route.out_of_scope:.3f}", _bar(route.out_of_scope), "", style=style)
    Console().print(table)


def _bar(probability: float) -> str:
    return "█" * round(probability * _BAR)
