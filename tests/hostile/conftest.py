"""How many inputs are tried, and how that is told."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from typing import Any, Protocol

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import HypothesisWarning
from hypothesis.strategies import SearchStrategy

from hlo.errors import HLOError
from tests.figures import Figure

EXAMPLES = int(os.environ.get("HOSTILE_EXAMPLES", "100"))
"""Inputs for each property; `nox -s reliability` tries many more."""


class Tries(Protocol):
    """How tests try inputs: `use` gets each, and may raise `HLOError` in words that can be written, no other."""

    def __call__(self, what: str, inputs: SearchStrategy[Any], use: Callable[[Any], object], share: float = 1) -> None:
        """Try `EXAMPLES` times `share` inputs, and record how many that were."""


@pytest.fixture
def tries(figure: Figure) -> Tries:
    """Try inputs, and record how many."""

    def run(what: str, inputs: SearchStrategy[Any], use: Callable[[Any], object], share: float = 1) -> None:
        tried = refused = 0

        @settings(
            max_examples=max(int(EXAMPLES * share), 1),
            deadline=None,
            database=None,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
        )
        @given(inputs)
        def each(value: Any) -> None:
            nonlocal tried, refused
            tried += 1
            try:
                use(value)
            except HLOError as error:
                refused += 1
                str(error).encode()

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", HypothesisWarning)  # it would rather not print what is nested so deep
            each()
        assert tried
        figure("inputs", what, tried, f"{refused} refused in words, {tried - refused} taken, no other error")

    return run
