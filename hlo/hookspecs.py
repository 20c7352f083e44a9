"""Every hook that a plugin can implement.

Hooks are plain functions (an `async def` is refused), all named `hlo_*`; a module-level function marked with
`@hookimpl` in the module that the entry point names is enough. A plugin that misspells a hook is refused by name.
A hook may leave out arguments that it does not use.
"""

from __future__ import annotations

import pluggy

from hlo.contracts import Encoder, StartEngine
from hlo.records import Answer, Question, Screening, Specialty

hookspec = pluggy.HookspecMarker("hlo")
hookimpl = pluggy.HookimplMarker("hlo")


@hookspec
def hlo_specialties() -> list[Specialty]:  # type: ignore[empty-body]  # a specification has no body
    """Offer specialties.

    Called once when HLO starts (and once at each reload), before the engine exists; never at request time, so what it
    returns is final for that run. An empty list offers nothing and is not an error. When it raises, takes longer than
    HLO_PLUGIN_TIMEOUT_S, or returns anything but a list of `Specialty`, the whole plugin is refused with the reason,
    and all others keep serving.

        @hookimpl
        def hlo_specialties():
            return [Specialty("joints", "Joints", Adapter("joints"), examples=read_examples(__name__))]
    """


@hookspec
def hlo_encoder(name: str) -> Encoder | None:
    """Offer an encoder.

    Called once at start, with the value of HLO_ENCODER, in the order of the plugins' names, until one returns an
    encoder. None means that the name is not this plugin's; when it is nobody's, it is taken for a sentence-transformers
    model. When it raises, or returns no encoder, HLO does not start: it would route by another encoder than was asked
    for. Encoders are not exchanged by a reload.

        @hookimpl
        def hlo_encoder(name):
            return MedicalEncoder() if name == "medical" else None
    """


@hookspec
def hlo_engine(name: str) -> StartEngine | None:
    """Offer an engine.

    Called once at start, when HLO_ENGINE is neither `auto`, `vllm` nor `transformers`, with its value, in the order of
    the plugins' names, until one returns a coroutine function that takes `hlo.contracts.EngineOptions` and returns an
    `hlo.contracts.Engine`. None means that the name is not this plugin's; when it is nobody's, HLO does not start, nor
    when the hook raises or returns something else. Engines are not exchanged by a reload.

        @hookimpl
        def hlo_engine(name):
            return RemoteEngine.start if name == "remote" else None
    """


@hookspec
def hlo_question(question: Question) -> Screening | None:
    """See a question before it is routed; put a notice ahead of its answer, pin a specialty, or refuse it.

    Called for every question that `/ask` and `/route` take, in a thread of the plugin's own. None says nothing. In the
    order of the plugins' names, all notices are shown and the first pin wins (a pin in the request comes before all);
    one refusal is enough. When it raises, pins a specialty that is not served, returns something else, or takes longer
    than HLO_QUESTION_TIMEOUT_S, this plugin's say is left out, the question goes on, and `hlo_hook_errors_total`
    counts it; the log names the plugin and the kind of error, never the question.

        @hookimpl
        def hlo_question(question):
            return Screening(notice="Call an ambulance.") if "can't breathe" in question.text else None
    """


@hookspec
def hlo_answer(question: Question, answer: Answer) -> None:
    """See a whole answer, after it was given.

    Called for every answer of `/ask` that was not given up, one at a time, in a worker thread that no answer waits
    for; where more than a thousand wait, the newest is left out and counted as an error. What it returns is ignored.
    When it raises, the answer is not affected: `hlo_hook_errors_total` counts it, and the log names the plugin and
    the kind of error, never a word of question or answer.

        @hookimpl
        def hlo_answer(answer):
            audit.write(answer.trace_id, answer.specialty)
    """
