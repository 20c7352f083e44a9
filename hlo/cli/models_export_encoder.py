"""`hlo models export-encoder`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hlo.cli.options import read, settings_options

if TYPE_CHECKING:
    from hlo.routing.onnx_export import ExportReport


@click.command("export-encoder")
@click.argument("model")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--quantize/--no-quantize", default=True, show_default=True, help="Make it int8: a quarter of the size.")
@click.option("--name", default="", help="What the new encoder is called; made from MODEL unless given.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@settings_options("lock_file", "log_level")
def command(model: str, folder: Path, quantize: bool, name: str, as_json: bool, **options: Any) -> None:
    """Export a sentence-transformers model for a fast start and fast routing on CPUs.

    MODEL is a hub's name or a folder; FOLDER is written, and can be given as HLO_ENCODER then. What was exported is
    compared with the original, and refused where its vectors differ too much. Needs `pip install 'hlo[export]'`.
    """
    options["log_level"] = options["log_level"] or "warning"
    settings = read(options)
    from hlo.hub import Hub
    from hlo.routing import onnx_export, sentence_encoder

    onnx_export.check_packages()
    with Console(stderr=True).status("exporting, quantising and comparing" if quantize else "exporting and comparing"):
        source = sentence_encoder.locate(model, Hub.open(settings.lock_file, production=False))
        base = Path(model).expanduser().resolve().name if Path(model).expanduser().is_dir() else model
        report = onnx_export.export(source, folder, quantize=quantize, name=name, base=base)
    if as_json:
        click.echo(msgspec.json.encode(report, enc_hook=str).decode())
    else:
        _draw(report)


def _draw(report: ExportReport) -> None:
    described = report.description
    table = Table(title=f"{described.name}, from {described.base}", show_header=False)
    for what, told in (
        ("folder", str(report.folder)),
        ("size", f"{report.size / 1e6:.1f} MB, quantization {described.quantization}"),
        ("vectors", f"{described.dimension} values, of up to {described.max_tokens} tokens"),
        ("cosine with the original", f"{report.mean_cosine:.4f} in the mean, {report.min_cosine:.4f} at least"),
        ("float32 graph", f"differs from torch by up to {report.difference:.1e}"),
        ("fingerprint", report.fingerprint),
        ("time", f"{report.seconds:.0f} s"),
    ):
        table.add_row(what, Text(told, overflow="fold"))
    Console().print(table)
