"""Prototypes: one unit vector per specialty."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from hlo.errors import PluginError
from hlo.records import Adapter, Embeddings, Specialty
from hlo.routing import prototypes
from hlo.testing import HashingEncoder

ENCODER = HashingEncoder()


def specialty(**fields: Any) -> Specialty:
    return Specialty(name="cardiology", title="Cardiology", adapter=Adapter("x"), **fields)


def test_a_prototype_is_a_unit_vector() -> None:
    """A prototype has the encoder's dimension and length one."""
    vector = prototypes.prototype(specialty(examples={"p": ("heart pain", "blood")}), ENCODER)
    assert vector.shape == (256,)
    assert vector.dtype == np.float32
    assert float(np.linalg.norm(vector)) == pytest.approx(1)


def test_parts_weigh_the_same() -> None:
    """A part with many examples has no more weight than a part with one."""
    few = prototypes.prototype(specialty(examples={"p": ("heart",), "c": ("blood",)}), ENCODER)
    many = prototypes.prototype(specialty(examples={"p": ("heart",), "c": ("blood",) * 50}), ENCODER)
    np.testing.assert_allclose(few, many, atol=1e-6)


def test_a_part_is_its_examples_mean() -> None:
    """Within a part, each example weighs the same, and empty parts weigh nothing."""
    found = prototypes.prototype(specialty(examples={"p": ("heart", "heart", "blood"), "none": ()}), ENCODER)
    heart, blood = ENCODER.encode(["heart", "blood"])
    wanted = (2 * heart + blood) / np.linalg.norm(2 * heart + blood)
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_embeddings_are_as_good_as_examples() -> None:
    """Embeddings made by the encoder give the prototype that the examples give, also when not of length 1."""
    examples = ("heart pain", "blood pressure")
    by_examples = prototypes.prototype(specialty(examples={"p": examples}), ENCODER)
    embeddings = Embeddings(ENCODER.fingerprint, {"p": (3 * ENCODER.encode(examples)).tolist()})
    np.testing.assert_allclose(prototypes.prototype(specialty(embeddings=embeddings), ENCODER), by_examples, atol=1e-6)


def test_embeddings_come_before_examples() -> None:
    """Where a specialty gives both, its embeddings count."""
    embeddings = Embeddings(ENCODER.fingerprint, {"p": ENCODER.encode(["blood"]).tolist()})
    found = prototypes.prototype(specialty(embeddings=embeddings, examples={"p": ("heart",)}), ENCODER)
    np.testing.assert_allclose(found, ENCODER.encode(["blood"])[0], atol=1e-6)


def test_another_encoders_embeddings_are_refused() -> None:
    """Embeddings of another encoder are refused with both fingerprints: their distances mean nothing."""
    embeddings = Embeddings("minilm", {"p": ENCODER.encode(["blood"]).tolist()})
    with pytest.raises(PluginError) as caught:
        prototypes.prototype(specialty(embeddings=embeddings, examples={"p": ("heart",)}), ENCODER)
    assert "`minilm`" in caught.value.message
    assert "`hashing-256`" in caught.value.message
    assert caught.value.remedy


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [[]],
        [[1.0] * 255],
        [[1.0] * 257],
        [[float("nan")] * 256],
        [[float("inf")] * 256],
        [[1.0] * 256, [1.0]],
    ],
    ids=["no rows", "no columns", "short", "long", "nan", "inf", "ragged"],
)
def test_misshapen_embeddings_are_refused(rows: list[list[float]]) -> None:
    """Embeddings of another shape, or with values that are no numbers, are refused by part and specialty."""
    with pytest.raises(PluginError, match="`p` of `cardiology`"):
        prototypes.prototype(specialty(embeddings=Embeddings(ENCODER.fingerprint, {"p": rows})), ENCODER)


@pytest.mark.parametrize("fields", [{}, {"examples": {"p": ()}}, {"embeddings": Embeddings("hashing-256", {})}])
def test_a_specialty_without_examples_is_refused(fields: dict[str, Any]) -> None:
    """A specialty to which no question could be routed is refused."""
    with pytest.raises(PluginError, match="`cardiology` has no routing examples"):
        prototypes.prototype(specialty(**fields), ENCODER)


def test_scores_are_cosines_by_name() -> None:
    """Each question is compared with each prototype, and its scores keep the specialties' order."""
    table = prototypes.stack([("h", ENCODER.encode(["heart"])[0]), ("b", ENCODER.encode(["blood"])[0])], 256)
    first, second = table.scores(ENCODER.encode(["heart", "heart blood"]))
    assert [(one.specialty, round(one.score, 3)) for one in first] == [("h", 1.0), ("b", 0.0)]
    assert [(one.specialty, round(one.score, 3)) for one in second] == [("h", 0.707), ("b", 0.707)]


def test_no_prototypes_give_no_scores() -> None:
    """Without any specialty, a question has no scores, and that is no error."""
    assert prototypes.stack([], 256).scores(ENCODER.encode(["heart", "blood"])) == ((), ())


def test_only_keeps_names_and_vectors_together() -> None:
    """Leaving specialties out leaves the others with their own vectors, in their order."""
    vectors = ENCODER.encode(["a", "b", "c"])
    table = prototypes.only(prototypes.stack(list(zip("abc", vectors, strict=True)), 256), {"c", "a", "unknown"})
    assert table.names == ("a", "c")
    np.testing.assert_array_equal(table.vectors, vectors[[0, 2]])
