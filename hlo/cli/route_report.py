"""The page of `hlo route evaluate --html`: what became of labelled questions, in tables and pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from html import escape
from typing import TYPE_CHECKING

import hlo
from hlo.testing.page import facts, matrix, page, section, table

if TYPE_CHECKING:
    from hlo.routing.decision import Scale, Thresholds
    from hlo.routing.evaluation import Bin, Evaluation
    from hlo.routing.intervals import Share

_STYLE = """
figure { margin: 1rem 0; }
.plot { display: block; width: 100%; max-width: 44rem; height: auto; font: 13px system-ui, sans-serif; }
.plot text { fill: var(--soft); stroke: var(--paper); stroke-width: 3px; paint-order: stroke; }
.plot .grid { stroke: var(--line); }
.plot .ideal { stroke: var(--soft); stroke-dasharray: 5 5; }
.plot .limit { stroke: rgb(var(--away)); stroke-width: 1.5; }
.plot .limit-word { fill: rgb(var(--away)); }
.plot .whisker { stroke: var(--new); stroke-width: 2; }
.plot .point { fill: var(--new); stroke: var(--paper); stroke-width: 1.5; }
.plot .column { fill: var(--new); opacity: .45; }
.strip { display: block; width: 8rem; height: 1.1rem; }
.strip .track { stroke: var(--line); stroke-width: 2; }
.strip .whisker { stroke: var(--new); stroke-width: 4; opacity: .45; }
.strip .point { fill: var(--new); }
td.picture { width: 9rem; padding-top: .6rem; }
"""
# The reliability plot, in its own units: the corners of the upper field, and the feet of the lower one.
_LEFT, _RIGHT, _TOP, _BOTTOM = 58.0, 628.0, 14.0, 394.0
_ROOF, _FEET = 428.0, 538.0


def render(done: Evaluation, *, file: str, encoder: str, calibration: str, scale: Scale, thresholds: Thresholds) -> str:
    """The page. `calibration` says where scale and thresholds are from."""
    told = {
        "Questions": f"{done.questions:,} from {file}, {done.in_scope:,} of them with a specialty",
        "Encoder": encoder,
        "Calibration": calibration,
        "Scale": f"gain {scale.gain:g}, handicap {scale.handicap:g}, floor {scale.floor:g}",
        "Thresholds": f"min_in_scope {thresholds.min_in_scope:g}, min_probability {thresholds.min_probability:g}",
        "Evaluated": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, with HLO {hlo.__version__}",
    }
    return page(
        "Routing: evaluation", ["<h1>Routing, evaluated</h1>", facts(told), *_sections(done, thresholds)], _STYLE
    )


def summary(done: Evaluation) -> tuple[tuple[str, Share], ...]:
    """The shares of all questions together, each with what it is of."""
    return (
        ("Best specialty is the labelled one", done.first),
        ("… or one that is right too", done.first_also),
        ("Labelled one is among the best two", done.second),
        ("… or one that is right too", done.second_also),
        ("Routed, of all questions", done.routed),
        ("Ambiguous, of all questions", done.ambiguous),
        ("Wrong, of the routed ones", done.errors),
        ("Kept in scope, of those with a specialty", done.kept),
        ("Told out of scope, of those without", done.rejected),
    )


def _sections(done: Evaluation, thresholds: Thresholds) -> Iterator[str]:
    rows = [
        f'<tr><th scope="row">{escape(name)}</th>{_counted(one)}{_picture(one)}</tr>' for name, one in summary(done)
    ]
    yield section(
        "Altogether",
        table("Shares, with exact 95 % intervals.", ("What", "#Questions", "#Share", "#95 % interval", ""), rows),
    )
    rows = [
        f'<tr><th scope="row">{escape(one.specialty)}</th>{_counted(one.recall)}{_picture(one.recall)}'
        f"{_counted(one.precision)}{_picture(one.precision)}</tr>"
        for one in done.specialties
    ]
    yield section(
        "Each specialty",
        "<p>Found: of the specialty's own questions, those that go there. Right: of the questions that go there, those "
        "for which it is right. An ambiguous question goes to its first candidate.</p>",
        table(
            "Shares, with exact 95 % intervals.",
            ("Specialty", "#Found", "#Share", "#95 % interval", "", "#Right", "#Share", "#95 % interval", ""),
            rows,
        ),
    )
    yield section(
        "Does a probability mean what it says?",
        "<p>Each point is the questions of one tenth of the scale: how probable their best specialty was held, and how "
        "often it was right, with its 95 % interval. On the dashed line both are the same; below it, the router is too "
        f"sure of itself. On average they are {done.calibration_error:.1%} apart.</p>",
        f"<figure>{_plot(done.reliability, thresholds.min_probability)}</figure>",
        _bins(done.reliability),
    )
    yield section(
        "Who gets whose questions",
        "<p>Rows: whose question it is. Columns: where it goes. The stronger the colour, the larger its share of "
        "the row; green is home. out_of_scope stands for no specialty.</p>",
        matrix(
            "Who gets whose questions",
            "Numbers of questions.",
            done.confusion.rows,
            done.confusion.columns,
            done.confusion.counts,
        ),
    )


def _counted(one: Share) -> str:
    return (
        f'<td class="number">{one.count:,} of {one.of:,}</td><td class="number">{_percent(one.value)}</td>'
        f'<td class="number soft">{_interval(one)}</td>'
    )


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def _interval(one: Share) -> str:
    return f"{one.low:.1%} to {one.high:.1%}" if one.of else ""


def _picture(one: Share) -> str:
    """The share and its interval on a line from 0 to 1."""
    if one.value is None:
        return "<td></td>"
    return (
        '<td class="picture"><svg class="strip" viewBox="0 0 128 16" aria-hidden="true">'
        '<line class="track" x1="6" y1="8" x2="122" y2="8"/>'
        f'<line class="whisker" x1="{6 + 116 * one.low:.1f}" y1="8" x2="{6 + 116 * one.high:.1f}" y2="8"/>'
        f'<circle class="point" cx="{6 + 116 * one.value:.1f}" cy="8" r="4"/></svg></td>'
    )


def _bins(bins: Sequence[Bin]) -> str:
    rows = [
        f'<tr><th scope="row">{one.low:.1f} to {one.high:.1f}</th><td class="number">{_percent(one.probability)}</td>'
        f"{_counted(one.right)}</tr>"
        for one in bins
    ]
    heads = ("Probability", "#Its mean", "#Right", "#Share", "#95 % interval")
    return table("The same in numbers.", heads, rows)


def _plot(bins: Sequence[Bin], limit: float) -> str:
    """The reliability plot above the histogram of the probabilities."""
    most = max([one.right.of for one in bins] + [1])
    parts = [*_frame(), *_limit(limit)]
    for one in bins:
        parts += [*_column(one, most), *_point(one)]
    return (
        '<svg class="plot" viewBox="0 0 660 590" role="img" aria-label="How often the best specialty is right, by its '
        f'probability; the numbers stand in the table below.">{"".join(parts)}</svg>'
    )


def _frame() -> Iterator[str]:
    """The grid, the words along it, and the line on which probability and share are the same."""
    for step in range(6):
        value = step / 5
        x, y = _x(value), _y(value)
        yield f'<line class="grid" x1="{_LEFT}" y1="{y:.1f}" x2="{_RIGHT}" y2="{y:.1f}"/>'
        yield f'<line class="grid" x1="{x:.1f}" y1="{_TOP}" x2="{x:.1f}" y2="{_BOTTOM}"/>'
        yield f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{value:.0%}</text>'
        yield f'<text x="{x:.1f}" y="{_FEET + 20}" text-anchor="middle">{value:.0%}</text>'
    yield f'<line class="grid" x1="{_LEFT}" y1="{_FEET}" x2="{_RIGHT}" y2="{_FEET}"/>'
    yield f'<line class="ideal" x1="{_LEFT}" y1="{_BOTTOM}" x2="{_RIGHT}" y2="{_TOP}"/>'
    middle = (_LEFT + _RIGHT) / 2
    yield f'<text x="{middle}" y="{_FEET + 44}" text-anchor="middle">probability of the best specialty</text>'
    for word, y in (("it is right", (_TOP + _BOTTOM) / 2), ("questions", (_ROOF + _FEET) / 2)):
        yield f'<text x="14" y="{y}" text-anchor="middle" transform="rotate(-90 14 {y})">{word}</text>'


def _limit(limit: float) -> Iterator[str]:
    x = _x(limit)
    anchor, beside = ("end", x - 6) if limit > 0.5 else ("start", x + 6)
    yield f'<line class="limit" x1="{x:.1f}" y1="{_TOP}" x2="{x:.1f}" y2="{_FEET}"/>'
    yield (
        f'<text class="limit-word" x="{beside:.1f}" y="{_BOTTOM + 20}" text-anchor="{anchor}">'
        f"min_probability {limit:g}</text>"
    )


def _column(one: Bin, most: int) -> Iterator[str]:
    count = one.right.of
    height = (_FEET - _ROOF - 16) * count / most
    left, width = _x(one.low) + 2, _x(one.high) - _x(one.low) - 4
    yield f'<rect class="column" x="{left:.1f}" y="{_FEET - height:.1f}" width="{width:.1f}" height="{height:.1f}"/>'
    if count:
        yield f'<text x="{left + width / 2:.1f}" y="{_FEET - height - 5:.1f}" text-anchor="middle">{count:,}</text>'


def _point(one: Bin) -> Iterator[str]:
    if one.probability is None or one.right.value is None:
        return
    x, y = _x(one.probability), _y(one.right.value)
    told = f"{one.low:.1f} to {one.high:.1f}: {one.right.count:,} of {one.right.of:,} right, {one.right}"
    low, high = _y(one.right.low), _y(one.right.high)
    yield f'<line class="whisker" x1="{x:.1f}" y1="{low:.1f}" x2="{x:.1f}" y2="{high:.1f}"/>'
    yield f'<circle class="point" cx="{x:.1f}" cy="{y:.1f}" r="6"><title>{told}</title></circle>'


def _x(value: float) -> float:
    return _LEFT + (_RIGHT - _LEFT) * value


def _y(value: float) -> float:
    return _BOTTOM - (_BOTTOM - _TOP) * value
