"""A real Prometheus beside a real server: what the dashboard and the alerts ask for is there, and has answers."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from msgspec import Struct
from prometheus_client.openmetrics import parser

from deploy.draw import Source
from deploy.panels import ROWS
from tests.e2e.server import Server, running
from tests.prometheus import Prometheus, promtool, scraping
from tests.promql import ADDED, Asked, grouped, queries, selected
from tests.test_deploy import labels_of

OPENMETRICS = {"accept": "application/openmetrics-text;version=1.0.0"}
QUESTIONS = (
    ("cardiology", "my chest feels tight when I climb the stairs"),
    ("nephrology", "my urine is foamy and my kidneys lose protein"),
    ("oncology", "they found a lump in my breast and want a biopsy"),
    ("pulmonology", "I wheeze at night and my inhaler does not help"),
)
# Panels that have nothing to show where nothing of the kind has happened.
EMPTY = {"Plugins", "Drift, in multiples of chance"}
# Alerts on how fast the machine is: on one that has other tests to run they may be right.
SPEED = {"HloFirstTokenSlow", "HloQuestionsWait", "HloRoutingSlow"}


class Observed(Struct, frozen=True):
    """A server that was asked some questions while its traces were collected, and the trace ids of the answers."""

    server: Server
    traces: frozenset[str]


class Collector(BaseHTTPRequestHandler):
    """Takes what is sent to an OTLP endpoint, and forgets it."""

    def do_POST(self) -> None:
        """Read it all."""
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def collector() -> Iterator[str]:
    """The address of an OTLP collector."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Collector) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def observed(tmp_path_factory: pytest.TempPathFactory, collector: str) -> Iterator[Observed]:
    """A traced server with two places for eleven adapters, and some of all that can happen to it."""
    with running(
        tmp_path_factory.mktemp("observed"),
        HLO_ADAPTER_SLOTS="2",
        HLO_ADAPTER_TURN_S="0.05",
        OTEL_EXPORTER_OTLP_ENDPOINT=collector,
        OTEL_EXPORTER_OTLP_PROTOCOL="http/protobuf",
    ) as server:
        yield Observed(server, frozenset(ask(server, 2)))


def ask(server: Server, times: int) -> list[str]:
    """Ask all kinds of questions, good and bad, four at once; the answers' trace ids."""

    def one(number: int) -> str:
        _, question = QUESTIONS[number % len(QUESTIONS)]
        answer = server.post("/ask", {"question": question, "max_tokens": 12})
        return str(answer.json()["trace_id"])

    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(one, range(times * len(QUESTIONS))))
    for body in ({"question": "where do I park the car"}, {"question": " "}, {"question": "x", "specialty": "none"}):
        server.post("/ask", {**body, "max_tokens": 4})
    server.post("/generate", {"prompt": "The heart", "max_tokens": 4})
    server.post("/route", {"question": [question for _, question in QUESTIONS]})
    return found


def live(server: Server) -> dict[str, set[str]]:
    """The names of all samples of a scrape, each with its labels; families without samples count too."""
    text = server.get("/metrics", headers=OPENMETRICS).text
    found: dict[str, set[str]] = {}
    for family in parser.text_string_to_metric_families(text):  # type: ignore[no-untyped-call]
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
        if not family.samples:
            suffix = {"counter": "_total", "info": "_info", "histogram": "_bucket"}.get(family.type, "")
            found[family.name + suffix] = labels_of(family.name + suffix)
    return found


def test_the_dashboard_and_the_alerts_name_what_is_live(observed: Observed) -> None:
    """Each metric and each label that a panel or an alert names is in the `/metrics` of a running server."""
    there = live(observed.server)
    assert len(list(queries())) > 40
    for asked in queries():
        known = set(ADDED)
        for metric, labels in selected(asked.expression).items():
            if metric != "up":
                assert metric in there, (asked.place, metric)
                assert labels <= there[metric] | ADDED, (asked.place, metric, labels)
                known |= there[metric]
        assert grouped(asked.expression) | asked.told <= known, (asked.place, known)


def test_promtool_takes_what_is_live(observed: Observed) -> None:
    """Prometheus' own checker has nothing to say of HLO's metrics. vLLM's names have a colon, of which it complains."""
    done = promtool("check", "metrics", given=observed.server.get("/metrics").text)
    complaints = [line for line in done.stderr.splitlines() if not line.startswith("vllm:")]
    assert complaints == []
    assert done.returncode in (0, 3)  # 3: it complained


def test_adapters_take_turns(observed: Observed) -> None:
    """With two places, an adapter that gets one takes another's, and both are counted."""
    text = observed.server.get("/metrics").text
    turns, evictions = (
        sum(float(value) for value in re.findall(rf"^hlo_adapter_{name}_total{{.*}} (.*)$", text, re.MULTILINE))
        for name in ("turns", "evictions")
    )
    assert turns >= 4
    assert 0 < evictions <= turns
    waited = re.search(r'^hlo_queue_seconds_count{specialty="cardiology"} (.*)$', text, re.MULTILINE)
    assert waited is not None
    assert float(waited[1]) == 2


@pytest.fixture(scope="module")
def prometheus(observed: Observed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """A Prometheus that has scraped the server before and after more questions."""
    target = observed.server.url.removeprefix("http://")
    with scraping(target, tmp_path_factory.mktemp("prometheus")) as found:
        found.wait_for('up{job="hlo"} == 1')
        before = float(found.wait_for("sum(hlo_questions_total)")[0]["value"][1])
        ask(observed.server, 2)
        found.wait_for(f"sum(hlo_questions_total) > {before}")
        yield found


@pytest.mark.parametrize("asked", list(queries()), ids=lambda one: one.place)
def test_prometheus_answers(asked: Asked, prometheus: Prometheus) -> None:
    """A real Prometheus takes every query, and panels have something to show."""
    found = prometheus.query(asked.expression)
    alert = asked.place.startswith("Hlo")
    assert found or alert or asked.place in EMPTY, asked.expression
    healthy = not (alert and found) or asked.place in SPEED
    assert healthy, f"{asked.place} would fire on a healthy server: {found}"


def test_prometheus_takes_the_alerts(prometheus: Prometheus) -> None:
    """Every alert is evaluated without an error, and none but those on speed is pending or firing."""
    deadline = time.monotonic() + 30
    while any(rule["health"] == "unknown" for rule in rules(prometheus)):
        assert time.monotonic() < deadline
        time.sleep(0.5)
    assert {rule["health"] for rule in rules(prometheus)} == {"ok"}
    assert {rule["name"] for rule in rules(prometheus)} > SPEED
    assert {rule["state"] for rule in rules(prometheus) if rule["name"] not in SPEED} == {"inactive"}


def rules(prometheus: Prometheus) -> list[dict[str, Any]]:
    return [rule for group in prometheus.get("rules")["groups"] for rule in group["rules"]]


def test_prometheus_keeps_exemplars(observed: Observed, prometheus: Prometheus) -> None:
    """The exemplars that Prometheus scraped name traces of answers; so a click in Grafana finds them in Jaeger."""
    now = time.time()
    span = {"start": now - 600, "end": now}
    for metric in ("hlo_answer_seconds_bucket", "hlo_first_token_seconds_bucket", "hlo_routing_seconds_bucket"):
        series = prometheus.get("query_exemplars", query=metric, **span)
        named = {one["labels"]["trace_id"] for found in series for one in found["exemplars"]}
        assert named & observed.traces, metric
        assert {found["seriesLabels"]["specialty"] for found in series} >= {name for name, _ in QUESTIONS}


def test_the_panels_can_be_drawn(observed: Observed, prometheus: Prometheus) -> None:
    """`deploy.draw` has its series, by the names of their legends, and exemplars as points in time."""
    now = time.time()
    source = Source(prometheus.url, now - 120, now)
    panels = {panel.title: panel for row in ROWS for panel in row.panels}
    drawn = source.series(panels["Questions by specialty"].queries[0])
    assert {name for name, _, _ in drawn} >= {name for name, _ in QUESTIONS}
    assert all(-0.01 <= at <= 2.01 for _, times, _ in drawn for at in times)  # Prometheus rounds to milliseconds
    times, seconds = source.exemplars(panels["Whole answer, p95"].queries[0])
    assert len(times) == len(seconds) > 0
    assert all(0 < one < 60 for one in seconds)
