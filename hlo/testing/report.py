"""The report of an examination: one HTML page that needs nothing else, for the people who decide what goes live.

Every word that comes from elsewhere (a plugin's texts, an operator's questions) is escaped. The page runs no script
and loads nothing: it may hold patients' words, and must not tell anybody that it was opened.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from html import escape

import hlo
from hlo.records import Finding
from hlo.routing.evaluation import NOWHERE
from hlo.testing import page
from hlo.testing.catchment import Audit, Catchment, Home, Moved
from hlo.testing.conformance import Examination

_SIGNS = {"ok": "✓", "warning": "!", "trouble": "✗"}


def render(
    examination: Examination, *, name: str, version: str, place: str, model: str, encoder: str, max_moved: float
) -> str:
    """The page. `place` is where the plugin was found; `max_moved` the share that a specialty may lose."""
    facts = {
        "Found": place,
        "Base model": model,
        "Encoder": encoder,
        "Examined": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, with HLO {hlo.__version__}",
    }
    title = f"{name or 'A plugin'} {version}".strip()
    body = [
        f"<h1>{escape(name or 'A plugin')} <small>{escape(version)}</small></h1>",
        page.facts(facts),
        _verdict(examination.findings),
        _findings(examination.findings),
        *(_audit(examination.audit, max_moved) if examination.audit else []),
    ]
    return page.page(f"{title}: examination", body)


def _verdict(findings: Sequence[Finding]) -> str:
    count = {state: sum(one.state == state for one in findings) for state in ("trouble", "warning", "ok")}
    if count["trouble"]:
        state, text = "trouble", "Not fit to go live"
    elif count["warning"]:
        state, text = "warning", "Can go live; look at the warnings first"
    else:
        state, text = "ok", "Fit to go live"
    counts = f"{count['trouble']} trouble, {count['warning']} warnings, {count['ok']} ok"
    return f'<p class="verdict {state}"><strong>{_SIGNS[state]} {text}</strong><br><span>{counts}</span></p>'


def _findings(findings: Sequence[Finding]) -> str:
    order = {"trouble": 0, "warning": 1, "ok": 2}
    rows = []
    for one in sorted(findings, key=lambda one: order[one.state]):
        remedy = f'<br><span class="soft">{escape(one.remedy)}</span>' if one.remedy else ""
        rows.append(
            f'<tr><td class="state {one.state}">{_SIGNS[one.state]} {one.state}</td>'
            f'<th scope="row">{escape(one.topic)}</th><td class="words">{escape(one.text)}{remedy}</td></tr>'
        )
    return page.section(
        "Findings", page.table("What was looked at, the worst first.", ("State", "Topic", "What was found"), rows)
    )


def _audit(audit: Audit, max_moved: float) -> Iterable[str]:
    """What the catchment audit found."""
    new = ", ".join(audit.new)
    yield page.section(
        "What each specialty would lose",
        f"<p>Each of {audit.questions:,} questions was routed without and with <b>{escape(new)}</b>: the examples of "
        f"every installed specialty, and {audit.given:,} that the operator gave. Up to {max_moved:.1%} of a "
        f"specialty's questions may go to the new one. {audit.unsettled:,} questions stay where they are, but become "
        "ambiguous or cease to be.</p>",
        _catchments(audit.catchments, max_moved, given=any(one.given for one in audit.catchments)),
    )
    yield page.section(
        "Where its own examples go",
        "<p>Each was compared with all examples but itself.</p>",
        _homes(audit.homes),
    )
    yield page.section(
        "Questions that would go elsewhere",
        *(
            ["<p class=\"soft\">The operator's questions may be patients' words: keep this file as such.</p>"]
            if audit.given
            else []
        ),
        _moved(audit.moved) if audit.moved else "<p>None.</p>",
    )
    yield page.section(
        "Who gets whose questions",
        "<p>Rows: whose question it is. Columns: where it would go. The darker, the larger its share of the row; "
        'green is home. The new specialty is <span class="new">blue</span>.</p>',
        page.matrix(
            "Who gets whose questions",
            "Numbers of questions, the new specialty being there.",
            audit.confusion.rows,
            audit.confusion.columns,
            audit.confusion.counts,
            new=audit.new,
        ),
    )


def _catchments(catchments: Sequence[Catchment], max_moved: float, *, given: bool) -> str:
    widest = max([one.share for one in catchments] + [max_moved, 0.01])
    rows = []
    for one in catchments:
        over = one.share > max_moved and one.specialty != NOWHERE
        yours = f'<td class="number">{one.given_lost:,} of {one.given:,}</td>' if given else ""
        rows.append(
            f'<tr><th scope="row">{escape(one.specialty)}</th><td class="number">{one.before:,}</td>'
            f'<td class="number">{one.lost:,}</td>'
            f'<td class="number{" state trouble" if over else ""}">{"✗ " if over else ""}{one.share:.1%}</td>{yours}'
            f'<td class="bar">{_bar(one.share / widest)}</td></tr>'
        )
    heads = ("Specialty", "#Questions now", "#Lost", "#Share", *(("#Of unlabelled ones",) if given else ()), "")
    return page.table("Questions known to belong to an installed specialty, by where they go now.", heads, rows)


def _homes(homes: Sequence[Home]) -> str:
    rows = []
    for one in homes:
        for place, count in one.places.items():
            home = place == one.specialty
            rows.append(
                f'<tr><th scope="row">{escape(one.specialty)}</th><td>{escape(place)}{" (home)" if home else ""}</td>'
                f'<td class="number">{count:,} of {one.examples:,}</td>'
                f'<td class="number">{count / one.examples:.1%}</td>'
                f'<td class="bar">{_bar(count / one.examples, home=home)}</td></tr>'
            )
    return page.table("All of them, by where they would go.", ("Specialty", "Goes to", "#Examples", "#Share", ""), rows)


def _bar(share: float, *, home: bool = False) -> str:
    return (
        f'<i{" class=home" if home else ""} style="width:{100 * share:.1f}%" aria-hidden="true"></i>' if share else ""
    )


def _moved(moved: Sequence[Moved]) -> str:
    rows = [
        f'<tr><td class="words">{escape(one.question)}</td><td>{escape(one.owner or "not said")}'
        f"{' (yours)' if one.given else ''}</td><td>{escape(one.before or NOWHERE)}</td>"
        f'<td class="number">{one.score_before:.3f}</td><td>{escape(one.after or NOWHERE)}</td>'
        f'<td class="number">{one.score_after:.3f}</td></tr>'
        for one in moved
    ]
    heads = ("Question", "Whose it is", "Goes now to", "#Score", "Would go to", "#Score")
    return page.table(f"{len(moved):,} questions, the largest change of score first.", heads, rows)
