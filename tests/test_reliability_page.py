"""The page of figures: what tests record is what it shows."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from docs import reliability
from hlo.service import problems
from hlo.settings import Settings
from tests.figures import Figure


def test_the_page_has_a_place_for_the_figures() -> None:
    """docs/reliability.md can be written anew, and that changes nothing outside the tables."""
    page = reliability.FILE.read_text(encoding="utf-8")
    made = reliability.render(page, [], "Nowhere.")
    assert made.partition(reliability.BEGIN)[0] == page.partition(reliability.BEGIN)[0]
    assert made.partition(reliability.END)[2] == page.partition(reliability.END)[2]
    assert reliability.render(made, [], "Nowhere.") == made


def test_a_page_without_a_place_is_refused() -> None:
    """A page that lost its markers is not overwritten."""
    with pytest.raises(LookupError, match="no place"):
        reliability.render("# Reliability", [], "")


def test_what_is_recorded_is_shown(figure: Figure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures come by topic, with their number, outcome and test; a bar in them does not break the table."""
    file = tmp_path / "figures.jsonl"
    monkeypatch.setenv("RELIABILITY_FIGURES", str(file))
    figure("inputs", "bodies | made up", 12000, "all refused")
    figure("faults", "engine killed", "ready again in 31 s")
    found = reliability.read(file.read_text(encoding="utf-8"))
    lines = reliability.table(found).splitlines()
    assert lines.index("### Faults survived") < lines.index("### Inputs tried")
    assert any(line.startswith("| bodies \\| made up | 12,000 | all refused | [test_") for line in lines)


def test_without_a_file_nothing_is_recorded(figure: Figure, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that nobody wants figures of records none, and does not fail of it."""
    monkeypatch.delenv("RELIABILITY_FIGURES", raising=False)
    figure("load", "requests", 1)


def test_a_malformed_figure_is_refused() -> None:
    """A topic that the page does not have is an error, not a figure that is left out."""
    with pytest.raises(msgspec.ValidationError, match="topic"):
        reliability.read('{"topic": "speed", "what": "x", "value": 1, "outcome": "", "test": "t"}')


def test_the_page_names_what_there_is() -> None:
    """The settings that the page speaks of exist, and so do the problems."""
    page = reliability.FILE.read_text(encoding="utf-8").partition(reliability.BEGIN)[0]
    named = set(re.findall(r"`HLO_([A-Z_]+)`", page))
    assert {name.lower() for name in named} <= set(Settings.model_fields)
    told = Path(problems.__file__).read_text(encoding="utf-8")
    slugs = set(re.findall(r"\d{3} `([a-z-]+)`", page))
    assert len(slugs) > 4
    assert all(f'"{slug}"' in told for slug in slugs)
