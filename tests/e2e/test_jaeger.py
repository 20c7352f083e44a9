"""The same trace, as a real Jaeger tells it: `JAEGER_URL=http://localhost:16686 pytest tests/e2e/test_jaeger.py`.

JAEGER_URL is its query API; spans go to OTEL_EXPORTER_OTLP_ENDPOINT, or else to port 4317 of the same host.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from tests.e2e.server import running
from tests.e2e.test_answers import ASKED, content_hash

URL = os.environ.get("JAEGER_URL", "").rstrip("/")
PARENTS = {
    "POST /ask": None,
    "screen": "POST /ask",
    "route": "POST /ask",
    "encode": "route",
    "score": "route",
    "prompt": "POST /ask",
    "generate": "POST /ask",
    "llm_request": "generate",
}


def parents(trace: dict[str, Any]) -> dict[str, str | None]:
    """The name of each span's parent, in a trace as Jaeger's query API tells it."""
    names = {span["spanID"]: span["operationName"] for span in trace["spans"]}
    found = {}
    for span in trace["spans"]:
        above = [names.get(one["spanID"]) for one in span["references"] if one["refType"] == "CHILD_OF"]
        found[span["operationName"]] = above[0] if above else None
    return found


def tags(trace: dict[str, Any], name: str) -> dict[str, Any]:
    """The tags of one span."""
    (span,) = (span for span in trace["spans"] if span["operationName"] == name)
    return {tag["key"]: tag["value"] for tag in span["tags"]}


@pytest.mark.skipif(not URL, reason="JAEGER_URL names no Jaeger to ask")
def test_jaeger_has_the_tree(tmp_path: Path) -> None:
    """Jaeger finds a question by service, operation and tags, and has its whole tree, vLLM's span included."""
    variables: dict[str, Any] = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": os.environ.get(
            "OTEL_EXPORTER_OTLP_ENDPOINT", f"http://{urlsplit(URL).hostname}:4317"
        ),
        "OTEL_BSP_SCHEDULE_DELAY": "200",
    }
    with running(tmp_path, **variables) as server:
        answer = server.post("/ask", {"question": ASKED["cardiology"], "max_tokens": 8}).json()
    wanted = {
        "service": "hlo",
        "operation": "POST /ask",
        "tags": json.dumps({"hlo.specialty": "cardiology", "hlo.route.status": "routed"}),
        "limit": "100",
    }
    deadline = time.monotonic() + 60
    while True:
        found = httpx.get(f"{URL}/api/traces", params=wanted).raise_for_status().json()["data"]
        mine = [trace for trace in found if trace["traceID"].zfill(32) == answer["trace_id"]]
        if mine and set(PARENTS) <= set(parents(mine[0])):
            break
        assert time.monotonic() < deadline, f"found {[parents(trace) for trace in mine]}"
        time.sleep(0.5)
    assert parents(mine[0]) == PARENTS
    generate = tags(mine[0], "generate")
    assert generate["hlo.adapter.sha256"] == content_hash("cardiology")
    assert generate["gen_ai.usage.output_tokens"] == answer["usage"]["completion_tokens"]
