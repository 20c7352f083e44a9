"""The picture of a trace: every span in its place."""

from __future__ import annotations

import re
from typing import Any
from xml.etree import ElementTree

from docs.waterfall import draw, in_order
from tests.otlp import Received


def span(
    name: str, number: str, parent: str, began: int, ended: int, scope: str = "hlo", **attributes: float
) -> Received:
    return Received(name, "t", number, parent, 1, began, ended, 0, attributes, {}, scope)


SPANS = [
    span("deep", "4", "3", 30, 50, "vllm.tracing.otel"),
    span("late", "3", "1", 20, 90),
    span("early <&>", "2", "1", 10, 20),
    span("root", "1", "elsewhere", 0, 100),
]


def test_parents_come_before_children_and_early_before_late() -> None:
    """Spans are in the order in which a reader follows them, each with its depth; a foreign parent is none."""
    assert [(depth, one.name) for depth, one in in_order(SPANS)] == [
        (0, "root"),
        (1, "early <&>"),
        (1, "late"),
        (2, "deep"),
    ]


def test_bars_have_their_length() -> None:
    """The picture is sound XML, the same each time, with a bar for each span as long as its share of the root."""
    drawn = draw(SPANS)
    assert drawn == draw(SPANS[::-1])
    ElementTree.fromstring(drawn)  # noqa: S314 - our own
    widths = [float(width) for width in re.findall(r'width="([\d.]+)" height="14"', drawn)]
    assert [round(width / widths[0], 3) for width in widths] == [1.0, 0.1, 0.7, 0.2]
    assert "early &lt;&amp;&gt;" in drawn


def test_the_first_token_has_its_place() -> None:
    """Where a span tells when the first token came, the bar has a line there."""
    told: dict[str, Any] = {"gen_ai.response.time_to_first_chunk": 0.25}
    drawn = draw([span("generate", "1", "", 0, 1_000_000_000, **told)])
    (bar,) = re.findall(r'<rect x="([\d.]+)" y="\d+" width="([\d.]+)" height="14"', drawn)
    (tick,) = re.findall(r'<line x1="([\d.]+)" x2="\1" y1="\d+" y2="\d+" stroke="#ffffff"', drawn)
    assert float(tick) == float(bar[0]) + float(bar[1]) / 4
    assert "first token after 250 ms" in drawn
