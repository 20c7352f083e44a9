"""The panels of the dashboard, row by row: what they ask Prometheus for, and what the answer means."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

OURS = 'specialty=~"$specialty"'
WINDOW = "$__rate_interval"


class Query(Struct, frozen=True):
    """What Prometheus is asked for in PromQL, and how its series are called, by their labels."""

    expression: str
    legend: str = ""
    exemplars: bool = False


class Panel(Struct, frozen=True):
    """One picture. `unit` is Grafana's word for it; `width` is of 24 columns; `text` says how to read it."""

    title: str
    text: str
    queries: tuple[Query, ...]
    kind: Literal["timeseries", "stat", "table", "heatmap"] = "timeseries"
    unit: str = "short"
    width: int = 8
    stacked: bool = False


class Row(Struct, frozen=True):
    """Panels under one heading."""

    title: str
    panels: tuple[Panel, ...]


def per_second(metric: str, by: str, selector: str = OURS) -> Query:
    """The rate of a counter, summed by a label."""
    return Query(f"sum by ({by}) (rate({metric}{{{selector}}}[{WINDOW}]))", f"{{{{{by}}}}}")


def quantile(of: float, metric: str) -> Query:
    """A quantile of a histogram by specialty, with the traces that are its exemplars."""
    inside = f"sum by (le, specialty) (rate({metric}_bucket{{{OURS}}}[{WINDOW}]))"
    return Query(f"histogram_quantile({of}, {inside})", "{{specialty}}", exemplars=True)


def _mean(metric: str) -> str:
    return f"sum(rate({metric}_sum{{{OURS}}}[{WINDOW}])) / sum(rate({metric}_count{{{OURS}}}[{WINDOW}]))"


def _share(part: str, of: str) -> str:
    return f"({part} or 0 * ({of})) / ({of} > 0)"


_ALL = f"sum(rate(hlo_questions_total[{WINDOW}]))"
_FAILED = f'sum(rate(hlo_questions_total{{outcome="error"}}[{WINDOW}]))'
_ROUTING, _QUEUE, _FIRST, _WHOLE = map(
    _mean, ("hlo_routing_seconds", "hlo_queue_seconds", "hlo_first_token_seconds", "hlo_answer_seconds")
)

ROWS = (
    Row(
        "Now",
        (
            Panel("Ready", "Servers that can answer.", (Query("sum(hlo_ready)"),), "stat", width=3),
            Panel("Questions a second", "All that end, in whatever way.", (Query(_ALL),), "stat", "reqps", 3),
            Panel(
                "Failed",
                "Share of questions that ended in an error.",
                (Query(_share(_FAILED, _ALL)),),
                "stat",
                "percentunit",
                3,
            ),
            Panel("Running", "Being answered now.", (Query("sum(hlo_questions_running)"),), "stat", width=3),
            Panel("Held", "Waiting for their adapter's turn.", (Query("sum(hlo_questions_held)"),), "stat", width=3),
            Panel(
                "First token, p95",
                "Of all specialties together.",
                (Query(f"histogram_quantile(0.95, sum by (le) (rate(hlo_first_token_seconds_bucket[{WINDOW}])))"),),
                "stat",
                "s",
                3,
            ),
            Panel(
                "Adapters",
                "Loaded, idle ones too.",
                (Query("count(count by (adapter) (hlo_adapter_info))"),),
                "stat",
                width=3,
            ),
            Panel(
                "Refused",
                "Plugins and specialties that are not served.",
                (Query('max(hlo_specialties{state="refused"})'),),
                "stat",
                width=3,
            ),
        ),
    ),
    Row(
        "Traffic by specialty",
        (
            Panel(
                "Questions by specialty",
                "Who answered: base is the model without an adapter, none is nobody.",
                (per_second("hlo_questions_total", "specialty"),),
                unit="reqps",
                stacked=True,
            ),
            Panel(
                "Questions by route",
                "What the router decided; none: pinned questions are routed, and what is refused before has no route.",
                (per_second("hlo_questions_total", "route"),),
                unit="reqps",
                stacked=True,
            ),
            Panel(
                "Tokens a second",
                "Read (in) and written (out).",
                (per_second("hlo_tokens_total", "direction"),),
                unit="short",
            ),
        ),
    ),
    Row(
        "Where the time goes",
        (
            Panel(
                "An answer's time, on average",
                "Routing, waiting, reading the prompt, writing: together the mean time of an answer.",
                (
                    Query(_ROUTING, "routing"),
                    Query(_QUEUE, "waiting"),
                    Query(f"{_FIRST} - {_ROUTING} - {_QUEUE}", "reading"),
                    Query(f"{_WHOLE} - {_FIRST}", "writing"),
                ),
                unit="s",
                stacked=True,
            ),
            Panel(
                "First token, p95",
                "From a question's arrival. The dots are traces: click one to see it in Jaeger.",
                (quantile(0.95, "hlo_first_token_seconds"),),
                unit="s",
            ),
            Panel(
                "Whole answer, p95",
                "From a question's arrival. The dots are traces.",
                (quantile(0.95, "hlo_answer_seconds"),),
                unit="s",
            ),
            Panel("Routing, p95", "Encoding and scoring.", (quantile(0.95, "hlo_routing_seconds"),), unit="s"),
            Panel(
                "Waiting, p95",
                "Held for an adapter's turn, and in the engine's queue.",
                (quantile(0.95, "hlo_queue_seconds"),),
                unit="s",
            ),
            Panel(
                "Between two tokens, p95",
                "The mean of each answer.",
                (quantile(0.95, "hlo_token_seconds"),),
                unit="s",
            ),
        ),
    ),
    Row(
        "Confidence and drift",
        (
            Panel(
                "Confidence, median",
                "The probability of the specialty that a question was routed to.",
                (quantile(0.5, "hlo_confidence"),),
                unit="percentunit",
            ),
            Panel(
                "Drift, in multiples of chance",
                "How far the latest questions' confidences are from the expected ones, over the distance that chance "
                "exceeds once in a thousand: what is above 1 is no accident. With a calibration they are compared with "
                "that, else with the specialties' own examples, which real questions are never quite like.",
                (
                    Query(
                        f"max by (specialty, basis) (hlo_confidence_drift{{{OURS}}} / hlo_confidence_drift_chance)",
                        "{{specialty}} ({{basis}})",
                    ),
                ),
            ),
            Panel(
                "Not clearly anybody's",
                "Share of questions that were ambiguous or out of scope.",
                tuple(
                    Query(
                        _share(f'sum(rate(hlo_questions_total{{route="{status}"}}[{WINDOW}]))', _ALL),
                        status.replace("_", " "),
                    )
                    for status in ("ambiguous", "out_of_scope")
                ),
                unit="percentunit",
            ),
        ),
    ),
    Row(
        "Adapters and engine",
        (
            Panel(
                "Loaded adapters",
                "Idle ones too, each with the hash of its content.",
                (Query("max by (specialty, adapter, rank) (hlo_adapter_info)"),),
                "table",
            ),
            Panel(
                "Places taken and given up",
                "Where there are fewer places in the engine than adapters (HLO_ADAPTER_SLOTS).",
                (
                    Query(f"sum(rate(hlo_adapter_turns_total[{WINDOW}]))", "taken"),
                    Query(f"sum(rate(hlo_adapter_evictions_total[{WINDOW}]))", "given up to another"),
                ),
                unit="ops",
            ),
            Panel(
                "Prompts found in the prefix cache",
                "Share of the tokens read that need not be computed.",
                (
                    Query(
                        f"sum by (specialty) (rate(hlo_cached_tokens_total{{{OURS}}}[{WINDOW}])) / sum by (specialty) "
                        f'(rate(hlo_tokens_total{{direction="in", {OURS}}}[{WINDOW}]))',
                        "{{specialty}}",
                    ),
                ),
                unit="percentunit",
            ),
            Panel(
                "In the engine",
                "What vLLM runs, and what waits there; held: in front of it.",
                (
                    Query("sum(vllm:num_requests_running)", "running"),
                    Query("sum(vllm:num_requests_waiting)", "waiting"),
                    Query("sum(hlo_questions_held)", "held"),
                ),
            ),
            Panel(
                "KV cache in use",
                "vLLM's memory for running requests; when it is full, requests wait.",
                (Query("max(vllm:kv_cache_usage_perc)", "used"),),
                unit="percentunit",
            ),
            Panel(
                "Tokens of the engine",
                "What vLLM itself counts.",
                (
                    Query(f"sum(rate(vllm:prompt_tokens_total[{WINDOW}]))", "in"),
                    Query(f"sum(rate(vllm:generation_tokens_total[{WINDOW}]))", "out"),
                ),
            ),
        ),
    ),
    Row(
        "Errors",
        (
            Panel(
                "Questions without a whole answer",
                "error: something failed; refused: the request was wrong or unwanted; abort: the client left.",
                (per_second("hlo_questions_total", "outcome", 'outcome!~"stop|length"'),),
                unit="reqps",
            ),
            Panel(
                "HTTP errors",
                "Responses from 400 on, by status.",
                (per_second("hlo_http_responses_total", "status", 'status=~"[45].."'),),
                unit="reqps",
            ),
            Panel(
                "Plugins",
                "Refused ones by class of error, and hooks that failed.",
                (
                    Query("max by (reason) (hlo_refusals)", "refused: {{reason}}"),
                    Query(f"sum by (plugin, hook) (increase(hlo_hook_errors_total[{WINDOW}]))", "{{plugin}}: {{hook}}"),
                ),
            ),
        ),
    ),
)
