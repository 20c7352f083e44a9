"""Memory: the prediction against vLLM's own tensors, and a start for which there is not enough."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.server import settings_only, spawn

# In a process of its own, as vLLM leaves much behind: adapters on one of q, k and v, on one of gate and up, and on o.
PROBE = """
import asyncio, json, sys
from pathlib import Path
from benchmarks.memory import Row, measure, options
from benchmarks.shapes import TINY, model
from hlo.generation import base_model
from hlo.generation.memory import Demand, predict

folder = model(Path(sys.argv[1]), TINY)
shape = base_model.find(str(folder))
row = Row("probe", {"slots": 3, "rank": 12, "kinds": ("q_proj", "o_proj", "gate_proj")})
chosen = options(folder, row, "cpu", shape)
said = predict(shape, Demand.of(chosen, shape))
found = asyncio.run(measure(chosen))
print("\\n" + json.dumps({"said": [said.weights, said.adapters], "found": [found["weights"], found["adapters"]]}))
"""


def test_weights_and_adapters_are_what_is_predicted(tmp_path: Path) -> None:
    """vLLM's parameters take the bytes that are predicted within a per cent, and its adapter slots exactly those."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE, str(tmp_path / "shape")],
        capture_output=True,
        text=True,
        env=settings_only(tmp_path),
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    line = next(line for line in done.stdout.splitlines() if line.startswith('{"said"'))
    (weights, adapters), (held, slots) = json.loads(line).values()
    assert held == pytest.approx(weights, rel=0.01)
    assert slots == adapters


def test_a_want_of_memory_ends_in_advice(tmp_path: Path) -> None:
    """When vLLM finds too little memory as it starts, the server ends with what to change, and without a traceback."""
    process, log = spawn(tmp_path, HLO_CPU_KV_CACHE_GIB="100000")
    assert process.wait(300) == 1
    text = log.read_text(errors="replace")
    assert "error: vLLM lacks memory to start." in text
    assert "HLO_CPU_KV_CACHE_GIB=1" in text
    assert "Traceback" not in text
