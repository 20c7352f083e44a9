"""Metrics: closed sets of labels, one registry each, vLLM's beside them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from prometheus_client import Gauge
from prometheus_client.parser import text_string_to_metric_families

from hlo.records import Answer, Route, Timings, Usage
from hlo.telemetry.metrics import CONTENT_TYPE, Metrics


def samples(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Every sample, by name and labels."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(metrics.render().decode())
        for sample in family.samples
    }


def answer(first: float | None = 20.0) -> Answer:
    return Answer(
        text="x",
        route=Route("routed", "a"),
        specialty="a",
        adapter=None,
        model="m",
        usage=Usage(7, 3),
        timings=Timings(1.0, first, 300.0),
        finish_reason="stop",
        trace_id="0",
    )


@pytest.fixture
def metrics() -> Metrics:
    """Metrics in which nothing has happened."""
    return Metrics()


def test_an_answer_is_counted(metrics: Metrics) -> None:
    """A whole answer counts its tokens both ways and its times in seconds, under its specialty."""
    metrics.answered(answer(), "a")
    found = samples(metrics)
    label = (("specialty", "a"),)
    assert found["hlo_tokens_total", (("direction", "in"), *label)] == 7
    assert found["hlo_tokens_total", (("direction", "out"), *label)] == 3
    assert found["hlo_first_token_seconds_sum", label] == pytest.approx(0.02)
    assert found["hlo_answer_seconds_sum", label] == pytest.approx(0.3)


def test_an_answer_without_tokens_has_no_first_one(metrics: Metrics) -> None:
    """An answer in which nothing was generated says nothing about the time to the first token."""
    metrics.answered(answer(None), "a")
    assert not any(name.startswith("hlo_first_token_seconds") for name, _ in samples(metrics))


def test_running_questions_are_counted_in_and_out(metrics: Metrics) -> None:
    """The number of running questions rises when one starts and falls when it ends."""
    metrics.started()
    metrics.started()
    metrics.finished("a", "routed", "stop")
    found = samples(metrics)
    assert found["hlo_questions_running", ()] == 1
    assert found["hlo_questions_total", (("outcome", "stop"), ("route", "routed"), ("specialty", "a"))] == 1


def test_the_catalog_is_told(metrics: Metrics) -> None:
    """The numbers of served and refused specialties are told, the latest ones."""
    metrics.catalog(served=1, refused=0)
    metrics.catalog(served=11, refused=2)
    found = samples(metrics)
    assert found["hlo_specialties", (("state", "served"),)] == 11
    assert found["hlo_specialties", (("state", "refused"),)] == 2


def test_each_app_has_its_own(metrics: Metrics) -> None:
    """Two apps in one process share no number."""
    Metrics().started()
    assert samples(metrics)["hlo_questions_running", ()] == 0


def test_labels_are_few(metrics: Metrics) -> None:
    """No metric has a label that a client could fill: the names of all labels are these."""
    metrics.catalog(1, 1)
    metrics.started()
    metrics.routed(0.1)
    metrics.answered(answer(), "a")
    metrics.finished("a", "routed", "stop")
    metrics.responded("/ask", 200)
    names = {label for _, labels in samples(metrics) for label, _ in labels}
    assert names == {"specialty", "route", "outcome", "direction", "state", "path", "status", "le"}


def test_the_content_type_is_the_formats(metrics: Metrics) -> None:
    """The media type that goes with the text is the one of Prometheus' text format."""
    assert CONTENT_TYPE.startswith("text/plain; version=0.0.4")
    assert metrics.render().endswith(b"\n")


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
def test_vllms_metrics_appear_under_their_own_names(metrics: Metrics) -> None:
    """vLLM's metrics appear beside ours, but nobody else's, nor the one whose label has a value per combination."""
    names = {name for name, _ in samples(metrics)}
    assert "vllm:num_requests_running" in names
    assert not names & {"vllm:lora_requests_info", "someone_elses"}


def test_the_name_of_every_metric_begins_with_ours(metrics: Metrics) -> None:
    """Every metric of HLO's own is named `hlo_*`."""
    metrics.catalog(1, 0)
    assert {name.split("_")[0] for name, _ in samples(metrics)} == {"hlo"}
