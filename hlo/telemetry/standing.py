"""How things stand, as metrics: what is looked at when a scrape asks, and costs nothing until then."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Iterator, Mapping

from msgspec import Struct
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from hlo.contracts import EngineActivity, EngineInfo
from hlo.records import AdapterVersion, Refusal
from hlo.telemetry.drift import Drift
from hlo.telemetry.families import STANDING

_FAMILIES = {family.name: family for family in STANDING}
Rows = list[tuple[tuple[str, ...], float]]


class Standing(Struct, frozen=True):
    """What a server is at one moment. Before it is ready there is little to tell."""

    version: str
    ready: bool = False
    engine: EngineInfo | None = None
    encoder: tuple[str, str] | None = None  # its name and fingerprint
    adapters: Mapping[str, AdapterVersion] = {}  # by specialty
    refusals: tuple[Refusal, ...] = ()
    activity: EngineActivity | None = None
    waiting: int = 0  # questions that wait for room in the engine
    drifts: tuple[Drift, ...] = ()
    questions: tuple[tuple[str, int], ...] = ()  # that drift is reckoned from, by specialty


class StandingMetrics(Collector):
    """The metrics of the latest `Standing`."""

    def __init__(self) -> None:
        self.standing: Standing | None = None

    def collect(self) -> Iterator[Metric]:
        """The families of `STANDING` that there is something to tell of."""
        now = self.standing
        if now is None:
            return
        yield _told("hlo_ready", [((), now.ready)])
        yield _told("hlo_build", [((now.version, platform.python_version()), 1)])
        if (info := now.engine) is None:
            return
        model = (info.model, info.engine, info.version, info.device, info.dtype, info.quantization)
        yield _told("hlo_model", [(model, 1)])
        if now.encoder:
            yield _told("hlo_encoder", [(now.encoder, 1)])
        yield _told("hlo_specialties", [(("served",), len(now.adapters)), (("refused",), len(now.refusals))])
        yield _told("hlo_refusals", [((kind,), n) for kind, n in Counter(one.kind for one in now.refusals).items()])
        yield _told("hlo_adapter", [((name, one.engine_name, str(one.rank)), 1) for name, one in now.adapters.items()])
        yield _told("hlo_adapter_room", [((), info.max_adapters)])
        yield _told("hlo_questions_waiting", [((), now.waiting)])
        if (activity := now.activity) is not None:
            yield _told("hlo_questions_held", [((), activity.held)])
            yield _told("hlo_adapter_turns", [((name,), n) for name, n in activity.turns.items()])
            yield _told("hlo_adapter_evictions", [((name,), n) for name, n in activity.evictions.items()])
            servers = activity.servers
            yield _told("hlo_engine_server_up", [((one.server,), one.up) for one in servers])
            yield _told("hlo_engine_server_running", [((one.server,), one.running) for one in servers])
            ended: Rows = [((one.server, how), n) for one in servers for how, n in one.requests.items()]
            yield _told("hlo_engine_server_requests", ended)
            yield _told("hlo_engine_server_adapter_loads", [((one.server,), one.loads) for one in servers])
        yield _told("hlo_confidence_drift", [((one.specialty, one.basis), one.distance) for one in now.drifts])
        yield _told("hlo_confidence_drift_chance", [((one.specialty, one.basis), one.chance) for one in now.drifts])
        yield _told("hlo_confidence_drift_questions", [((name,), n) for name, n in now.questions])


def _told(name: str, rows: Rows) -> Metric:
    """A family with its samples: the values of its labels, and the number."""
    family = _FAMILIES[name]
    metric: Metric
    if family.kind == "info":
        metric = InfoMetricFamily(name, family.text)
        for values, _ in rows:
            metric.add_metric((), dict(zip(family.labels, values, strict=True)))
        return metric
    kind = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
    metric = kind(name, family.text, labels=family.labels)
    for values, number in rows:
        metric.add_metric(values, number)
    return metric
