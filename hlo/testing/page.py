"""One HTML page that needs nothing else, for reports: its frame, its style, and the parts that reports share.

Every word that comes from elsewhere (a plugin's texts, an operator's questions) is escaped. A page runs no script and
loads nothing: it may hold patients' words, and must not tell anybody that it was opened.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape

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
thead th, thead td { border-bottom-width: 2px; white-space: nowrap; }
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
.matrix thead td { border: 0; }
.matrix thead th span { writing-mode: vertical-rl; transform: rotate(180deg); }
.matrix tbody th { position: sticky; left: 0; background: var(--paper); white-space: nowrap; }
.matrix .none { color: var(--soft); }
.new { color: var(--new); }
@media print { body { max-width: none; padding: 0; } .scroll { overflow: visible; } }
"""


def page(title: str, body: Iterable[str], style: str = "") -> str:
    """The whole page. `body` is HTML, and `style` is CSS after that of all reports."""
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en">',
            '<head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="referrer" content="no-referrer">',
            "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">",
            f"<title>{escape(title)}</title>",
            f"<style>{_STYLE}{style}</style></head>",
            "<body><main>",
            *body,
            "</main></body></html>\n",
        ]
    )


def facts(told: Mapping[str, str]) -> str:
    """A list of facts, by their names."""
    rows = "\n".join(f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in told.items())
    return f"<dl>\n{rows}\n</dl>"


def section(title: str, *parts: str) -> str:
    """A section under a heading; `parts` are HTML."""
    return "\n".join([f"<section><h2>{escape(title)}</h2>", *parts, "</section>"])


def table(caption: str, heads: Sequence[str], rows: Iterable[str]) -> str:
    """A table of HTML rows; a head that begins with `#` stands above numbers."""
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


def matrix(
    label: str,
    caption: str,
    rows: Sequence[str],
    columns: Sequence[str],
    counts: Sequence[Sequence[int]],
    *,
    new: Sequence[str] = (),
) -> str:
    """A confusion matrix: the darker a cell, the larger its share of the row; home is green. `new` names are marked."""

    def head(name: str, scope: str) -> str:
        text = f"<span>{escape(name)}</span>" if scope == "col" else escape(name)
        return f'<th scope="{scope}"{" class=new" if name in new else ""}>{text}</th>'

    lines = []
    for name, line in zip(rows, counts, strict=True):
        cells = [_cell(count, sum(line), home=name == column) for column, count in zip(columns, line, strict=True)]
        lines.append(f"<tr>{head(name, 'row')}{''.join(cells)}</tr>")
    heads = "".join(head(name, "col") for name in columns)
    return _scroll(
        label,
        f'<table class="matrix"><caption>{escape(caption)}</caption>'
        f"<thead><tr><td></td>{heads}</tr></thead><tbody>{''.join(lines)}</tbody></table>",
    )


def _cell(count: int, total: int, *, home: bool) -> str:
    if not count:
        return '<td class="none">0</td>'
    # Never so strong that the number on it could not be read.
    strength = 0.12 + 0.43 * count / total
    return f'<td style="background:rgba(var(--{"home" if home else "away"}),{strength:.2f})">{count:,}</td>'


def _scroll(label: str, inside: str) -> str:
    """A table that scrolls by itself on a narrow screen, also with the keyboard."""
    return f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(label)}">{inside}</div>'
