"""What an engine was started for, and so what adapters it can take: the same for every engine."""

from __future__ import annotations

from collections.abc import Sequence

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


def describe(options: EngineOptions, versions: Sequence[AdapterVersion]) -> str:
    """What room for adapters the engine is started with, and which of the installed ones ask for it."""
    if not options.slots:
        return "room for no adapter: none is installed, and HLO_SPARE_ADAPTERS is 0"
    highest = max(versions, key=lambda version: version.rank, default=None)
    rank = f"as `{highest.name}` has" if highest else "HLO_MAX_LORA_RANK, since none is installed"
    touched = "which they touch" if versions else "all that the base model has"
    room = f"{options.slots} adapter{'s' if options.slots > 1 else ''}"
    return (
        f"room for {room} ({len(versions)} installed, HLO_SPARE_ADAPTERS={options.spare}), of ranks up to "
        f"{options.rank} ({rank}), on {', '.join(options.kinds)} ({touched})"
    )
