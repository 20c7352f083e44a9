"""deploy/ holds together: files that name each other exist, alerts are tested and explained, nothing is out of date."""

from __future__ import annotations

import json
import re
import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy import dashboard
from docs import metrics as table
from docs.generate import slug
from hlo.settings import Settings
from hlo.telemetry.families import COUNTED, STANDING
from tests.prometheus import promtool
from tests.promql import ADDED, DASHBOARD, DEPLOY, RULES, alerts, grouped, queries, selected

ROOT = DEPLOY.parent
RUNBOOK = (ROOT / "docs" / "runbook.md").read_text(encoding="utf-8")
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
OURS = {family.name: family for family in (*COUNTED, *STANDING)}
SUFFIXES = {"counter": ("_total",), "info": ("_info",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}


def labels_of(metric: str) -> set[str]:
    """The labels that a metric of HLO's own is declared with. Raises `KeyError` for one that is not declared."""
    for family in OURS.values():
        if metric in {family.name + suffix for suffix in SUFFIXES[family.kind]}:
            return {*family.labels, *(("le",) if metric.endswith("_bucket") else ())}
    raise KeyError(metric)


def test_the_dashboard_is_what_is_generated() -> None:
    """deploy/grafana/dashboards/hlo.json is what its panels give."""
    assert DASHBOARD.read_text(encoding="utf-8") == dashboard.render(), "run `python -m deploy.dashboard`"


def test_the_table_of_metrics_is_what_is_generated() -> None:
    """docs/observability.md has every metric, as it is declared."""
    page = table.FILE.read_text(encoding="utf-8")
    assert page == table.render(page), "run `python -m docs.metrics`"
    assert all(f"`{family.name}" in page for family in OURS.values())


def test_panels_do_not_overlap() -> None:
    """Every panel has a number and a place of its own within the dashboard's 24 columns."""
    board = json.loads(DASHBOARD.read_text())
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])


@pytest.mark.parametrize("asked", list(queries()), ids=lambda one: one.place)
def test_queries_name_what_there_is(asked: Any) -> None:
    """A query is PromQL, and each metric of HLO's own, and each of its labels, is one that is declared."""
    known: set[str] = set(ADDED)
    assert selected(asked.expression)
    for metric, labels in selected(asked.expression).items():
        if metric.startswith("hlo_"):
            assert labels <= labels_of(metric) | ADDED, (metric, labels)
            known |= labels_of(metric)
        else:
            assert metric.startswith("vllm:") or metric == "up", metric
            known |= {"model_name", "engine"}
    assert grouped(asked.expression) <= known
    assert asked.told <= known


@pytest.mark.parametrize("rule", alerts(), ids=lambda rule: str(rule["alert"]))
def test_every_alert_is_explained_and_tested(rule: dict[str, Any]) -> None:
    """An alert has a severity, a summary, a section in the runbook, and a test in which it fires."""
    name = rule["alert"]
    assert rule["labels"]["severity"] in ("warning", "critical")
    assert rule["annotations"]["summary"]
    assert rule["annotations"]["runbook"] == f"docs/runbook.md#{slug(name)}"
    section = re.search(rf"^## {name}$(.*?)(?=^## |\Z)", RUNBOOK, re.MULTILINE | re.DOTALL)
    assert section is not None
    assert len(section[1].split()) > 10
    tests = yaml.safe_load(RULES.with_name("rules_test.yml").read_text())["tests"]
    fired = {one["alertname"] for test in tests for one in test["alert_rule_test"] if one["exp_alerts"]}
    assert name in fired


def test_the_runbook_names_settings_that_there_are() -> None:
    """The settings that the runbook and docs/observability.md speak of exist."""
    pages = RUNBOOK + table.FILE.read_text(encoding="utf-8")
    named = set(re.findall(r"`(HLO_[A-Z_]+)`", pages))
    assert named
    assert {name.removeprefix("HLO_").lower() for name in named} <= set(Settings.model_fields)


def test_the_runbook_names_panels_that_there_are() -> None:
    """What stands in italics in the runbook is a panel's title."""
    titles = {panel["title"] for panel in json.loads(DASHBOARD.read_text())["panels"]}
    assert set(re.findall(r"\*([^*]+)\*", " ".join(RUNBOOK.split()))) <= titles


def test_compose_mounts_what_there_is() -> None:
    """The files and folders that compose.yaml names exist, and services name services."""
    services = COMPOSE["services"]
    assert services.keys() == {"hlo", "jaeger", "prometheus", "grafana"}
    for service in services.values():
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            assert (DEPLOY / source).exists() if source.startswith(".") else source in COMPOSE["volumes"], volume
        assert set(service.get("depends_on", ())) <= services.keys()
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))
    assert (DEPLOY / services["hlo"]["build"]["context"] / services["hlo"]["build"]["dockerfile"]).exists()
    named = {name for name in services["hlo"]["environment"] if name.startswith("HLO_")}
    assert {name.removeprefix("HLO_").lower() for name in named} <= set(Settings.model_fields)


@pytest.mark.parametrize("name", ["cpu", "cuda"])
def test_images_are_made_of_what_there_is(name: str) -> None:
    """Every file that an image is built from exists, and each setting that it sets is one."""
    text = (DEPLOY / f"Containerfile.{name}").read_text()
    for line in re.findall(r"^COPY (.+)$", text, re.MULTILINE):
        assert all((ROOT / source).exists() for source in line.split()[:-1]), line
    named = set(re.findall(r"\b(HLO_\w+)=", text))
    assert {one.removeprefix("HLO_").lower() for one in named} <= set(Settings.model_fields)
    assert f"hlo[{'gpu' if name == 'cuda' else name},offline,otel]" in text


def test_the_image_for_cpus_has_the_torch_of_the_tests() -> None:
    """vLLM's build for CPUs goes with one version of torch."""
    wanted = re.search(r'^TORCH = "(.+)"', (ROOT / "noxfile.py").read_text(), re.MULTILINE)
    assert wanted is not None
    assert f"ARG TORCH={wanted[1]}\n" in (DEPLOY / "Containerfile.cpu").read_text()


def test_the_wheel_has_every_adapter_and_no_recipe() -> None:
    """What the wheel brings beside the package are the models and the adapters, each named, and no code."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    brought = project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    adapters = {path.parent.name for path in (ROOT / "adapters").glob("*/adapter_config.json")}
    assert brought.keys() == {"models", *(f"adapters/{name}" for name in adapters)}
    assert not [path for source in brought for path in (ROOT / source).rglob("*.py")]


@pytest.mark.parametrize("name", ["cpu", "cuda"])
def test_images_write_where_they_are_told(name: str) -> None:
    """Containers run as a user of no power, and each folder that HLO and its libraries write to is in the volume."""
    text = (DEPLOY / f"Containerfile.{name}").read_text()
    last = text[text.rindex("\nFROM ") :]
    assert re.search(r"^USER 10001:10001$", last, re.MULTILINE)
    folders = dict(re.findall(r"(HOME|XDG_\w+|TORCHINDUCTOR_CACHE_DIR|HLO_CACHE_DIR|HLO_KEYS_FILE)=(\S+)", last))
    assert len(folders) == 6
    assert all(Path(one).is_relative_to("/var/lib/hlo") for one in folders.values())
    assert "VOLUME /var/lib/hlo\n" in last
    service = COMPOSE["services"]["hlo"]
    assert (service["read_only"], service["tmpfs"], service["cap_drop"]) == (True, ["/tmp"], ["ALL"])  # noqa: S108


def test_grafana_finds_its_sources() -> None:
    """Every panel asks a provisioned source; exemplars lead from Prometheus to Jaeger by the label that HLO gives."""
    provisioned = yaml.safe_load((DEPLOY / "grafana/provisioning/datasources/datasources.yml").read_text())
    sources = {one["uid"]: one for one in provisioned["datasources"]}
    (link,) = sources["prometheus"]["jsonData"]["exemplarTraceIdDestinations"]
    assert (link["name"], sources[link["datasourceUid"]]["type"]) == ("trace_id", "jaeger")
    board = json.loads(DASHBOARD.read_text())
    for panel in board["panels"]:
        for target in panel.get("targets", ()):
            assert target["datasource"]["uid"] in sources
            if target["exemplar"]:
                (metric,) = selected(target["expr"].replace("$__rate_interval", "1m"))
                assert OURS[metric.removesuffix("_bucket")].exemplars
    services = COMPOSE["services"]
    for source in sources.values():
        assert source["url"].split("//")[1].split(":")[0] in services
    provider = yaml.safe_load((DEPLOY / "grafana/provisioning/dashboards/dashboards.yml").read_text())["providers"][0]
    assert any(volume.split(":")[1] == provider["options"]["path"] for volume in services["grafana"]["volumes"])


def test_prometheus_scrapes_the_service() -> None:
    """Prometheus' target is the service of compose.yaml at HLO's own port, and exemplars are kept."""
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    (job,) = config["scrape_configs"]
    assert job["authorization"] == {"credentials_file": "key"}  # beside it, and in no repository
    assert "deploy/prometheus/key\n" in (ROOT / ".gitignore").read_text()
    assert (job["job_name"], job["static_configs"]) == ("hlo", [{"targets": ["hlo:8000"]}])
    assert Settings.model_fields["port"].default == 8000
    assert "--enable-feature=exemplar-storage" in COMPOSE["services"]["prometheus"]["command"]


@pytest.mark.parametrize(
    "arguments",
    [("check", "config", "prometheus.yml"), ("check", "rules", "rules.yml"), ("test", "rules", "rules_test.yml")],
    ids=" ".join,
)
def test_promtool_finds_nothing_wrong(arguments: tuple[str, ...], tmp_path: Path) -> None:
    """Prometheus' own checker takes the configuration and the alerts, and each fires when it should, and only then."""
    folder = shutil.copytree(DEPLOY / "prometheus", tmp_path / "prometheus")
    (folder / "key").write_text("what `hlo keys new` prints")
    done = promtool(*arguments[:2], str(folder / arguments[2]))
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_would_find_it(tmp_path: Path) -> None:
    """The checker is really asked: it refuses a broken rule, and a test whose alert does not fire."""
    broken = tmp_path / "rules.yml"
    broken.write_text(RULES.read_text().replace("hlo_ready == 0", "hlo_ready == (0"))
    assert promtool("check", "rules", str(broken)).returncode != 0
    broken.write_text(RULES.read_text().replace("hlo_ready == 0", "hlo_ready == 2"))
    (tmp_path / "rules_test.yml").write_text(RULES.with_name("rules_test.yml").read_text())
    assert promtool("test", "rules", str(tmp_path / "rules_test.yml")).returncode != 0
