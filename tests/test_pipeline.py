"""One question's walk, with fakes at both ends."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import pytest

from hlo.errors import (
    EncoderError,
    EngineDead,
    InvalidRequest,
    OutOfScope,
    PromptTooLong,
    QuestionRefused,
    UnknownAdapter,
    UnknownSpecialty,
)
from hlo.pipeline import Policy
from hlo.plugins import Hooks
from hlo.plugins.hooks import Hook
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
    Screening,
    Turn,
    Usage,
)
from hlo.routing import bank
from hlo.testing import EchoEngine, HashingEncoder

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from tests.conftest import MakeParts, Parts, Until

HEART, NEITHER, BOTH = "My heart and my chest hurt", "Where do I park?", "valve numb"


async def ask(parts: Parts, question: Question | str) -> Answer:
    """The answer to a question, which comes last."""
    asked = Question(question) if isinstance(question, str) else question
    events = [event async for event in parts.pipeline.ask(asked)]
    assert isinstance(events[-1], Answer)
    return events[-1]


def counted(parts: Parts) -> dict[str, float]:
    """The questions that the metrics count, as `specialty route outcome`."""
    pattern = r'^hlo_questions_total\{outcome="(.*)",route="(.*)",specialty="(.*)"\} (.*)$'
    found = re.findall(pattern, parts.metrics.render().decode(), re.MULTILINE)
    assert "hlo_questions_running 0.0" in parts.metrics.render().decode()
    return {f"{specialty} {route} {outcome}": float(number) for outcome, route, specialty, number in found}


async def test_events_come_in_order(parts: Parts) -> None:
    """A question gives who answers it, then the text piece by piece, then the answer that holds it all."""
    events = [event async for event in parts.pipeline.ask(Question(HEART))]
    opening, deltas, answer = events[0], events[1:-1], events[-1]
    assert isinstance(answer, Answer)
    assert opening == Opening(answer.route, "cardiology", answer.adapter, answer.trace_id)
    assert all(isinstance(delta, Delta) for delta in deltas)
    assert "".join(delta.text for delta in deltas if isinstance(delta, Delta)) == answer.text


async def test_an_answer_says_who_gave_it(parts: Parts) -> None:
    """An answer carries its route, specialty, adapter, model, usage and finish reason."""
    answer = await ask(parts, HEART)
    assert answer.text == f"cardiology:<cardiology: {HEART}>"
    assert (answer.specialty, answer.route.status, answer.route.specialty) == ("cardiology", "routed", "cardiology")
    assert answer.adapter == parts.pipeline.catalog.entries["cardiology"].adapter
    assert (answer.model, answer.finish_reason) == ("echo", "stop")
    assert answer.usage == Usage(len(f"<cardiology: {HEART}>"), len(answer.text))
    assert re.fullmatch(r"[0-9a-f]{32}", answer.trace_id)
    assert answer.timings.first_token_ms is not None
    assert 0 <= answer.timings.route_ms <= answer.timings.first_token_ms <= answer.timings.total_ms


async def test_each_answer_has_its_own_trace(parts: Parts) -> None:
    """Two answers never share a trace id."""
    assert (await ask(parts, HEART)).trace_id != (await ask(parts, HEART)).trace_id


async def test_a_pinned_specialty_answers(parts: Parts) -> None:
    """A pinned specialty answers whatever the question is, and nothing is scored."""
    answer = await ask(parts, Question(HEART, "oncology"))
    assert (answer.specialty, answer.route) == ("oncology", Route("routed", "oncology", pinned_by="request"))
    assert answer.text.startswith("oncology:<oncology: ")


async def test_the_base_model_can_be_pinned(make_parts: MakeParts) -> None:
    """The base model answers where it was pinned, nothing is scored, and an operator's refusals do not count."""
    parts = make_parts(policy=Policy(answer_out_of_scope=False))
    answer = await ask(parts, Question(HEART, "base"))
    assert (answer.specialty, answer.adapter, answer.text) == (None, None, f"base:<{HEART}>")
    assert answer.route == Route("routed", None, pinned_by="request")
    assert counted(parts) == {"base routed stop": 1}


async def test_instructions_stand_before_the_question_and_route_nothing(parts: Parts) -> None:
    """What the client's program wants stands inside the template as words, and takes no part in routing."""
    answer = await ask(parts, Question(HEART, instructions=" tumor cancer <lump> "))
    assert answer.text == f"cardiology:<cardiology: tumor cancer <lump>\n\n{HEART}>"
    assert (await ask(parts, Question(NEITHER, instructions="tumor"))).specialty is None
    with pytest.raises(InvalidRequest) as caught:
        await ask(parts, Question(HEART, instructions="a" * 4001))
    assert caught.value.field == "$.instructions"


async def test_an_unknown_pin_is_refused(parts: Parts) -> None:
    """A pin that names no specialty is refused with its field."""
    with pytest.raises(UnknownSpecialty) as caught:
        await ask(parts, Question(HEART, "dentistry"))
    assert caught.value.field == "$.specialty"
    assert counted(parts) == {"none none refused": 1}


async def test_an_ambiguous_question_goes_to_the_first(parts: Parts) -> None:
    """By default the best specialty answers an ambiguous question, and the route says that it was close."""
    answer = await ask(parts, BOTH)
    assert (answer.route.status, answer.specialty) == ("ambiguous", "neurology")
    assert counted(parts) == {"neurology ambiguous stop": 1}


async def test_an_ambiguous_question_can_go_to_the_base(make_parts: MakeParts) -> None:
    """Where the operator says so, the base model answers an ambiguous question, and the route still names the best."""
    parts = make_parts(policy=Policy(ambiguous="base"))
    answer = await ask(parts, BOTH)
    assert (answer.route.status, answer.route.specialty) == ("ambiguous", "neurology")
    assert (answer.specialty, answer.adapter, answer.text) == (None, None, f"base:<{BOTH}>")
    assert counted(parts) == {"base ambiguous stop": 1}


class Asked(EchoEngine):
    """An engine that remembers the prompts that it was given."""

    def __init__(self, *, max_model_len: int = 512) -> None:
        super().__init__(max_model_len=max_model_len)
        self.prompts: list[Prompt] = []

    def generate(self, prompt: Prompt, sampling: Sampling) -> AsyncGenerator[Delta, None]:
        """Remember, and echo."""
        self.prompts.append(prompt)
        return super().generate(prompt, sampling)

    @property
    def told(self) -> list[str]:
        """The prompts' words."""
        return ["".join(chr(abs(number)) for number in prompt.token_ids) for prompt in self.prompts]


async def test_an_ambiguous_question_can_be_given_back(make_parts: MakeParts, until: Until) -> None:
    """Where the operator says so, an ambiguous question is answered with which was meant; no engine is asked."""
    seen: list[tuple[Question, Answer]] = []
    hook = Hook("log", lambda question, answer: seen.append((question, answer)), ("question", "answer"))
    engine = Asked()
    parts = make_parts(policy=Policy(ambiguous="ask"), engine=engine, hooks=Hooks(answer=(hook,)))
    events = [event async for event in parts.pipeline.ask(Question(BOTH))]
    opening, deltas, answer = events[0], events[1:-1], events[-1]
    assert isinstance(answer, Answer)
    assert opening == Opening(answer.route, None, None, answer.trace_id)
    route = answer.route
    assert (route.status, route.candidates) == ("ambiguous", ("neurology", "cardiology"))
    text = "Your question could be one for Neurology or Cardiology. Which do you mean?"
    assert deltas == [Delta(text, (), "stop")]
    assert (answer.text, answer.finish_reason) == (text, "stop")
    assert (answer.specialty, answer.adapter, answer.usage) == (None, None, Usage(0, 0))
    assert (engine.prompts, engine.running) == ([], 0)
    await until(lambda: seen)
    assert seen == [(Question(BOTH), answer)]
    assert counted(parts) == {"none ambiguous stop": 1}


async def test_asking_back_needs_no_engine_at_all(make_parts: MakeParts) -> None:
    """A question back is given though the engine is dead, and notices stand ahead of it as of every answer."""
    parts = make_parts(policy=Policy(ambiguous="ask"), hooks=saying(a=Screening(notice="Call 112.")))
    await parts.engine.close()
    answer = await ask(parts, BOTH)
    assert answer.text.startswith("Call 112.\n\nYour question could be one for ")
    with pytest.raises(EngineDead):
        await ask(parts, HEART)


@pytest.mark.parametrize("question", [Question(HEART), Question(NEITHER), Question(BOTH, "oncology")])
async def test_only_what_is_ambiguous_is_given_back(question: Question, make_parts: MakeParts) -> None:
    """What is clear, out of scope or pinned is answered as ever."""
    engine = Asked()
    parts = make_parts(policy=Policy(ambiguous="ask"), engine=engine)
    assert (await ask(parts, question)).route.status != "ambiguous"
    assert len(engine.prompts) == 1


NIGHT = "And at night?"
TURNS = (Turn("Is my heart well?", "It is."), Turn("heart chest pain", "Rest."))


async def test_turns_reach_router_and_prompt(make_parts: MakeParts) -> None:
    """A follow-up goes to its conversation's specialty, whose prompt holds the turns as they were said, in order."""
    engine = Asked()
    follow_ups = bank.embedded("follow_ups", ("and at night",), HashingEncoder())
    parts = make_parts(engine=engine, follow_ups=follow_ups)
    answer = await ask(parts, Question(NIGHT, turns=TURNS))
    assert (answer.specialty, answer.route.status) == ("cardiology", "routed")
    assert engine.told == [f"<Is my heart well?>It is.<heart chest pain>Rest.<cardiology: {NIGHT}>"]
    assert answer.usage.prompt_tokens == len(engine.told[0])
    assert (await ask(parts, NIGHT)).specialty is None


async def test_turns_reach_a_pinned_specialty_and_the_base(make_parts: MakeParts) -> None:
    """Turns are part of the prompt whoever answers."""
    engine = Asked()
    parts = make_parts(engine=engine)
    await ask(parts, Question("Why?", "oncology", turns=TURNS[:1]))
    await ask(parts, Question(NEITHER, turns=(Turn("parking?", "Yes."),)))
    assert engine.told == ["<Is my heart well?>It is.<oncology: Why?>", f"<parking?>Yes.<{NEITHER}>"]


@pytest.mark.parametrize(("room", "kept"), [(512, 3), (70, 2), (55, 1), (40, 0)])
async def test_the_oldest_turns_give_way(room: int, kept: int, make_parts: MakeParts) -> None:
    """Where a conversation is too long for the context, its oldest turns are left out; at last only the question is."""
    engine = Asked(max_model_len=room)
    parts = make_parts(engine=engine, sampling=Sampling(max_tokens=5))
    turns = tuple(Turn(f"question {number}", "answer") for number in range(3))  # of 18 characters in the prompt
    answer = await ask(parts, Question("heart", "cardiology", turns=turns))
    earlier = "".join(f"<{turn.question}>{turn.answer}" for turn in turns[3 - kept :])
    assert engine.told == [f"{earlier}<cardiology: heart>"]
    assert answer.usage.prompt_tokens + answer.usage.completion_tokens <= room


async def test_a_question_too_long_by_itself_is_refused(make_parts: MakeParts) -> None:
    """Leaving out turns can not make room for a question that is too long alone."""
    parts = make_parts(engine=EchoEngine(max_model_len=20))
    with pytest.raises(PromptTooLong):
        await ask(parts, Question(HEART, turns=TURNS))


@pytest.mark.parametrize(
    ("turns", "field"),
    [
        ((Turn("", "x"),), "$.turns[0].question"),
        ((Turn("x"), Turn(" \n")), "$.turns[1].question"),
        ((Turn("x"), Turn("y"), Turn("z" * 41)), "$.turns[2].question"),
    ],
)
async def test_turns_are_checked_as_questions_are(turns: tuple[Turn, ...], field: str, make_parts: MakeParts) -> None:
    """An earlier question that is empty or too long is refused with its place."""
    parts = make_parts(policy=Policy(max_question_chars=40))
    with pytest.raises(InvalidRequest) as caught:
        await ask(parts, Question(HEART, turns=turns))
    assert caught.value.field == field
    assert counted(parts) == {"none none refused": 1}


async def test_an_out_of_scope_question_goes_to_the_base(parts: Parts) -> None:
    """By default the base model answers what no specialty covers, with the question alone as its prompt."""
    answer = await ask(parts, NEITHER)
    assert (answer.route.status, answer.specialty, answer.adapter) == ("out_of_scope", None, None)
    assert answer.text == f"base:<{NEITHER}>"
    assert counted(parts) == {"base out_of_scope stop": 1}


async def test_an_out_of_scope_question_can_be_refused(make_parts: MakeParts) -> None:
    """Where the operator says so, what no specialty covers is refused, and the engine is not asked."""
    parts = make_parts(policy=Policy(answer_out_of_scope=False))
    with pytest.raises(OutOfScope) as caught:
        await ask(parts, NEITHER)
    assert "HLO_OUT_OF_SCOPE" in caught.value.remedy
    assert counted(parts) == {"none out_of_scope refused": 1}


@pytest.mark.parametrize("question", ["", " ", "\n\t\u2003"])
async def test_an_empty_question_is_refused(question: str, parts: Parts) -> None:
    """A question without a word is refused with its field."""
    with pytest.raises(InvalidRequest, match="empty") as caught:
        await ask(parts, question)
    assert caught.value.field == "$.question"
    assert counted(parts) == {"none none refused": 1}


async def test_an_over_long_question_is_refused(make_parts: MakeParts) -> None:
    """A question beyond the limit is refused with both lengths and the setting; one at the limit is answered."""
    parts = make_parts(policy=Policy(max_question_chars=len(HEART)))
    assert (await ask(parts, HEART)).specialty == "cardiology"
    with pytest.raises(InvalidRequest) as caught:
        await ask(parts, HEART + "!")
    assert f"has {len(HEART) + 1} characters; at most {len(HEART)}" in caught.value.message
    assert "HLO_MAX_QUESTION_CHARS" in caught.value.remedy


async def test_a_prompt_beyond_the_context_is_refused(make_parts: MakeParts) -> None:
    """A prompt that leaves the engine no token for an answer is refused before anything is generated."""
    parts = make_parts(engine=EchoEngine(max_model_len=20))
    with pytest.raises(PromptTooLong) as caught:
        await ask(parts, HEART)
    assert caught.value.field == "$.question"
    assert counted(parts) == {"cardiology routed refused": 1}


async def test_an_answer_is_shortened_to_the_context(make_parts: MakeParts) -> None:
    """An answer ends where the context does, and says so."""
    prompt = f"<cardiology: {HEART}>"
    parts = make_parts(engine=EchoEngine(max_model_len=len(prompt) + 5))
    answer = await ask(parts, HEART)
    assert (answer.usage, answer.finish_reason) == (Usage(len(prompt), 5), "length")
    assert counted(parts) == {"cardiology routed length": 1}


class Remembering(EchoEngine):
    """An engine that remembers the sampling of each request."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[Sampling] = []

    def generate(self, prompt: Prompt, sampling: Sampling) -> AsyncGenerator[Delta, None]:
        """Remember, and echo."""
        self.asked.append(sampling)
        return super().generate(prompt, sampling)


async def test_sampling_is_the_specialtys_unless_overridden(make_parts: MakeParts) -> None:
    """A specialty's sampling holds for its questions, a request's overrides come first, and the base has its own."""
    engine = Remembering()
    parts = make_parts(engine=engine, sampling=Sampling(max_tokens=9, temperature=0.5, repetition_penalty=1.1))
    await ask(parts, HEART)
    await ask(parts, Question(HEART, sampling=SamplingOverrides(max_tokens=3, seed=7, stop=("x",))))
    await ask(parts, NEITHER)
    assert engine.asked == [
        Sampling(max_tokens=9, temperature=0.5, repetition_penalty=1.1),
        Sampling(max_tokens=3, temperature=0.5, repetition_penalty=1.1, seed=7, stop=("x",)),
        Sampling(),
    ]


async def test_closing_early_aborts(make_parts: MakeParts) -> None:
    """Whoever stops listening early stops the generation, and that is counted as an abort."""
    parts = make_parts(engine=EchoEngine(pause=0.001))
    async with aclosing(parts.pipeline.ask(Question(HEART))) as events:
        assert isinstance(await anext(events), Opening)
        assert isinstance(await anext(events), Delta)
        assert parts.engine.running == 1
    assert (parts.engine.running, parts.engine.aborted) == (0, 1)
    assert counted(parts) == {"cardiology routed abort": 1}


async def test_closing_after_the_route_generates_nothing(parts: Parts) -> None:
    """Whoever leaves before the first word never reaches the engine."""
    async with aclosing(parts.pipeline.ask(Question(HEART))) as events:
        await anext(events)
    assert (parts.engine.running, parts.engine.aborted) == (0, 0)
    assert counted(parts) == {"cardiology routed abort": 1}


async def test_cancelling_aborts(make_parts: MakeParts, until: Until) -> None:
    """Cancelling the task that asks stops the generation, and that is counted as an abort."""
    parts = make_parts(engine=EchoEngine(pause=0.001))
    task = asyncio.create_task(ask(parts, HEART))
    await until(lambda: parts.engine.running)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (parts.engine.running, parts.engine.aborted) == (0, 1)
    assert counted(parts) == {"cardiology routed abort": 1}


async def test_a_listener_who_has_the_answer_may_leave(parts: Parts) -> None:
    """Closing after the answer counts the answer, not an abort."""
    async with aclosing(parts.pipeline.ask(Question(HEART))) as events:
        async for event in events:
            if isinstance(event, Answer):
                break
    assert counted(parts) == {"cardiology routed stop": 1}


async def test_a_dead_engine_is_an_error(parts: Parts) -> None:
    """An engine that can not generate raises its own error, counted as an error under the specialty."""
    await parts.engine.close()
    with pytest.raises(EngineDead):
        await ask(parts, HEART)
    assert counted(parts) == {"cardiology routed error": 1}


class Broken(HashingEncoder):
    """An encoder that fails once it is told to."""

    broken = False

    def encode(self, questions: Sequence[str]) -> NDArray[np.float32]:
        """Encode, or fail."""
        if self.broken:
            raise EncoderError("Out of memory.", remedy="Buy some.")
        return super().encode(questions)


async def test_a_broken_encoder_is_an_error(make_parts: MakeParts) -> None:
    """An encoder's error is raised and counted, and a pinned question needs no encoder."""
    encoder = Broken()
    parts = make_parts(encoder=encoder)
    encoder.broken = True
    with pytest.raises(EncoderError):
        await ask(parts, HEART)
    assert (await ask(parts, Question(HEART, "oncology"))).specialty == "oncology"
    assert counted(parts) == {"none none error": 1, "oncology routed stop": 1}


async def test_many_at_once_are_each_answered_by_their_own(make_parts: MakeParts) -> None:
    """Of many concurrent questions, each is answered from its own words by its own specialty's adapter."""
    parts = make_parts(engine=EchoEngine(pause=0.0001))
    wanted = [
        (words + "!" * n, name)
        for n in range(20)
        for words, name in (
            ("heart chest pain", "cardiology"),
            ("tumor cancer lump", "oncology"),
            ("brain seizure headache", "neurology"),
            ("parking", None),
        )
    ]
    answers = await asyncio.gather(*(ask(parts, text) for text, _ in wanted))
    for (text, name), answer in zip(wanted, answers, strict=True):
        assert answer.specialty == name
        assert answer.text == (f"{name}:<{name}: {text}>" if name else f"base:<{text}>")
        assert (answer.adapter and answer.adapter.name) == name
    assert sum(counted(parts).values()) == 80


async def test_route_answers_nothing(parts: Parts) -> None:
    """Routing alone gives the routes in order, and the engine is not asked."""
    routes = await parts.pipeline.route([HEART, NEITHER])
    assert [route.specialty for route in routes] == ["cardiology", None]
    assert counted(parts) == {}
    told = parts.metrics.render().decode()
    for specialty in ("cardiology", "none"):
        assert f'hlo_routing_seconds_count{{specialty="{specialty}"}} 1.0' in told


@pytest.mark.parametrize(
    ("questions", "field"), [([""], "$.question"), ([HEART, " "], "$.question[1]"), (["", HEART], "$.question[0]")]
)
async def test_route_names_the_empty_question(questions: list[str], field: str, parts: Parts) -> None:
    """An empty question among several is refused with its place."""
    with pytest.raises(InvalidRequest) as caught:
        await parts.pipeline.route(questions)
    assert caught.value.field == field


async def test_complete_continues_a_raw_prompt(parts: Parts) -> None:
    """A raw prompt goes to the engine as it stands: no template and no chat; who writes comes first, the usage last."""
    events = [event async for event in parts.pipeline.complete("a<b", "oncology", SamplingOverrides())]
    assert isinstance(events[0], Opening)
    assert (events[0].route, events[0].specialty) == (None, "oncology")
    assert "".join(event.text for event in events if isinstance(event, Delta)) == "oncology:a<b"
    assert events[-1] == Completion(parts.pipeline.catalog.entries["oncology"].adapter, Usage(3, 12))
    events = [event async for event in parts.pipeline.complete("ab", "base", SamplingOverrides(max_tokens=2))]
    assert "".join(event.text for event in events if isinstance(event, Delta)) == "ba"
    assert events[-1] == Completion(None, Usage(2, 2))


async def test_complete_refuses_what_it_can_not_continue(make_parts: MakeParts) -> None:
    """An empty prompt, and one that leaves no room, are refused with the prompt's field."""
    parts = make_parts(engine=EchoEngine(max_model_len=4))
    for text, error in (("", InvalidRequest), ("abcd", PromptTooLong)):
        with pytest.raises(error) as caught:
            await anext(parts.pipeline.complete(text, "base", SamplingOverrides()))
        assert caught.value.field == "$.prompt"
    with pytest.raises(UnknownAdapter, match="No adapter of that name") as unknown:
        await anext(parts.pipeline.complete("a", "dermatology", SamplingOverrides()))
    assert unknown.value.field == "$.adapter"


async def test_closing_a_completion_aborts(make_parts: MakeParts) -> None:
    """Whoever stops listening to a completion stops its generation."""
    parts = make_parts(engine=EchoEngine(pause=0.001))
    async with aclosing(parts.pipeline.complete("abc", "base", SamplingOverrides())) as deltas:
        assert isinstance(await anext(deltas), Opening)
        await anext(deltas)
    assert (parts.engine.running, parts.engine.aborted) == (0, 1)


def saying(**screenings: Screening | None) -> Hooks:
    """Plugins that each say the same of every question."""

    def says(plugin: str, screening: Screening | None) -> Hook:
        return Hook(plugin, lambda question: screening, ("question",))

    return Hooks(question=tuple(says(plugin, one) for plugin, one in screenings.items()))


async def test_notices_come_ahead_of_the_answer(make_parts: MakeParts) -> None:
    """What plugins want to be told stands before the generated text, in the stream and in the answer, and is named."""
    hooks = saying(a=Screening(notice=" Call 112. "), b=None, c=Screening(notice="Lie down."), d=Screening())
    parts = make_parts(hooks=hooks)
    events = [event async for event in parts.pipeline.ask(Question(HEART))]
    answer = events[-1]
    assert isinstance(answer, Answer)
    assert answer.text == f"Call 112.\n\nLie down.\n\ncardiology:<cardiology: {HEART}>"
    assert answer.notices == (Notice("a", "Call 112."), Notice("c", "Lie down."))
    assert isinstance(events[0], Opening)
    assert events[1] == Delta("Call 112.\n\nLie down.\n\n", (), notices=answer.notices)
    assert "".join(event.text for event in events if isinstance(event, Delta)) == answer.text
    assert answer.usage.completion_tokens == len(f"cardiology:<cardiology: {HEART}>")


async def test_a_plugin_can_pin(make_parts: MakeParts) -> None:
    """The first plugin that pins decides where a question goes, says so in the route, and no encoder is needed."""
    hooks = saying(a=Screening(notice="x"), b=Screening(specialty="oncology"), c=Screening(specialty="neurology"))
    parts = make_parts(hooks=hooks)
    wanted = Route("routed", "oncology", pinned_by="b")
    assert (await ask(parts, HEART)).route == wanted
    assert await parts.pipeline.route([HEART]) == (wanted,)


async def test_route_screens_while_it_routes(make_parts: MakeParts) -> None:
    """A question is screened while it is routed, and not before or after."""
    together = threading.Barrier(2)

    class Meeting(HashingEncoder):
        """An encoder that waits for a hook to be at work."""

        def encode(self, questions: Sequence[str]) -> Any:
            if HEART in questions:
                together.wait(30)
            return super().encode(questions)

    def meet(question: Question) -> Screening:
        together.wait(30)
        return Screening(specialty="oncology")

    hooks = Hooks(question=(Hook("meets", meet, ("question",)),))
    parts = make_parts(encoder=Meeting(), hooks=hooks)
    assert await parts.pipeline.route([HEART]) == (Route("routed", "oncology", pinned_by="meets"),)


async def test_route_screens_no_longer_than_it_routes(make_parts: MakeParts) -> None:
    """Where routing fails, the error is told at once, and no further question is screened."""
    go, seen = threading.Event(), list[str]()

    class Failing(HashingEncoder):
        """An encoder that fails once a hook is at work."""

        def encode(self, questions: Sequence[str]) -> Any:
            if HEART in questions:
                go.wait(30)
                raise EncoderError("It failed.", remedy="")
            return super().encode(questions)

    def see(question: Question) -> None:
        seen.append(question.text)
        go.set()
        if len(seen) == 1:
            gone.wait(30)

    gone = threading.Event()
    parts = make_parts(encoder=Failing(), hooks=Hooks(question=(Hook("sees", see, ("question",)),)))
    with pytest.raises(EncoderError, match="It failed"):
        await parts.pipeline.route([HEART, NEITHER])
    gone.set()
    await asyncio.sleep(0.05)
    assert seen == [HEART]


async def test_the_request_pins_before_any_plugin(make_parts: MakeParts) -> None:
    """A specialty that the request pins is taken, whatever a plugin wants."""
    parts = make_parts(hooks=saying(a=Screening(specialty="oncology")))
    answer = await ask(parts, Question(HEART, specialty="neurology"))
    assert answer.route == Route("routed", "neurology", pinned_by="request")


async def test_a_plugin_can_refuse(make_parts: MakeParts) -> None:
    """A question that one plugin refuses is not answered; its words reach who asked, and it is counted as refused."""
    parts = make_parts(hooks=saying(a=Screening(notice="x"), b=Screening(refusal="Not by this service.")))
    with pytest.raises(QuestionRefused, match="Not by this service") as caught:
        await ask(parts, HEART)
    assert "`b`" in caught.value.remedy
    assert counted(parts) == {"none none refused": 1}


async def test_observers_see_question_and_answer(make_parts: MakeParts, until: Until) -> None:
    """Observers see each whole answer with its question; one that was given up is not shown."""
    seen: list[tuple[Question, Answer]] = []
    hook = Hook("log", lambda question, answer: seen.append((question, answer)), ("question", "answer"))
    parts = make_parts(hooks=Hooks(answer=(hook,)), engine=EchoEngine(pause=0.0001))
    async with aclosing(parts.pipeline.ask(Question("given up"))) as events:
        await anext(events)
    answer = await ask(parts, HEART)
    await until(lambda: seen)
    assert seen == [(Question(HEART), answer)]


class _WholeEngine(EchoEngine):
    """An engine that keeps a text that nobody reads along to its end, and says what it had computed before."""

    async def generate(self, prompt: Prompt, sampling: Sampling) -> AsyncGenerator[Delta, None]:
        async with aclosing(super().generate(prompt, sampling)) as deltas:
            pieces = [delta async for delta in deltas]
        if not prompt.whole:
            for piece in pieces:
                yield piece
            return
        await asyncio.sleep(0.05)
        tokens = tuple(token for piece in pieces for token in piece.token_ids)
        text = "".join(piece.text for piece in pieces)
        yield Delta(text, tokens, "stop", first_token_s=0.0, cached_tokens=7, queue_s=0.25)


async def test_an_answer_that_nobody_reads_along_says_when_it_began(make_parts: MakeParts) -> None:
    """Asked for as a whole, an answer is the same in one delta; its first token's time is what the engine says."""
    parts = make_parts(engine=_WholeEngine())
    streamed = [event async for event in parts.pipeline.ask(Question(HEART))]
    whole = [event async for event in parts.pipeline.ask(Question(HEART), whole=True)]
    assert (len([one for one in whole if isinstance(one, Delta)]), len(whole)) == (1, 3)
    last, first = whole[-1], streamed[-1]
    assert isinstance(last, Answer)
    assert isinstance(first, Answer)
    assert (last.text, last.usage) == (first.text, first.usage)
    assert last.timings.first_token_ms is not None
    assert last.timings.total_ms - last.timings.first_token_ms >= 50


async def test_tokens_of_the_prefix_cache_are_counted_by_specialty(make_parts: MakeParts) -> None:
    """What the engine says that it had computed before is in the metrics, under the specialty that answered."""
    parts = make_parts(engine=_WholeEngine())
    for _ in range(2):
        _ = [event async for event in parts.pipeline.ask(Question(HEART), whole=True)]
    assert 'hlo_cached_tokens_total{specialty="cardiology"} 14.0' in parts.metrics.render().decode()
    assert 'hlo_queue_seconds_sum{specialty="cardiology"} 0.5' in parts.metrics.render().decode()
    assert parts.pipeline.uses == {"cardiology": 2}


async def test_without_the_encoder_questions_are_refused(make_parts: MakeParts) -> None:
    """When the encoder fails, a question is refused, a pinned one is answered, and all are when it is well again."""
    encoder = Broken()
    parts = make_parts(encoder=encoder)
    encoder.broken = True
    with pytest.raises(EncoderError):
        await ask(parts, "heart chest pain")
    assert (await ask(parts, Question("heart chest pain", "cardiology"))).specialty == "cardiology"
    with pytest.raises(EncoderError):
        await parts.pipeline.route(["heart"])
    assert "hlo_encoder_errors_total 2.0" in parts.metrics.render().decode()
    encoder.broken = False
    assert (await ask(parts, "heart chest pain")).specialty == "cardiology"


@pytest.mark.parametrize("out_of_scope", [True, False])
async def test_without_the_encoder_the_base_model_can_answer(make_parts: MakeParts, out_of_scope: bool) -> None:
    """With HLO_ENCODER_FAILURE=base, the base model answers and says so, even where it refuses what is out of scope."""
    encoder = Broken()
    parts = make_parts(encoder=encoder, policy=Policy(answer_unrouted=True, answer_out_of_scope=out_of_scope))
    encoder.broken = True
    answer = await ask(parts, "heart chest pain")
    assert (answer.route, answer.specialty, answer.adapter) == (Route("unrouted", None), None, None)
    assert [notice.plugin for notice in answer.notices] == ["hlo"]
    assert answer.text.startswith(f"{answer.notices[0].text}\n\nbase:")
    told = parts.metrics.render().decode()
    assert 'hlo_questions_total{outcome="stop",route="unrouted",specialty="base"} 1.0' in told


async def test_a_question_for_a_dead_engine_is_refused_before_anything_is_said(parts: Parts) -> None:
    """Where nothing can be generated, not even the route comes: a stream has not begun then, and has a status."""
    await parts.engine.close()
    with pytest.raises(EngineDead):
        await anext(parts.pipeline.ask(Question("heart chest pain")))
