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
from hlo.testing import catchment
from hlo.testing.catchment import Audit, Catchment, Confusion, Home, Moved
from hlo.testing.conformance import Examination

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2330; --soft: #5b6472; --line: #d9dee5; --paper: #fff; --wash: #f4f6f9;
  --ok: #176c3a; --warning: #8a5300; --trouble: #b3211b; --home: 23, 108, 58; --away: 196, 84, 20; --new: #2b50c8; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6eaf0; --soft: #a3adba; --line: #343c48; --paper: #14181f;
  --wash: #1d232c; --ok: #6fd394; --warning: #f0b357; --trouble: #ff8f87; --home: 74, 190, 118; --away: 232, 130, 66;
  --new: #96b0ff; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 72rem; padding: 2rem 1.25rem 4rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { margin: 0; font-size: 1.9rem; line-height: 1.2; }
h1 small { color: var(--soft); font-weight: 400; font-size: 1.2rem; }
h2 { margin: 2.75rem 0 .5rem; font-size: 1.3rem; }
p { margin: .4rem 0; max-width: 46rem; }
.soft, dt { color: var(--soft); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem; margin: 1rem 0; font-size: .93rem; }
dd { margin: 0; overflow-wrap: anywhere; }
.verdict { margin: 1.5rem 0; padding: .9rem 1.1rem; border-left: .4rem solid; background: var(--wash);
  font-size: 1.1rem; border-radius: .25rem; }
.ok { color: var(--ok); } .warning { color: var(--warning); } .trouble { color: var(--trouble); }
.verdict span { color: var(--ink); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .93rem; }
caption { padding: .3rem 0; color: var(--soft); text-align: left; }
th, td { padding: .45rem .6rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
thead th { border-bottom-width: 2px; white-space: nowrap; }
th { font-weight: 600; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.words { overflow-wrap: anywhere; min-width: 16rem; }
.state { font-weight: 600; white-space: nowrap; }
.bar { width: 30%; min-width: 7rem; }
.bar i { display: block; height: .8rem; margin-top: .3rem; min-width: 1px; border-radius: .15rem;
  background: rgb(var(--away)); }
.bar i.home { background: rgb(var(--home)); }
.matrix { width: auto; }
.matrix td { min-width: 2.9rem; padding: .35rem .45rem; border: 1px solid var(--line); text-align: right;
  font-variant-numeric: tabular-nums; }
.matrix thead th { vertical-align: bottom; }
.matrix thead th span { writing-mode: vertical-rl; transform: rotate(180deg); }
.matrix tbody th { position: sticky; left: 0; background: var(--paper); white-space: nowrap; }
.matrix .none { color: var(--soft); }
.new { color: var(--new); }
@media print { body { max-width: none; padding: 0; } .scroll { overflow: visible; } }
"""
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
        "<dl>",
        *(f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in facts.items()),
        "</dl>",
        _verdict(examination.findings),
        _findings(examination.findings),
        *(_audit(examination.audit, max_moved) if examination.audit else []),
    ]
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en">',
            '<head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="referrer" content="no-referrer">',
            "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">",
            f"<title>{escape(title)}: examination</title>",
            f"<style>{_STYLE}</style></head>",
            "<body><main>",
            *body,
            "</main></body></html>\n",
        ]
    )


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
    return _section(
        "Findings", _table("What was looked at, the worst first.", ("State", "Topic", "What was found"), rows)
    )


def _audit(audit: Audit, max_moved: float) -> Iterable[str]:
    """What the catchment audit found."""
    new = ", ".join(audit.new)
    yield _section(
        "What each specialty would lose",
        f"<p>Each of {audit.questions:,} questions was routed without and with <b>{escape(new)}</b>: the examples of "
        f"every installed specialty, and {audit.given:,} that the operator gave. Up to {max_moved:.1%} of a "
        f"specialty's questions may go to the new one. {audit.unsettled:,} questions stay where they are, but become "
        "ambiguous or cease to be.</p>",
        _catchments(audit.catchments, max_moved, given=any(one.given for one in audit.catchments)),
    )
    yield _section(
        "Where its own examples go",
        "<p>The prototype is made of these same examples, so fewer of its patients' questions will come home.</p>",
        _homes(audit.homes),
    )
    yield _section(
        "Questions that would go elsewhere",
        *(
            ["<p class=\"soft\">The operator's questions may be patients' words: keep this file as such.</p>"]
            if audit.given
            else []
        ),
        _moved(audit.moved) if audit.moved else "<p>None.</p>",
    )
    yield _section(
        "Who gets whose questions",
        "<p>Rows: whose question it is. Columns: where it would go. The darker, the larger its share of the row; "
        'green is home. The new specialty is <span class="new">blue</span>.</p>',
        _matrix(audit.confusion, audit.new),
    )


def _catchments(catchments: Sequence[Catchment], max_moved: float, *, given: bool) -> str:
    widest = max([one.share for one in catchments] + [max_moved, 0.01])
    rows = []
    for one in catchments:
        over = one.share > max_moved and one.specialty != catchment.NOWHERE
        yours = f'<td class="number">{one.given_lost:,} of {one.given:,}</td>' if given else ""
        rows.append(
            f'<tr><th scope="row">{escape(one.specialty)}</th><td class="number">{one.before:,}</td>'
            f'<td class="number">{one.lost:,}</td>'
            f'<td class="number{" state trouble" if over else ""}">{"✗ " if over else ""}{one.share:.1%}</td>{yours}'
            f'<td class="bar">{_bar(one.share / widest)}</td></tr>'
        )
    heads = ("Specialty", "#Questions now", "#Lost", "#Share", *(("#Of unlabelled ones",) if given else ()), "")
    return _table("Questions known to belong to an installed specialty, by where they go now.", heads, rows)


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
    return _table("All of them, by where they would go.", ("Specialty", "Goes to", "#Examples", "#Share", ""), rows)


def _bar(share: float, *, home: bool = False) -> str:
    return (
        f'<i{" class=home" if home else ""} style="width:{100 * share:.1f}%" aria-hidden="true"></i>' if share else ""
    )


def _moved(moved: Sequence[Moved]) -> str:
    rows = [
        f'<tr><td class="words">{escape(one.question)}</td><td>{escape(one.owner or "not said")}'
        f"{' (yours)' if one.given else ''}</td><td>{escape(one.before or catchment.NOWHERE)}</td>"
        f'<td class="number">{one.score_before:.3f}</td><td>{escape(one.after or catchment.NOWHERE)}</td>'
        f'<td class="number">{one.score_after:.3f}</td></tr>'
        for one in moved
    ]
    heads = ("Question", "Whose it is", "Goes now to", "#Score", "Would go to", "#Score")
    return _table(f"{len(moved):,} questions, the largest change of score first.", heads, rows)


def _matrix(confusion: Confusion, new: Sequence[str]) -> str:
    def head(name: str, scope: str) -> str:
        text = f"<span>{escape(name)}</span>" if scope == "col" else escape(name)
        return f'<th scope="{scope}"{" class=new" if name in new else ""}>{text}</th>'

    rows = []
    for name, counts in zip(confusion.rows, confusion.counts, strict=True):
        total = sum(counts)
        cells = [
            _cell(count, total, home=name == column) for column, count in zip(confusion.columns, counts, strict=True)
        ]
        rows.append(f"<tr>{head(name, 'row')}{''.join(cells)}</tr>")
    heads = "".join(head(name, "col") for name in confusion.columns)
    return _scroll(
        "Who gets whose questions",
        '<table class="matrix"><caption>Numbers of questions, the new specialty being there.</caption>'
        f"<thead><tr><td></td>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table>",
    )


def _cell(count: int, total: int, *, home: bool) -> str:
    if not count:
        return '<td class="none">0</td>'
    # Never so strong that the number on it could not be read.
    strength = 0.12 + 0.43 * count / total
    return f'<td style="background:rgba(var(--{"home" if home else "away"}),{strength:.2f})">{count:,}</td>'


def _section(title: str, *parts: str) -> str:
    return "\n".join([f"<section><h2>{escape(title)}</h2>", *parts, "</section>"])


def _table(caption: str, heads: Sequence[str], rows: Iterable[str]) -> str:
    """A table; a head that begins with `#` stands above numbers."""
    cells = []
    for head in heads:
        if head:
            number = ' class="number"' if head.startswith("#") else ""
            cells.append(f'<th scope="col"{number}>{escape(head.removeprefix("#"))}</th>')
        else:
            cells.append("<td></td>")
    return _scroll(
        caption,
        f"<table><caption>{escape(caption)}</caption><thead><tr>{''.join(cells)}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table>",
    )


def _scroll(label: str, table: str) -> str:
    """A table that scrolls by itself on a narrow screen, also with the keyboard."""
    return f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(label)}">{table}</div>'
