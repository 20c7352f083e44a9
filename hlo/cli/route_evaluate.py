"""`hlo route evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hlo.cli.options import read, settings_options
from hlo.cli.pages import check_writable, write

if TYPE_CHECKING:
    from hlo.routing.evaluation import Evaluation
    from hlo.routing.intervals import Share


@click.command("evaluate")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--html", type=click.Path(dir_okay=False, path_type=Path), help="Write it with pictures to this HTML file."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@settings_options("encoder", "background", "min_in_scope", "min_probability", "calibration", "plugins", "log_level")
def command(file: Path, html: Path | None, as_json: bool, **options: Any) -> None:
    """Measure routing with labelled questions.

    FILE is as for `hlo route calibrate`. Questions with which the thresholds were set flatter them: take others.
    """
    options["log_level"] = options["log_level"] or "warning"
    settings = read(options)
    from hlo.cli.route_comparing import compare
    from hlo.routing.evaluation import evaluate

    if html:
        check_writable(html)
    compared = compare(file, settings)
    router = compared.router
    done = evaluate(
        compared.comparisons, compared.questions, router.scale, router.thresholds, sorted(router.bank.names)
    )
    if html:
        from hlo.cli.route_report import render

        page = render(
            done,
            file=file.name,
            encoder=f"{compared.encoder.name}, fingerprint {compared.encoder.fingerprint}",
            calibration=str(settings.calibration or "none; the settings' thresholds"),
            scale=router.scale,
            thresholds=router.thresholds,
        )
        write(html, page)
    if as_json:
        click.echo(msgspec.json.encode(done).decode())
    else:
        _draw(done)


def _draw(done: Evaluation) -> None:
    from hlo.cli.route_report import summary

    table = _table(f"{done.questions} questions, {done.in_scope} with a specialty", "")
    for name, share in summary(done):
        table.add_row(name, *_cells(share))
    table.add_row("Probability and being right are apart by", "", f"{done.calibration_error:.1%}", "")
    Console().print(table)
    table = _table("Each specialty's questions, and what goes there", "specialty", "found", "right")
    for one in done.specialties:
        table.add_row(Text(one.specialty), *_cells(one.recall), *_cells(one.precision))
    Console().print("", table)


def _table(title: str, first: str, *shares: str) -> Table:
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0), show_header=bool(shares))
    table.add_column(first)
    for name in shares or ("",):
        for head in (name, "share", "95 %"):
            table.add_column(head, justify="right", no_wrap=True)
    return table


def _cells(share: Share) -> tuple[str, str, str]:
    if share.value is None:
        return "none", "", ""
    return f"{share.count} of {share.of}", f"{share.value:.1%}", f"{100 * share.low:.0f} to {100 * share.high:.0f}"
