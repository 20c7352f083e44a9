"""The embedded adapters are real: each knows its own specialty better than the base and than every other."""

from __future__ import annotations

import tomllib
from collections import defaultdict
from pathlib import Path

import pytest

from tests.e2e.reference import BASE, Reference
from tests.e2e.test_answers import SPECIALTIES

PAIRS = Path(__file__).parents[1] / "data" / "specialty_pairs.toml"


@pytest.fixture(scope="module")
def losses() -> dict[str, dict[str, float]]:
    """For each specialty's own question/answer pairs, the mean loss under base and under every adapter."""
    reference = Reference(SPECIALTIES)
    pairs = defaultdict(list)
    for pair in tomllib.loads(PAIRS.read_text(encoding="utf-8"))["pair"]:
        pairs[pair["specialty"]].append((pair["question"], pair["answer"]))
    assert sorted(pairs) == SPECIALTIES
    return {
        specialty: {
            adapter: sum(reference.loss(*pair, adapter) for pair in some) / len(some)
            for adapter in [BASE, *SPECIALTIES]
        }
        for specialty, some in pairs.items()
    }


@pytest.mark.parametrize("specialty", SPECIALTIES)
def test_the_right_adapter_is_the_best(specialty: str, losses: dict[str, dict[str, float]]) -> None:
    """On pairs written for this test, no other adapter and not the base predicts the answers better."""
    found = losses[specialty]
    assert min(found, key=lambda name: found[name]) == specialty, sorted(found.items(), key=lambda one: one[1])[:4]
