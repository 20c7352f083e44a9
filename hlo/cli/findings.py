"""How findings are drawn, by every command that examines."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console
from rich.table import Table
from rich.text import Text

from hlo.records import Finding

STYLE = {"ok": "green", "warning": "yellow", "trouble": "red"}


def draw(findings: Iterable[Finding]) -> None:
    """Print a table: state, topic, text, and the remedy below it."""
    table = Table(box=None, show_header=False, padding=(0, 1))
    for one in findings:
        # Not markup: texts hold brackets, such as those of `hlo[gpu]`.
        told = Text.assemble(one.text, (f"\n{one.remedy}" if one.remedy else "", "dim"))
        table.add_row(Text(one.state, STYLE[one.state]), one.topic, told)
    Console().print(table)
