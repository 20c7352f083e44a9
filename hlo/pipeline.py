"""One question's walk: screen -> route -> prompt -> generate -> tell.

`Pipeline.ask` yields the `Opening`, then `Delta`s as they are generated, then the `Answer`. Closing it early aborts the
generation. Each stage is entered once, from here only.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from contextlib import ExitStack, aclosing
from typing import Literal

import msgspec
from msgspec import Struct

from hlo import screening
from hlo.catalog import BASE, Catalog, Entry
from hlo.contracts import Engine
from hlo.deadline import Terms, each_in_time, in_time
from hlo.edition import Edition
from hlo.errors import EncoderError, InvalidRequest, OutOfScope
from hlo.generation import prompting
from hlo.generation.line import Line, Place
from hlo.generation.prompting import Tokenizer
from hlo.records import (
    Answer,
    Completion,
    Delta,
    Notice,
    Opening,
    Prompt,
    Question,
    Route,
    Sampling,
    SamplingOverrides,
    Timings,
    Usage,
)
from hlo.telemetry import spans, tracing
from hlo.telemetry.account import Account
from hlo.telemetry.audit import Audit
from hlo.telemetry.metrics import UNKNOWN, Metrics
from hlo.telemetry.tracing import NOBODY, Attributes, Span, Tracing

_BASE_TEMPLATE = "{{ question }}"
_UNROUTED = Notice("hlo", "No specialist could be chosen for this question just now. The general model answers it.")
_ANY_TERMS = Terms()


class Policy(Struct, frozen=True):
    """What the operator decided about questions. Lengths are in characters.

    `answer_unrouted` has the base model answer what the encoder failed on. `capture_content` puts the words of
    questions and answers into spans; without it they are nowhere.
    """

    ambiguous: Literal["first", "base", "ask"] = "first"
    answer_out_of_scope: bool = True
    max_question_chars: int = 4000
    capture_content: bool = False
    answer_unrouted: bool = False


class Pipeline:
    """Everything between a question and its answer. A reload exchanges the edition, and nothing else."""

    def __init__(
        self,
        edition: Edition,
        tokenizer: Tokenizer,
        engine: Engine,
        policy: Policy,
        metrics: Metrics,
        tracing: Tracing,
        audit: Audit | None = None,
        line: Line | None = None,
    ) -> None:
        self.edition = edition
        self.engine = engine
        self.line = line or Line()
        self.uses: Counter[str] = Counter()  # answers by the specialty that gave them
        self._tokenizer = tokenizer
        self._policy = policy
        self._metrics = metrics
        self._tracing = tracing
        self._audit = audit

    @property
    def catalog(self) -> Catalog:
        """What is served now."""
        return self.edition.catalog

    async def ask(
        self, question: Question, caller: Span = NOBODY, *, whole: bool = False, terms: Terms = _ANY_TERMS
    ) -> AsyncGenerator[Opening | Delta | Answer, None]:
        """Answer a question. `caller` is the span that it belongs to; `whole` says that nobody reads the deltas.

        What is not done by the deadline of `terms` is stopped. Raises any `HLOError`.
        """
        clock = time.perf_counter()
        with self._account("ask", question.text, terms) as account:
            with self.edition.use() as edition, self._tracing.whole("ask", caller) as span, ExitStack() as stack:
                account.trace_id = tracing.trace_id(span)
                place = stack.enter_context(self.line.enter(terms.key))
                self._check(question.text, "$.question")
                for number, turn in enumerate(question.turns):
                    self._check(turn.question, f"$.turns[{number}].question")
                if question.instructions:
                    self._check(question.instructions, "$.instructions")
                async with in_time(terms.deadline):
                    screened = await screening.screen(question, edition, self._tracing, span)
                    account.route = route = await self._route(question, screened, edition, span)
                routed = time.perf_counter()
                entry = self._specialist(route, edition)
                account.specialty = entry.specialty.name if entry else None
                asks_back = route.status == "ambiguous" and self._policy.ambiguous == "ask"
                account.label = entry.specialty.name if entry else UNKNOWN if asks_back else BASE
                span.set_attributes({"hlo.route.status": route.status, "hlo.specialty": account.label})
                if not asks_back:
                    await self.engine.check_health()  # while this can still be a status, and no event of a stream
                with self._tracing.span("prompt", span) as prompting_span:
                    prompt, sampling = (Prompt(()), Sampling()) if asks_back else self._prompt(question, entry, whole)
                    prompting_span.set_attribute("hlo.prompt.tokens", len(prompt.token_ids))
                account.adapter, account.usage = prompt.adapter, Usage(len(prompt.token_ids), 0)
                notices = tuple(Notice(plugin, said.notice.strip()) for plugin, said in screened if said.notice.strip())
                notices += (_UNROUTED,) if route.status == "unrouted" else ()
                if not asks_back:
                    place.join(account.label, len(prompt.token_ids))  # an overload is a status still
                yield Opening(route, account.specialty, prompt.adapter, account.trace_id)

                text, tokens, first, reason = "".join(f"{notice.text}\n\n" for notice in notices), 0, None, None
                if text:
                    yield Delta(text, (), notices=notices)
                waited = await self._come_up(place, terms, span)
                asked, queue_s = time.perf_counter(), waited or None
                source = (
                    _which(route, edition) if asks_back else self._generate(prompt, sampling, span, entry, question)
                )
                async with aclosing(each_in_time(terms.deadline, source)) as deltas:
                    async for delta in deltas:
                        if first is None:
                            said, account.cached = delta.first_token_s, delta.cached_tokens
                            queue_s = queue_s if delta.queue_s is None else waited + delta.queue_s
                            first = time.perf_counter() if said is None else asked + said
                        text, tokens, reason = text + delta.text, tokens + len(delta.token_ids), delta.finish_reason
                        account.usage, place.written = Usage(len(prompt.token_ids), tokens), tokens
                        yield delta

                answer = Answer(
                    text=text,
                    route=route,
                    specialty=account.specialty,
                    adapter=prompt.adapter,
                    model=self.engine.info.model,
                    usage=account.usage,
                    timings=Timings(
                        route_ms=(routed - clock) * 1000,
                        first_token_ms=(first - clock) * 1000 if first else None,
                        total_ms=(time.perf_counter() - clock) * 1000,
                    ),
                    finish_reason=reason or "abort",
                    trace_id=account.trace_id,
                    notices=notices,
                )
                account.keep(answer.finish_reason)
                edition.hooks.observe(question, answer)
            self.uses.update([answer.specialty] if answer.specialty else ())
            self._metrics.answered(answer, account.label, account.cached, queue_s, _recorded(span))
            yield answer

    async def route(
        self, questions: Sequence[str], caller: Span = NOBODY, terms: Terms = _ANY_TERMS
    ) -> tuple[Route, ...]:
        """Route questions without answering them. Raises any `HLOError`."""
        for number, question in enumerate(questions):
            self._check(question, f"$.question[{number}]" if len(questions) > 1 else "$.question")
        with self.edition.use() as edition, self.line.enter(terms.key):
            screens = asyncio.create_task(
                screening.screen_each(questions, edition)
            )  # in other threads than the encoder's
            try:
                with self._tracing.span("route", caller, {"hlo.questions": len(questions)}) as span:
                    clock = time.perf_counter()
                    watch = spans.Work() if span.is_recording() else None
                    async with in_time(terms.deadline):
                        with self._metrics.encoding():
                            routes = await edition.router.route_many(questions, watch)
                    took, trace = time.perf_counter() - clock, _recorded(span)
                    for one in routes:
                        self._metrics.routed(one, took, trace)
                    if watch is not None:
                        watch.tell(self._tracing, span)
                async with in_time(terms.deadline):
                    screened = await screens
            finally:
                screens.cancel()
            return tuple(screening.pinned(said) or route for said, route in zip(screened, routes, strict=True))

    async def complete(
        self,
        text: str,
        adapter: str,
        overrides: SamplingOverrides,
        caller: Span = NOBODY,
        *,
        whole: bool = False,
        terms: Terms = _ANY_TERMS,
    ) -> AsyncGenerator[Opening | Delta | Completion, None]:
        """Continue a raw prompt with the adapter of that name (`base`: none): who does it, deltas, then the usage.

        `caller`, `whole` and `terms`: as for `ask`. Raises any `HLOError`.
        """
        with self._account("generate", text, terms) as account:
            with self.edition.use() as edition, self._tracing.whole("complete", caller) as span, ExitStack() as stack:
                account.trace_id = tracing.trace_id(span)
                await self.engine.check_health()
                place = stack.enter_context(self.line.enter(terms.key))
                if not text:
                    raise InvalidRequest(
                        "The prompt is empty.", field="$.prompt", remedy="Send at least one character."
                    )
                with self._tracing.span("prompt", span):
                    prompt = prompting.raw(text, self._tokenizer, edition.catalog.adapter(adapter, field="$.adapter"))
                    sampling = prompting.fit(
                        prompt, Sampling().override(overrides), self.engine.info.max_model_len, field="$.prompt"
                    )
                account.adapter, account.label, tokens, reason = prompt.adapter, adapter, 0, None
                wanted = Prompt(prompt.token_ids, prompt.adapter, whole)
                entry = edition.catalog.entries.get(adapter)
                place.join(adapter, len(prompt.token_ids))
                yield Opening(None, entry.specialty.name if entry else None, prompt.adapter, account.trace_id)
                await self._come_up(place, terms, span)
                generating = self._generate(wanted, sampling, span, entry, Question(text), "text_completion")
                async with aclosing(each_in_time(terms.deadline, generating)) as deltas:
                    async for delta in deltas:
                        tokens, reason = tokens + len(delta.token_ids), delta.finish_reason
                        account.cached = account.cached or delta.cached_tokens
                        account.usage, place.written = Usage(len(prompt.token_ids), tokens), tokens
                        yield delta
                account.keep(reason or "abort")
            yield Completion(prompt.adapter, account.usage)

    def _account(self, what: Literal["ask", "generate"], text: str, terms: Terms) -> Account:
        return Account(what, text, self.engine.info.model, self._metrics, self._audit, terms.key)

    async def _come_up(self, place: Place, terms: Terms, within: Span) -> float:
        """Wait for room in the engine, in a span of its own where there is none; for how many seconds."""
        if place.turn is None:
            return 0.0
        with self._tracing.span("queue", within):
            async with in_time(terms.deadline):
                return await place.come_up()

    def _generate(
        self,
        prompt: Prompt,
        sampling: Sampling,
        within: Span,
        entry: Entry | None,
        said: Question,
        operation: str = "chat",
    ) -> AsyncGenerator[Delta, None]:
        """The engine's deltas, inside a span where anything is traced; `operation` is OpenTelemetry's name for it."""
        if not self._tracing.enabled:
            return self.engine.generate(prompt, sampling)
        told: Attributes = {"gen_ai.operation.name": operation}
        if entry is not None:
            told = {**told, "hlo.specialty": entry.specialty.name, **spans.of_adapter(prompt.adapter, entry.version)}
        if self._policy.capture_content:
            told = {**told, "gen_ai.input.messages": spans.messages(said)}
        return self._traced(prompt, sampling, within, told)

    async def _traced(
        self, prompt: Prompt, sampling: Sampling, within: Span, told: Attributes
    ) -> AsyncGenerator[Delta, None]:
        with self._tracing.span("generate", within) as span:
            prompt = msgspec.structs.replace(prompt, trace=tuple(tracing.outgoing(span).items()))
            words = self._policy.capture_content
            watch = spans.Generation(span, prompt, sampling, self.engine.info, told, words=words)
            try:
                async with aclosing(self.engine.generate(prompt, sampling)) as deltas:
                    async for delta in deltas:
                        watch.saw(delta)
                        yield delta
            finally:
                watch.end()

    def _check(self, question: str, field: str) -> None:
        if not question.strip():
            raise InvalidRequest("The question is empty.", field=field, remedy="Ask something.")
        if len(question) > self._policy.max_question_chars:
            raise InvalidRequest(
                f"The question has {len(question)} characters; at most {self._policy.max_question_chars} are allowed.",
                field=field,
                remedy="Shorten it, or raise HLO_MAX_QUESTION_CHARS.",
            )

    async def _route(self, question: Question, screened: screening.Screenings, edition: Edition, within: Span) -> Route:
        """What was pinned, or the router's decision."""
        if question.specialty == BASE:
            return Route("routed", None, pinned_by="request")
        if question.specialty is not None:
            edition.catalog.find(question.specialty, field="$.specialty")
            return Route("routed", question.specialty, pinned_by="request")
        if (pinned := screening.pinned(screened)) is not None:
            return pinned
        with self._tracing.span("route", within) as span:
            clock = time.perf_counter()
            watch = spans.Work() if span.is_recording() else None
            earlier = [turn.question for turn in question.turns]
            try:
                with self._metrics.encoding():
                    route = await edition.router.route(question.text, earlier, watch)
            except EncoderError as error:
                if not self._policy.answer_unrouted:
                    raise
                tracing.mark(span, error)
                return Route("unrouted", None)
            took = time.perf_counter() - clock
            self._metrics.routed(route, took, _recorded(span), later=bool(question.turns))
            if watch is not None:
                span.set_attributes(spans.of_route(route, edition.router.encoder))
                watch.tell(self._tracing, span)
            return route

    def _specialist(self, route: Route, edition: Edition) -> Entry | None:
        """Who answers: the routed specialty, or None for the base model. Raises `OutOfScope`."""
        if route.status == "out_of_scope" and not self._policy.answer_out_of_scope:
            raise OutOfScope(
                "No installed specialty covers this question.",
                remedy="Pin a specialty, install one that covers it, or set HLO_OUT_OF_SCOPE=base.",
            )
        if route.specialty is None or (route.status == "ambiguous" and self._policy.ambiguous != "first"):
            return None
        return edition.catalog.entries[route.specialty]

    def _prompt(self, question: Question, entry: Entry | None, whole: bool) -> tuple[Prompt, Sampling]:
        """The prompt, with as much of the conversation as leaves room for the answer. Raises `PromptTooLong`."""
        template, adapter, sampling = _BASE_TEMPLATE, None, Sampling()
        if entry is not None:
            template, adapter, sampling = entry.specialty.template, entry.adapter, entry.specialty.sampling
        sampling = sampling.override(question.sampling)
        most = self.engine.info.max_model_len
        room = max(most - sampling.max_tokens, most // 2)
        said = "\n\n".join(filter(None, (question.instructions.strip(), question.text.strip())))
        prompt = prompting.build_within(room, said, template, self._tokenizer, adapter, question.turns)
        sampling = prompting.fit(prompt, sampling, most, field="$.question")
        return Prompt(prompt.token_ids, prompt.adapter, whole), sampling


async def _which(route: Route, edition: Edition) -> AsyncGenerator[Delta, None]:
    """The question back: which of the candidates was meant."""
    titles = [edition.catalog.entries[name].specialty.title for name in route.candidates]
    text = f"Your question could be one for {', '.join(titles[:-1])} or {titles[-1]}. Which do you mean?"
    yield Delta(text, (), "stop")


def _recorded(span: Span) -> str | None:
    """The id of a trace that is being recorded, for exemplars; None where nobody would find it."""
    return tracing.trace_id(span) if span.is_recording() else None
