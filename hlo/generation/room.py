"""What an engine was started for, and so what adapters it can take: the same for every engine."""

from __future__ import annotations

from hlo.contracts import EngineOptions
from hlo.errors import AdapterError
from hlo.records import AdapterVersion

# Ranks for which vLLM has buffers and kernels (vllm/config/lora.py); the smallest that fits is taken.
_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)


def engine_rank(rank: int) -> int:
    """The rank that an engine's buffers have for adapters of at most `rank`."""
    return next((one for one in _RANKS if one >= rank), rank)


def check_room(adapter: AdapterVersion, options: EngineOptions, loaded: int, highest: int) -> None:
    """Raise `AdapterError` for an adapter that an engine with `loaded` others was not started for.

    `highest` is the rank that it has buffers for. vLLM would leave out a layer of another kind without a word.
    """
    strange = sorted(set(adapter.modules) - set(options.kinds))
    if loaded >= options.slots:
        wrong = f"would be number {loaded + 1}; the engine was started with room for {options.slots}"
    elif adapter.rank > highest:
        wrong = f"has rank {adapter.rank}; the engine was started for ranks up to {highest}"
    elif strange:
        wrong = f"touches layers of the kind `{strange[0]}`; the engine was started without adapters on those"
    else:
        return
    raise AdapterError(
        f"The adapter `{adapter.name}` {wrong}.",
        remedy="Restart HLO, so that the engine makes room for it; HLO_SPARE_ADAPTERS keeps some for reloads.",
    )
