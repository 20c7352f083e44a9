"""From tokens to text."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream


class Text:
    """Makes text of tokens as they come, up to a stop string; never gives half a character."""

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int], stop: tuple[str, ...]) -> None:
        self._tokenizer = tokenizer
        self._stream = DecodeStream(ids=list(prompt), skip_special_tokens=True)
        self._stop = stop
        self._held = ""
        self.stopped = False

    def add(self, token: int) -> str:
        """Text that can be given now; what could begin a stop string is held back."""
        text = self._held + self._decode(token)
        found = [(at + len(stop), at) for stop in self._stop if (at := text.find(stop)) >= 0]
        if found:
            self.stopped = True
            self._held = ""
            return text[: min(found, key=lambda one: one[0])[1]]  # what is complete first, as in vLLM
        begun = (length for stop in self._stop for length in range(1, len(stop)) if text.endswith(stop[:length]))
        cut = len(text) - max(begun, default=0)
        self._held = text[cut:]
        return text[:cut]

    def rest(self) -> str:
        """Text that was held back, for when no more comes."""
        held, self._held = self._held, ""
        return held

    def _decode(self, token: int) -> str:
        try:
            return self._stream.step(self._tokenizer, token) or ""
        except Exception as error:  # the library raises a bare one
            if not str(error).startswith("Invalid prefix encountered"):
                raise
            # Bytes that are no UTF-8 can break the stream's state; vLLM begins a new one too (vLLM issue #17448).
            self._stream = DecodeStream(skip_special_tokens=True)
            return self._stream.step(self._tokenizer, token) or ""
