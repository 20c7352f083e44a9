"""Metrics for Prometheus. Each app has a registry of its own; vLLM's metrics appear beside them under their own names.

Labels come from closed sets (installed specialties, route statuses, outcomes), so no client can add series.
"""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from hlo.records import Answer

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

UNKNOWN = "none"  # the specialty or route of a question that failed before it had one

_FAST = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_SLOW = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Metrics:
    """HLO's own metrics in one registry."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._questions = Counter(
            "hlo_questions",
            "Questions by the specialty that answered (`base`: none), route status and outcome.",
            ("specialty", "route", "outcome"),
            registry=self._registry,
        )
        self._routing = Histogram("hlo_routing_seconds", "Time to route.", buckets=_FAST, registry=self._registry)
        self._first = Histogram(
            "hlo_first_token_seconds",
            "Time to the first token.",
            ("specialty",),
            buckets=_SLOW,
            registry=self._registry,
        )
        self._total = Histogram(
            "hlo_answer_seconds", "Time to the whole answer.", ("specialty",), buckets=_SLOW, registry=self._registry
        )
        self._tokens = Counter(
            "hlo_tokens", "Tokens by specialty.", ("specialty", "direction"), registry=self._registry
        )
        self._cached = Counter(
            "hlo_cached_tokens",
            "Prompt tokens, by specialty, that the engine had computed before: hlo_tokens with direction in has all.",
            ("specialty",),
            registry=self._registry,
        )
        self._running = Gauge("hlo_questions_running", "Questions being answered now.", registry=self._registry)
        self._served = Gauge("hlo_specialties", "Specialties by state.", ("state",), registry=self._registry)
        self._hook_errors = Counter(
            "hlo_hook_errors",
            "Calls of plugins' hooks that failed and were left out.",
            ("plugin", "hook"),
            registry=self._registry,
        )
        self._reloads = Counter("hlo_reloads", "Reloads of the specialties.", ("outcome",), registry=self._registry)
        self._responses = Counter("hlo_http_responses", "HTTP responses.", ("path", "status"), registry=self._registry)
        self._registry.register(_VllmMetrics())

    def catalog(self, served: int, refused: int) -> None:
        """Say how many specialties are served and refused."""
        self._served.labels("served").set(served)
        self._served.labels("refused").set(refused)

    def started(self) -> None:
        """Count a question in."""
        self._running.inc()

    def routed(self, seconds: float) -> None:
        """Record how long routing took."""
        self._routing.observe(seconds)

    def answered(self, answer: Answer, specialty: str, cached: int = 0) -> None:
        """Record what a whole answer took; `specialty` is `base` where no adapter answered.

        `cached` are the prompt's tokens that were found in the engine's prefix cache.
        """
        if answer.timings.first_token_ms is not None:
            self._first.labels(specialty).observe(answer.timings.first_token_ms / 1000)
        self._total.labels(specialty).observe(answer.timings.total_ms / 1000)
        self._tokens.labels(specialty, "in").inc(answer.usage.prompt_tokens)
        self._cached.labels(specialty).inc(cached)
        self._tokens.labels(specialty, "out").inc(answer.usage.completion_tokens)

    def finished(self, specialty: str, route: str, outcome: str) -> None:
        """Count a question out. `outcome`: `stop` or `length` for a whole answer, `abort`, `refused` or `error`."""
        self._running.dec()
        self._questions.labels(specialty, route, outcome).inc()

    def hook_failed(self, plugin: str, hook: str) -> None:
        """Count a hook's call that failed."""
        self._hook_errors.labels(plugin, hook).inc()

    def reloaded(self, outcome: str) -> None:
        """Count a reload. `outcome`: `done` or `failed`."""
        self._reloads.labels(outcome).inc()

    def responded(self, path: str, status: int) -> None:
        """Count an HTTP response; `path` is the route's own, never the client's."""
        self._responses.labels(path, str(status)).inc()

    def render(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self._registry)


class _VllmMetrics(Collector):
    """What vLLM records in this process, in prometheus_client's default registry."""

    def collect(self) -> Iterator[Metric]:
        for family in REGISTRY.collect():
            # The left-out one has a label with the list of running adapters: a new series for every combination.
            if family.name.startswith("vllm:") and family.name != "vllm:lora_requests_info":
                yield family
