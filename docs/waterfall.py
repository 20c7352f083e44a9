"""Draws docs/trace.svg, the picture of one question's trace: `python -m docs.waterfall`.

It starts the real server, asks it a question, receives the spans over OTLP, and draws what came.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from html import escape
from pathlib import Path

from tests.e2e.server import running
from tests.otlp import Received, receiving

OUT = Path(__file__).with_name("trace.svg")
STAGES = ("POST /ask", "screen", "route", "encode", "score", "prompt", "generate", "llm_request")
QUESTION = "my chest feels tight when I climb the stairs"

_WIDTH, _ROW, _LEFT, _RIGHT, _TOP = 960, 26, 240, 110, 34
_FIRST = "gen_ai.response.time_to_first_chunk"
_COLOURS = {"hlo": "#3b6fb5", "vllm": "#c77b30"}


def in_order(spans: Sequence[Received]) -> list[tuple[int, Received]]:
    """The spans of one trace with their depths, parents before children, earlier before later."""
    known = {span.id for span in spans}

    def under(parent: str | None, depth: int) -> list[tuple[int, Received]]:
        here = [one for one in spans if (one.parent if one.parent in known else None) == parent]
        rows: list[tuple[int, Received]] = []
        for one in sorted(here, key=lambda span: (span.began, span.name)):
            rows += [(depth, one), *under(one.id, depth + 1)]
        return rows

    return under(None, 0)


def draw(spans: Sequence[Received]) -> str:
    """An SVG of the spans of one trace, each a bar from where it began to where it ended."""
    rows = in_order(spans)
    began, ended = min(span.began for span in spans), max(span.ended for span in spans)
    room, total = _WIDTH - _LEFT - _RIGHT, max(ended - began, 1)
    height = _TOP + _ROW * len(rows) + 8
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" '
        'font-family="ui-sans-serif, system-ui, sans-serif" font-size="13">',
        f'<rect width="{_WIDTH}" height="{height}" fill="#ffffff"/>',
    ]
    for quarter in range(5):
        x = _LEFT + room * quarter / 4
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP - 8}" y2="{height - 8}" stroke="#e3e6ea"/>')
        label = f"{total * quarter / 4 / 1e6:.0f} ms"
        parts.append(f'<text x="{x:.1f}" y="18" fill="#6a737d" text-anchor="middle">{label}</text>')
    for number, (depth, span) in enumerate(rows):
        y = _TOP + _ROW * number
        x = _LEFT + room * (span.began - began) / total
        width = max(room * (span.ended - span.began) / total, 2.0)
        colour = _COLOURS["vllm" if span.scope.startswith("vllm") else "hlo"]
        parts.append(f'<text x="{12 + 18 * depth}" y="{y + 15}" fill="#24292f">{escape(span.name)}</text>')
        parts.append(f'<rect x="{x:.1f}" y="{y + 4}" width="{width:.1f}" height="14" rx="2" fill="{colour}"/>')
        if first := span.attributes.get(_FIRST):  # what is right of it was generated token by token
            at = x + width * first * 1e9 / (span.ended - span.began)
            parts.append(f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{y + 4}" y2="{y + 18}" stroke="#ffffff"/>')
            told = f"first token after {first * 1e3:.0f} ms"
            parts.append(f'<text x="{at + 6:.1f}" y="{y + 14}" fill="#ffffff" font-size="10">{told}</text>')
        text = f"{(span.ended - span.began) / 1e6:.2f} ms"
        parts.append(f'<text x="{x + width + 6:.1f}" y="{y + 15}" fill="#6a737d">{text}</text>')
    return "\n".join([*parts, "</svg>\n"])


def main() -> None:
    """Run, ask, draw."""
    with tempfile.TemporaryDirectory() as folder, receiving("grpc") as receiver:
        with running(Path(folder), **receiver.environment) as server:
            for _ in range(3):  # the first ones pay for what later ones find warm
                answer = server.post("/ask", {"question": QUESTION, "max_tokens": 32}).raise_for_status().json()
            spans = receiver.wait_for(answer["trace_id"], *STAGES)
        OUT.write_text(draw(list(spans.values())), encoding="utf-8")
    sys.stdout.write(f"{OUT}\n")


if __name__ == "__main__":
    main()
