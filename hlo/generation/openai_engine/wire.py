"""What a server of vLLM's says, decoded, and how it says no."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Mapping

import msgspec
from msgspec import Struct

from hlo.errors import InvalidRequest


class ServerFailed(Exception):
    """A server did not do what it was asked to; another one may. `reason` is a clause about it, and no patient's word.

    One that is `busy` is well. One that was `refused` will not do until somebody changes it.
    """

    def __init__(self, reason: str, *, busy: bool = False, refused: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.busy = busy
        self.refused = refused


class AdapterUnknown(Exception):
    """A server does not know the adapter that was named."""


class Fault(Struct, frozen=True):
    """An error, as vLLM tells it. Its message can repeat what was sent."""

    message: str = ""
    param: str | None = None
    code: int | str | None = None


class LogProbability(Struct, frozen=True):
    """A token's natural-log probability."""

    logprob: float


class Choice(Struct, frozen=True):
    """A piece of a completion, or all of it."""

    text: str = ""
    finish_reason: str | None = None
    token_ids: tuple[int, ...] | None = None
    prompt_logprobs: tuple[Mapping[str, LogProbability] | None, ...] | None = None


class Completion(Struct, frozen=True):
    """What `/v1/completions` sends, whole or in pieces: `model` is the name of who writes."""

    model: str = ""
    choices: tuple[Choice, ...] = ()
    error: Fault | None = None


class Card(Struct, frozen=True):
    """A model, or an adapter on one, of `/v1/models`."""

    id: str
    parent: str | None = None
    max_model_len: int | None = None


class Cards(Struct, frozen=True):
    """What `/v1/models` lists."""

    data: tuple[Card, ...] = ()


class Version(Struct, frozen=True):
    """What `/version` says."""

    version: str


class _Refusal(Struct, frozen=True):
    error: Fault | str = ""


def fault(body: bytes) -> Fault:
    """The error in a response's body; an empty one where there is none that can be read."""
    try:
        found = msgspec.json.decode(body, type=_Refusal).error
    except msgspec.MsgspecError:
        return Fault()
    return Fault(found) if isinstance(found, str) else found


def refusal(status: int, said: Fault) -> Exception:
    """What a response with that status tells. Never vLLM's own text: it can repeat the prompt."""
    if status in (401, 403):
        return ServerFailed("it refuses HLO_ENGINE_KEY", refused=True)
    if status == 404:
        return AdapterUnknown()
    if status in (429, 503):
        return ServerFailed("its queue is full", busy=True)
    if status in (400, 413, 422):
        return InvalidRequest(
            f"vLLM refused the request's `{said.param or 'parameters'}`.",
            field="$",
            remedy="Shorten the prompt, or mend that parameter.",
        )
    return ServerFailed(f"it answers with the status {status}")


async def events(pieces: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    """The data of server-sent events. Lines end with LF alone: JSON may hold other line breaks (U+2028) as they are."""
    rest = b""
    async for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield line[5:].strip()
