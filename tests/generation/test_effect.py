"""The effect check: an adapter must change what the model says."""

from __future__ import annotations

from pathlib import Path

import pytest

from hlo.errors import AdapterError
from hlo.generation.effect import check_effect
from hlo.records import AdapterVersion, Prompt
from hlo.testing import EchoEngine


class NoisyEngine(EchoEngine):
    """An engine whose base scores differ from call to call, and whose adapter differs from them by `effect`."""

    def __init__(self, noise: float, effect: float) -> None:
        super().__init__()
        self._noise = noise
        self._effect = effect
        self._calls = 0

    async def score(self, prompt: Prompt) -> tuple[float, ...]:
        """Base scores of -1, every second time `noise` lower; adapted ones `effect` lower at the last token."""
        if prompt.adapter:
            return (-1.0, -1.0 - self._effect)
        self._calls += 1
        return (-1.0, -1.0 - self._noise * (self._calls % 2 == 0))


def prompt(sha256: str) -> Prompt:
    return Prompt((1, 2, 3), AdapterVersion("heart", sha256, Path("x"), 8, (), 1))


async def test_an_effect_is_measured() -> None:
    """The largest difference of log-probabilities is returned."""
    assert await check_effect(EchoEngine(), prompt("8000" + "0" * 60)) == pytest.approx(0.5)


async def test_no_effect_is_refused_by_name() -> None:
    """An adapter that changes no log-probability is refused by name, with what to check."""
    with pytest.raises(AdapterError, match="`heart` changes nothing") as caught:
        await check_effect(EchoEngine(), prompt("0" * 64))
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("noise", "effect", "holds"),
    [(0.0, 2e-4, True), (0.0, 5e-5, False), (0.01, 0.2, True), (0.01, 0.09, False), (0.01, 0.01, False)],
)
async def test_the_effect_must_stand_above_the_noise(noise: float, effect: float, holds: bool) -> None:
    """A difference counts only when it is well above what two runs of the base model differ by."""
    engine = NoisyEngine(noise, effect)
    if holds:
        assert await check_effect(engine, prompt("1" * 64)) == pytest.approx(effect)
    else:
        with pytest.raises(AdapterError):
            await check_effect(engine, prompt("1" * 64))


async def test_nan_is_no_effect() -> None:
    """An adapter under which log-probabilities are no numbers is refused."""
    with pytest.raises(AdapterError):
        await check_effect(NoisyEngine(0.0, float("nan")), prompt("1" * 64))


async def test_a_prompt_without_an_adapter_is_a_mistake() -> None:
    """The check of a prompt without an adapter is a programmer's mistake."""
    with pytest.raises(ValueError, match="adapter"):
        await check_effect(EchoEngine(), Prompt((1, 2)))
