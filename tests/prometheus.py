"""Prometheus' own tools: where they are, and a server of it for a test."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from msgspec import Struct

from tests.ports import free_port
from tests.promql import DEPLOY


class Prometheus(Struct, frozen=True):
    """A running Prometheus."""

    url: str

    def get(self, path: str, **parameters: Any) -> Any:
        """What its API says; a query that it can not read is an error."""
        answer = httpx.get(f"{self.url}/api/v1/{path}", params=parameters, timeout=30)
        body = answer.json()
        assert body["status"] == "success", (parameters, body)
        return body["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The series of an expression now."""
        found: list[dict[str, Any]] = self.get("query", query=expression)["result"]
        return found

    def wait_for(self, expression: str) -> list[dict[str, Any]]:
        """The series of an expression as soon as there are any."""
        deadline = time.monotonic() + 60
        while not (found := self.query(expression)):
            assert time.monotonic() < deadline, f"Prometheus never had `{expression}`"
            time.sleep(0.5)
        return found


def tool(name: str) -> str:
    """The path of `prometheus` or `promtool`; without it the test is skipped."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed, and no package for pip has it: `apt-get install prometheus`")
    return found


def promtool(*arguments: str, given: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run promtool."""
    return subprocess.run([tool("promtool"), *arguments], input=given, capture_output=True, text=True, check=False)


@contextmanager
def scraping(target: str, folder: Path) -> Iterator[Prometheus]:
    """A Prometheus with the configuration and the alerts of deploy/, which scrapes `target` each second."""
    program = tool("prometheus")
    config: Mapping[str, Any] = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    config["global"].update(scrape_interval="1s", evaluation_interval="1s")
    config["rule_files"][:] = [str(DEPLOY / "prometheus" / "rules.yml")]
    config["scrape_configs"][0]["static_configs"][0]["targets"] = [target]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    (folder / "key").write_text("hlo_nobody_nothing")  # the configuration wants one, and a server without keys does not
    address = f"127.0.0.1:{free_port()}"
    options = (f"--storage.tsdb.path={folder / 'data'}", "--enable-feature=exemplar-storage")
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(
            [program, f"--config.file={folder / 'prometheus.yml'}", f"--web.listen-address={address}", *options],
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        deadline = time.monotonic() + 60
        while not _ready(address):
            assert process.poll() is None, (folder / "prometheus.log").read_text()[-4000:]
            assert time.monotonic() < deadline, "Prometheus was not ready in a minute"
            time.sleep(0.2)
        yield Prometheus(f"http://{address}")
    finally:
        process.terminate()
        process.wait(30)


def _ready(address: str) -> bool:
    try:
        return httpx.get(f"http://{address}/-/ready", timeout=5).status_code == 200
    except httpx.TransportError:
        return False
