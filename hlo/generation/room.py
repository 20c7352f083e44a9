"""What an engine was started for, and so what adapters it can take: the same for every engine."""

from __future__ import annotations

from hlo.contracts import EngineOptions
from hlo.errors import AdapterError
from hlo.records import AdapterVersion


def check_room(adapter: AdapterVersion, options: EngineOptions, loaded: int, highest: int) -> None:
    """Raise `AdapterError` for an adapter that an engine with `loaded` others was not started for.

    `highest` is the rank that it has buffers for. vLLM would leave out a layer of another kind without a word.
    """
    strange = sorted(set(adapter.modules) - set(options.kinds))
    remedy = "Restart HLO: it makes room for the adapters that are installed when it starts."
    if loaded >= options.slots:
        wrong = f"would be number {loaded + 1}; the engine was started with room for {options.slots}"
        remedy += " HLO_SPARE_ADAPTERS keeps some for reloads."
    elif adapter.rank > highest:
        wrong = f"has rank {adapter.rank}; the engine was started for ranks up to {highest}"
    elif strange:
        wrong = f"touches layers of the kind `{strange[0]}`; the engine was started without adapters on those"
    else:
        return
    raise AdapterError(f"The adapter `{adapter.name}` {wrong}.", remedy=remedy)
