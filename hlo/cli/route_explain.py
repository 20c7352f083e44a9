"""`hlo route explain`."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hlo.cli.options import read, settings_options
from hlo.cli.route import draw
from hlo.settings import Settings

if TYPE_CHECKING:
    from hlo.records import Route
    from hlo.routing.decision import Thresholds
    from hlo.routing.explanation import Neighbour


@click.command("explain")
@click.argument("question")
@click.option(
    "--examples", type=click.IntRange(0), default=5, show_default=True, help="How many of the nearest examples to show."
)
@settings_options("encoder", "background", "min_in_scope", "min_probability", "calibration", "plugins", "log_level")
def command(question: str, examples: int, **options: Any) -> None:
    """Show why one question goes where it goes.

    The probabilities, the threshold that decided and by how much, and the examples that came nearest.
    """
    options["log_level"] = options["log_level"] or "warning"
    settings = read(options)
    from hlo.routing.explanation import reason

    route, thresholds, neighbours = asyncio.run(_explain(settings, question, examples))
    draw(question, route)
    click.echo(reason(route, thresholds))
    if neighbours:
        _draw(neighbours)


async def _explain(settings: Settings, question: str, examples: int) -> tuple[Route, Thresholds, tuple[Neighbour, ...]]:
    from hlo.assemble import assemble_router
    from hlo.routing.decision import decide
    from hlo.routing.explanation import nearest

    with Console(stderr=True).status("loading the encoder and the routing examples"):
        router, encoder = await assemble_router(settings)
    try:
        vectors = await encoder.encode([question])
    finally:
        encoder.close()
    route = decide(router.bank.compare(vectors)[0], router.scale, router.thresholds)
    return route, router.thresholds, nearest(router.bank, vectors[0], examples)


def _draw(neighbours: Sequence[Neighbour]) -> None:
    table = Table(title="The nearest examples", title_justify="left")
    table.add_column("cosine", justify="right")
    table.add_column("whose")
    table.add_column("example", overflow="fold")
    for one in neighbours:
        whose = f"{one.group} (no specialty)" if one.background else one.group
        # Not markup: examples are strangers' words.
        words = Text(one.text) if one.text else Text(f"no words, only an embedding (number {one.place + 1})", "dim")
        table.add_row(f"{one.cosine:.3f}", Text(whose), words)
    Console().print("", table)
