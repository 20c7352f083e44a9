"""What an engine says to an adapter that it was not started for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from hlo.contracts import EngineOptions
from hlo.errors import AdapterError
from hlo.generation.room import check_room
from hlo.records import AdapterVersion

OPTIONS = EngineOptions(Path(), "tiny", "cpu", "auto", "none", slots=2, rank=8, kinds=("q_proj", "v_proj"))
ADAPTER = AdapterVersion("heart", "0" * 64, Path("heart"), 8, ("q_proj",), 1024)


def test_what_fits_is_let_in() -> None:
    """An adapter within the number, the rank and the kinds that the engine has room for is no error."""
    check_room(ADAPTER, OPTIONS, loaded=1, highest=8)


@pytest.mark.parametrize(
    ("changes", "loaded", "said", "spare"),
    [
        ({}, 2, "would be number 3; the engine was started with room for 2", True),
        ({"rank": 16}, 0, "has rank 16; the engine was started for ranks up to 8", False),
        ({"modules": ("q_proj", "up_proj")}, 0, "layers of the kind `up_proj`", False),
    ],
)
def test_what_does_not_fit_is_told_what_to_do(changes: dict[str, Any], loaded: int, said: str, spare: bool) -> None:
    """The error names the adapter and what it lacks; a restart helps always, and spare room only against numbers."""
    with pytest.raises(AdapterError, match="heart") as caught:
        check_room(msgspec.structs.replace(ADAPTER, **changes), OPTIONS, loaded, highest=8)
    assert said in caught.value.message
    assert "Restart HLO" in caught.value.remedy
    assert ("HLO_SPARE_ADAPTERS" in caught.value.remedy) == spare
