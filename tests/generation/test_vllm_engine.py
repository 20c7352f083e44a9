"""What the vLLM engine refuses before vLLM is imported; with vLLM itself, the tests are in tests/e2e."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from hlo.contracts import EngineOptions
from hlo.errors import SettingsError
from hlo.generation.vllm_engine import VllmEngine

OPTIONS = EngineOptions(Path("model"), "model", "cuda", "auto", "none", slots=2, rank=8, kinds=("q_proj",))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"dtype": "float32"}, "HLO_DTYPE=float32"),
        ({"quantization": "bitsandbytes"}, "int8"),
    ],
)
async def test_what_would_fail_in_the_engine_is_refused_first(
    changes: dict[str, Any], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Settings of which vLLM would die, or make something else, are refused before it is started, with a remedy."""
    monkeypatch.setitem(sys.modules, "vllm", None)  # importing it now fails
    (tmp_path / "config.json").write_text("{}")
    given = {field: getattr(OPTIONS, field) for field in OPTIONS.__struct_fields__} | {"model": tmp_path} | changes
    with pytest.raises(SettingsError, match=said) as caught:
        await VllmEngine.start(EngineOptions(**given))
    assert caught.value.remedy
