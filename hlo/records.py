"""The records that travel through HLO: frozen, plain data, one noun per concept.

`Question` -> `Route` -> `Prompt` -> `Delta`s -> `Answer`; `Specialty` and `Adapter` are what plugins declare,
`AdapterVersion` is what HLO made of an adapter once it had checked every tensor of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from msgspec import Struct, field

RouteStatus = Literal["routed", "ambiguous", "out_of_scope", "unrouted"]
FinishReason = Literal["stop", "length", "abort"]


class Sampling(Struct, frozen=True):
    """How to generate; greedy unless told otherwise. A plugin declares these as its specialty's defaults.

    Units: `max_tokens` counts generated tokens, `temperature` 0 means greedy, `top_p` is a probability mass in (0, 1],
    `repetition_penalty` divides the logits of tokens seen before (1 = off; Keskar et al. 2019, arXiv:1909.05858).
    """

    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()

    def override(self, overrides: SamplingOverrides) -> Sampling:
        """Return a copy in which every field that `overrides` names has that value."""
        return Sampling(
            max_tokens=self.max_tokens if overrides.max_tokens is None else overrides.max_tokens,
            temperature=self.temperature if overrides.temperature is None else overrides.temperature,
            top_p=self.top_p if overrides.top_p is None else overrides.top_p,
            repetition_penalty=self.repetition_penalty,
            seed=self.seed if overrides.seed is None else overrides.seed,
            stop=self.stop if overrides.stop is None else overrides.stop,
        )


class SamplingOverrides(Struct, frozen=True):
    """What one request asks to be different from the specialty's `Sampling`; None leaves the default."""

    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] | None = None


class Turn(Struct, frozen=True):
    """An earlier turn of a conversation: what the user asked, and what was answered, where that is known."""

    question: str
    answer: str = ""


class Question(Struct, frozen=True):
    """What the user asked, and the `turns` before it, oldest first.

    `specialty` pins a specialty, or the base model (`base`), and skips routing. `instructions` are what the client's
    program wants of the answer: they stand before the question in the prompt, words like the question's own, and take
    no part in routing.
    """

    text: str
    specialty: str | None = None
    sampling: SamplingOverrides = SamplingOverrides()
    turns: tuple[Turn, ...] = ()
    instructions: str = ""


class Adapter(Struct, frozen=True):
    """Where a specialty's LoRA weights lie, as a plugin declares it.

    `reference` is a folder inside `package` (when `package` is given), else a name under `HLO_ADAPTER_PATH`, an
    absolute path, or `hf://org/repo@revision` with an optional folder after it, as huggingface_hub writes such paths.
    The folder holds PEFT's layout: `adapter_config.json` and `adapter_model.safetensors`.
    """

    reference: str
    package: str | None = None


class AdapterVersion(Struct, frozen=True):
    """One checked, immutable version of an adapter, known by name and content hash.

    `path` is HLO's own copy, in a folder named by the hash, so that nobody changes it under a running engine.
    `modules` are the kinds of layer that it touches (`q_proj`, …); `size` is in bytes. `source` is where it was found.
    """

    name: str
    sha256: str
    path: Path
    rank: int
    modules: tuple[str, ...]
    size: int
    source: str = ""

    @property
    def engine_name(self) -> str:
        """The name that the engine knows it by: never the same for two contents, so no cache can mix them up."""
        return f"{self.name}@{self.sha256[:16]}"


class Embeddings(Struct, frozen=True):
    """Routing examples that the author has embedded already.

    `parts` maps a part's name to unit vectors, shape (examples, dimension). `fingerprint` names the encoder that made
    them (`hlo doctor` prints it); embeddings of another encoder are refused, because their distances mean nothing.
    """

    fingerprint: str
    parts: Mapping[str, Sequence[Sequence[float]]]


class Specialty(Struct, frozen=True):
    """What a plugin offers: who answers (adapter), how it is asked (template), and which questions are its own.

    `template` is sandboxed Jinja over `question`. `examples` maps a part (`patients`, `clinical`, …) to example
    questions, the parts for people to read: to the router each example counts the same.
    """

    name: str
    title: str
    adapter: Adapter
    template: str = "{{ question }}"
    description: str = ""
    examples: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: MappingProxyType({}))
    embeddings: Embeddings | None = None
    sampling: Sampling = Sampling()


class Offer(Struct, frozen=True):
    """What one plugin offered. `distribution` and `version` say which installed package it came from.

    `origin` is where that package was installed from, after its direct_url.json (PEP 610); empty: an index.
    """

    plugin: str
    distribution: str
    version: str
    specialties: tuple[Specialty, ...]
    origin: str = ""


class Refusal(Struct, frozen=True):
    """A plugin, or one of its specialties, that is not served, with the reason and what to do about it.

    `kind` is the class of the error behind it, such as `AdapterError`.
    """

    plugin: str
    specialty: str | None
    reason: str
    remedy: str
    kind: str = "PluginError"


class Score(Struct, frozen=True):
    """How close a question came to one specialty, on the scale of a cosine, and the probability that this one fits."""

    specialty: str
    score: float
    probability: float = 0.0


class Route(Struct, frozen=True):
    """The router's decision with the scores of the nearest specialties, best first.

    `specialty` is None only when the question is out of scope, was pinned to the base model, or is `unrouted`: the
    encoder failed. `margin` is the lead of the best score over the second (the best score itself where there is no
    second). `out_of_scope` is the probability that no specialty fits; it and the scores' probabilities sum to 1.
    `candidates` are the specialties between which an ambiguous question lies. A pinned route was asked for by name, and
    nothing was scored: `pinned_by` is `request`, or the name of the plugin whose `hlo_question` asked for it.
    """

    status: RouteStatus
    specialty: str | None
    scores: tuple[Score, ...] = ()
    margin: float = 0.0
    out_of_scope: float = 0.0
    candidates: tuple[str, ...] = ()
    pinned_by: str | None = None


class Opening(Struct, frozen=True):
    """Who is going to answer, told before the first word: `specialty` and `adapter` are None for the base model.

    `route` is None for a raw prompt, which nobody routed.
    """

    route: Route | None
    specialty: str | None
    adapter: AdapterVersion | None
    trace_id: str


class Prompt(Struct, frozen=True):
    """What goes to the engine: token ids, and the adapter that is to answer (None: the base model).

    `whole` says that nobody reads along: an engine may keep the text to the end, and give it in one delta. `trace` are
    the W3C headers of the span that it belongs to, for an engine that makes spans of its own.
    """

    token_ids: tuple[int, ...]
    adapter: AdapterVersion | None = None
    whole: bool = False
    trace: tuple[tuple[str, str], ...] = ()


class Notice(Struct, frozen=True):
    """A text that a plugin put ahead of an answer."""

    plugin: str
    text: str


class Delta(Struct, frozen=True):
    """A piece of generated text and the tokens behind it; the last delta carries `finish_reason`.

    `first_token_s` is how long after it was asked the engine had its first token, where it says so: a delta with a
    whole text comes much later. `cached_tokens` are those of the prompt's that it did not have to compute, and
    `queue_s` is how long the prompt waited before it was begun with; the first delta says so, where the engine does.
    A delta with `notices` was not generated: its text is theirs, which stands ahead of the answer's own.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None = None
    first_token_s: float | None = None
    cached_tokens: int = 0
    queue_s: float | None = None
    notices: tuple[Notice, ...] = ()


class Usage(Struct, frozen=True):
    """Tokens read and written."""

    prompt_tokens: int
    completion_tokens: int


class Completion(Struct, frozen=True):
    """The end of a raw prompt's continuation: who wrote it (None: the base model), and the tokens."""

    adapter: AdapterVersion | None
    usage: Usage


class Timings(Struct, frozen=True):
    """Where one answer's time went, in milliseconds; the last two count from the question's arrival."""

    route_ms: float
    first_token_ms: float | None
    total_ms: float


class Screening(Struct, frozen=True):
    """What a plugin says of a question before it is routed. Empty fields say nothing.

    `notice` is put ahead of the answer, whoever gives it. `specialty` pins a specialty by name, unless the request
    pinned one; the first plugin that pins wins. `refusal` refuses the question, in words for the one who asked.
    """

    notice: str = ""
    specialty: str | None = None
    refusal: str = ""


class Answer(Struct, frozen=True):
    """A finished answer and everything that produced it. `adapter` is None when the base model answered.

    `text` begins with the notices, each a paragraph of its own, so that no client can show the answer without them.
    """

    text: str
    route: Route
    specialty: str | None
    adapter: AdapterVersion | None
    model: str
    usage: Usage
    timings: Timings
    finish_reason: FinishReason
    trace_id: str
    notices: tuple[Notice, ...] = ()


class Finding(Struct, frozen=True):
    """One thing that was looked at by a command that examines. `remedy` says what to do, where there is something."""

    topic: str
    state: Literal["ok", "warning", "trouble"]
    text: str
    remedy: str = ""
