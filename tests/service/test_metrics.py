"""`/metrics`: what it is asked for is what it gives, and no client can make it grow."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from litestar import Litestar
from litestar.testing import TestClient
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from prometheus_client.openmetrics import parser

from hlo.assemble import Report, Runtime
from hlo.plugins import Hooks
from hlo.plugins.hooks import Hook
from hlo.records import Question, Screening
from hlo.settings import Settings
from hlo.telemetry.metrics import Metrics
from hlo.telemetry.tracing import Tracing

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

    from tests.conftest import MakeParts
    from tests.service.conftest import Serve

Client = TestClient[Litestar]
OPENMETRICS = {"accept": "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"}
HEART, BOTH = "My heart and my chest hurt", "valve numb"
SPECIALTIES = {"cardiology", "neurology", "oncology"}
OUTCOMES = {"stop", "length", "abort", "refused", "error", "done", "failed"}
ROUTES = {"/ask", "/route", "/generate", "/switch-adapter", "/specialties", "/healthz", "/readyz", "/metrics"}
OPENAI = {"/v1/chat/completions", "/v1/completions", "/v1/models", "/v1/models/{model}"}
CONSOLE = {"/", "/console/{name}", "/console/about", "/specialties/{name}/card"}
PATHS = ROUTES | OPENAI | CONSOLE | {"/admin/specialties/reload", "/schema/{path}", "unknown"}
# What a label of HLO's own can be, with three specialties, one refusal and an engine of fakes.
CLOSED = {
    "specialty": SPECIALTIES | {"base", "none", "all"},
    "route": {"routed", "ambiguous", "out_of_scope", "unrouted", "none"},
    "outcome": OUTCOMES,
    "direction": {"in", "out"},
    "state": {"served", "refused"},
    "reason": {"PluginError"},
    "basis": {"examples"},
    "path": PATHS,
    "engine": {"echo"},
    "model": {"echo"},
    "encoder": {"hashing"},
    "fingerprint": {"hashing-256"},
    "plugin": {"nay"},
    "hook": {"hlo_question"},
}
OPEN = {"le", "status", "adapter", "rank", "version", "python", "engine_version", "device", "dtype", "quantization"}


def families(client: Client) -> dict[str, Metric]:
    """What `/metrics` tells, in OpenMetrics, by name."""
    response = client.get("/metrics", headers=OPENMETRICS)
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    told = parser.text_string_to_metric_families(response.text)  # type: ignore[no-untyped-call]
    return {family.name: family for family in told}


def exemplars(found: dict[str, Metric]) -> dict[str, set[str]]:
    """The traces that are named, by metric."""
    named: dict[str, set[str]] = {}
    for family in found.values():
        for sample in family.samples:
            if sample.exemplar:
                named.setdefault(family.name, set()).add(sample.exemplar.labels["trace_id"])
    return named


def serving(serve: Serve, make_parts: MakeParts, **options: Any) -> Client:
    """A server whose parts count in its own metrics."""

    async def start(settings: Settings, metrics: Metrics, _: Report) -> Runtime:
        parts = make_parts(metrics=metrics, **options)
        parts.pipeline.edition.announce(metrics)
        return parts.runtime(settings)

    return serve(start=start)


@pytest.mark.parametrize("stream", [False, True])
def test_exemplars_lead_to_the_answers_trace(serve: Serve, make_parts: MakeParts, *, stream: bool) -> None:
    """The histograms name the trace whose id the answer has."""
    client = serving(serve, make_parts, tracing=Tracing(TracerProvider().get_tracer("hlo")))
    text = client.post("/ask", json={"question": HEART, "stream": stream}).text
    named = exemplars(families(client))
    answered = {"hlo_first_token_seconds", "hlo_token_seconds", "hlo_answer_seconds"}
    assert named.keys() == answered | {"hlo_routing_seconds", "hlo_confidence"}
    (trace,) = set.union(*named.values())
    assert f'"trace_id":"{trace}"' in text


@pytest.mark.parametrize("sampler", [False, True])
def test_an_id_that_nobody_knows_is_no_exemplar(serve: Serve, make_parts: MakeParts, *, sampler: bool) -> None:
    """Where nobody traces, and where the sampler left a question out, no exemplar leads into nothing."""
    sampled = Tracing(TracerProvider(sampler=ALWAYS_OFF).get_tracer("hlo"))
    client = serving(serve, make_parts, tracing=sampled if sampler else Tracing())
    assert client.post("/ask", json={"question": HEART}).json()["trace_id"]
    assert exemplars(families(client)) == {}


def test_raw_prompts_are_counted(client: Client) -> None:
    """`/generate` counts its prompts and tokens under the adapter that continued them, and those it refuses."""
    client.post("/generate", json={"prompt": "abc", "adapter": "oncology"})
    client.post("/generate", json={"prompt": "abc", "adapter": "base"})
    client.post("/generate", json={"prompt": "abc", "adapter": "../../etc/passwd"})
    client.post("/generate", json={"prompt": "", "adapter": "oncology"})
    text = client.get("/metrics").text
    assert 'hlo_completions_total{outcome="stop",specialty="oncology"} 1.0' in text
    assert 'hlo_completions_total{outcome="stop",specialty="base"} 1.0' in text
    assert 'hlo_completions_total{outcome="refused",specialty="none"} 2.0' in text
    assert 'hlo_tokens_total{direction="in",specialty="oncology"} 3.0' in text
    assert "hlo_questions_running 0.0" in text


def test_idle_adapters_are_told(client: Client) -> None:
    """Every loaded adapter is there before the first question, under its content hash."""
    told = families(client)
    loaded = {sample.labels["specialty"]: sample.labels["adapter"] for sample in told["hlo_adapter"].samples}
    assert loaded.keys() == SPECIALTIES
    assert all(name.startswith(f"{specialty}@") for specialty, name in loaded.items())
    assert [sample.value for sample in told["hlo_ready"].samples] == [1]


def test_metrics_are_there_before_the_server_is_ready(serve: Serve) -> None:
    """A server that failed to start still tells that it is not ready."""

    async def start(*_: object) -> object:
        raise RuntimeError

    told = families(serve(start=start))  # type: ignore[arg-type]
    assert [sample.value for sample in told["hlo_ready"].samples] == [0]
    assert "hlo_model" not in told


def _refuse(question: Question) -> Screening | None:
    """Refuse what asks for it, and fail of what asks for that, with the question in the error."""
    if "fail" in question.text:
        raise ValueError(question.text)
    return Screening(refusal="No.") if "refuse" in question.text else None


def _attack(client: Client, salt: str) -> None:
    """What a client can make up, with words of its own in every place that there is."""
    line = f'{salt}"}}\n# TYPE hlo_evil counter\nhlo_evil 1'
    evil = [salt, salt * 900, line, f"../{salt}", f"\x00{salt}\ud7ff", f"é{salt}"]
    for word in evil:
        for body in (
            {"question": word},
            {"question": f"{HEART} {word}"},
            {"question": f"{BOTH} {word}"},
            {"question": HEART, "specialty": word},
            {"question": word, "specialty": "cardiology", "stream": True},
            {"question": HEART, "turns": [{"question": word, "answer": word}]},
            {"question": f"refuse {word}"},
            {"question": f"fail {word}"},
            {"question": HEART, word: word},
            {"question": HEART, "model": word},
            {"question": HEART, "stop": [word[:100]]},
            [word],
        ):
            client.post("/ask", json=body)
        client.post("/route", json={"question": [word, HEART]})
        client.post("/generate", json={"prompt": word, "adapter": word})
        client.post("/generate", json={"prompt": word, "model": word})
        client.post("/generate", json={"prompt": word, "adapter": "base"})
        client.post("/switch-adapter", json={"adapter_name": word})
        client.post(
            "/admin/specialties/reload", headers={"authorization": f"Bearer {salt}", "origin": f"http://{salt}"}
        )
        chat = {"model": word, "messages": [{"role": "user", "content": HEART, "name": word}], "user": word}
        client.post("/v1/chat/completions", json=chat)
        client.post("/v1/chat/completions", json=chat | {"model": "auto"})
        client.post("/v1/completions", json={"model": word, "prompt": word})
        client.get("/metrics", params={"name[]": salt, salt: salt}, headers={"accept": f"{salt};q={salt}"})
    for path in (f"/{salt}", f"/ask/{salt}", f"/schema/{salt}", f"/v1/models/{salt}", f"/metrics/{salt}", f"//{salt}"):
        client.get(path)
        client.post(path, content=salt)
    for method in ("BREW", salt.upper()[:20], "PROPFIND", "TRACE", "OPTIONS", "HEAD", "DELETE"):
        client.request(method, "/ask")
    for header in ("traceparent", "tracestate", "user-agent", "host", "x-request-id", "content-type"):
        client.post("/ask", json={"question": HEART}, headers={header: salt})


def test_no_client_can_add_a_series(serve: Serve, make_parts: MakeParts) -> None:
    """Whatever clients send, every label's value is from a closed set, and a second attack adds no series."""
    hooks = Hooks(question=(Hook("nay", _refuse, ("question",)),))
    client = serving(serve, make_parts, tracing=Tracing(TracerProvider().get_tracer("hlo")), hooks=hooks)
    seen = []
    for salt in ("quetzal", "axolotl"):
        _attack(client, salt)
        told = {name: family for name, family in families(client).items() if name.startswith("hlo_")}
        seen.append(
            {(sample.name, *sorted(sample.labels.items())) for family in told.values() for sample in family.samples}
        )
        assert salt not in client.get("/metrics", headers=OPENMETRICS).text
        for family in told.values():
            for sample in family.samples:
                for label, value in sample.labels.items():
                    assert label in OPEN or value in CLOSED[label], (sample.name, label, value)
                assert sample.labels.get("status", "200").isdigit()
    assert seen[0] == seen[1]
