"""What PromQL in the dashboard and the alerts names: metrics and labels."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import yaml
from msgspec import Struct

DEPLOY = Path(__file__).parents[1] / "deploy"
RULES = DEPLOY / "prometheus" / "rules.yml"
DASHBOARD = DEPLOY / "grafana" / "dashboards" / "hlo.json"
ADDED = {"instance", "job"}
"""The labels that Prometheus adds to what it scrapes."""


class Asked(Struct, frozen=True):
    """A query of the dashboard's or an alert's: where it stands, what it says, and the labels that its texts name."""

    place: str
    expression: str
    told: frozenset[str] = frozenset()


def alerts() -> list[dict[str, Any]]:
    """All alerts."""
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def queries() -> Iterator[Asked]:
    """All that is asked of Prometheus, with Grafana's variables filled in."""
    for rule in alerts():
        told = re.findall(r"\$labels\.(\w+)", " ".join(rule["annotations"].values()))
        yield Asked(rule["alert"], rule["expr"], frozenset(told))
    board = json.loads(DASHBOARD.read_text())
    for panel in board["panels"]:
        for target in panel.get("targets", ()):
            told = re.findall(r"{{(\w+)}}", target["legendFormat"])
            yield Asked(panel["title"], filled(target["expr"]), frozenset(told))


def filled(expression: str) -> str:
    """An expression of the dashboard's as Grafana would send it for all specialties."""
    return expression.replace("$__rate_interval", "30s").replace("$specialty", ".*")


def selected(expression: str) -> dict[str, set[str]]:
    """The metrics that an expression names, and the labels by which each is selected. It must be valid PromQL."""
    found: dict[str, set[str]] = {}

    def visit(node: Any) -> None:
        if isinstance(node, promql_parser.VectorSelector):
            matchers = {one.name for one in node.matchers.matchers}
            found.setdefault(node.name or "", set()).update(matchers)

    promql_parser.walk(promql_parser.parse(expression), visit)
    return found


def grouped(expression: str) -> set[str]:
    """The labels by which an expression aggregates or matches."""
    found: set[str] = set()

    def visit(node: Any) -> None:
        modifier = getattr(node, "modifier", None)
        if isinstance(node, promql_parser.AggregateExpr) and modifier is not None:
            found.update(modifier.labels)
        elif isinstance(node, promql_parser.BinaryExpr) and modifier is not None and modifier.matching is not None:
            found.update(modifier.matching.labels)

    promql_parser.walk(promql_parser.parse(expression), visit)
    return found
