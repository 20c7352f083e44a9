"""Builds prompts. Pure: the same question, template and tokenizer always give the same token ids.

A patient's words can contain anything, also `[INST]` or `</s>`. They are tokenised so that no special token comes out
of them: not by rewriting the words, but by telling apart, in the rendered prompt, what the template wrote and what it
was given. Jinja in a question stays text, because a question is data to the template, never part of it.
"""

from __future__ import annotations

import functools
import re
import secrets
from bisect import bisect_left
from collections.abc import Sequence
from typing import Protocol

from jinja2 import StrictUndefined, Template, TemplateError, TemplateSyntaxError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from hlo.errors import PluginError, PromptTooLong
from hlo.records import AdapterVersion, Prompt, Sampling, Turn

Span = tuple[int, int]

_PROBE = "1123581321"  # digits: filters on case leave them as they are
# A dynamic value in a rendered template stands between these; the nonce can not be guessed by who writes a question.
_NONCE = f"{secrets.randbelow(10**20):020}"  # digits: filters on case leave them as they are
_START, _END = f"\ue000{_NONCE}\ue001", f"\ue002{_NONCE}\ue003"
_MARKED = re.compile(f"{_START}(.*?){_END}", re.DOTALL)


class Tokenizer(Protocol):
    """What prompting needs of a tokenizer (`hlo.generation.tokenizer` has the real one)."""

    def chat(self, user: str, turns: Sequence[Turn] = ()) -> str:
        """Return the text of a conversation that ends with the user's turn, up to where the answer begins."""

    def encode(self, text: str, untrusted: tuple[Span, ...]) -> tuple[int, ...]:
        """Return token ids; inside the character spans `untrusted`, no special token is recognised."""

    def encode_raw(self, text: str) -> tuple[int, ...]:
        """Return token ids as the tokenizer gives them by default."""


def build(
    question: str,
    template: str,
    tokenizer: Tokenizer,
    adapter: AdapterVersion | None,
    turns: Sequence[Turn] = (),
) -> Prompt:
    """Render `template` with the question, as the last turn of a chat, and tokenise it.

    Earlier turns stand as they were said, without a template. Raises `PluginError` when it can not be rendered.
    """
    earlier = [
        Turn(_mark(turn.question.strip()), _mark(turn.answer.strip()) if turn.answer.strip() else "") for turn in turns
    ]
    text, spans = _unmark(tokenizer.chat(_render(template, question.strip()), earlier))
    return Prompt(tokenizer.encode(text, spans), adapter)


def build_within(
    room: int,
    question: str,
    template: str,
    tokenizer: Tokenizer,
    adapter: AdapterVersion | None,
    turns: Sequence[Turn],
) -> Prompt:
    """Build the prompt with as many of the latest turns as fit into `room` tokens; without any, it may be longer."""
    prompt = build(question, template, tokenizer, adapter, turns)
    if len(prompt.token_ids) <= room or not turns:
        return prompt

    def fits(dropped: int) -> bool:
        return len(build(question, template, tokenizer, adapter, turns[dropped:]).token_ids) <= room

    # By halves: a long conversation, tokenised once for each turn that leaves, would hold up everybody's answers.
    fewest = bisect_left(range(1, len(turns)), True, key=fits) + 1
    return build(question, template, tokenizer, adapter, turns[fewest:])


def raw(text: str, tokenizer: Tokenizer, adapter: AdapterVersion | None) -> Prompt:
    """Tokenise a caller's own prompt as it stands: no template, no chat, special tokens recognised."""
    return Prompt(tokenizer.encode_raw(text), adapter)


def fit(prompt: Prompt, sampling: Sampling, max_model_len: int, *, field: str) -> Sampling:
    """Shorten `max_tokens` to what the context leaves. Raises `PromptTooLong` where it leaves nothing."""
    room = max_model_len - len(prompt.token_ids)
    if room < 1:
        raise PromptTooLong(
            f"The prompt has {len(prompt.token_ids)} tokens; prompt and answer together may have {max_model_len}.",
            field=field,
            remedy="Shorten it, or serve with a larger HLO_MAX_MODEL_LEN if the model allows that.",
        )
    if sampling.max_tokens <= room:
        return sampling
    return Sampling(
        max_tokens=room,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        repetition_penalty=sampling.repetition_penalty,
        seed=sampling.seed,
        stop=sampling.stop,
    )


def check_template(template: str) -> None:
    """Raise `PluginError` unless `template` renders and contains the question."""
    text, spans = _unmark(_render(template, _PROBE))
    if _NONCE in text:
        raise PluginError("The template cuts the question's marks.", remedy="Apply filters to `question` itself.")
    if not any(_PROBE in text[start:end] for start, end in spans):
        raise PluginError("The template leaves the question out.", remedy="Put `{{ question }}` into it.")


def _render(template: str, question: str) -> str:
    try:
        return _compile(template).render(question=question)
    except Exception as error:  # Jinja's own errors, and whatever the template's expressions raise
        # The message of a Jinja error speaks of the template, never of the values given to it; others are not repeated.
        said = error.message if isinstance(error, TemplateError) and error.message else type(error).__name__
        place = f" (line {error.lineno})" if isinstance(error, TemplateSyntaxError) else ""
        raise PluginError(
            f"The template can not be rendered{place}: {said}.",
            remedy="A template is Jinja over `question`; no other name exists in it.",
        ) from error


@functools.lru_cache(maxsize=4096)
def _compile(template: str) -> Template:
    return _ENVIRONMENT.from_string(template)


def _mark(value: object) -> str:
    # What a template captured before (`set`, `macro`) is marked already; its marks give way to the new ones.
    return f"{_START}{str(value).replace(_START, '').replace(_END, '')}{_END}"


def _unmark(marked: str) -> tuple[str, tuple[Span, ...]]:
    """Take the marks out and return where the marked text now stands."""
    pieces: list[str] = []
    spans: list[Span] = []
    length = 0
    for index, piece in enumerate(_MARKED.split(marked)):
        if index % 2:
            spans.append((length, length + len(piece)))
        pieces.append(piece)
        length += len(piece)
    return "".join(pieces), tuple(spans)


_ENVIRONMENT = ImmutableSandboxedEnvironment(undefined=StrictUndefined, finalize=_mark, keep_trailing_newline=True)
