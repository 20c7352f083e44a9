"""Every metric of HLO's own: its name, its kind, what it tells, and its labels. docs/observability.md has the table.

Labels come from closed sets, so that no client can add a series: `specialty` is the name of an installed specialty,
`base`, `none` or, of drift, `all`; others are HLO's own words, an installed plugin's name, a key's
id, or what the operator set.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

Kind = Literal["counter", "gauge", "histogram", "info"]

# Seconds. Routing takes milliseconds, answers take up to a minute, and a token is somewhere between.
_ROUTING = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_WAITING = (0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_ANSWER = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_TOKEN = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 1.0)
_TENTHS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


class Family(Struct, frozen=True):
    """One metric. A counter's samples are called `NAME_total`, an info's `NAME_info`, a histogram's `NAME_bucket`, ….

    `buckets` are the upper bounds of a histogram. A histogram with `exemplars` names traces where there are any.
    """

    name: str
    kind: Kind
    text: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    exemplars: bool = False


COUNTED = (
    Family(
        "hlo_questions",
        "counter",
        "Questions by the specialty that answered (base: no adapter; none: nobody did), route status and outcome.",
        ("specialty", "route", "outcome"),
    ),
    Family("hlo_questions_running", "gauge", "Questions and raw prompts that are being answered now."),
    Family(
        "hlo_completions",
        "counter",
        "Raw prompts (/generate) by the adapter that continued them (base: none) and outcome.",
        ("specialty", "outcome"),
    ),
    Family(
        "hlo_routing_seconds",
        "histogram",
        "Time to route a question, by where it went; each question of a list waits for the whole list.",
        ("specialty",),
        _ROUTING,
        exemplars=True,
    ),
    Family(
        "hlo_queue_seconds",
        "histogram",
        "Time that a question waited: for its adapter's turn, and in the engine's own queue.",
        ("specialty",),
        _WAITING,
        exemplars=True,
    ),
    Family(
        "hlo_first_token_seconds",
        "histogram",
        "Time from a question's arrival to the first token.",
        ("specialty",),
        _ANSWER,
        exemplars=True,
    ),
    Family(
        "hlo_token_seconds",
        "histogram",
        "Mean time between two tokens of an answer, one observation an answer.",
        ("specialty",),
        _TOKEN,
        exemplars=True,
    ),
    Family(
        "hlo_answer_seconds",
        "histogram",
        "Time from a question's arrival to the whole answer.",
        ("specialty",),
        _ANSWER,
        exemplars=True,
    ),
    Family("hlo_tokens", "counter", "Tokens read (in) and written (out).", ("specialty", "direction")),
    Family(
        "hlo_cached_tokens",
        "counter",
        "Prompt tokens that the engine's prefix cache had: of hlo_tokens with direction in.",
        ("specialty",),
    ),
    Family(
        "hlo_confidence",
        "histogram",
        "Probability of the best specialty, of questions that were routed; none: out of scope.",
        ("specialty",),
        _TENTHS,
        exemplars=True,
    ),
    Family("hlo_adapter_loads", "counter", "Adapters given to the engine.", ("specialty", "outcome")),
    Family("hlo_hook_errors", "counter", "Calls of plugins' hooks that failed and were left out.", ("plugin", "hook")),
    Family("hlo_encoder_errors", "counter", "Requests for whose questions the encoder failed."),
    Family("hlo_reloads", "counter", "Reloads of the specialties.", ("outcome",)),
    Family("hlo_engine_restarts", "counter", "Starts of another engine after one that died.", ("outcome",)),
    Family(
        "hlo_key_requests",
        "counter",
        "Requests by the id of their key (`hlo keys list` has its name): served, limited by its rate, or forbidden.",
        ("key", "outcome"),
    ),
    Family(
        "hlo_http_responses",
        "counter",
        "HTTP responses by the route's own path (unknown: no route) and status.",
        ("path", "status"),
    ),
)
"""What is counted as it happens."""

STANDING = (
    Family("hlo_ready", "gauge", "1 when questions can be answered, else 0."),
    Family("hlo_build", "info", "What is running.", ("version", "python")),
    Family(
        "hlo_model",
        "info",
        "The base model and the engine that runs it.",
        ("model", "engine", "engine_version", "device", "dtype", "quantization"),
    ),
    Family("hlo_encoder", "info", "The encoder that routes.", ("encoder", "fingerprint")),
    Family("hlo_specialties", "gauge", "Specialties by state (served, refused).", ("state",)),
    Family("hlo_refusals", "gauge", "Refused plugins and specialties by class of error.", ("reason",)),
    Family(
        "hlo_adapter",
        "info",
        "Each loaded adapter, idle ones too, under its name in the engine, which has its content hash.",
        ("specialty", "adapter", "rank"),
    ),
    Family("hlo_adapter_room", "gauge", "How many adapters the engine was started for."),
    Family("hlo_questions_waiting", "gauge", "Questions and raw prompts that wait for room in the engine."),
    Family("hlo_questions_held", "gauge", "Questions that HLO holds until their adapter's turn in the engine comes."),
    Family("hlo_adapter_turns", "counter", "Times an adapter was given a place in the engine.", ("adapter",)),
    Family(
        "hlo_adapter_evictions", "counter", "Times an adapter gave up its place in the engine to another.", ("adapter",)
    ),
    Family("hlo_engine_server_up", "gauge", "1 while a server that generates is used, else 0.", ("server",)),
    Family("hlo_engine_server_running", "gauge", "Requests on a server, those that wait there included.", ("server",)),
    Family(
        "hlo_engine_server_requests",
        "counter",
        "Requests to a server by outcome (moved: it failed before it had begun, and another one answered).",
        ("server", "outcome"),
    ),
    Family("hlo_engine_server_adapter_loads", "counter", "Adapters that a server was given.", ("server",)),
    Family(
        "hlo_confidence_drift",
        "gauge",
        "Distance between the latest and the expected confidences: 0 alike, 1 apart (Kolmogorov-Smirnov).",
        ("specialty", "basis"),
    ),
    Family(
        "hlo_confidence_drift_chance",
        "gauge",
        "The distance that chance alone exceeds once in a thousand, with as many questions.",
        ("specialty", "basis"),
    ),
    Family("hlo_confidence_drift_questions", "gauge", "The latest questions that are compared.", ("specialty",)),
)
"""What is looked at when it is asked for."""
