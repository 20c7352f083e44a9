"""Remembers from one run to the next how often each adapter was used, so that those used most are at hand at start.

Where an engine has fewer slots than adapters, the last ones that it loads are the ones that stand in its slots. What is
kept are names and numbers: of earlier runs the less, the longer ago they were.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

logger = logging.getLogger("hlo")

_FILE = "uses.json"


def rarest_first(names: Iterable[str], store: Path) -> list[str]:
    """`names` in the order in which to load them, the one that was used most last."""
    known = _read(store)
    return sorted(names, key=lambda name: (known.get(name, 0.0), name))


def remember(uses: Mapping[str, int], store: Path) -> None:
    """Add the uses of a run to what is known, of which half counts from now on; a store that is read-only is left."""
    if not uses:
        return
    known = _read(store)
    counted = {name: known.get(name, 0.0) / 2 + uses.get(name, 0) for name in sorted(known.keys() | uses.keys())}
    try:
        store.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=store, prefix=".incoming-") as incoming:
            made = Path(incoming, _FILE)
            made.write_bytes(msgspec.json.encode(counted))
            os.replace(made, store / _FILE)
    except OSError as error:
        logger.warning("the uses of adapters can not be kept in %s: %s", store, error.strerror or error)


def _read(store: Path) -> dict[str, float]:
    try:
        return msgspec.json.decode((store / _FILE).read_bytes(), type=dict[str, float])
    except FileNotFoundError:
        return {}
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        logger.warning("the uses of adapters in %s can not be read: %s", store / _FILE, error)
        return {}
