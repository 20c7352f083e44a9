"""What goes over the wire: requests with their limits, and responses made from records."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from hlo.catalog import Catalog, Entry
from hlo.contracts import EngineInfo
from hlo.records import (
    AdapterVersion,
    Answer,
    FinishReason,
    Notice,
    Refusal,
    Route,
    SamplingOverrides,
    Timings,
    Turn,
    Usage,
)
from hlo.routing.decision import Thresholds
from hlo.routing.router import Basis

MaxTokens = Annotated[int, Meta(ge=1, le=1 << 20, description="Most tokens to generate.")]
Temperature = Annotated[float, Meta(ge=0, le=2, description="0 is greedy.")]
TopP = Annotated[float, Meta(gt=0, le=1, description="Probability mass to sample from.")]
Seed = Annotated[int, Meta(ge=0, le=(1 << 63) - 1, description="Makes sampling repeatable.")]
TimeoutS = Annotated[float, Meta(gt=0, description="Seconds in which it must be done; then it is stopped.")]
Stop = Annotated[list[Annotated[str, Meta(min_length=1, max_length=128)]], Meta(max_length=16)]


class _Generation(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    stream: bool = False
    max_tokens: MaxTokens | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    seed: Seed | None = None
    stop: Stop | None = None
    timeout_s: TimeoutS | None = None

    def overrides(self) -> SamplingOverrides:
        """The sampling parameters that this request names."""
        stop = None if self.stop is None else tuple(self.stop)
        return SamplingOverrides(self.max_tokens, self.temperature, self.top_p, self.seed, stop)


class TurnRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """An earlier turn of the conversation: what was asked, and what was answered."""

    question: str
    answer: str = ""


class AskRequest(_Generation, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`POST /ask`. `specialty` pins a specialty, or `base` the model without an adapter, and skips routing.

    `stream` gives server-sent events. `turns` are the earlier ones of the conversation, oldest first: a follow-up stays
    with its specialist.
    """

    question: str
    specialty: str | None = None
    turns: Annotated[list[TurnRequest], Meta(max_length=64)] = []

    def earlier(self) -> tuple[Turn, ...]:
        """The earlier turns."""
        return tuple(Turn(turn.question, turn.answer) for turn in self.turns)


class RouteRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """`POST /route`: one question, or several."""

    question: str | list[str]


class GenerateRequest(_Generation, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`POST /generate`: a raw prompt. `adapter` is a specialty's name, or `base`; left out, the default adapter."""

    prompt: str
    adapter: str | None = None


class SwitchAdapterRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """`POST /switch-adapter`: the default adapter of `/generate` from now on; `base` is none."""

    adapter_name: str


class AdapterView(Struct, frozen=True):
    """An adapter, by name and content hash."""

    name: str
    sha256: str

    @classmethod
    def of(cls, version: AdapterVersion | None) -> AdapterView | None:
        """None for the base model."""
        return cls(version.name, version.sha256) if version else None


class AnswerView(Struct, frozen=True):
    """An answer and all that produced it."""

    answer: str
    specialty: str | None
    route: Route
    adapter: AdapterView | None
    model: str
    usage: Usage
    timings: Timings
    finish_reason: FinishReason
    trace_id: str
    notices: tuple[Notice, ...]

    @classmethod
    def of(cls, answer: Answer) -> AnswerView:
        """An answer as it goes over the wire."""
        return cls(
            answer=answer.text,
            specialty=answer.specialty,
            route=answer.route,
            adapter=AdapterView.of(answer.adapter),
            model=answer.model,
            usage=answer.usage,
            timings=answer.timings,
            finish_reason=answer.finish_reason,
            trace_id=answer.trace_id,
            notices=answer.notices,
        )


class RoutesView(Struct, frozen=True):
    """The routes of several questions, in their order."""

    routes: tuple[Route, ...]


class CompletionView(Struct, frozen=True):
    """What `/generate` gives back."""

    text: str
    adapter: AdapterView | None
    model: str
    usage: Usage
    finish_reason: FinishReason


class SwitchView(Struct, frozen=True):
    """The default adapter of `/generate` after and before a switch (None: the base model)."""

    adapter: AdapterView | None
    previous: AdapterView | None


class DeltaView(Struct, frozen=True, omit_defaults=True):
    """A piece of text in a stream; with `notices`, it is the text of these, ahead of the answer's own."""

    text: str
    notices: tuple[Notice, ...] = ()


class SpecialtyView(Struct, frozen=True):
    """A specialty that is served, and where it and its adapter came from. `adapter_bytes`: its weights' size."""

    name: str
    title: str
    description: str
    adapter: AdapterView | None
    rank: int
    adapter_bytes: int
    examples: int
    plugin: str
    distribution: str
    version: str
    origin: str
    adapter_source: str

    @classmethod
    def of(cls, entry: Entry) -> SpecialtyView:
        """A catalog entry as it goes over the wire."""
        return cls(
            name=entry.specialty.name,
            title=entry.specialty.title,
            description=entry.specialty.description,
            adapter=AdapterView.of(entry.adapter),
            rank=entry.adapter.rank,
            adapter_bytes=entry.adapter.size,
            examples=sum(len(part) for part in entry.specialty.examples.values()),
            plugin=entry.plugin,
            distribution=entry.distribution,
            version=entry.version,
            origin=entry.origin,
            adapter_source=entry.adapter.source,
        )


class SpecialtiesView(Struct, frozen=True):
    """Everything that is served, everything that was refused and why, and the plugins that HLO_PLUGINS leaves out."""

    specialties: tuple[SpecialtyView, ...]
    refused: tuple[Refusal, ...]
    off: tuple[str, ...]

    @classmethod
    def of(cls, catalog: Catalog) -> SpecialtiesView:
        """The catalog as it goes over the wire."""
        return cls(tuple(SpecialtyView.of(one) for one in catalog.entries.values()), catalog.refusals, catalog.off)


class HealthView(Struct, frozen=True):
    """The process lives."""

    status: str = "ok"


class ReadyView(Struct, frozen=True):
    """Whether questions can be answered, and with what.

    `thresholds_from` says what the routing thresholds rest on, and why a calibration is not used.
    """

    ready: bool
    stage: str
    engine: EngineInfo | None = None
    encoder: str | None = None
    encoder_fingerprint: str | None = None
    thresholds: Thresholds | None = None
    thresholds_from: Basis | None = None
    specialties: tuple[str, ...] = ()
    refused: tuple[Refusal, ...] = ()
