"""`hlo route calibrate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hlo.cli.options import read, settings_options
from hlo.cli.pages import check_writable

if TYPE_CHECKING:
    from hlo.routing.calibration import Calibration

_RATE = click.FloatRange(0, 1, min_open=True, max_open=True)


@click.command("calibrate")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--tolerate",
    type=_RATE,
    default=0.05,
    show_default=True,
    help="Largest share of the routed questions that may go to a specialty that is not right.",
)
@click.option(
    "--confidence", type=_RATE, default=0.95, show_default=True, help="How certain it must be that it is no larger."
)
@click.option(
    "--reject",
    type=_RATE,
    default=0.05,
    show_default=True,
    help="Largest share of the questions with a specialty that may be told out of scope.",
)
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("calibration.json"),
    show_default=True,
    help="Write the calibration to this file.",
)
@settings_options("encoder", "background", "plugins", "log_level")
def command(file: Path, tolerate: float, confidence: float, reject: float, out: Path, **options: Any) -> None:
    """Fit the thresholds to labelled questions, with a guarantee for more like them.

    FILE holds JSON lines {"question": "...", "specialty": "..."}, with null where no specialty fits, and where further
    specialties are right too, "also": ["..."]. What is promised holds for questions like those in it: take them as
    they really come, those that no specialty fits as well. Several hundred are needed, and in a language other than
    that of the file it promises nothing.
    """
    options["log_level"] = options["log_level"] or "warning"
    # What was calibrated before takes no part, and need not even be of these specialties.
    settings = read(options).model_copy(update={"calibration": None})
    from datetime import UTC, datetime

    from hlo.cli.route_comparing import compare
    from hlo.routing import calibration, fitting

    check_writable(out)
    compared = compare(file, settings)
    router = compared.router
    fitted = fitting.calibrate(
        compared.comparisons,
        compared.questions,
        router.bank.names,
        alpha=tolerate,
        delta=1 - confidence,
        epsilon=reject,
    )
    made = calibration.Calibration(
        format=calibration.FORMAT,
        made=datetime.now(UTC).date(),
        encoder=compared.encoder.name,
        fingerprint=compared.encoder.fingerprint,
        specialties=dict(router.digests),
        background=router.background_digest,
        scale=fitted.scale,
        thresholds=fitted.thresholds,
        tolerated_error=tolerate,
        confidence=confidence,
        tolerated_rejection=reject,
        counts=fitted.counts,
        results=fitted.results,
        histograms=fitted.histograms,
    )
    calibration.save(made, out)
    _draw(made, out)


def _draw(made: Calibration, out: Path) -> None:
    counts, results, thresholds = made.counts, made.results, made.thresholds
    click.echo(
        f"{counts.fitting} questions fitted the scale; {counts.in_scope} with a specialty and {counts.out_of_scope} "
        f"without set min_in_scope to {thresholds.min_in_scope:g} and min_probability to "
        f"{thresholds.min_probability:g}. Of these:"
    )
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for name, share in (
        ("routed", results.routed),
        ("wrong, of the routed ones", results.errors),
        ("ambiguous", results.ambiguous),
        ("kept in scope, of those with a specialty", results.kept),
        ("told out of scope, of those without", results.rejected),
    ):
        table.add_row(f"  {name}", f"{share.count} of {share.of}", Text(str(share), "bold"))
    Console().print(table)
    click.echo(
        f"Of more questions like these, at most {made.tolerated_error:.1%} of the routed ones will go to a specialty "
        f"that is not right, with {made.confidence:.1%} confidence; and of those with a specialty, on average at most "
        f"{made.tolerated_rejection:.1%} will be told out of scope."
    )
    if not counts.out_of_scope:
        click.secho("No question had no specialty, so nothing is promised where such questions come.", fg="yellow")
    click.echo(f"Written to {out}. Serve with it: HLO_CALIBRATION={out}")
