"""The README tells what is: its settings, its commands and its code are those of this checkout."""

from __future__ import annotations

import re
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from hlo import catalog, plugins
from hlo.cli.main import cli
from hlo.settings import Settings

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def settings_table() -> str:
    """The table of settings, as the README must have it."""
    lines = ["| variable | default | what it is |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        default = field.get_default()
        shown = f"`{default}`" if default not in (None, "") else ""
        lines.append(f"| `HLO_{name.upper()}` | {shown} | {field.description} |")
    return "\n".join(lines)


def test_the_table_of_settings_is_complete() -> None:
    """Every setting stands in the README with its default and its description, and no other does."""
    found = README.split("<!-- settings -->\n")[1].split("\n<!-- /settings -->")[0]
    assert found == settings_table()


def test_every_command_is_told() -> None:
    """Each `hlo` command is in the table of commands."""
    import click

    for name in cli.list_commands(click.Context(cli)):
        assert f"| `hlo {name}" in README


def test_every_nox_session_it_names_exists() -> None:
    """What `nox -s` names in the README is a session of the noxfile."""
    noxfile = (Path(__file__).parents[1] / "noxfile.py").read_text(encoding="utf-8")
    for name in set(re.findall(r"nox -s (\w+)", README)):
        assert re.search(rf"^@nox\.session\n(@.+\n)*def {name}\(", noxfile, re.MULTILINE)


def test_every_picture_it_shows_is_there() -> None:
    """The pictures that the README shows, in either theme, are files of this checkout."""
    shown = re.findall(r'(?:src|srcset)="([^"]+)"', README) + re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README)
    assert len(shown) > 5
    assert [one for one in shown if not (Path(__file__).parents[1] / one).is_file()] == []


def test_the_specialty_in_the_readme_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package that the README shows is offered by its entry point and holds up to the catalog's checks."""
    folder = tmp_path / "hlo_rheumatology"
    folder.mkdir()
    blocks = re.findall(r"```(?:python|toml)\n# (hlo_rheumatology/[\w.]+)\n(.*?)```", README, re.DOTALL)
    assert sorted(name for name, _ in blocks) == ["hlo_rheumatology/__init__.py", "hlo_rheumatology/examples.toml"]
    for name, text in blocks:
        (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    try:
        found = plugins.discover([EntryPoint("rheumatology", "hlo_rheumatology", plugins.GROUP)])
    finally:
        sys.modules.pop("hlo_rheumatology", None)
    assert found.refusals == ()
    (specialty,) = found.offers[0].specialties
    catalog.check_declaration(specialty)
    assert specialty.name == "rheumatology"
    assert len(specialty.examples["patients"]) == 2
