"""Labelled questions, read from a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hlo.errors import SettingsError
from hlo.routing.labelled import Labelled, lines, read, refuse_strangers


def written(folder: Path, *rows: object) -> Path:
    file = folder / "questions.jsonl"
    told = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    file.write_text("\n".join(told) + "\n", encoding="utf-8")
    return file


def test_labels_are_read(tmp_path: Path) -> None:
    """A line says whose a question is, or that it is nobody's; other keys and empty lines are passed over."""
    file = written(
        tmp_path,
        {"question": "My heart races", "specialty": "cardiology", "also": ["endocrinology"], "source": 3},
        "",
        {"question": "Where do I park?", "specialty": None},
        {"question": "a\u2028b", "specialty": "x", "also": None},
    )
    assert read(file) == (
        Labelled("My heart races", "cardiology", ("endocrinology",), 1),
        Labelled("Where do I park?", None, (), 3),
        Labelled("a\u2028b", "x", (), 4),
    )


@pytest.mark.parametrize(
    ("place", "specialty", "also", "right"),
    [
        ("a", "a", (), True),
        ("b", "a", (), False),
        ("b", "a", ("b",), True),
        (None, "a", ("b",), False),
        (None, None, (), True),
        ("a", None, (), False),
        ("a", None, ("a",), True),
        (None, None, ("a",), True),
    ],
)
def test_what_is_right(place: str | None, specialty: str | None, also: tuple[str, ...], right: bool) -> None:
    """Right are the label and what stands in `also`; a label of none makes no specialty right."""
    assert Labelled("q", specialty, also).accepts(place) is right


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "is no question"),
        ("[]", "is no question"),
        ("the patient's words", "is no question"),
        ({"question": 3, "specialty": "a"}, "is no question"),
        ({"question": " ", "specialty": "a"}, "is no question"),
        ({"specialty": "a"}, "is no question"),
        ({"question": "the patient's words"}, "has no `specialty`"),
        ({"question": "the patient's words", "specialty": 3}, "is no name"),
        ({"question": "the patient's words", "specialty": ""}, "is no name"),
        ({"question": "the patient's words", "specialty": "a", "also": "b"}, "is no list of names"),
        ({"question": "the patient's words", "specialty": "a", "also": [None]}, "is no list of names"),
    ],
    ids=str,
)
def test_errors_name_the_line_and_not_its_words(line: Any, reason: str, tmp_path: Path) -> None:
    """What can not be read is named by file and line, without the words in it."""
    file = written(tmp_path, {"question": "q", "specialty": None}, "", line)
    with pytest.raises(SettingsError, match=reason) as caught:
        read(file)
    told = str(caught.value)
    assert "ine 3 of" in told
    assert str(file) in told
    assert "patient" not in told
    assert caught.value.remedy


def test_a_repeated_question_counts_once(tmp_path: Path) -> None:
    """The same question with the same label counts once, in whatever order `also` stands."""
    rows: list[dict[str, Any]] = [
        {"question": "q", "specialty": "a", "also": ["b", "c"]},
        {"question": "q", "specialty": "a", "also": ["c", "b"]},
    ]
    assert read(written(tmp_path, *rows)) == (Labelled("q", "a", ("b", "c"), 1),)


@pytest.mark.parametrize("other", [{"specialty": "b"}, {"specialty": None}, {"specialty": "a", "also": ["b"]}])
def test_labels_that_contradict_are_refused(other: dict[str, Any], tmp_path: Path) -> None:
    """The same question with another label is refused with both lines."""
    file = written(tmp_path, {"question": "my words", "specialty": "a"}, {"question": "my words", **other})
    with pytest.raises(SettingsError, match=r"Line 2 .* repeats the question of line 1") as caught:
        read(file)
    assert "my words" not in str(caught.value)


def test_labels_may_be_missing_where_it_is_asked_for(tmp_path: Path) -> None:
    """A file that need not be labelled throughout is read the same, without labels where there are none."""
    assert read(written(tmp_path, {"question": "q"}), partly=True) == (Labelled("q", None, (), 1),)


def test_strangers_are_refused(tmp_path: Path) -> None:
    """A label that is no installed specialty is refused with its line, in `also` as well."""
    file = Path("q.jsonl")
    refuse_strangers(file, [Labelled("q", "a", ("b",), 1), Labelled("r", None, (), 2)], ["a", "b"])
    for stranger in (Labelled("q", "c", (), 7), Labelled("q", "a", ("c",), 7), Labelled("q", None, ("c",), 7)):
        with pytest.raises(SettingsError, match=r"Line 7 of `q.jsonl` names the specialty `c`") as caught:
            refuse_strangers(file, [stranger], ["b", "a"])
        assert "a, b" in caught.value.remedy


def test_a_file_that_can_not_be_read_is_refused(tmp_path: Path) -> None:
    """A missing file, and one that is not UTF-8, are refused by name."""
    with pytest.raises(SettingsError, match="No such file"):
        lines(tmp_path / "missing.jsonl")
    (tmp_path / "latin.jsonl").write_bytes("é".encode("latin-1"))
    with pytest.raises(SettingsError, match="it is not UTF-8"):
        lines(tmp_path / "latin.jsonl")


@given(told=st.lists(st.text(st.characters(exclude_categories=["Cs"])).map(str.strip).filter(bool), unique=True))
def test_every_question_comes_back(told: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    """Whatever words a question is made of, they come back."""
    file = written(tmp_path_factory.mktemp("labelled"), *({"question": one, "specialty": None} for one in told))
    assert [one.text for one in read(file)] == told
