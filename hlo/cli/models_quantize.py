"""`hlo models quantize`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from hlo.cli.options import read, settings_options

if TYPE_CHECKING:
    from hlo.generation.quantize.making import Report


@click.command("quantize")
@click.argument("model")
@click.option("--method", type=click.Choice(["bitsandbytes"]), default="bitsandbytes", show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="Folder to write; default: MODEL's name with -int8.")
@click.option("--text", type=click.Path(path_type=Path), help="Text to measure perplexity on; default: one of HLO's.")
@click.option(
    "--tolerance",
    type=click.FloatRange(min=0),
    help="Rise of perplexity to tolerate (0.01: one in a hundred); decides how QUANTIZE=true serves on GPUs.",
)
@click.option("--evaluate/--no-evaluate", default=True, help="Measure perplexity; the 16-bit model must fit in memory.")
@click.option("--force", is_flag=True, help="Replace a model that is in the folder already.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@settings_options("revision", "base_name", "device", "dtype", "lock_file", "log_level")
def command(
    model: str,
    method: str,
    out: Path | None,
    text: Path | None,
    tolerance: float | None,
    evaluate: bool,
    force: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Make an 8-bit checkpoint of a model with bitsandbytes, and measure what that costs.

    MODEL is a folder or a hub's name. HLO_MODEL=FOLDER QUANTIZE=true serves what is written. Needs
    `pip install 'hlo[bnb]'`.
    """
    options["log_level"] = options["log_level"] or "warning"
    settings = read(options)
    from hlo.engines import device
    from hlo.generation import base_model
    from hlo.generation.quantize import evaluation, making
    from hlo.hub import Hub

    chosen = device(settings)
    words = evaluation.read_text(text) if evaluate else None
    remote = Hub.open(settings.lock_file, production=False)
    found = base_model.find(model, settings.revision, name=settings.base_name, hub=remote)
    folder = out or Path(f"{found.name}-int8")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("rounding the layers", total=len(found.linears))
        report = making.make(
            found,
            folder,
            text=words,
            tolerance=tolerance,
            device=chosen,
            dtype="float32" if settings.dtype == "auto" and chosen == "cpu" else settings.dtype,
            force=force,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
            report=lambda what: bar.update(task, description=what),
        )
    if as_json:
        click.echo(msgspec.json.encode(msgspec.to_builtins(report) | {"folder": str(folder)}).decode())
    else:
        _draw(report, folder, method)


def _draw(report: Report, folder: Path, method: str) -> None:
    console = Console()
    table = Table(title=f"{report.base} in int8, by {method}", show_header=False)
    for what, told in (
        ("folder", str(folder)),
        ("weights", f"{report.size_before / 2**20:,.1f} MiB before, {report.size_after / 2**20:,.1f} MiB after"),
        ("in int8", f"{report.layers} linear layers"),
        ("in 16 bit", ", ".join(report.kept) or "none"),
        ("time", f"{report.seconds:.0f} s"),
    ):
        table.add_row(what, Text(told, overflow="fold"))
    console.print(table)
    if report.fits:
        _draw_fits(report, console)
    console.print(Text(f"HLO_MODEL={folder} QUANTIZE=true hlo serve"), soft_wrap=True)


def _draw_fits(report: Report, console: Console) -> None:
    base = report.fits[0].perplexity
    table = Table(title=f"On {report.tokens:,} tokens")
    for column in ("HLO_QUANTIZATION", "perplexity", "change", "logits differ by (rms)", "same likeliest token"):
        table.add_column(column, justify="left" if column == "HLO_QUANTIZATION" else "right")
    for fit in report.fits:
        change = f"{fit.perplexity / base - 1:+.2%}"
        values = (change, f"{fit.logit_error:.3f}", f"{fit.same:.1%}") if fit.quantization != "none" else ("", "", "")
        table.add_row(fit.quantization, f"{fit.perplexity:,.2f}", *values)
    console.print(table)
    if report.tolerance is not None:
        console.print(f"Within the tolerance of {report.tolerance:.2%}: QUANTIZE=true serves it as {report.serve_as}.")
