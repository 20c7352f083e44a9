"""How a benchmark tells what it found: a table for people, JSON for machines."""

from __future__ import annotations

import json
import platform
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

OUT = Path(__file__).parent / "out"


def tell(name: str, question: str, rows: Sequence[dict[str, Any]]) -> None:
    """Print rows (all with the same keys) as a table, and write them to benchmarks/out/NAME.json."""
    table = Table(title=question)
    for key in rows[0]:
        table.add_column(key, justify="right")
    for row in rows:
        table.add_row(*(f"{value:,.3g}" if isinstance(value, float) else str(value) for value in row.values()))
    Console(width=120).print(table)
    OUT.mkdir(exist_ok=True)
    machine = {"python": platform.python_version(), "platform": platform.platform(terse=True)}
    (OUT / f"{name}.json").write_text(json.dumps({"question": question, "machine": machine, "rows": rows}, indent=1))


def median(values: Sequence[float]) -> float:
    """The middle value."""
    return float(statistics.median(values))
