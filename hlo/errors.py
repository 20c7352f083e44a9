"""One tree of errors. Each says what is wrong, where, what was wanted, and what to do next.

HLOError
├── SettingsError          a setting is unknown, malformed, or contradicts another
├── InvalidRequest         a request's field breaks a rule (carries `field`)
│   ├── UnknownSpecialty   a specialty was named that is not installed
│   ├── UnknownAdapter     an adapter was named that is not loaded
│   └── PromptTooLong      prompt and answer together do not fit the model's context
├── OutOfScope             the question belongs to no installed specialty, and the operator chose to refuse those
├── QuestionRefused        a plugin refused the question
├── Unauthorized           a request came without a key that is in force (carries `challenge`)
│   └── Forbidden          a request asked for more than its key, or its origin, allows
├── TooManyRequests        a key made more requests than it may (carries `retry_after_s`)
├── DeadlineExceeded       a request was not done within the time that it had
├── HubError               a model hub's repository can not be had, or is not what was pinned
├── PluginError            a plugin, or a specialty that it offers, can not be used
├── AdapterError           an adapter's files can not be used with this base model
├── ModelError             the base model can not be found or read
├── EncoderError           the encoder can not be loaded, or failed
├── AuditError             an answer can not be recorded in the audit log
├── CalibrationError       routing can not be calibrated with these questions, or a calibration can not be used
└── EngineError            the engine failed
    ├── OutOfMemory        the model, its adapters and a useful KV cache do not fit the device
    ├── NotReady           the engine is still starting, or shutting down
    ├── Overloaded         as many requests wait for the engine as may
    └── EngineDead         the engine process is gone; nothing can be generated until a restart

A message never repeats the question, the prompt or the answer: those are patients' words.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class HLOError(Exception):
    """Anything that HLO reports. `remedy` is the next step, in one sentence."""

    def __init__(self, message: str, *, remedy: str = "") -> None:
        message, remedy = _writable(message), _writable(remedy)
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message} {self.remedy}".rstrip()

    def __reduce__(self) -> tuple[Any, ...]:
        return _made, (type(self), self.__dict__)  # by itself pickle would leave out what is given by keyword


def _made(kind: type[HLOError], fields: Mapping[str, Any]) -> HLOError:
    """An error that came from another process."""
    error = kind.__new__(kind, fields["message"])
    error.__dict__.update(fields)
    return error


def _writable(text: str) -> str:
    """What is quoted in a message can hold lone surrogates (JSON can), which no log, terminal or response can."""
    return text.encode("utf-8", "backslashreplace").decode()


class SettingsError(HLOError):
    """A setting is unknown, malformed, or contradicts another."""


class InvalidRequest(HLOError):
    """A request's field breaks a rule. `field` is its path in the request (`$.question`)."""

    def __init__(self, message: str, *, field: str, remedy: str = "") -> None:
        super().__init__(message, remedy=remedy)
        self.field = field


class UnknownSpecialty(InvalidRequest):
    """A specialty was named that is not installed."""


class UnknownAdapter(InvalidRequest):
    """An adapter was named that is not loaded."""


class PromptTooLong(InvalidRequest):
    """Prompt and answer together do not fit the model's context."""


class OutOfScope(HLOError):
    """The question belongs to no installed specialty, and the operator chose to refuse those."""


class QuestionRefused(HLOError):
    """A plugin refused the question; the message is the plugin's, for the one who asked."""


class Unauthorized(HLOError):
    """A request came without a key that is in force. `challenge` is what `WWW-Authenticate` says (RFC 6750)."""

    def __init__(self, message: str, *, challenge: str = "Bearer", remedy: str = "") -> None:
        super().__init__(message, remedy=remedy)
        self.challenge = challenge


class Forbidden(Unauthorized):
    """A request asked for more than its key, or its origin, allows."""


class TooManyRequests(HLOError):
    """A key made more requests than it may. After `retry_after_s` seconds it may make another."""

    def __init__(self, message: str, *, retry_after_s: int = 1, remedy: str = "") -> None:
        super().__init__(message, remedy=remedy)
        self.retry_after_s = retry_after_s


class DeadlineExceeded(HLOError):
    """A request was not done within the time that it had; what was under way has been stopped."""


class HubError(HLOError):
    """A model hub's repository can not be had, or is not what was pinned."""


class PluginError(HLOError):
    """A plugin, or a specialty that it offers, can not be used."""


class AdapterError(HLOError):
    """An adapter's files can not be used with this base model."""


class ModelError(HLOError):
    """The base model can not be found or read."""


class EncoderError(HLOError):
    """The encoder can not be loaded, or failed."""


class CalibrationError(HLOError):
    """Routing can not be calibrated with these questions, or a calibration can not be used."""


class AuditError(HLOError):
    """An answer can not be recorded in the audit log, and is not given."""


class EngineError(HLOError):
    """The engine failed."""


class OutOfMemory(EngineError):
    """The model, its adapters and a useful KV cache do not fit the device."""


class NotReady(EngineError):
    """The engine is still starting, or shutting down."""


class Overloaded(EngineError):
    """As many requests wait for the engine as may."""


class EngineDead(EngineError):
    """The engine process is gone; nothing can be generated until a restart."""
