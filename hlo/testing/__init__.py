"""Fakes that ship, for tests of plugins and of HLO itself: quick, deterministic, and good for nothing else."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import AsyncGenerator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from hlo.contracts import EngineInfo
from hlo.errors import AdapterError, EngineDead
from hlo.records import AdapterVersion, Delta, Prompt, Sampling, Turn

if TYPE_CHECKING:
    from numpy.typing import NDArray


class HashingEncoder:
    """An encoder that knows words only: questions that share words are close (the hashing trick).

    Weinberger et al., "Feature Hashing for Large Scale Multitask Learning" (ICML 2009).
    """

    name = "hashing"
    fingerprint = "hashing-256"
    dimension = 256

    def encode(self, questions: Sequence[str]) -> NDArray[np.float32]:
        """Unit vectors, shape (questions, 256)."""
        vectors = np.zeros((len(questions), self.dimension), dtype=np.float32)
        for row, question in zip(vectors, questions, strict=True):
            for word in re.findall(r"\w+", question.lower()) or [""]:
                row[int(hashlib.sha256(word.encode()).hexdigest()[:8], 16) % self.dimension] += 1
        return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), dtype=np.float32)


class CharacterTokenizer:
    """A tokenizer whose tokens are characters; `<` and `>` stand for special tokens, numbered below zero."""

    def chat(self, user: str, turns: Sequence[Turn] = ()) -> str:
        """The user's turns between `<` and `>`, and the answers after them."""
        return "".join(f"<{turn.question}>{turn.answer}" for turn in turns) + f"<{user}>"

    def encode(self, text: str, untrusted: tuple[tuple[int, int], ...] = ()) -> tuple[int, ...]:
        """Code points; a special character is negative, unless it stands in an untrusted span."""
        return tuple(
            ord(one) if one not in "<>" or any(start <= at < end for start, end in untrusted) else -ord(one)
            for at, one in enumerate(text)
        )

    def encode_raw(self, text: str) -> tuple[int, ...]:
        """Code points, special ones negative."""
        return self.encode(text)


class EchoEngine:
    """An engine that says the name of the adapter and then the prompt, a character a token.

    `pause` is the time between tokens, in seconds. `running` counts requests in flight; `aborted` those given up.
    An adapter that `unload` takes away under a running request is an error there, as it would be in a real engine.
    """

    def __init__(self, *, max_model_len: int = 512, pause: float = 0.0, max_adapters: int = 64) -> None:
        self.info = EngineInfo(
            engine="echo",
            version="1",
            model="echo",
            device="cpu",
            dtype="float32",
            quantization="none",
            eager=True,
            max_model_len=max_model_len,
            max_adapters=max_adapters,
            max_lora_rank=64,
        )
        self.loaded: dict[str, AdapterVersion] = {}
        self.running = 0
        self.aborted = 0
        self.closed = False
        self._pause = pause

    async def load(self, adapter: AdapterVersion) -> None:
        """Remember the adapter. Raises `AdapterError` when there is no room."""
        if len(self.loaded | {adapter.engine_name: adapter}) > self.info.max_adapters:
            raise AdapterError("The engine has no room.", remedy="Restart it.")
        self.loaded[adapter.engine_name] = adapter

    async def unload(self, adapter: AdapterVersion) -> None:
        """Forget the adapter."""
        self.loaded.pop(adapter.engine_name, None)

    async def generate(self, prompt: Prompt, sampling: Sampling) -> AsyncGenerator[Delta, None]:
        """Say `adapter:prompt`, at most `max_tokens` characters of it."""
        await self.check_health()
        if prompt.adapter is not None and prompt.adapter.engine_name not in self.loaded:
            raise AdapterError(f"The adapter `{prompt.adapter.name}` is not loaded.", remedy="Load it first.")
        name = prompt.adapter.name if prompt.adapter else "base"
        text = f"{name}:{''.join(chr(abs(number)) for number in prompt.token_ids)}"
        said = text[: sampling.max_tokens]
        self.running += 1
        finished = False
        try:
            for at, one in enumerate(said):
                await asyncio.sleep(self._pause)
                if prompt.adapter is not None and prompt.adapter.engine_name not in self.loaded:
                    raise EngineDead("The adapter of a running request was unloaded.", remedy="Drain it first.")
                last = at == len(said) - 1
                finished = last
                yield Delta(one, (ord(one),), ("stop" if said == text else "length") if last else None)
        finally:
            self.running -= 1
            self.aborted += not finished

    async def score(self, prompt: Prompt) -> tuple[float, ...]:
        """Log-probabilities that depend on the adapter's content hash and on nothing else."""
        shift = int(prompt.adapter.sha256[:4], 16) / 65536 if prompt.adapter else 0.0
        return tuple(-1.0 - shift for _ in prompt.token_ids[1:])

    async def check_health(self) -> None:
        """Raise `EngineDead` once closed."""
        if self.closed:
            raise EngineDead("The engine was closed.", remedy="Start another.")

    async def close(self) -> None:
        """Answer no more."""
        self.closed = True
