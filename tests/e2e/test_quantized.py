"""The demonstration model in int8: made by `hlo models quantize`, served by vLLM with adapters, and verified."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hlo.generation.base_model import EMBEDDED_NAME, embedded_root
from tests.e2e.server import Server, running, settings_only

QUESTION = "my chest feels tight when I climb the stairs"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the command makes of the demonstration model."""
    folder = tmp_path_factory.mktemp("int8")
    original = embedded_root() / "models" / EMBEDDED_NAME
    command = [sys.executable, "-m", "hlo", "models", "quantize", str(original), "--no-evaluate", "--out", "model"]
    done = subprocess.run(
        command, cwd=folder, env=settings_only(folder), capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return folder / "model"


@pytest.fixture(scope="module")
def eight_bit(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of the int8 checkpoint, with two of the embedded adapters."""
    with running(
        tmp_path_factory.mktemp("server"),
        HLO_MODEL=str(checkpoint),
        HLO_ADAPTER_PATH=str(embedded_root() / "adapters"),
        HLO_PLUGINS="cardiology,neurology",
        QUANTIZE="true",
    ) as started:
        yield started


def test_it_serves_int8_weights_and_says_so(eight_bit: Server, checkpoint: Path) -> None:
    """`/readyz` tells what was found on the device: int8 in every linear layer, and about the file's size in all."""
    with eight_bit.client() as client:
        engine = client.get("/readyz").json()["engine"]
    assert engine["model"] == EMBEDDED_NAME
    assert engine["quantization"] == "bitsandbytes"
    assert engine["linear_dtype"] == "int8"
    assert 8 < engine["linear_bits"] < 8.5
    # On a CPU all that is not int8 is in 32 bit, twice what it takes in the file.
    assert engine["weight_bytes"] < 2 * (checkpoint / "model.safetensors").stat().st_size


def test_specialists_answer_in_8_bit(eight_bit: Server) -> None:
    """A question is routed and answered by its adapter, and adapters still say other things than the base model."""
    answer = eight_bit.post("/ask", {"question": QUESTION, "max_tokens": 16}).json()
    assert answer["specialty"] == answer["adapter"]["name"] == "cardiology"
    assert answer["answer"].strip()
    texts = set()
    for adapter in ("base", "cardiology", "neurology"):
        body = {"prompt": QUESTION, "adapter": adapter, "max_tokens": 16, "temperature": 0}
        texts.add(eight_bit.post("/generate", body).json()["text"])
    assert len(texts) == 3
