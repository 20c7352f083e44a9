"""OpenAI's requests: the parameters that HLO takes, and what it says of others.

After https://platform.openai.com/docs/api-reference. A parameter that would change the answer and that HLO does not
have is refused by name, unless it asks for what HLO does anyhow.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from hlo.errors import InvalidRequest
from hlo.records import SamplingOverrides
from hlo.service.wire import MaxTokens, Seed, Stop, Temperature, TopP

OneStop = Annotated[str, Meta(min_length=1, max_length=128)]
Ignored = Annotated[Any, Meta(description="Taken, and without effect: HLO keeps nothing of it.")]
Fixed = Annotated[Any, Meta(description="Taken where it asks for what HLO does anyhow, and else refused.")]

_CHOICES = "HLO gives one choice for a request"
_LOGPROBS = "HLO tells no log-probabilities"
_PENALTY = "a specialty's own repetition penalty is the only one"
_TOOLS = "HLO calls no tools"
# What each parameter may be, beside null, and why nothing else.
FIXED: Mapping[str, tuple[tuple[Any, ...], str]] = {
    "n": ((1,), _CHOICES),
    "best_of": ((1,), _CHOICES),
    "logprobs": ((False,), _LOGPROBS),
    "top_logprobs": ((0,), _LOGPROBS),
    "frequency_penalty": ((0,), _PENALTY),
    "presence_penalty": ((0,), _PENALTY),
    "logit_bias": (({},), "HLO biases no tokens"),
    "tools": (([],), _TOOLS),
    "functions": (([],), _TOOLS),
    "tool_choice": (("none", "auto"), _TOOLS),
    "function_call": (("none", "auto"), _TOOLS),
    "response_format": (({"type": "text"},), "HLO answers in plain text"),
    "modalities": ((["text"],), "HLO answers in text"),
    "audio": ((), "HLO answers in text"),
    "prediction": ((), "HLO takes no predicted output"),
    "web_search_options": ((), "HLO searches nothing"),
    "moderation": ((), "HLO moderates nothing"),
    "reasoning_effort": (("none",), "HLO's models answer without reasoning"),
    "verbosity": (("medium",), "HLO's models know no verbosity"),
    "service_tier": (("auto", "default"), "HLO has one tier"),
    "store": ((False,), "HLO stores nothing"),
    "suffix": (("",), "HLO inserts nothing"),
    "echo": ((False,), "HLO does not repeat the prompt"),
}


class StreamOptions(Struct, frozen=True, forbid_unknown_fields=True):
    """`include_usage` asks for the usage at the end of a stream."""

    include_usage: bool | None = None
    include_obfuscation: Fixed = None


class _Generation(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    model: Annotated[str, Meta(description="`auto`, a specialty's name, or `base`.")]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: MaxTokens | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    seed: Seed | None = None
    stop: OneStop | Stop | None = None
    n: Fixed = None
    logprobs: Fixed = None
    frequency_penalty: Fixed = None
    presence_penalty: Fixed = None
    logit_bias: Fixed = None
    user: Ignored = None

    @property
    def with_usage(self) -> bool:
        """Whether a stream is to end with the usage."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    def check(self) -> None:
        """Raise `InvalidRequest` for a parameter that asks for what HLO does not have."""
        for name in self.__struct_fields__:
            allowed, reason = FIXED.get(name, (None, ""))
            value = getattr(self, name)
            if allowed is not None and value is not None and value not in allowed:
                raise _refused(name, allowed, reason)
        if self.stream_options is not None:
            if not self.stream:
                raise InvalidRequest(
                    "`stream_options` goes with `stream` alone.", field="$.stream_options", remedy="Leave it out."
                )
            if self.stream_options.include_obfuscation:
                raise _refused("stream_options.include_obfuscation", (False,), "HLO pads no streams")

    def overrides(self, most: int | None) -> SamplingOverrides:
        """The sampling parameters that this request names; `most` tokens."""
        stop = (self.stop,) if isinstance(self.stop, str) else None if self.stop is None else tuple(self.stop)
        return SamplingOverrides(most, self.temperature, self.top_p, self.seed, stop)


class TextPart(Struct, frozen=True, forbid_unknown_fields=True):
    """A part of a message; HLO reads text alone."""

    text: str
    type: Literal["text"] = "text"


class MessageRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A message of a conversation. What else OpenAI's answers hold may come back in it, empty."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[TextPart], Meta(min_length=1)] | None = None
    name: Ignored = None
    refusal: None = None
    annotations: Annotated[list[None], Meta(max_length=0)] | None = None
    audio: None = None
    function_call: None = None
    tool_calls: Annotated[list[None], Meta(max_length=0)] | None = None

    @property
    def text(self) -> str:
        """The words, the parts a line each."""
        if self.content is None or isinstance(self.content, str):
            return self.content or ""
        return "\n".join(part.text for part in self.content)


class ChatRequest(_Generation, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[MessageRequest], Meta(min_length=1, max_length=1024)]
    max_completion_tokens: MaxTokens | None = None
    top_logprobs: Fixed = None
    tools: Fixed = None
    functions: Fixed = None
    tool_choice: Fixed = None
    function_call: Fixed = None
    response_format: Fixed = None
    modalities: Fixed = None
    audio: Fixed = None
    prediction: Fixed = None
    web_search_options: Fixed = None
    moderation: Fixed = None
    reasoning_effort: Fixed = None
    verbosity: Fixed = None
    service_tier: Fixed = None
    store: Fixed = None
    parallel_tool_calls: Ignored = None
    metadata: Ignored = None
    safety_identifier: Ignored = None
    prompt_cache_key: Ignored = None
    prompt_cache_options: Ignored = None
    prompt_cache_retention: Ignored = None

    def sampling(self) -> SamplingOverrides:
        """The sampling parameters that this request names. Raises `InvalidRequest`."""
        most = {self.max_tokens, self.max_completion_tokens} - {None}
        if len(most) > 1:
            raise InvalidRequest(
                "`max_tokens` and `max_completion_tokens` differ.", field="$.max_tokens", remedy="Send one of them."
            )
        return self.overrides(next(iter(most), None))


class CompletionRequest(_Generation, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`POST /v1/completions`: one raw prompt, used as it stands."""

    prompt: str | Annotated[list[str], Meta(min_length=1, max_length=1)]
    best_of: Fixed = None
    echo: Fixed = None
    suffix: Fixed = None

    def check(self) -> None:
        """As above; here, OpenAI counts log-probabilities, and `logprobs=0` asks for some."""
        super().check()
        if self.logprobs is not None:
            raise _refused("logprobs", (), _LOGPROBS)

    @property
    def text(self) -> str:
        """The prompt."""
        return self.prompt if isinstance(self.prompt, str) else self.prompt[0]


def _refused(name: str, allowed: tuple[Any, ...], reason: str) -> InvalidRequest:
    shown = " or ".join(f"`{msgspec.json.encode(one).decode()}`" for one in allowed)
    return InvalidRequest(
        f"`{name}` can not be had: {reason}.",
        field=f"$.{name}",
        remedy=f"Leave it out, or send {shown}." if shown else "Leave it out.",
    )


class ModelView(Struct, frozen=True, kw_only=True):
    """A model that can be asked: `auto`, `base`, or a specialty. `created`: since when this server has it."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str


class ModelsView(Struct, frozen=True):
    """All models that can be asked."""

    data: tuple[ModelView, ...]
    object: Literal["list"] = "list"
