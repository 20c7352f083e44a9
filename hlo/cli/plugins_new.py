"""`hlo plugins new`."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path

import click
from rich.console import Console


@click.command("new")
@click.argument("name")
@click.option("--title", help="What people read; made from NAME unless given.")
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(),
    help="Folder in which the package's folder is made; the current one unless given.",
)
def command(name: str, title: str | None, output: Path) -> None:
    """Write a new specialty's package: complete, tested, and ready to be filled.

    NAME is the specialty's name: lower-case letters, digits and `_`. Nothing is overwritten.
    """
    from hlo.scaffold import write

    with Console(stderr=True).status("writing the package and its adapter"):
        written = write(name, title, output)
    place = shlex.quote(str(written.folder))
    click.echo("\n".join([str(written.folder), *_tree(map(Path, written.files))]))
    click.echo("\nNext:")
    click.echo(f"  python -m pip install -e {shlex.quote(f'{written.folder}[test]')}")
    click.echo(f"  python -m pytest {place}")
    click.echo(f"  hlo plugins check {name}")


def _tree(files: Iterable[Path], indent: str = "") -> Iterator[str]:
    """The lines that draw sorted paths as a tree."""
    entries = [(name, list(below)) for name, below in groupby(files, key=lambda path: path.parts[0])]
    for name, below in entries:
        last = name == entries[-1][0]
        deeper = [path.relative_to(name) for path in below if len(path.parts) > 1]
        yield f"{indent}{'└── ' if last else '├── '}{name}{'/' if deeper else ''}"
        yield from _tree(deeper, indent + ("    " if last else "│   "))
