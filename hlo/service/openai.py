"""OpenAI's routes: what its clients send is a question to `Pipeline.ask`, or a raw prompt to `Pipeline.complete`."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Protocol

import msgspec
from litestar import Request, Response, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody
from msgspec import Struct

from hlo.catalog import BASE
from hlo.errors import EngineError, HLOError, InvalidRequest, UnknownSpecialty
from hlo.records import Answer, Completion, Delta, Opening, Question, Usage
from hlo.service import openai_errors
from hlo.service.described import Streams, openai_replies
from hlo.service.openai_errors import told_as
from hlo.service.openai_messages import conversation
from hlo.service.openai_replies import ChatCompletion, ChatReply, Finish, Reply, TextCompletion, TextReply
from hlo.service.openai_wire import ChatRequest, CompletionRequest, ModelsView, ModelView
from hlo.service.problems import problem, unforeseen
from hlo.service.replies import streamed, unless_gone
from hlo.service.state import Service
from hlo.service.terms import terms_of
from hlo.service.traced import span_of

AUTO = "auto"
"""The model that routes."""

_Request = Request[Any, Any, Any]
_Events = AsyncGenerator[Opening | Delta | Answer | Completion, None]
_MOST_TOKENS = 16  # what OpenAI's text completions generate unless told otherwise


@post(
    "/v1/chat/completions",
    status_code=200,
    summary="OpenAI's chat completions; model `auto` routes.",
    operation_class=Streams,
    responses=openai_replies(ChatCompletion),
)
async def chat_completions(
    data: JSONBody[ChatRequest], request: _Request, service: NamedDependency[Service]
) -> Response[Any]:
    """The last message is the question. `model`: `auto`, a specialty's name, or `base`; the reply's is who answered.

    Headers tell the route (`hlo-route`, `hlo-specialty`, `hlo-probability`), the adapter (`hlo-adapter-sha256`), and
    the trace. Messages of the system's become words ahead of the question; a specialty's template owns that place.
    """
    data.check()
    said = conversation(data.messages)
    pinned = None if data.model == AUTO else data.model
    question = Question(said.text, pinned, data.sampling(), said.turns, said.instructions)
    terms = terms_of(request, service.settings)
    with told_as(said.places):
        events = service.runtime.pipeline.ask(question, span_of(request), whole=not data.stream, terms=terms)
        return await _reply(data, request, service, events, ChatReply)


@post(
    "/v1/completions",
    status_code=200,
    summary="OpenAI's completions: continue a raw prompt with a named adapter.",
    operation_class=Streams,
    responses=openai_replies(TextCompletion),
)
async def completions(
    data: JSONBody[CompletionRequest], request: _Request, service: NamedDependency[Service]
) -> Response[Any]:
    """As `/generate`: no routing, no template. `model` is a specialty's name or `base`; a raw prompt is not routed."""
    data.check()
    if data.model == AUTO:
        raise InvalidRequest(
            "`auto` routes questions, and a raw prompt is none.",
            field="$.model",
            remedy="Name a specialty or `base`, or send the question to /v1/chat/completions.",
        )
    sampling = data.overrides(_MOST_TOKENS if data.max_tokens is None else data.max_tokens)
    terms, whole = terms_of(request, service.settings), not data.stream
    with told_as({"$.adapter": "$.model"}):
        pipeline = service.runtime.pipeline
        events = pipeline.complete(data.text, data.model, sampling, span_of(request), whole=whole, terms=terms)
        return await _reply(data, request, service, events, TextReply)


@get("/v1/models", summary="The models that OpenAI's clients can name.", responses=openai_replies(ModelsView))
async def models(service: NamedDependency[Service]) -> ModelsView:
    """`auto`, `base`, and every specialty."""
    return ModelsView(tuple(_models(service).values()))


@get("/v1/models/{model:str}", summary="One of the models.", responses=openai_replies(ModelView))
async def model(model: FromPath[str], service: NamedDependency[Service]) -> ModelView:
    """One of those that `/v1/models` lists."""
    try:
        return _models(service)[model]
    except KeyError:
        with told_as({}):
            raise UnknownSpecialty("No such model is served.", field="$.model") from None


HANDLERS = (chat_completions, completions, models, model)


def _models(service: Service) -> dict[str, ModelView]:
    """What can be asked; `owned_by` is the package of a specialty, or the base model."""
    pipeline = service.runtime.pipeline
    owners = {AUTO: "hlo", BASE: pipeline.engine.info.model}
    owners |= {name: entry.distribution for name, entry in pipeline.catalog.entries.items()}
    return {name: ModelView(id=name, created=service.started, owned_by=owner) for name, owner in owners.items()}


class _MakeReply(Protocol):
    """A kind of reply, made with the facts that all its parts repeat."""

    def __call__(self, *, id: str, created: int, model: str, system_fingerprint: str) -> Reply:  # noqa: A002 - OpenAI's
        ...


class _End(Struct, frozen=True):
    reason: Finish
    usage: Usage


async def _reply(
    data: ChatRequest | CompletionRequest, request: _Request, service: Service, events: _Events, kind: _MakeReply
) -> Response[Any] | Any:
    """The whole reply, or the stream of its pieces, once the first is there: what fails before it has a status."""
    opening, first = await unless_gone(request, _begin(events))
    engine = service.runtime.pipeline.engine.info.model
    reply = kind(
        id=uuid.uuid4().hex,
        created=int(time.time()),
        model=opening.specialty or BASE,
        system_fingerprint=f"{engine}+{opening.adapter.engine_name}" if opening.adapter else engine,
    )
    if data.stream:
        chunks = _chunks(reply, first, events, request.scope["path"], with_usage=data.with_usage)
        return streamed(chunks, events, _headers(opening))
    text, end = await unless_gone(request, _whole(first, events))
    return Response(reply.whole(text, end.reason, end.usage), headers=_headers(opening))


async def _begin(events: _Events) -> tuple[Opening, Delta | Answer | Completion]:
    opening, first = await anext(events), await anext(events)
    if not isinstance(opening, Opening) or isinstance(first, Opening):
        raise TypeError("the pipeline began without saying who answers")
    return opening, first


async def _pieces(first: Delta | Answer | Completion, rest: _Events) -> AsyncGenerator[str | _End, None]:
    """The text piece by piece, then how it ended. Raises `EngineError` where it is not whole."""
    reason = None
    async with aclosing(rest):
        event: Opening | Delta | Answer | Completion | None = first
        while event is not None:
            if isinstance(event, Delta):
                reason = event.finish_reason
                if event.text:
                    yield event.text
            elif isinstance(event, Answer | Completion):
                if reason is None or reason == "abort":
                    raise EngineError("The engine stopped before the answer was whole.", remedy="Ask again.")
                yield _End(reason, event.usage)
            event = await anext(rest, None)


async def _whole(first: Delta | Answer | Completion, rest: _Events) -> tuple[str, _End]:
    text = ""
    async with aclosing(_pieces(first, rest)) as pieces:
        async for piece in pieces:
            if isinstance(piece, _End):
                return text, piece
            text += piece
    raise EngineError("The engine ended without an answer.", remedy="Ask again.")


async def _chunks(
    reply: Reply, first: Delta | Answer | Completion, rest: _Events, path: str, *, with_usage: bool
) -> AsyncGenerator[bytes, None]:
    async with aclosing(_pieces(first, rest)) as pieces:
        yield _data(reply.begin(with_usage=with_usage))
        try:
            async for piece in pieces:
                if isinstance(piece, str):
                    yield _data(reply.piece(piece, with_usage=with_usage))
                    continue
                yield _data(reply.end(piece.reason, with_usage=with_usage))
                if with_usage:
                    yield _data(reply.usage(piece.usage))
                yield b"data: [DONE]\n\n"
        except HLOError as error:
            yield _data(openai_errors.body(problem(error)))
        except Exception as error:
            yield _data(openai_errors.body(unforeseen(error, path)))


def _data(value: object) -> bytes:
    return b"data: %b\n\n" % msgspec.json.encode(value)


def _headers(opening: Opening) -> dict[str, str]:
    """Who answers and why, for clients that show no more of a body than OpenAI's fields."""
    told = {"hlo-specialty": opening.specialty or BASE, "hlo-trace-id": opening.trace_id}
    told["x-request-id"] = opening.trace_id  # where OpenAI's clients look for what to report
    if opening.adapter is not None:
        told["hlo-adapter-sha256"] = opening.adapter.sha256
    if (route := opening.route) is not None:
        told["hlo-route"] = route.status
        if route.pinned_by is None and route.status != "unrouted":
            fits = {score.specialty: score.probability for score in route.scores}
            told["hlo-probability"] = f"{fits.get(route.specialty or '', route.out_of_scope):.3f}"
    return told
