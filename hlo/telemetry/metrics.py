"""Metrics for Prometheus. Each app has a registry of its own; vLLM's metrics appear beside them under their own names.

Which there are, and what their labels can be, stands in `hlo.telemetry.families`.
"""

from __future__ import annotations

import re
import time
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import Any

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics import exposition
from prometheus_client.registry import Collector

from hlo.errors import EncoderError
from hlo.records import Answer, Route, Usage
from hlo.telemetry.drift import Drifts
from hlo.telemetry.families import COUNTED, Family
from hlo.telemetry.standing import Standing, StandingMetrics

UNKNOWN = "none"  # the specialty or route of a question that failed before it had one

_RENEWAL_S = 1.0
_BUCKETS = {family.name: family.buckets for family in COUNTED if family.kind == "histogram"}
_TEXT = "text/plain; version=0.0.4; charset=utf-8"
_WEIGHT = re.compile(r"[01](\.\d{0,3})?")


class Metrics:
    """HLO's own metrics in one registry. A `trace` is the id of one that is being recorded, for exemplars."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        made = {family.name: _make(family, self._registry) for family in COUNTED}
        self._made = made
        self._children: dict[tuple[str, ...], Any] = {}
        self._running = made["hlo_questions_running"]
        self._loads = made["hlo_adapter_loads"]
        self._hook_errors = made["hlo_hook_errors"]
        self._reloads = made["hlo_reloads"]
        self._encoder_errors = made["hlo_encoder_errors"]
        self._restarts = made["hlo_engine_restarts"]
        for outcome in ("done", "failed"):  # from the start, so that the first failure is an increase
            self._reloads.labels(outcome)
            self._restarts.labels(outcome)
        self._specialties: dict[str, _OfSpecialty] = {}
        self._standing = StandingMetrics()
        self._registry.register(self._standing)
        self._registry.register(_VllmMetrics())
        self.drifts = Drifts()

    def started(self) -> None:
        """Count a question in."""
        self._running.inc()

    def routed(self, route: Route, seconds: float, trace: str | None = None, *, later: bool = False) -> None:
        """Record a decision of the router's, and how long it took.

        `later`: the question is a later turn of a conversation, of which other confidences are to be expected.
        """
        own = self._of(route.specialty or UNKNOWN)
        own.routing.observe(seconds, trace)
        if route.scores:
            best = route.scores[0]
            own.confidence.observe(best.probability, trace)
            if not later:
                self.drifts.saw(best.specialty, best.probability)

    def answered(
        self, answer: Answer, specialty: str, cached: int = 0, queue_s: float | None = None, trace: str | None = None
    ) -> None:
        """Record what a whole answer took; `specialty` is `base` where no adapter answered.

        `cached` are the prompt's tokens that were found in the engine's prefix cache, `queue_s` is how long it waited.
        """
        own = self._of(specialty)
        first_ms, total_ms = answer.timings.first_token_ms, answer.timings.total_ms
        tokens = answer.usage.completion_tokens
        if queue_s is not None:
            own.queue.observe(queue_s, trace)
        if first_ms is not None:
            own.first.observe(first_ms / 1000, trace)
            if tokens > 1:
                own.token.observe((total_ms - first_ms) / 1000 / (tokens - 1), trace)
        own.total.observe(total_ms / 1000, trace)
        own.read(answer.usage, cached)

    def finished(self, specialty: str, route: str, outcome: str) -> None:
        """Count a question out. `outcome`: `stop` or `length` for a whole answer, `abort`, `refused` or `error`."""
        self._running.dec()
        self._child("hlo_questions", specialty, route, outcome).inc()

    def completed(self, specialty: str, outcome: str, usage: Usage | None = None, cached: int = 0) -> None:
        """Count a raw prompt out; `usage` where it was continued to the end. `outcome`: see `finished`."""
        self._running.dec()
        self._child("hlo_completions", specialty, outcome).inc()
        if usage is not None:
            self._of(specialty).read(usage, cached)

    def loaded(self, specialty: str, *, done: bool) -> None:
        """Count an adapter that the engine was given, and took and found to have an effect, or not."""
        self._loads.labels(specialty, "done" if done else "failed").inc()

    def hook_failed(self, plugin: str, hook: str) -> None:
        """Count a hook's call that failed."""
        self._hook_errors.labels(plugin, hook).inc()

    def reloaded(self, outcome: str) -> None:
        """Count a reload. `outcome`: `done` or `failed`."""
        self._reloads.labels(outcome).inc()

    def keyed(self, key: str, outcome: str) -> None:
        """Count a key's request. `outcome`: `served`, `limited` or `forbidden`; `key` is its id."""
        self._child("hlo_key_requests", key, outcome).inc()

    @contextmanager
    def encoding(self) -> Iterator[None]:
        """Count a request for whose questions the encoder fails inside the block."""
        try:
            yield
        except EncoderError:
            self._encoder_errors.inc()
            raise

    def restarted(self, outcome: str) -> None:
        """Count a start of another engine. `outcome`: `done` or `failed`."""
        self._restarts.labels(outcome).inc()

    def responded(self, path: str, status: int) -> None:
        """Count an HTTP response; `path` is the route's own, never the client's."""
        self._child("hlo_http_responses", path, str(status)).inc()

    def render(self, standing: Standing | None = None, accept: str = "") -> bytes:
        """All metrics: in OpenMetrics, with exemplars, for who accepts that (an HTTP header), else as Prometheus' text.

        Safe in another thread than the one that counts. `standing` is how things stand from now on.
        """
        if standing is not None:
            self._standing.standing = standing
        if media_type(accept) == exposition.CONTENT_TYPE_LATEST:
            # Names as they are: by default prometheus_client writes `vllm_…` for samples of `vllm:…`, in OpenMetrics.
            made: bytes = exposition.generate_latest(self._registry, escaping=exposition.ALLOWUTF8)  # type: ignore[no-untyped-call]
            return made
        return generate_latest(self._registry)

    def _child(self, name: str, *labels: str) -> Any:
        """A series, looked up once."""
        found = self._children.get((name, *labels))
        if found is None:
            found = self._children[name, *labels] = self._made[name].labels(*labels)
        return found

    def _of(self, specialty: str) -> _OfSpecialty:
        found = self._specialties.get(specialty)
        if found is None:
            found = self._specialties[specialty] = _OfSpecialty(self._made, specialty)
        return found


def media_type(accept: str) -> str:
    """The media type of what `Metrics.render` gives for the same header: OpenMetrics unless text is liked better.

    prometheus_client's own choice fails of a version that is no number.
    """
    weights = {"application/openmetrics-text": 0.0, "text/plain": 0.0}
    for one in accept.split(","):
        kind, *parameters = (part.strip().lower() for part in one.split(";"))
        if kind in weights:
            weights[kind] = max(weights[kind], _weight(parameters))
    openmetrics, text = weights.values()
    return exposition.CONTENT_TYPE_LATEST if openmetrics > 0 and openmetrics >= text else _TEXT


def _weight(parameters: Iterable[str]) -> float:
    """A media range's weight (RFC 9110, 12.4.2); what can not be read counts fully."""
    for one in parameters:
        name, _, value = one.partition("=")
        if name == "q":
            return float(value) if _WEIGHT.fullmatch(value) else 1.0
    return 1.0


class _OfSpecialty:
    """The series of one specialty, each looked up once, when it is first needed: what never happens has no series."""

    def __init__(self, made: Mapping[str, Any], specialty: str) -> None:
        self._made = made
        self._specialty = specialty

    @cached_property
    def routing(self) -> _Measured:
        return self._measured("hlo_routing_seconds")

    @cached_property
    def confidence(self) -> _Measured:
        return self._measured("hlo_confidence")

    @cached_property
    def queue(self) -> _Measured:
        return self._measured("hlo_queue_seconds")

    @cached_property
    def first(self) -> _Measured:
        return self._measured("hlo_first_token_seconds")

    @cached_property
    def token(self) -> _Measured:
        return self._measured("hlo_token_seconds")

    @cached_property
    def total(self) -> _Measured:
        return self._measured("hlo_answer_seconds")

    @cached_property
    def _tokens(self) -> tuple[Counter, Counter, Counter]:
        tokens, cached = self._made["hlo_tokens"], self._series("hlo_cached_tokens")
        return tokens.labels(self._specialty, "in"), tokens.labels(self._specialty, "out"), cached

    def read(self, usage: Usage, cached: int) -> None:
        """Count tokens."""
        given, written, known = self._tokens
        given.inc(usage.prompt_tokens)
        written.inc(usage.completion_tokens)
        known.inc(cached)

    def _series(self, name: str) -> Any:
        return self._made[name].labels(self._specialty)

    def _measured(self, name: str) -> _Measured:
        return _Measured(self._series(name), _BUCKETS[name])


class _Measured:
    """A histogram's series. A bucket's exemplar is renewed once a second at most: more often costs, and no one sees it.

    To put a trace into a bucket takes four times as long as to count.
    """

    def __init__(self, series: Histogram, buckets: tuple[float, ...]) -> None:
        self._series = series
        self._buckets = buckets
        self._due = [0.0] * (len(buckets) + 1)

    def observe(self, value: float, trace: str | None) -> None:
        if trace is not None:
            place, now = bisect_left(self._buckets, value), time.monotonic()
            if now >= self._due[place]:
                self._due[place] = now + _RENEWAL_S
                self._series.observe(value, {"trace_id": trace})
                return
        self._series.observe(value)


class _VllmMetrics(Collector):
    """What vLLM records in this process, in prometheus_client's default registry."""

    def collect(self) -> Iterator[Metric]:
        for family in REGISTRY.collect():
            # The left-out one has a label with the list of running adapters: a new series for every combination.
            if family.name.startswith("vllm:") and family.name != "vllm:lora_requests_info":
                yield family


def _make(family: Family, registry: CollectorRegistry) -> Any:
    if family.kind == "histogram":
        return Histogram(family.name, family.text, family.labels, buckets=family.buckets, registry=registry)
    kind = Counter if family.kind == "counter" else Gauge
    return kind(family.name, family.text, family.labels, registry=registry)
