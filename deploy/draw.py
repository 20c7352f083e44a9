"""Draws the dashboard's panels from what a Prometheus has: `python -m deploy.draw URL MINUTES FILE.png`.

For a picture where there is no Grafana: the same queries over the last minutes, drawn with matplotlib
(`pip install matplotlib`). Tables are left out.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any

import httpx
from msgspec import Struct

from deploy.panels import ROWS, Panel, Query

POINTS = 120
WIDE = 3  # pictures in a row
_UNITS = {"s": "seconds", "reqps": "a second", "ops": "a second", "percentunit": "share", "short": ""}


class Source(Struct, frozen=True):
    """A Prometheus, and the time of which it is asked, in seconds."""

    url: str
    start: float
    end: float

    def series(self, query: Query) -> list[tuple[str, list[float], list[float]]]:
        """A query's series: how each is called, its times in minutes, and its values."""
        step = max((self.end - self.start) / POINTS, 1)
        window = f"{max(int(4 * step), 20)}s"
        expression = query.expression.replace("$__rate_interval", window).replace("$specialty", ".*")
        asked = {"query": expression, "start": self.start, "end": self.end, "step": step}
        answer = httpx.get(f"{self.url}/api/v1/query_range", params=asked, timeout=60)  # type: ignore[arg-type]
        answer.raise_for_status()
        return [
            (
                _name(query.legend, found["metric"]),
                [(float(at) - self.start) / 60 for at, _ in found["values"]],
                [float(value) for _, value in found["values"]],
            )
            for found in answer.json()["data"]["result"]
        ]

    def exemplars(self, query: Query) -> tuple[list[float], list[float]]:
        """The times in minutes and the values of a query's exemplars."""
        expression = query.expression.replace("$__rate_interval", "1m").replace("$specialty", ".*")
        asked = {"query": expression, "start": self.start, "end": self.end}
        answer = httpx.get(f"{self.url}/api/v1/query_exemplars", params=asked, timeout=60)  # type: ignore[arg-type]
        answer.raise_for_status()
        found = [one for series in answer.json()["data"] for one in series["exemplars"]]
        return [(one["timestamp"] - self.start) / 60 for one in found], [float(one["value"]) for one in found]


def draw(source: Source, file: str) -> None:
    """Draw all panels but the tables into one picture."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows: list[tuple[str, Sequence[Panel]]] = []
    stats = [panel for row in ROWS for panel in row.panels if panel.kind == "stat"]
    for row in ROWS:
        drawn = [panel for panel in row.panels if panel.kind == "timeseries"]
        rows += [(row.title, drawn[start : start + WIDE]) for start in range(0, len(drawn), WIDE)]
    figure, axes = pyplot.subplots(len(rows), WIDE, figsize=(18, 3.7 * len(rows)), squeeze=False)
    for line, (_, panels) in zip(axes, rows, strict=True):
        for axis, panel in zip(line, panels, strict=False):
            _draw(axis, panel, source)
        for axis in line[len(panels) :]:
            axis.axis("off")
    figure.suptitle("HLO        " + "      ".join(_stat(panel, source) for panel in stats), fontsize=13, x=0.5)
    figure.tight_layout(rect=(0, 0.02, 1, 0.985), h_pad=5.5)
    figure.savefig(file, dpi=80)


def _draw(axis: Any, panel: Panel, source: Source) -> None:
    found = [series for query in panel.queries for series in source.series(query)]
    if len(panel.queries) == 1:
        found.sort(key=lambda one: one[0])
    if panel.stacked and found:
        times = sorted({at for _, where, _ in found for at in where})
        known = [dict(zip(where, values, strict=True)) for _, where, values in found]
        stacks = [[value if (value := one.get(at, 0.0)) == value else 0.0 for at in times] for one in known]
        axis.stackplot(times, stacks, labels=[name for name, _, _ in found], alpha=0.8)
    else:
        for name, where, values in found:
            axis.plot(where, values, label=name, linewidth=1.3)
    for query in panel.queries:
        if query.exemplars and panel.unit == "s":
            where, values = source.exemplars(query)
            axis.scatter(where, values, s=9, marker="D", color="seagreen", zorder=5, label="exemplars")
    axis.set_title(panel.title, fontsize=11, loc="left", weight="bold")
    axis.set_ylabel(_UNITS[panel.unit], fontsize=8)
    axis.set_xlim(0, (source.end - source.start) / 60)
    axis.set_ylim(bottom=0)
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.25)
    if found:
        columns = 5 if len(found) > 4 else 4
        below = axis.legend(
            fontsize=6.5,
            ncols=columns,
            columnspacing=1.0,
            handlelength=1.2,
            loc="upper center",
            bbox_to_anchor=(0.5, -0.08),
            frameon=False,
        )
        below.set_in_layout(False)


def _stat(panel: Panel, source: Source) -> str:
    found = source.series(panel.queries[0])
    number = found[0][2][-1] if found else float("nan")
    told = f"{number:.0%}" if panel.unit == "percentunit" else f"{number:.3g}"
    return f"{panel.title}: {told}{' s' if panel.unit == 's' else ''}"


def _name(legend: str, labels: dict[str, str]) -> str:
    for label, value in labels.items():
        legend = legend.replace(f"{{{{{label}}}}}", value)
    return legend


def main() -> None:
    """Draw the last minutes."""
    url, minutes, file = sys.argv[1:]
    now = time.time()
    draw(Source(url.rstrip("/"), now - 60 * float(minutes), now), file)


if __name__ == "__main__":
    main()
