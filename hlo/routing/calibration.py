"""A calibration: thresholds that were fitted to labelled questions, what they promise, and for whom they hold.

It is kept as JSON that a person can read, and it holds only for the encoder and the specialties that it was made with:
their scores alone are those that it knows.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from hlo.errors import CalibrationError
from hlo.routing.decision import Scale, Thresholds
from hlo.routing.evaluation import BINS
from hlo.routing.intervals import Share

FORMAT = 2
"""The version of the file's form."""

_AGAIN = "Make another with `hlo route calibrate`."

Count = Annotated[int, Meta(ge=0)]
Rate = Annotated[float, Meta(gt=0, lt=1)]
Digest = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
Histogram = Annotated[tuple[Count, ...], Meta(min_length=BINS, max_length=BINS)]


class Counts(Struct, frozen=True, forbid_unknown_fields=True):
    """How many questions fitted the scale, and how many others (with and without a specialty) set the thresholds."""

    fitting: Count
    in_scope: Count
    out_of_scope: Count


class Results(Struct, frozen=True, forbid_unknown_fields=True):
    """What the calibration does to the questions that set its thresholds; see `hlo.routing.evaluation.Evaluation`.

    `errors_at_most` is the one-sided upper bound at the calibration's confidence. The thresholds were chosen with these
    questions, so what is promised is `tolerated_error`, and not this bound or these intervals.
    """

    routed: Share
    errors: Share
    errors_at_most: float
    ambiguous: Share
    kept: Share
    rejected: Share


class Calibration(Struct, frozen=True, forbid_unknown_fields=True):
    """A scale and thresholds, with what they promise for questions like those that they were fitted to.

    With `confidence`, at most `tolerated_error` of the routed questions go to a specialty that is not right; and on
    average at most `tolerated_rejection` of the questions that have a specialty are told out of scope. `specialties`
    and `background` are SHA-256 of what the vectors were made from. `histograms` count, by the best specialty, its
    probabilities in ten bins from 0 to 1, of questions that are routed and others, to compare later questions with.
    """

    format: Annotated[int, Meta(ge=FORMAT, le=FORMAT)]
    made: date
    encoder: str
    fingerprint: str
    specialties: Mapping[str, Digest]
    background: Digest
    scale: Scale
    thresholds: Thresholds
    tolerated_error: Rate
    confidence: Rate
    tolerated_rejection: Rate
    counts: Counts
    results: Results
    histograms: Mapping[str, Histogram]


class _Format(Struct):
    format: int


def check(calibration: Calibration, fingerprint: str, specialties: Mapping[str, str], background: str) -> str | None:
    """Why the calibration may not be used here, in a sentence; None: it may. The digests are those of the router."""
    if calibration.fingerprint != fingerprint:
        return (
            f"It was made with the encoder `{calibration.encoder}` of fingerprint `{calibration.fingerprint}`; "
            f"this one is `{fingerprint}`."
        )
    known = calibration.specialties
    differences = {
        "new": sorted(specialties.keys() - known.keys()),
        "gone": sorted(known.keys() - specialties.keys()),
        "changed": sorted(name for name in known.keys() & specialties.keys() if known[name] != specialties[name]),
    }
    told = [f"{', '.join(f'`{name}`' for name in names)} {word}" for word, names in differences.items() if names]
    if told:
        return f"The specialties are others than it was made with: {'; '.join(told)}."
    if calibration.background != background:
        return "The background, which stands for what no specialty answers, is another than it was made with."
    return None


def save(calibration: Calibration, file: Path) -> None:
    """Write it, whole or not at all. Raises `CalibrationError`."""
    text = msgspec.json.format(msgspec.json.encode(calibration), indent=2)
    try:
        handle, name = tempfile.mkstemp(dir=file.absolute().parent, prefix=f".{file.name}.")
        try:
            with os.fdopen(handle, "wb") as incoming:
                incoming.write(text + b"\n")
            os.chmod(name, 0o644)  # it holds nobody's words, and the server may be another user
            os.replace(name, file)
        except OSError:
            os.unlink(name)
            raise
    except OSError as error:
        raise CalibrationError(
            f"The calibration can not be written to `{file}`: {error.strerror}.", remedy="Name another file."
        ) from error


def load(file: Path) -> Calibration:
    """Read one, with every number checked. Raises `CalibrationError`."""
    try:
        raw = file.read_bytes()
    except OSError as error:
        raise CalibrationError(
            f"The calibration `{file}` can not be read: {error.strerror}.",
            remedy="Check HLO_CALIBRATION, or make one with `hlo route calibrate`.",
        ) from error
    try:
        version = msgspec.json.decode(raw, type=_Format).format
        if version != FORMAT:
            raise CalibrationError(
                f"The calibration `{file}` has format {version}; this HLO reads format {FORMAT}.", remedy=_AGAIN
            )
        found = msgspec.json.decode(raw, type=Calibration)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CalibrationError(f"`{file}` is no calibration: {error}.", remedy=_AGAIN) from error
    wrong = _wrong(found)
    if wrong:
        raise CalibrationError(f"The calibration `{file}` is damaged: {wrong}.", remedy=_AGAIN)
    return found


def _wrong(one: Calibration) -> str:
    """What its numbers can not be; empty when all is well."""
    scale, thresholds = one.scale, one.thresholds
    if not (math.isfinite(scale.gain) and scale.gain > 0):
        return f"`scale.gain` is {scale.gain}, and must be above 0"
    for name, value in (("handicap", scale.handicap), ("floor", scale.floor)):
        if not abs(value) <= 2:
            return f"`scale.{name}` is {value}, and must be between -2 and 2"
    for name, value in (
        ("min_in_scope", thresholds.min_in_scope),
        ("min_probability", thresholds.min_probability),
    ):
        if not 0 <= value <= 1:
            return f"`thresholds.{name}` is {value}, and must be between 0 and 1"
    if one.histograms.keys() != one.specialties.keys():
        return "`histograms` are of other specialties than `specialties`"
    return ""
