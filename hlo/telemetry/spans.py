"""What spans tell of each stage, under OpenTelemetry's names where it has one (semantic conventions for generative AI).

Everything here comes from what operators and plugins declared and from what was counted, nothing from what users wrote,
unless the operator wants just that (`messages`, and a `Generation` with `words`).
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping

from opentelemetry.trace import Span
from opentelemetry.util.types import AttributeValue

from hlo.contracts import EngineInfo
from hlo.records import AdapterVersion, Delta, Prompt, Question, Route, Sampling
from hlo.telemetry.tracing import Attributes, Tracing, mark

_TOP = 3  # scores that a span tells


def of_route(route: Route, encoder: str) -> Attributes:
    """A router's decision."""
    top = route.scores[:_TOP]
    told: dict[str, str | float | list[str] | list[float]] = {
        "hlo.encoder": encoder,
        "hlo.route.status": route.status,
        "hlo.route.margin": route.margin,
        "hlo.route.out_of_scope": route.out_of_scope,
        "hlo.route.top": [one.specialty for one in top],
        "hlo.route.scores": [one.score for one in top],
        "hlo.route.probabilities": [one.probability for one in top],
    }
    if route.specialty is not None:
        told["hlo.route.specialty"] = route.specialty
    return told


def of_adapter(adapter: AdapterVersion | None, version: str = "") -> Attributes:
    """Which weights answer; `version` is that of the package that brought them."""
    if adapter is None:
        return {}
    told = {"hlo.adapter.name": adapter.name, "hlo.adapter.sha256": adapter.sha256}
    return told | {"hlo.adapter.version": version} if version else told


def plugin_failed(span: Span, plugin: str, kind: str) -> None:
    """A plugin's hook that raised, or took too long (`TimeoutError`), and was left out."""
    span.add_event("plugin failed", {"hlo.plugin": plugin, "error.type": kind})
    mark(span, kind)


class Work:
    """Hears when the encoder's thread did its part of a question, for the spans `encode` and `score`."""

    def __init__(self) -> None:
        self._done: list[tuple[int, int, int, int]] = []

    def __call__(self, began: int, encoded: int, scored: int, questions: int) -> None:
        """One batch that held the question: its times, of `time.time_ns`, and how many questions it had."""
        self._done.append((began, encoded, scored, questions))

    def tell(self, tracing: Tracing, route: Span) -> None:
        """Make the spans."""
        for began, encoded, scored, questions in self._done:
            tracing.past("encode", route, began, encoded, {"hlo.encoder.batch": questions})
            tracing.past("score", route, encoded, scored)


class Generation:
    """Watches one generation, and tells its span of it at the end, however it ends."""

    def __init__(
        self,
        span: Span,
        prompt: Prompt,
        sampling: Sampling,
        info: EngineInfo,
        told: Attributes,
        *,
        words: bool = False,
    ) -> None:
        self._span = span
        self._words: list[str] | None = [] if words else None
        self._prompt = prompt
        self._began = time.perf_counter()
        self._first_s: float | None = None
        self._queue_s: float | None = None
        self._tokens = 0
        self._cached = 0
        self._reason: str | None = None
        self._told: dict[str, AttributeValue] = {
            "gen_ai.provider.name": info.engine,
            "gen_ai.request.model": info.model,
            "gen_ai.output.type": "text",
            "gen_ai.request.max_tokens": sampling.max_tokens,
            "gen_ai.request.temperature": sampling.temperature,
            "gen_ai.request.top_p": sampling.top_p,
            "gen_ai.request.stream": not prompt.whole,
            "hlo.model.quantization": info.quantization,
            **told,
        }

    def saw(self, delta: Delta) -> None:
        """Take note of a delta."""
        if self._first_s is None:
            said = delta.first_token_s
            self._first_s = time.perf_counter() - self._began if said is None else said
            self._queue_s, self._cached = delta.queue_s, delta.cached_tokens
        self._tokens += len(delta.token_ids)
        if self._words is not None:
            self._words.append(delta.text)
        self._reason = delta.finish_reason or self._reason

    def end(self) -> None:
        """Tell what there is to tell, all at once, since each telling costs."""
        told = self._told | {
            "gen_ai.usage.input_tokens": len(self._prompt.token_ids),
            "gen_ai.usage.output_tokens": self._tokens,
            "gen_ai.usage.cache_read.input_tokens": self._cached,
            "gen_ai.response.finish_reasons": [self._reason or "abort"],
        }
        if self._queue_s is not None:
            told["hlo.queue_s"] = self._queue_s
        if self._first_s is not None:
            told["gen_ai.response.time_to_first_chunk"] = self._first_s
            told["hlo.decode_s"] = max(time.perf_counter() - self._began - self._first_s, 0.0)
        if self._words is not None:
            told["gen_ai.output.messages"] = _messages([("assistant", "".join(self._words))])
        self._span.set_attributes(told)


def messages(question: Question) -> str:
    """The words of a question, and of the turns and instructions before it, as `gen_ai.input.messages` has them."""
    said = [pair for turn in question.turns for pair in (("user", turn.question), ("assistant", turn.answer))]
    asked = [("system", question.instructions)] if question.instructions else []
    return _messages([*asked, *said, ("user", question.text)])


def _messages(said: list[tuple[str, str]]) -> str:
    told = [{"role": role, "parts": [{"type": "text", "content": words}]} for role, words in said]
    return json.dumps(told, ensure_ascii=False)


def of_request(scope: Mapping[str, object]) -> Attributes:
    """An HTTP request (semantic conventions for HTTP servers); `scope` is ASGI's.

    The path is the route's own: what a client put into a path of its own making, into its query or into its headers
    is not told.
    """
    template = str(scope["path_template"])
    told: dict[str, str | int] = {
        "http.request.method": str(scope["method"]),
        "http.route": template,
        "url.path": template,
        "url.scheme": str(scope.get("scheme", "http")),
        "network.protocol.version": str(scope.get("http_version", "1.1")),
    }
    server = scope.get("server")
    if isinstance(server, (tuple, list)) and server[0]:
        told["server.address"] = str(server[0])
        if server[1]:
            told["server.port"] = int(server[1])
    return told
