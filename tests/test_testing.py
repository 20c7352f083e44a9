"""The fakes that ship: they do what the real parts do."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import aclosing

import numpy as np
import pytest

from hlo.errors import AdapterError, EngineDead
from hlo.records import AdapterVersion, Prompt, Sampling
from hlo.testing import CharacterTokenizer, EchoEngine, HashingEncoder


def test_the_encoder_gives_unit_vectors() -> None:
    """The hashing encoder gives the same unit vectors for the same questions, also for one without words."""
    encoder = HashingEncoder()
    vectors = encoder.encode(["heart pain", "PAIN, heart!", ""])
    assert vectors.shape == (3, encoder.dimension)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    np.testing.assert_array_equal(vectors[0], vectors[1])
    assert encoder.encode([]).shape == (0, encoder.dimension)


def test_the_tokenizer_has_special_tokens() -> None:
    """The character tokenizer knows special tokens where they are trusted, and only there."""
    tokenizer = CharacterTokenizer()
    assert tokenizer.chat("a<b") == "<a<b>"
    assert tokenizer.encode("<a<b>", ((1, 4),)) == (-60, 97, 60, 98, -62)
    assert tokenizer.encode_raw("<a>") == (-60, 97, -62)


async def test_the_engine_echoes(version: Callable[[str], AdapterVersion]) -> None:
    """The echo engine says the adapter's name and the prompt, and the last delta alone has a finish reason."""
    engine = EchoEngine()
    await engine.load(version("a"))
    deltas = [delta async for delta in engine.generate(Prompt((97, -60), version("a")), Sampling(max_tokens=9))]
    assert "".join(delta.text for delta in deltas) == "a:a<"
    assert [delta.finish_reason for delta in deltas] == [None, None, None, "stop"]
    cut = [delta async for delta in engine.generate(Prompt((97,)), Sampling(max_tokens=2))]
    assert [(delta.text, delta.finish_reason) for delta in cut] == [("b", None), ("a", "length")]
    assert (engine.running, engine.aborted) == (0, 0)


async def test_the_engine_counts_aborts() -> None:
    """Closing the echo engine's iterator early counts as an abort."""
    engine = EchoEngine()
    async with aclosing(engine.generate(Prompt((97,)), Sampling())) as deltas:
        await anext(deltas)
        assert engine.running == 1
    assert (engine.running, engine.aborted) == (0, 1)


async def test_the_engine_needs_its_adapters(version: Callable[[str], AdapterVersion]) -> None:
    """The echo engine uses no adapter that was not loaded, or was unloaded."""
    engine = EchoEngine()
    await engine.load(version("a"))
    await engine.unload(version("a"))
    await engine.unload(version("a"))
    with pytest.raises(AdapterError, match="`a` is not loaded"):
        await anext(engine.generate(Prompt((97,), version("a")), Sampling()))


async def test_a_closed_engine_is_dead() -> None:
    """After `close`, which may be called twice, the echo engine is dead."""
    engine = EchoEngine()
    await engine.check_health()
    await engine.close()
    await engine.close()
    with pytest.raises(EngineDead):
        await engine.check_health()
    with pytest.raises(EngineDead):
        await anext(engine.generate(Prompt((97,)), Sampling()))
