"""How often adapters were used is remembered from one run to the next."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from hlo.generation import uses

NAMES = ("a", "b", "c", "d")


def test_what_was_used_most_comes_last(tmp_path: Path) -> None:
    """Names come in the order of their uses, those without any first, by name."""
    assert uses.rarest_first(reversed(NAMES), tmp_path) == list(NAMES)
    uses.remember({"a": 3, "c": 5}, tmp_path)
    assert uses.rarest_first(NAMES, tmp_path) == ["b", "d", "a", "c"]
    uses.remember({}, tmp_path)
    assert uses.rarest_first(NAMES, tmp_path) == ["b", "d", "a", "c"]


def test_earlier_runs_count_less(tmp_path: Path) -> None:
    """Of what earlier runs counted, half stays with each run."""
    uses.remember({"a": 5}, tmp_path)
    uses.remember({"b": 3}, tmp_path)
    assert uses.rarest_first(NAMES, tmp_path)[-2:] == ["a", "b"]
    uses.remember({"a": 1}, tmp_path)
    assert uses.rarest_first(NAMES, tmp_path)[-2:] == ["b", "a"]


@pytest.mark.parametrize("content", ["", "[1]", '{"a": "often"}'])
def test_a_file_that_is_none_is_told_and_left_out(
    content: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A file that can not be read costs the order, not the start, and the log says so."""
    uses.remember({"a": 1}, tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_text(content)
    with caplog.at_level(logging.WARNING, "hlo"):
        assert uses.rarest_first(NAMES, tmp_path) == list(NAMES)
    assert str(file) in caplog.text


def test_a_store_that_can_not_be_written_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Where nothing can be kept, the log says so, and nothing else happens."""
    (tmp_path / "taken").write_text("a file, no folder")
    with caplog.at_level(logging.WARNING, "hlo"):
        uses.remember({"a": 1}, tmp_path / "taken")
    assert "taken" in caplog.text
