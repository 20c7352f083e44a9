"""Figures that tests found and that are worth showing: what was tried, how many, and what came of it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Literal, Protocol

import pytest

Topic = Literal["load", "faults", "inputs"]


class Figure(Protocol):
    """How a test records a figure; a test that does carries the marker `reliability`."""

    def __call__(self, topic: Topic, what: str, value: float | str, outcome: str = "") -> None:
        """Record what was tried, how many or how long (a number, or words with their unit), and what came of it."""


@pytest.fixture
def figure(request: pytest.FixtureRequest) -> Figure:
    """Record a figure for docs/reliability.md in the file that RELIABILITY_FIGURES names; without one, do nothing."""

    def record(topic: Topic, what: str, value: float | str, outcome: str = "") -> None:
        if file := os.environ.get("RELIABILITY_FIGURES"):
            line = {"topic": topic, "what": what, "value": value, "outcome": outcome, "test": request.node.nodeid}
            with Path(file).open("a", encoding="utf-8") as figures:
                figures.write(f"{json.dumps(line)}\n")

    return record
