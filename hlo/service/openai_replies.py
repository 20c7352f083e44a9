"""OpenAI's replies: whole ones, and the pieces of streams. Field names and order are OpenAI's."""

from __future__ import annotations

from typing import Literal, Protocol

from msgspec import UNSET, Struct, UnsetType

from hlo.records import Usage

Finish = Literal["stop", "length"]


class UsageView(Struct, frozen=True):
    """Tokens read and written, as the engine counted them."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int

    @classmethod
    def of(cls, usage: Usage) -> UsageView:
        """Usage as OpenAI tells it."""
        return cls(usage.prompt_tokens, usage.completion_tokens, usage.prompt_tokens + usage.completion_tokens)


class Message(Struct, frozen=True):
    """An answer's message."""

    content: str
    role: Literal["assistant"] = "assistant"
    refusal: None = None


class ChatChoice(Struct, frozen=True):
    """The one choice of a chat completion."""

    message: Message
    finish_reason: Finish
    index: int = 0
    logprobs: None = None


class ChatCompletion(Struct, frozen=True, kw_only=True):
    """A whole answer. `model` names the specialty that gave it; `system_fingerprint` base model and adapter."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: tuple[ChatChoice]
    usage: UsageView
    system_fingerprint: str


class Piece(Struct, frozen=True, omit_defaults=True):
    """What a chunk adds to the message."""

    role: Literal["assistant"] | None = None
    content: str | None = None


class ChunkChoice(Struct, frozen=True):
    """The one choice of a chunk."""

    delta: Piece
    finish_reason: Finish | None = None
    index: int = 0
    logprobs: None = None


class ChatChunk(Struct, frozen=True, kw_only=True):
    """A piece of an answer, in a stream."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: tuple[ChunkChoice, ...]
    system_fingerprint: str
    usage: UsageView | UnsetType | None = UNSET


class TextChoice(Struct, frozen=True):
    """The one choice of a text completion, whole or a piece of it."""

    text: str
    finish_reason: Finish | None
    index: int = 0
    logprobs: None = None


class TextCompletion(Struct, frozen=True, kw_only=True):
    """A continued prompt, whole or a piece of it."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: tuple[TextChoice, ...]
    system_fingerprint: str
    usage: UsageView | UnsetType | None = UNSET


class Reply(Protocol):
    """What a route replies with: all at once, or begin, pieces, end and usage, one chunk each."""

    def whole(self, text: str, reason: Finish, usage: Usage) -> Struct:
        """All at once."""

    def begin(self, *, with_usage: bool) -> Struct:
        """The first chunk, before any text."""

    def piece(self, text: str, *, with_usage: bool) -> Struct:
        """A chunk of text."""

    def end(self, reason: Finish, *, with_usage: bool) -> Struct:
        """The chunk that says why it ended."""

    def usage(self, usage: Usage) -> Struct:
        """The chunk that has no choice, but the usage; with one to come, the others have `usage: null`."""


class ChatReply(Struct, frozen=True, kw_only=True):
    """`/v1/chat/completions`."""

    id: str
    created: int
    model: str
    system_fingerprint: str

    def whole(self, text: str, reason: Finish, usage: Usage) -> ChatCompletion:
        """All at once."""
        return ChatCompletion(
            id=f"chatcmpl-{self.id}",
            created=self.created,
            model=self.model,
            choices=(ChatChoice(Message(text), reason),),
            usage=UsageView.of(usage),
            system_fingerprint=self.system_fingerprint,
        )

    def begin(self, *, with_usage: bool) -> ChatChunk:
        """The role."""
        return self._chunk(ChunkChoice(Piece("assistant", "")), with_usage=with_usage)

    def piece(self, text: str, *, with_usage: bool) -> ChatChunk:
        """A chunk of text."""
        return self._chunk(ChunkChoice(Piece(content=text)), with_usage=with_usage)

    def end(self, reason: Finish, *, with_usage: bool) -> ChatChunk:
        """Why it ended."""
        return self._chunk(ChunkChoice(Piece(), reason), with_usage=with_usage)

    def usage(self, usage: Usage) -> ChatChunk:
        """The usage."""
        return self._chunk(usage=UsageView.of(usage))

    def _chunk(self, *choices: ChunkChoice, with_usage: bool = False, usage: UsageView | None = None) -> ChatChunk:
        return ChatChunk(
            id=f"chatcmpl-{self.id}",
            created=self.created,
            model=self.model,
            choices=choices,
            system_fingerprint=self.system_fingerprint,
            usage=usage or (None if with_usage else UNSET),
        )


class TextReply(Struct, frozen=True, kw_only=True):
    """`/v1/completions`."""

    id: str
    created: int
    model: str
    system_fingerprint: str

    def whole(self, text: str, reason: Finish, usage: Usage) -> TextCompletion:
        """All at once."""
        return self._chunk(TextChoice(text, reason), usage=UsageView.of(usage))

    def begin(self, *, with_usage: bool) -> TextCompletion:
        """A chunk without text."""
        return self._chunk(TextChoice("", None), with_usage=with_usage)

    def piece(self, text: str, *, with_usage: bool) -> TextCompletion:
        """A chunk of text."""
        return self._chunk(TextChoice(text, None), with_usage=with_usage)

    def end(self, reason: Finish, *, with_usage: bool) -> TextCompletion:
        """Why it ended."""
        return self._chunk(TextChoice("", reason), with_usage=with_usage)

    def usage(self, usage: Usage) -> TextCompletion:
        """The usage."""
        return self._chunk(usage=UsageView.of(usage))

    def _chunk(self, *choices: TextChoice, with_usage: bool = False, usage: UsageView | None = None) -> TextCompletion:
        return TextCompletion(
            id=f"cmpl-{self.id}",
            created=self.created,
            model=self.model,
            choices=choices,
            system_fingerprint=self.system_fingerprint,
            usage=usage or (None if with_usage else UNSET),
        )
