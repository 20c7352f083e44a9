"""Writes grafana/dashboards/hlo.json from the panels: `python -m deploy.dashboard`, or `nox -s docs`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deploy.panels import ROWS, Panel, Query

FILE = Path(__file__).parent / "grafana" / "dashboards" / "hlo.json"
SOURCE = {"type": "prometheus", "uid": "prometheus"}
_COLUMNS = 24
_HEIGHTS = {"stat": 4}
_HEIGHT = 8


def render() -> str:
    """The dashboard as Grafana imports it."""
    board = {
        "uid": "hlo",
        "title": "HLO",
        "tags": ["hlo"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "templating": {"list": [_specialties()]},
        "annotations": {"list": [_alerts()]},
        "panels": list(_panels()),
    }
    return json.dumps(board, indent=2) + "\n"


def main() -> None:
    """Write the dashboard."""
    FILE.write_text(render(), encoding="utf-8")


def _panels() -> Iterator[dict[str, Any]]:
    """Rows and panels from left to right and from top to bottom."""
    number, top = 1, 0
    for row in ROWS:
        place = {"h": 1, "w": _COLUMNS, "x": 0, "y": top}
        yield {"id": number, "type": "row", "title": row.title, "collapsed": False, "gridPos": place, "panels": []}
        number, top, left = number + 1, top + 1, 0
        for panel in row.panels:
            height = _HEIGHTS.get(panel.kind, _HEIGHT)
            if left + panel.width > _COLUMNS:
                top, left = top + height, 0
            yield _panel(panel, number, {"h": height, "w": panel.width, "x": left, "y": top})
            number, left = number + 1, left + panel.width
        top += _HEIGHTS.get(row.panels[-1].kind, _HEIGHT)


def _panel(panel: Panel, number: int, place: dict[str, int]) -> dict[str, Any]:
    custom: dict[str, Any] = {}
    options: dict[str, Any] = {}
    if panel.kind == "timeseries":
        stacking = {"mode": "normal", "group": "A"} if panel.stacked else {"mode": "none"}
        custom = {"fillOpacity": 30 if panel.stacked else 5, "showPoints": "never", "stacking": stacking}
        options = {
            "legend": {"displayMode": "list", "placement": "bottom"},
            "tooltip": {"mode": "multi", "sort": "desc"},
        }
    elif panel.kind == "stat":
        options = {"colorMode": "none", "graphMode": "area", "reduceOptions": {"calcs": ["lastNotNull"]}}
    told: dict[str, Any] = {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.text,
        "datasource": SOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0, "custom": custom}, "overrides": []},
        "options": options,
        "targets": [_target(panel, query, letter) for query, letter in zip(panel.queries, "ABCDEF", strict=False)],
    }
    if panel.kind == "table":
        hidden = {"Time": True, "Value": True}
        told["transformations"] = [{"id": "organize", "options": {"excludeByName": hidden}}]
    return told


def _target(panel: Panel, query: Query, letter: str) -> dict[str, Any]:
    table = panel.kind == "table"
    return {
        "refId": letter,
        "datasource": SOURCE,
        "expr": query.expression,
        "legendFormat": query.legend,
        "exemplar": query.exemplars,
        "instant": table,
        "range": not table,
        "format": "table" if table else "time_series",
    }


def _specialties() -> dict[str, Any]:
    """The choice of specialties at the top; all of them are more than the loaded ones: `base` and `none` too."""
    query = "label_values(hlo_adapter_info, specialty)"
    return {
        "name": "specialty",
        "label": "Specialty",
        "type": "query",
        "datasource": SOURCE,
        "query": {"query": query, "refId": "specialties"},
        "definition": query,
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
    }


def _alerts() -> dict[str, Any]:
    """Firing alerts, as marks in every panel."""
    return {
        "name": "Alerts",
        "datasource": SOURCE,
        "enable": True,
        "iconColor": "red",
        "expr": 'ALERTS{alertname=~"Hlo.*", alertstate="firing"}',
        "titleFormat": "{{alertname}}",
        "textFormat": "{{specialty}}",
        "step": "30s",
    }


if __name__ == "__main__":
    main()
