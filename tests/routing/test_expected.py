"""What is expected of a router's questions: the calibration's, or the examples', each as if it were none of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from hlo.routing import expected as module
from hlo.routing.bank import Bank, Group
from hlo.routing.batching import BatchingEncoder
from hlo.routing.decision import Scale, Thresholds
from hlo.routing.expected import expected
from hlo.routing.router import Router
from hlo.testing import HashingEncoder

if TYPE_CHECKING:
    import pytest

    from tests.conftest import Parts


def router(groups: int, examples: int) -> Router:
    """A router over groups that lie far apart, each around an axis of its own."""
    generator = np.random.default_rng(0)
    made = []
    for number in range(groups):
        vectors = generator.normal(0, 0.05, (examples, 64)).astype(np.float32)
        vectors[:, number] += 1
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        made.append(Group(f"s{number}", vectors, vectors.mean(0)))
    encoder = BatchingEncoder(HashingEncoder(), 1)
    encoder.close()
    return Router(encoder, Bank.of(made, dimension=64), Scale(), Thresholds(0.2, 0.5))


def test_a_calibration_comes_first(parts: Parts) -> None:
    """Where a calibration holds, its histograms are what is expected."""
    parts.router.calibrated = {"cardiology": (0,) * 9 + (7,)}
    found = expected(parts.router)
    assert (found.basis, found.histograms) == ("calibration", parts.router.calibrated)


def test_else_the_examples_count() -> None:
    """Every example is counted once, under where it would go were it not there itself."""
    found = expected(router(3, 20))
    assert found.basis == "examples"
    assert {name: sum(counts) for name, counts in found.histograms.items()} == {"s0": 20, "s1": 20, "s2": 20}
    assert all(counts[9] == 20 for counts in found.histograms.values())


def test_an_example_is_no_evidence_for_itself() -> None:
    """A specialty's only example is taken for another's, and with no confidence: nothing else is like it."""
    assert expected(router(2, 1)).histograms == {"s0": (1, *(0,) * 9), "s1": (1, *(0,) * 9)}


def test_many_examples_are_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many examples, and of many specialties, some are compared; each specialty keeps one at least."""
    found = expected(router(2, 200)).histograms
    assert all(32 < sum(counts) <= 64 for counts in found.values())
    monkeypatch.setattr(module, "_MOST_OF_ALL", 10)
    assert all(sum(counts) == 5 for counts in expected(router(2, 200)).histograms.values())
    monkeypatch.setattr(module, "_MOST_OF_ALL", 1)
    assert all(sum(counts) == 1 for counts in expected(router(2, 200)).histograms.values())


def test_without_specialties_nothing_is_expected() -> None:
    """A router without specialties expects nothing, and that is no error."""
    assert expected(router(0, 0)).histograms == {}
