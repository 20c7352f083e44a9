"""Shows that an adapter changes what the model says: an engine can accept one that does nothing, and serve the base."""

from __future__ import annotations

from collections.abc import Sequence

from hlo.contracts import Engine
from hlo.errors import AdapterError
from hlo.records import Prompt


async def check_effect(engine: Engine, prompt: Prompt) -> float:
    """Compare the log-probabilities of a prompt's tokens with and without its adapter; return the largest difference.

    The base model is scored twice, and the difference must stand well above what these two differ by. Raises
    `AdapterError` when it does not, and `EngineError`.
    """
    if prompt.adapter is None:
        raise ValueError("a prompt with an adapter was wanted")
    base = Prompt(prompt.token_ids, trace=prompt.trace)
    first, second, adapted = await engine.score(base), await engine.score(base), await engine.score(prompt)
    return measure(prompt.adapter.name, first, second, adapted)


def measure(adapter: str, first: Sequence[float], second: Sequence[float], adapted: Sequence[float]) -> float:
    """The largest difference that an adapter makes to the base model's scores, of which there are two.

    Raises `AdapterError` when it does not stand above what these two differ by.
    """
    noise = max(abs(a - b) for a, b in zip(first, second, strict=True))
    effect = max(abs(a - b) for a, b in zip(first, adapted, strict=True))
    if not effect > 10 * noise + 1e-4:  # also when it is NaN
        raise AdapterError(
            f"The adapter `{adapter}` changes nothing: log-probabilities differ from the base model's by "
            f"{effect:.2g} at most.",
            remedy="Check that its layers are those of this base model, and that it was trained.",
        )
    return effect
