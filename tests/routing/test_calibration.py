"""A calibration on disk, and for whom it holds."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import msgspec
import pytest

from hlo.errors import CalibrationError
from hlo.routing.calibration import FORMAT, Calibration, Counts, Results, check, load, save
from hlo.routing.decision import Scale, Thresholds
from hlo.routing.intervals import share


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


SPECIALTIES = {"cardiology": digest("heart"), "oncology": digest("tumour")}
CALIBRATION = Calibration(
    format=FORMAT,
    made=date(2026, 11, 22),
    encoder="hashing",
    fingerprint="hashing-256",
    specialties=SPECIALTIES,
    background=digest("background"),
    scale=Scale(1.25, -0.01, 0.3),
    thresholds=Thresholds(0.25, 0.61),
    tolerated_error=0.05,
    confidence=0.95,
    tolerated_rejection=0.05,
    counts=Counts(100, 150, 50),
    results=Results(share(120, 200), share(2, 120), 0.05, share(50, 200), share(145, 150), share(0, 0)),
    histograms={"cardiology": (0,) * 9 + (60,), "oncology": (0,) * 8 + (10, 50)},
)


def test_it_comes_back_from_disk(tmp_path: Path) -> None:
    """What is saved is loaded, from a file that others may read too."""
    file = tmp_path / "calibration.json"
    save(CALIBRATION, file)
    assert load(file) == CALIBRATION
    assert file.stat().st_mode & 0o777 == 0o644
    assert list(tmp_path.iterdir()) == [file]


def test_a_person_can_read_it(tmp_path: Path) -> None:
    """The file is JSON with a line for each field and a share as a share."""
    file = tmp_path / "calibration.json"
    save(CALIBRATION, file)
    text = file.read_text(encoding="utf-8")
    assert '\n  "made": "2026-11-22",\n' in text
    told = json.loads(text)
    assert told["thresholds"] == {"min_in_scope": 0.25, "min_probability": 0.61}
    assert told["results"]["routed"]["value"] == 0.6
    assert text.endswith("}\n")


def test_an_older_one_is_replaced_whole(tmp_path: Path) -> None:
    """Saving over a calibration replaces it."""
    file = tmp_path / "calibration.json"
    file.write_text("x" * 100_000, encoding="utf-8")
    save(CALIBRATION, file)
    assert load(file) == CALIBRATION


def test_where_it_can_not_be_written(tmp_path: Path) -> None:
    """A folder that is not there is refused, and nothing is left."""
    with pytest.raises(CalibrationError, match="can not be written"):
        save(CALIBRATION, tmp_path / "missing" / "calibration.json")
    (tmp_path / "folder").mkdir()
    with pytest.raises(CalibrationError, match="can not be written"):
        save(CALIBRATION, tmp_path / "folder")
    assert [one.name for one in tmp_path.iterdir()] == ["folder"]


def change(**fields: Any) -> Callable[[dict[str, Any]], None]:
    """Set fields; one inside another is written with two underscores."""

    def to(told: dict[str, Any]) -> None:
        for path, value in fields.items():
            *outer, last = path.split("__")
            place = told
            for name in outer:
                place = place[name]
            place[last] = value

    return to


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (change(format=3), r"has format 3; this HLO reads format 2"),
        (change(format="1"), r"`\$.format`"),
        (change(surprise=1), "surprise"),
        (change(counts__surprise=1), "surprise"),
        (change(made="yesterday"), r"`\$.made`"),
        (change(tolerated_error=0), r"`\$.tolerated_error`"),
        (change(confidence=1.5), r"`\$.confidence`"),
        (change(background="abc"), r"`\$.background`"),
        (change(specialties__cardiology="XYZ"), r"`\$.specialties"),
        (change(counts__fitting=-1), r"`\$.counts.fitting`"),
        (change(scale__gain=0), r"`scale.gain` is 0"),
        (change(scale__gain=-1), r"`scale.gain` is -1"),
        (change(scale__floor=5), r"`scale.floor` is 5"),
        (change(thresholds__min_in_scope=1.5), r"`thresholds.min_in_scope` is 1.5"),
        (change(thresholds__min_probability=-0.1), r"`thresholds.min_probability` is -0.1"),
        (change(thresholds={}), r"`\$.thresholds`"),
        (change(histograms={}), "other specialties"),
        (change(histograms__cardiology=[1, 2]), r"`\$.histograms"),
        (lambda told: told.pop("scale"), "scale"),
    ],
)
def test_a_damaged_one_is_refused(damage: Callable[[dict[str, Any]], None], reason: str, tmp_path: Path) -> None:
    """A file whose fields are missing, unknown, of another kind or out of range is refused with the field's name."""
    file = tmp_path / "calibration.json"
    told = json.loads(msgspec.json.encode(CALIBRATION))
    damage(told)
    file.write_text(json.dumps(told), encoding="utf-8")
    with pytest.raises(CalibrationError, match=reason) as caught:
        load(file)
    assert str(file) in caught.value.message
    assert "hlo route calibrate" in caught.value.remedy


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"format": NaN}'])
def test_what_is_no_calibration_is_refused(content: bytes, tmp_path: Path) -> None:
    """Any other file is refused by name."""
    file = tmp_path / "calibration.json"
    file.write_bytes(content)
    with pytest.raises(CalibrationError, match="is no calibration"):
        load(file)


def test_a_missing_one_is_refused(tmp_path: Path) -> None:
    """A file that is not there is refused with the setting that names it."""
    with pytest.raises(CalibrationError, match="No such file") as caught:
        load(tmp_path / "calibration.json")
    assert "HLO_CALIBRATION" in caught.value.remedy


def test_it_holds_for_what_it_was_made_with() -> None:
    """The same encoder, specialties in any order and background leave nothing to say."""
    backwards = dict(reversed(SPECIALTIES.items()))
    assert check(CALIBRATION, "hashing-256", backwards, digest("background")) is None


@pytest.mark.parametrize(
    ("fingerprint", "specialties", "background", "told"),
    [
        ("other", SPECIALTIES, "background", "`hashing` of fingerprint `hashing-256`; this one is `other`"),
        ("hashing-256", SPECIALTIES | {"genetics": digest("g")}, "background", "`genetics` new."),
        ("hashing-256", {"cardiology": digest("heart")}, "background", "`oncology` gone."),
        ("hashing-256", SPECIALTIES | {"oncology": digest("tumor")}, "background", "`oncology` changed."),
        (
            "hashing-256",
            {"b": digest("b"), "a": digest("a"), "cardiology": digest("h")},
            "background",
            "`a`, `b` new; `oncology` gone; `cardiology` changed.",
        ),
        ("hashing-256", SPECIALTIES, "else", "The background"),
    ],
)
def test_it_holds_for_nothing_else(fingerprint: str, specialties: dict[str, str], background: str, told: str) -> None:
    """Another encoder, other specialties, or another background are named."""
    reason = check(CALIBRATION, fingerprint, specialties, digest(background))
    assert reason is not None
    assert told in reason
