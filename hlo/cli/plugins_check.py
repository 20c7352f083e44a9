"""`hlo plugins check`."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hlo.cli import findings
from hlo.cli.options import read, settings_options
from hlo.cli.pages import check_writable, write

if TYPE_CHECKING:
    from hlo.testing.catchment import Audit
    from hlo.testing.conformance import Examination
    from hlo.testing.subject import Subject

_MOST_SHOWN = 20


@click.command("check")
@click.argument("path_or_name")
@click.option(
    "--questions",
    type=click.Path(dir_okay=False, path_type=Path),
    help='Questions to audit with: one a line, or .jsonl with "question" and, where known, "specialty".',
)
@click.option(
    "--max-moved",
    type=click.FloatRange(0, 1),
    default=0.05,
    show_default=True,
    help="Largest share of its questions that another specialty may lose.",
)
@click.option("--report", type=click.Path(dir_okay=False, path_type=Path), help="Write all of it to this HTML file.")
@click.option("--no-engine", is_flag=True, help="Start no engine: leave out whether the adapter has an effect.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@settings_options("model", "adapter_path", "engine", "plugins", "encoder", "mode", "log_level")
def command(
    path_or_name: str,
    questions: Path | None,
    max_moved: float,
    report: Path | None,
    no_engine: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Examine a plugin, and show which questions it would take from whom.

    PATH_OR_NAME is a source folder, a wheel, or the name of an installed plugin. Its code runs in this process, so
    look at who wrote it first. Exits 1 when it can not be served, or takes too many of another specialty's questions.
    """
    options["log_level"] = options["log_level"] or "error"
    settings = read(options)
    from hlo.testing.catchment import read_questions
    from hlo.testing.conformance import examine
    from hlo.testing.subject import find

    asked = read_questions(questions) if questions else ()
    if report:
        check_writable(report)
    # What a plugin prints must not get into the JSON.
    with contextlib.redirect_stdout(sys.stderr), find(path_or_name) as subject:
        with Console(stderr=True).status(f"examining {subject.place}") as status:
            done = examine(
                subject,
                settings,
                questions=asked,
                max_moved=max_moved,
                engine=not no_engine,
                report=status.update,
            )
        page = _page(subject, done, settings.model, settings.encoder, max_moved) if report else ""
        told = _as_json(subject, done)
    if report:
        write(report, page)
    if as_json:
        click.echo(msgspec.json.encode(told).decode())
    else:
        findings.draw(done.findings)
        if done.audit is not None:
            _draw_moved(done.audit, report)
            _draw_shares(done.audit)
    if done.trouble:
        raise SystemExit(1)


def _page(subject: Subject, done: Examination, model: str, encoder: str, max_moved: float) -> str:
    from hlo.generation.base_model import EMBEDDED_NAME
    from hlo.testing.report import render

    return render(
        done,
        name=subject.name,
        version=subject.version,
        place=subject.place,
        model=model or EMBEDDED_NAME,
        encoder=encoder,
        max_moved=max_moved,
    )


def _as_json(subject: Subject, done: Examination) -> dict[str, Any]:
    audit = msgspec.to_builtins(done.audit)
    if done.audit is not None:
        for told, one in zip(audit["catchments"], done.audit.catchments, strict=True):
            told["share"] = one.share
        for told, home in zip(audit["homes"], done.audit.homes, strict=True):
            told["home"] = home.home
    return {
        "plugin": {
            "name": subject.name,
            "version": subject.version,
            "kind": subject.kind,
            "place": subject.place,
            "entry_points": subject.plugins,
        },
        "findings": done.findings,
        "audit": audit,
    }


def _draw_moved(audit: Audit, report: Path | None) -> None:
    if not audit.moved:
        click.echo("\nNo question would go elsewhere than now.")
        return
    table = Table(title=f"{len(audit.moved)} of {audit.questions} questions would go elsewhere", title_justify="left")
    table.add_column("question", overflow="fold", max_width=70)
    for column in ("whose it is", "goes now to", "would go to"):
        table.add_column(column)
    for one in audit.moved[:_MOST_SHOWN]:
        # Not markup, here and below: questions and names are strangers' words.
        table.add_row(
            Text(one.question),
            Text(one.owner or "not said"),
            Text(f"{one.before or 'no specialty'} {one.score_before:.2f}"),
            Text(f"{one.after or 'no specialty'} {one.score_after:.2f}"),
        )
    Console().print("", table)
    more = len(audit.moved) - _MOST_SHOWN
    if more > 0:
        click.echo(f"{more} more in {f'`{report}`' if report else 'the report (`--report FILE.html`)'}.")


def _draw_shares(audit: Audit) -> None:
    table = Table(title="What each specialty would lose", title_justify="left")
    table.add_column("specialty")
    for column in ("questions", "lost", "share"):
        table.add_column(column, justify="right")
    given = any(one.given for one in audit.catchments)
    if given:
        table.add_column("of yours", justify="right")
    for one in audit.catchments:
        cells = [Text(one.specialty), Text(str(one.before)), Text(str(one.lost)), Text(f"{one.share:.1%}")]
        if given:
            cells.append(Text(f"{one.given_lost} of {one.given}"))
        table.add_row(*cells)
    Console().print("", table)
