"""Errors as RFC 9457 problems. The only place that chooses status codes; no stack trace and no question leaves it."""

from __future__ import annotations

import logging
import re
from typing import Any

import msgspec
from litestar import Request, Response
from litestar.exceptions import HTTPException, ValidationException
from msgspec import Struct

from hlo.errors import (
    AdapterError,
    AuditError,
    DeadlineExceeded,
    EncoderError,
    EngineDead,
    EngineError,
    Forbidden,
    HLOError,
    HubError,
    InvalidRequest,
    NotReady,
    OutOfScope,
    Overloaded,
    PluginError,
    PromptTooLong,
    QuestionRefused,
    TooManyRequests,
    Unauthorized,
    UnknownAdapter,
    UnknownSpecialty,
)
from hlo.service import openai_errors
from hlo.service.traced import span_of
from hlo.telemetry.tracing import mark

logger = logging.getLogger("hlo")

MEDIA_TYPE = "application/problem+json"


class Problem(Struct, frozen=True, omit_defaults=True):
    """RFC 9457, with `field` (where in the request), `remedy` (what to do) and `retry_after` (seconds)."""

    type: str
    title: str
    status: int
    detail: str
    field: str | None = None
    remedy: str | None = None
    retry_after: int | None = None


# From the most special to the most general; the first that fits an error is its problem.
_TABLE: tuple[tuple[type[HLOError], int, str, str], ...] = (
    (UnknownSpecialty, 404, "unknown-specialty", "Unknown specialty"),
    (UnknownAdapter, 404, "unknown-adapter", "Unknown adapter"),
    (PromptTooLong, 413, "prompt-too-long", "Prompt too long"),
    (InvalidRequest, 400, "invalid-request", "Invalid request"),
    (QuestionRefused, 422, "question-refused", "Question refused"),
    (Forbidden, 403, "forbidden", "Forbidden"),
    (Unauthorized, 401, "unauthorized", "Key wanted"),
    (TooManyRequests, 429, "too-many-requests", "Too many requests"),
    (OutOfScope, 422, "out-of-scope", "Question out of scope"),
    (DeadlineExceeded, 504, "deadline-exceeded", "Deadline exceeded"),
    (NotReady, 503, "not-ready", "Not ready"),
    (Overloaded, 503, "overloaded", "Overloaded"),
    (EngineDead, 503, "engine-dead", "Engine dead"),
    (EngineError, 500, "engine-error", "Engine error"),
    (AuditError, 503, "audit-error", "Answer not recorded"),
    (EncoderError, 503, "encoder-error", "Encoder error"),
    (AdapterError, 500, "adapter-error", "Adapter error"),
    (PluginError, 500, "plugin-error", "Plugin error"),
    (HubError, 503, "hub-error", "Hub error"),
    (HLOError, 500, "error", "Error"),
)
_REPEATED = re.compile(r"Invalid (enum )?value '")  # msgspec repeats such a value, which may be a patient's words
_NO_BODY = "'data'"  # what Litestar says of a missing body: a KeyError's text
_RETRY_AFTER_S: dict[type[HLOError], int] = {NotReady: 5, Overloaded: 2, EngineDead: 10, EncoderError: 5}


def problem(error: HLOError) -> Problem:
    """The problem that tells of `error`."""
    kind, status, slug, title = next(row for row in _TABLE if isinstance(error, row[0]))
    return Problem(
        type=f"urn:hlo:problem:{slug}",
        title=title,
        status=status,
        detail=error.message,
        field=error.field if isinstance(error, InvalidRequest) else None,
        remedy=error.remedy or None,
        retry_after=error.retry_after_s if isinstance(error, TooManyRequests) else _RETRY_AFTER_S.get(kind),
    )


def from_hlo(request: Request[Any, Any, Any], error: HLOError) -> Response[bytes]:
    """Answer with one of our own errors."""
    found = problem(error)
    mark(span_of(request), error)
    if found.status >= 500:
        logger.error("%s: %s", type(error).__name__, error)
    return _respond(request, found, {"www-authenticate": error.challenge} if isinstance(error, Unauthorized) else None)


def from_http(request: Request[Any, Any, Any], error: HTTPException) -> Response[bytes]:
    """Answer with an error that Litestar found: a body that breaks the schema or the limit, an unknown path, …"""
    field, detail = None, error.detail
    remedy = "`/schema` describes every route and its body."
    if isinstance(error, ValidationException) and isinstance(error.extra, list) and error.extra:
        first: dict[str, Any] = error.extra[0]
        key = first.get("key", "data")
        field = "$" if key == "data" else f"$.{key}"
        detail = first.get("message", detail)
    elif error.status_code == 413:
        detail = "The request's body is larger than this server takes."
        remedy = "Shorten it, or raise HLO_MAX_BODY_BYTES."
    elif error.status_code == 408:
        remedy = "Send it whole; HLO_RECEIVE_TIMEOUT_S says how long it may take."
    elif error.status_code == 400:
        field = "$"
    if _REPEATED.match(detail):
        detail = "The value is none of those that this field may have."
    if detail == _NO_BODY:
        detail = "The request has no body; a JSON object was wanted."
    slug = {400: "invalid-request", 404: "not-found", 405: "method-not-allowed"}
    slug |= {408: "request-too-slow", 413: "body-too-large"}
    found = Problem(
        type=f"urn:hlo:problem:{slug.get(error.status_code, 'http')}",
        title=slug.get(error.status_code, "error").replace("-", " ").capitalize(),
        status=error.status_code,
        detail=detail,
        field=field,
        remedy=remedy,
    )
    return _respond(request, found, dict(error.headers or {}))


def from_decoder(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    """Answer with what the JSON decoder raises beside its own errors: text that is no UTF-8, or nested too deep."""
    detail = "is nested too deep" if isinstance(error, RecursionError) else "is not UTF-8"
    return _respond(
        request,
        Problem(
            type="urn:hlo:problem:invalid-request",
            title="Invalid request",
            status=400,
            detail=f"The request's body {detail}.",
            field="$",
            remedy="Send JSON in UTF-8; `/schema` describes every route and its body.",
        ),
    )


def from_bug(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    """Answer with an error that nobody foresaw."""
    mark(span_of(request), error)
    return _respond(request, unforeseen(error, str(request.scope.get("path_template", "?"))))


def unforeseen(error: Exception, path: str) -> Problem:
    """The problem that tells of an error that nobody foresaw: its type and place go to the log, its text nowhere."""
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    place = f"{frame.tb_frame.f_code.co_filename}:{frame.tb_lineno}" if frame else "unknown"
    logger.error("unforeseen %s at %s, in %s", type(error).__name__, place, path)
    return Problem(
        type="urn:hlo:problem:internal-error",
        title="Internal error",
        status=500,
        detail="Something failed that should not have.",
        remedy="Ask again; if it comes back, report it with the server's log.",
    )


def _respond(request: Request[Any, Any, Any], found: Problem, headers: dict[str, str] | None = None) -> Response[bytes]:
    headers = headers or {}
    if found.retry_after is not None:
        headers["retry-after"] = str(found.retry_after)
    if openai_errors.is_openai(request.scope):
        told, status = msgspec.json.encode(openai_errors.body(found)), openai_errors.status(found)
        return Response(told, status_code=status, media_type="application/json", headers=headers)
    return Response(msgspec.json.encode(found), status_code=found.status, media_type=MEDIA_TYPE, headers=headers)
