"""The base model's tokenizer and chat template, through `transformers`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hlo.errors import ModelError
from hlo.generation.prompting import Span
from hlo.records import Turn


class ChatTokenizer:
    """A model's tokenizer, as prompting needs it (`hlo.generation.prompting.Tokenizer`)."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._special = frozenset(
            number for number, token in tokenizer.added_tokens_decoder.items() if token.special
        ) | frozenset(tokenizer.all_special_ids)

    @classmethod
    def load(cls, folder: Path) -> ChatTokenizer:
        """Read the tokenizer in a model's folder. Raises `ModelError`."""
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        except (OSError, ValueError, KeyError) as error:
            raise ModelError(
                f"No tokenizer can be read in `{folder}`: {error}",
                remedy="The folder needs tokenizer.json and tokenizer_config.json.",
            ) from error
        if not tokenizer.is_fast:
            raise ModelError(
                f"The tokenizer in `{folder}` is not a fast one.",
                remedy="HLO needs `tokenizer.json`, to tell patients' words from special tokens; convert it once.",
            )
        return cls(tokenizer)

    def chat(self, user: str, turns: Sequence[Turn] = ()) -> str:
        """The text of a chat that ends with the user's turn, up to where the answer begins.

        A turn without an answer is joined to the next of the user's, since templates want both sides by turns. Without
        a chat template, the text is all that was said, a line each.
        """
        messages: list[dict[str, str]] = []
        asked: list[str] = []
        for turn in turns:
            asked.append(turn.question)
            if turn.answer:
                messages.append({"role": "user", "content": "\n\n".join(asked)})
                messages.append({"role": "assistant", "content": turn.answer})
                asked = []
        messages.append({"role": "user", "content": "\n\n".join([*asked, user])})
        if not self._tokenizer.chat_template:
            return "\n".join(message["content"] for message in messages)
        text: str = self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return text

    def encode(self, text: str, untrusted: tuple[Span, ...] = ()) -> tuple[int, ...]:
        """Token ids of `text`; inside `untrusted`, the names of special tokens are read as plain words.

        Ordinary text is tokenised in one piece, exactly as in training. Only where an untrusted span really would
        yield a special token is the text cut at the spans.
        """
        # With a chat template, the template writes the begin-of-sequence token; without, the tokenizer does.
        add_special = not self._tokenizer.chat_template
        whole = self._tokenizer(text, add_special_tokens=add_special, return_offsets_mapping=True, verbose=False)
        forged = any(
            number in self._special and any(start < end and start < stop and end > begin for begin, stop in untrusted)
            for number, (start, end) in zip(whole["input_ids"], whole["offset_mapping"], strict=True)
        )
        if not forged:
            return tuple(whole["input_ids"])
        ids: list[int] = self._tokenizer("", add_special_tokens=True)["input_ids"] if add_special else []
        ids = [number for number in ids if number != self._tokenizer.eos_token_id]
        position = 0
        for begin, stop in untrusted:
            ids += self._plain(text[position:begin], split=False) + self._plain(text[begin:stop], split=True)
            position = stop
        return tuple(ids + self._plain(text[position:], split=False))

    def encode_raw(self, text: str) -> tuple[int, ...]:
        """Token ids as the tokenizer gives them by default, special tokens and all."""
        return tuple(self._tokenizer(text, verbose=False)["input_ids"])

    def _plain(self, text: str, *, split: bool) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=False, split_special_tokens=split, verbose=False)[
            "input_ids"
        ]
        return ids
