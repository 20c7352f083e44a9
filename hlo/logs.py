"""The log's lines: for people on a console, or as JSON for a collector. Both carry the fields that a call adds.

`logger.info("answered", extra=fields(trace_id=..., specialty=...))` adds them; a patient's words are never among them.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal

Format = Literal["console", "json"]

_FIELDS = "hlo_fields"
_NOISY = ("httpx", "huggingface_hub", "sentence_transformers", "transformers", "uvicorn", "vllm")


def configure(level: str, kind: Format) -> None:
    """Log lines of at least that level to standard error; of other libraries only warnings, unless debugging."""
    handler = logging.StreamHandler()
    handler.setFormatter(formatter(kind))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.raiseExceptions = False  # where a line can not be written, for the disk is full, neither can a traceback
    if level != "debug":
        for name in _NOISY:
            logging.getLogger(name).setLevel(logging.WARNING)


def fields(**values: object) -> dict[str, Mapping[str, object]]:
    """What a call of a logger takes as `extra`; what is None is left out."""
    return {_FIELDS: {name: value for name, value in values.items() if value is not None}}


def formatter(kind: Format) -> logging.Formatter:
    """The formatter of that kind."""
    return JsonFormatter() if kind == "json" else ConsoleFormatter()


class ConsoleFormatter(logging.Formatter):
    """Time, level, logger and message, then the fields as `name=value`."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """The line without a traceback."""
        told = " ".join(f"{name}={value}" for name, value in _fields(record).items())
        return f"{super().formatMessage(record)}{' ' if told else ''}{told}"


class JsonFormatter(logging.Formatter):
    """One JSON object a line: `time` (RFC 3339, UTC), `level`, `logger`, `message`, the fields, and a `traceback`.

    Takes and leaves unheeded what a configuration of another formatter would give it (logging.config.dictConfig).
    """

    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__()

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        told: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            told["traceback"] = self.formatException(record.exc_info)
        return json.dumps(told, ensure_ascii=False, default=str)


def _fields(record: logging.LogRecord) -> Mapping[str, object]:
    found: Mapping[str, object] = getattr(record, _FIELDS, {})
    return found
