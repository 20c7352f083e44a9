"""The routes. Each decodes a request, asks the pipeline, and encodes what comes back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import msgspec
from litestar import Request, Response, get, post
from litestar.di import NamedDependency
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import JSONBody

from hlo.errors import EngineError, HLOError, InvalidRequest
from hlo.records import Answer, Completion, Delta, Opening, Question, Route
from hlo.reload import Reloaded
from hlo.service.access import ADMIN, OPEN, caller_of
from hlo.service.described import Streams, replies
from hlo.service.problems import problem, unforeseen
from hlo.service.replies import streamed, unless_gone, whole_answer, whole_completion
from hlo.service.standing import standing
from hlo.service.state import Service
from hlo.service.terms import terms_of
from hlo.service.traced import span_of
from hlo.service.wire import (
    AdapterView,
    AnswerView,
    AskRequest,
    CompletionView,
    DeltaView,
    GenerateRequest,
    HealthView,
    ReadyView,
    RouteRequest,
    RoutesView,
    SpecialtiesView,
    SwitchAdapterRequest,
    SwitchView,
)
from hlo.telemetry import metrics

_Request = Request[Any, Any, Any]


@post(
    "/ask",
    status_code=200,
    summary="Ask a question; the right specialist answers.",
    operation_class=Streams,
    responses=replies(AnswerView),
)
async def ask(data: JSONBody[AskRequest], request: _Request, service: NamedDependency[Service]) -> Response[Any]:
    """Route the question, generate with that specialty's adapter, and say which one it was and why.

    With `stream`, server-sent events: one `route`, many `delta`, one `answer` (or `problem`).
    """
    question = Question(data.question, data.specialty, data.overrides(), data.earlier())
    terms = terms_of(request, service.settings, data.timeout_s)
    events = service.runtime.pipeline.ask(question, span_of(request), whole=not data.stream, terms=terms)
    if not data.stream:
        return Response(AnswerView.of(await unless_gone(request, whole_answer(events))))
    first = await anext(events)  # what is wrong with the request is wrong before this, and is an HTTP status
    return streamed(_ask_events(first, events), events)


@post(
    "/route",
    status_code=200,
    summary="Route questions without answering them.",
    responses=replies(Route | RoutesView),
)
async def route(data: JSONBody[RouteRequest], request: _Request, service: NamedDependency[Service]) -> Response[Any]:
    """One question gives its route; a list gives `routes`, in order."""
    questions = [data.question] if isinstance(data.question, str) else data.question
    if len(questions) > service.settings.max_batch_questions:
        raise InvalidRequest(
            f"{len(questions)} questions came; at most {service.settings.max_batch_questions} go in one request.",
            field="$.question",
            remedy="Send several requests, or raise HLO_MAX_BATCH_QUESTIONS.",
        )
    terms = terms_of(request, service.settings)
    routes = await service.runtime.pipeline.route(questions, span_of(request), terms) if questions else ()
    return Response(routes[0] if isinstance(data.question, str) else RoutesView(routes))


@post(
    "/generate",
    status_code=200,
    summary="Continue a raw prompt with a named adapter.",
    operation_class=Streams,
    responses=replies(CompletionView),
)
async def generate(
    data: JSONBody[GenerateRequest], request: _Request, service: NamedDependency[Service]
) -> Response[Any]:
    """No routing and no template: the prompt is used as it stands.

    With `stream`, server-sent events: many `delta`, one `usage` (or `problem`).
    """
    pipeline = service.runtime.pipeline
    chosen = service.default if data.adapter is None else data.adapter
    terms, whole = terms_of(request, service.settings, data.timeout_s), not data.stream
    deltas = pipeline.complete(data.prompt, chosen, data.overrides(), span_of(request), whole=whole, terms=terms)
    if data.stream:
        await anext(deltas)
        return streamed(_generate_events(await anext(deltas), deltas), deltas)
    text, end, reason = await unless_gone(request, whole_completion(deltas))
    model = pipeline.engine.info.model
    return Response(CompletionView(text, AdapterView.of(end.adapter), model, end.usage, reason))


@post(
    "/switch-adapter",
    status_code=200,
    summary="Change the default adapter of /generate.",
    opt=ADMIN,
    responses=replies(SwitchView),
)
async def switch_adapter(data: JSONBody[SwitchAdapterRequest], service: NamedDependency[Service]) -> SwitchView:
    """Takes effect at once: every adapter is in the engine already, so nothing is loaded or restarted."""
    adapter, previous = service.switch(data.adapter_name, field="$.adapter_name")
    return SwitchView(AdapterView.of(adapter), AdapterView.of(previous))


@get("/specialties", summary="What is served, and what was refused and why.", responses=replies())
async def specialties(service: NamedDependency[Service]) -> SpecialtiesView:
    """Specialties with their adapters and packages."""
    return SpecialtiesView.of(service.runtime.pipeline.catalog)


@post(
    "/admin/specialties/reload",
    status_code=200,
    summary="Serve what is installed, without a restart.",
    opt=ADMIN,
    responses=replies(),
)
async def reload_specialties(request: _Request, service: NamedDependency[Service]) -> Reloaded:
    """Finds plugins and adapters anew. Answers that are running finish as they began."""
    return await service.reload(span_of(request))


@get("/healthz", summary="Whether the process lives.", opt=OPEN)
async def healthz() -> HealthView:
    """Always 200."""
    return HealthView()


@get(
    "/readyz",
    summary="Whether questions can be answered.",
    opt=OPEN,
    responses=replies(ReadyView) | {503: ResponseSpec(ReadyView, generate_examples=False, description="Not yet.")},
)
async def readyz(request: _Request, service: NamedDependency[Service]) -> Response[ReadyView]:
    """200 with what is running, which without a key is not told, or 503 with what is being waited for."""
    try:
        runtime = service.runtime
        await runtime.pipeline.engine.check_health()
    except EngineError as error:
        return Response(ReadyView(False, service.stage if service.stage != "ready" else error.message), status_code=503)
    if caller_of(request) is None:
        return Response(ReadyView(ready=True, stage=service.stage))
    catalog = runtime.pipeline.catalog
    return Response(
        ReadyView(
            ready=True,
            stage=service.stage,
            engine=runtime.pipeline.engine.info,
            encoder=runtime.encoder.encoder.name,
            encoder_fingerprint=runtime.encoder.encoder.fingerprint,
            thresholds=runtime.pipeline.edition.router.thresholds,
            thresholds_from=runtime.pipeline.edition.router.basis,
            specialties=tuple(catalog.entries),
            refused=catalog.refusals,
        )
    )


@get("/metrics", summary="Metrics for Prometheus.", include_in_schema=False)
async def prometheus(request: _Request, service: NamedDependency[Service]) -> Response[bytes]:
    """HLO's metrics, and vLLM's under their own names; in OpenMetrics, with exemplars, where that is accepted."""
    now, accept = await standing(service), request.headers.get("accept", "")
    # In a thread: with a thousand specialties there are tens of thousands of lines, and answers would wait for them.
    text = await asyncio.to_thread(service.metrics.render, now, accept)
    return Response(text, media_type=metrics.media_type(accept))


HANDLERS = (ask, route, generate, switch_adapter, specialties, reload_specialties, healthz, readyz, prometheus)


async def _ask_events(
    first: Opening | Delta | Answer, rest: AsyncGenerator[Opening | Delta | Answer, None]
) -> AsyncGenerator[bytes, None]:
    async with aclosing(rest):
        yield _event("route", first.route if isinstance(first, Opening) else None)
        try:
            async for event in rest:
                if isinstance(event, Delta):
                    if event.text:
                        yield _event("delta", DeltaView(event.text, event.notices))
                elif isinstance(event, Answer):
                    yield _event("answer", AnswerView.of(event))
        except HLOError as error:
            yield _event("problem", problem(error))
        except Exception as error:
            yield _event("problem", unforeseen(error, "/ask"))


async def _generate_events(
    first: Opening | Delta | Completion, rest: AsyncGenerator[Opening | Delta | Completion, None]
) -> AsyncGenerator[bytes, None]:
    async with aclosing(rest):
        yield _event("delta", DeltaView(first.text if isinstance(first, Delta) else ""))
        try:
            async for event in rest:
                if isinstance(event, Completion):
                    yield _event("usage", event.usage)
                elif isinstance(event, Delta) and event.text:
                    yield _event("delta", DeltaView(event.text))
        except HLOError as error:
            yield _event("problem", problem(error))
        except Exception as error:
            yield _event("problem", unforeseen(error, "/generate"))


def _event(name: str, value: object) -> bytes:
    """One server-sent event (WHATWG HTML, "Server-sent events"); JSON has no raw line breaks, so one data line."""
    return b"event: %b\ndata: %b\n\n" % (name.encode(), msgspec.json.encode(value))
