"""Metrics: closed sets of labels, one registry each, vLLM's beside them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from prometheus_client import Gauge
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics import parser
from prometheus_client.parser import text_string_to_metric_families

from hlo.contracts import EngineActivity, EngineInfo, ServerActivity
from hlo.records import Answer, Refusal, Route, RouteStatus, Score, Timings, Usage
from hlo.telemetry.drift import Drift
from hlo.telemetry.families import COUNTED, STANDING
from hlo.telemetry.metrics import Metrics, media_type
from hlo.telemetry.standing import Standing
from tests.conftest import make_version

OPENMETRICS = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"  # as Prometheus asks
TRACE = "0af7651916cd43dd8448eb211c80319c"
ROUTE = Route("routed", "a", (Score("a", 0.7, 0.83), Score("b", 0.2, 0.1)), 0.5, 0.07)
INFO = EngineInfo("echo", "1", "m", "cpu", "float32", "none", True, 512, 64, 16)
STANDS = Standing(
    version="1.2",
    ready=True,
    engine=INFO,
    encoder=("e", "f"),
    adapters={"a": make_version("a"), "idle": make_version("idle")},
    refusals=(Refusal("p", None, "Broken.", "Mend it.", "AdapterError"), Refusal("q", None, "Broken.", "Mend it.")),
    activity=EngineActivity(2, {"a@1": 3}, {"a@1": 1}, (ServerActivity("http://gpu-1:8000", True, 2, {"done": 5}, 4),)),
    drifts=(Drift("a", "examples", 0.25, 0.2),),
    questions=(("a", 40),),
)


def samples(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Every sample, by name and labels."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(metrics.render().decode())
        for sample in family.samples
    }


def openmetrics(metrics: Metrics) -> list[Metric]:
    """What is told in OpenMetrics, which prometheus_client's own strict parser takes."""
    told = metrics.render(accept=OPENMETRICS).decode()
    return list(parser.text_string_to_metric_families(told))  # type: ignore[no-untyped-call]


def answer(first: float | None = 20.0, tokens: int = 3) -> Answer:
    return Answer(
        text="x",
        route=Route("routed", "a"),
        specialty="a",
        adapter=None,
        model="m",
        usage=Usage(7, tokens),
        timings=Timings(1.0, first, 300.0),
        finish_reason="stop",
        trace_id="0",
    )


def exercise(metrics: Metrics, trace: str | None = None) -> None:
    """Let everything happen that is counted."""
    metrics.started()
    metrics.routed(ROUTE, 0.1, trace)
    metrics.answered(answer(), "a", 4, 0.5, trace)
    metrics.finished("a", "routed", "stop")
    metrics.started()
    metrics.completed("base", "stop", Usage(1, 2), 0)
    metrics.loaded("a", done=True)
    metrics.hook_failed("p", "hlo_question")
    metrics.reloaded("done")
    metrics.keyed("4c0f2b7d91ae", "served")
    metrics.responded("/ask", 200)
    metrics.render(STANDS)


@pytest.fixture
def metrics() -> Metrics:
    """Metrics in which nothing has happened."""
    return Metrics()


def test_an_answer_is_counted(metrics: Metrics) -> None:
    """A whole answer counts its tokens both ways and its times in seconds, under its specialty."""
    metrics.answered(answer(), "a", 4, 0.005)
    found = samples(metrics)
    label = (("specialty", "a"),)
    assert found["hlo_tokens_total", (("direction", "in"), *label)] == 7
    assert found["hlo_tokens_total", (("direction", "out"), *label)] == 3
    assert found["hlo_cached_tokens_total", label] == 4
    assert found["hlo_queue_seconds_sum", label] == pytest.approx(0.005)
    assert found["hlo_first_token_seconds_sum", label] == pytest.approx(0.02)
    assert found["hlo_token_seconds_sum", label] == pytest.approx(0.14)  # 280 ms for the two tokens after the first
    assert found["hlo_answer_seconds_sum", label] == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("one", "queued", "silent"),
    [
        (answer(None), 0.1, ("hlo_first_token_seconds", "hlo_token_seconds")),
        (answer(tokens=1), 0.1, ("hlo_token_seconds",)),
        (answer(), None, ("hlo_queue_seconds",)),
    ],
)
def test_what_was_not_measured_is_not_told(
    one: Answer, queued: float | None, silent: tuple[str, ...], metrics: Metrics
) -> None:
    """No first token, no second one, no word of the queue: the histogram of it counts nothing."""
    metrics.answered(one, "a", 0, queued)
    found = samples(metrics)
    for family in COUNTED:
        if family.kind == "histogram" and family.name not in ("hlo_routing_seconds", "hlo_confidence"):
            count = found.get((f"{family.name}_count", (("specialty", "a"),)))
            assert count == (None if family.name in silent else 1), family.name


def test_running_questions_are_counted_in_and_out(metrics: Metrics) -> None:
    """The number of running questions rises when one starts and falls when it ends."""
    metrics.started()
    metrics.started()
    metrics.finished("a", "routed", "stop")
    found = samples(metrics)
    assert found["hlo_questions_running", ()] == 1
    assert found["hlo_questions_total", (("outcome", "stop"), ("route", "routed"), ("specialty", "a"))] == 1
    metrics.completed("base", "refused")
    assert samples(metrics)["hlo_questions_running", ()] == 0


@pytest.mark.parametrize(
    ("route", "specialty", "confidences"),
    [(ROUTE, "a", 1), (Route("out_of_scope", None, ROUTE.scores), "none", 1), (Route("out_of_scope", None), "none", 0)],
)
def test_a_decision_is_told_where_it_went(route: Route, specialty: str, confidences: int, metrics: Metrics) -> None:
    """Time and confidence of a decision stand under the specialty that it names; without a score there is none."""
    metrics.routed(route, 0.004)
    found = samples(metrics)
    label = (("specialty", specialty),)
    assert found["hlo_routing_seconds_sum", label] == pytest.approx(0.004)
    assert found.get(("hlo_confidence_count", label), 0) == confidences
    assert found.get(("hlo_confidence_bucket", (("le", "0.8"), *label)), 0) == 0
    assert found.get(("hlo_confidence_bucket", (("le", "0.9"), *label)), 0) == confidences


@pytest.mark.parametrize("status", ["routed", "ambiguous", "out_of_scope"])
def test_questions_count_for_drift_by_themselves(status: RouteStatus, metrics: Metrics) -> None:
    """Drift is reckoned as calibrations do it: of single questions, the best specialty, whatever became of it."""
    metrics.drifts.expect("examples", {"a": (10,) * 10})
    route = Route(status, None if status == "out_of_scope" else "a", ROUTE.scores)
    metrics.routed(route, 0.1, later=True)
    assert dict(metrics.drifts.questions()) == {"a": 0}
    metrics.routed(route, 0.1)
    assert dict(metrics.drifts.questions()) == {"a": 1}


def test_how_things_stand_is_told(metrics: Metrics) -> None:
    """What is running is told, with every loaded adapter, be it asked or not, and refusals by class of error."""
    metrics.render(STANDS)
    found = samples(metrics)
    assert found["hlo_ready", ()] == 1
    assert found["hlo_specialties", (("state", "served"),)] == 2
    assert found["hlo_specialties", (("state", "refused"),)] == 2
    assert found["hlo_refusals", (("reason", "AdapterError"),)] == 1
    assert found["hlo_refusals", (("reason", "PluginError"),)] == 1
    names = {dict(labels)["specialty"] for name, labels in found if name == "hlo_adapter_info"}
    assert names == {"a", "idle"}
    assert found["hlo_questions_held", ()] == 2
    assert found["hlo_adapter_evictions_total", (("adapter", "a@1"),)] == 1
    assert found["hlo_confidence_drift", (("basis", "examples"), ("specialty", "a"))] == 0.25


def test_the_latest_standing_counts(metrics: Metrics) -> None:
    """What is gone leaves no series behind; and a server that is not ready says so, and little else."""
    metrics.render(STANDS)
    metrics.render(Standing("1.2"))
    found = samples(metrics)
    assert found["hlo_ready", ()] == 0
    assert not any(name in ("hlo_adapter_info", "hlo_model_info") for name, _ in found)


def test_each_app_has_its_own(metrics: Metrics) -> None:
    """Two apps in one process share no number."""
    Metrics().started()
    assert samples(metrics)["hlo_questions_running", ()] == 0


def test_all_that_is_declared_is_told(metrics: Metrics) -> None:
    """The declared metrics are those that there are, with the declared labels and no other, in kind and name."""
    exercise(metrics)
    found: dict[str, set[str]] = {}
    kinds = {}
    for family in openmetrics(metrics):
        kinds[family.name] = family.type
        found[family.name] = {label for one in family.samples for label in one.labels} - {"le"}
    declared = {family.name: family for family in (*COUNTED, *STANDING)}
    assert kinds == {name: family.kind for name, family in declared.items()}
    assert found == {name: set(family.labels) for name, family in declared.items()}
    assert all(name.startswith("hlo_") for name in declared)


@pytest.mark.parametrize(
    ("accept", "openmetrics"),
    [
        ("", False),
        ("*/*", False),
        ("text/plain", False),
        ("nonsense;;;=,q=", False),
        ("application/openmetrics-text", True),
        ("Application/OpenMetrics-Text; version=x; q=ten", True),
        ("application/openmetrics-text;q=0", False),
        ("application/openmetrics-text;q=0.4,text/plain;q=0.5", False),
        ("text/plain;q=0.5,application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5", True),
        (OPENMETRICS, True),
    ],
)
def test_who_asks_for_openmetrics_gets_it(accept: str, openmetrics: bool, metrics: Metrics) -> None:
    """The Accept header decides, however strange; who does not like OpenMetrics best gets Prometheus' text."""
    exercise(metrics, TRACE)
    told = metrics.render(accept=accept)
    assert media_type(accept).startswith("application/openmetrics-text" if openmetrics else "text/plain")
    assert told.endswith(b"# EOF\n") == openmetrics
    assert (TRACE.encode() in told) == openmetrics


def test_exemplars_name_the_trace(metrics: Metrics) -> None:
    """In OpenMetrics, each histogram that says so names the trace of what it measured last."""
    exercise(metrics, TRACE)
    assert media_type(OPENMETRICS).startswith("application/openmetrics-text; version=1.0.0")
    named = set()
    for family in openmetrics(metrics):
        for sample in family.samples:
            if sample.exemplar:
                assert sample.exemplar.labels == {"trace_id": TRACE}
                named.add(family.name)
    assert named == {family.name for family in COUNTED if family.exemplars}


def test_a_buckets_exemplar_is_renewed_once_a_second(metrics: Metrics, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within a second a bucket keeps its exemplar, but every bucket has one: a rare slow answer is always found."""
    now = 100.0
    monkeypatch.setattr("hlo.telemetry.metrics.time.monotonic", lambda: now)

    def named() -> dict[str, str]:
        samples = [one for family in openmetrics(metrics) for one in family.samples]
        return {one.labels["le"]: one.exemplar.labels["trace_id"] for one in samples if one.exemplar}

    for seconds, trace in ((0.004, "1"), (0.004, "2"), (0.9, "3"), (9.0, "4")):
        metrics.routed(Route("out_of_scope", None), seconds, trace)
    assert named() == {"0.005": "1", "1.0": "3", "+Inf": "4"}
    now = 101.0
    metrics.routed(Route("out_of_scope", None), 0.004, "5")
    assert named() == {"0.005": "5", "1.0": "3", "+Inf": "4"}


def test_without_a_trace_there_is_no_exemplar(metrics: Metrics) -> None:
    """An id that no tracing back end knows is no exemplar."""
    exercise(metrics)
    families = openmetrics(metrics)
    assert not any(sample.exemplar for family in families for sample in family.samples)


@pytest.fixture
def default_registry() -> Iterator[None]:
    """Metrics as vLLM leaves them in prometheus_client's default registry."""
    from prometheus_client import REGISTRY

    made = [
        Gauge("vllm:num_requests_running", "Running.", ("model_name",)),
        Gauge("vllm:lora_requests_info", "Adapters.", ("running_lora_adapters",)),
        Gauge("someone_elses", "Other."),
    ]
    made[0].labels("m").set(3)
    made[1].labels("a,b,c").set(1)
    yield
    for one in made:
        REGISTRY.unregister(one)


@pytest.mark.usefixtures("default_registry")
@pytest.mark.parametrize("accept", ["", OPENMETRICS])
def test_vllms_metrics_appear_under_their_own_names(accept: str, metrics: Metrics) -> None:
    """vLLM's metrics appear beside ours, but nobody else's, nor the one whose label has a value per combination."""
    told = metrics.render(accept=accept).decode()
    assert 'vllm:num_requests_running{model_name="m"} 3.0' in told
    assert "lora_requests_info" not in told
    assert "someone_elses" not in told
