"""The records."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from hlo import records
from hlo.records import AdapterVersion, Question, Sampling, SamplingOverrides

STRUCTS = [
    value
    for value in vars(records).values()
    if isinstance(value, type) and issubclass(value, msgspec.Struct) and value.__module__ == records.__name__
]


@pytest.mark.parametrize("struct", STRUCTS, ids=lambda struct: str(struct.__name__))
def test_records_are_frozen(struct: type[msgspec.Struct]) -> None:
    """Every record is frozen, so that no stage can change what another one sees."""
    assert struct.__struct_config__.frozen


def test_a_record_refuses_assignment() -> None:
    """Assigning to a record's field raises."""
    question = Question("Why?")
    with pytest.raises(AttributeError, match="immutable"):
        question.text = "How?"  # type: ignore[misc]  # that is the test


def test_overrides_that_name_nothing_change_nothing() -> None:
    """Overrides without values leave a specialty's sampling as it is."""
    sampling = Sampling(max_tokens=7, temperature=0.5, top_p=0.9, repetition_penalty=1.2, seed=3, stop=("x",))
    assert sampling.override(SamplingOverrides()) == sampling


def test_overrides_win() -> None:
    """Every field that overrides name takes their value, also where that value is false."""
    sampling = Sampling(max_tokens=7, temperature=0.5, top_p=0.9, repetition_penalty=1.2, seed=3, stop=("x",))
    changed = sampling.override(SamplingOverrides(max_tokens=1, temperature=0.0, top_p=0.1, seed=0, stop=()))
    assert changed == Sampling(max_tokens=1, temperature=0.0, top_p=0.1, repetition_penalty=1.2, seed=0, stop=())


def test_every_override_is_a_sampling_field() -> None:
    """What a request may override is a part of `Sampling`, under the same name, and each override is applied."""
    for name in SamplingOverrides.__struct_fields__:
        value: Any = ("stop",) if name == "stop" else 1
        changed = Sampling(max_tokens=5, seed=5).override(SamplingOverrides(**{name: value}))
        assert getattr(changed, name) == value


def test_engine_names_tell_contents_apart() -> None:
    """Two contents of one adapter have different engine names, and the same content has the same."""
    first = AdapterVersion("a", "0" * 64, Path("x"), 8, (), 1)
    second = AdapterVersion("a", "1" * 64, Path("x"), 8, (), 1)
    assert first.engine_name == "a@0000000000000000"
    assert first.engine_name != second.engine_name


def test_default_examples_can_not_be_shared_by_mutation() -> None:
    """A specialty's default `examples` is a read-only mapping."""
    specialty = records.Specialty("a", "A", records.Adapter("a"))
    with pytest.raises(TypeError):
        specialty.examples["patients"] = ("x",)  # type: ignore[index]  # that is the test
