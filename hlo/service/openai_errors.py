"""Problems as OpenAI's clients understand errors: a body `{"error": {…}}`, a type by status, and OpenAI's own codes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from hlo.errors import InvalidRequest, UnknownAdapter, UnknownSpecialty

if TYPE_CHECKING:
    from hlo.service.problems import Problem

PREFIX = "/v1/"
"""Paths that begin so are OpenAI's, also those that no route has."""

# Codes that clients look for. Other problems have their own name for a code.
_CODES = {
    "unknown-specialty": "model_not_found",
    "unknown-adapter": "model_not_found",
    "prompt-too-long": "context_length_exceeded",
}
_CODE_OF_STATUS = {401: "invalid_api_key", 429: "rate_limit_exceeded"}
_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_STATUSES = {"prompt-too-long": 400}  # where OpenAI's differs from ours
_UNKNOWN = re.compile(r"unknown field `(\w{1,64})`")
_REMEDY = "`GET /v1/models` lists the models; `auto` sends a question to the right one."


class ErrorView(Struct, frozen=True):
    """OpenAI's error, and which problem of HLO's it is (`problem`, a URN)."""

    message: str
    type: str
    param: str | None
    code: str
    problem: str


class ErrorBody(Struct, frozen=True):
    """What an error's response holds."""

    error: ErrorView


def status(problem: Problem) -> int:
    """The status that OpenAI gives such an error."""
    return _STATUSES.get(_slug(problem), problem.status)


def body(problem: Problem) -> ErrorBody:
    """The problem as OpenAI would tell it; the remedy ends the message."""
    number, slug = status(problem), _slug(problem)
    return ErrorBody(
        ErrorView(
            message=f"{problem.detail.rstrip('.')}. {problem.remedy or ''}".rstrip(),
            type=_TYPES.get(number, "server_error" if number >= 500 else "invalid_request_error"),
            param=_param(problem),
            code=_CODE_OF_STATUS.get(number) or _CODES.get(slug, slug),
            problem=problem.type,
        )
    )


@contextmanager
def told_as(places: Mapping[str, str]) -> Iterator[None]:
    """Tell of errors by where the client put what is wrong: `places` maps the pipeline's fields to the request's."""
    try:
        yield
    except InvalidRequest as error:
        error.field = places.get(error.field, error.field)
        if isinstance(error, UnknownSpecialty | UnknownAdapter):
            error.remedy = _REMEDY
        raise


def _slug(problem: Problem) -> str:
    return problem.type.rpartition(":")[2]


def _param(problem: Problem) -> str | None:
    if found := _UNKNOWN.search(problem.detail):
        return found[1]
    field = (problem.field or "").removeprefix("$").removeprefix(".")
    return field or None


def is_openai(scope: Mapping[str, Any]) -> bool:
    """Whether a request wants OpenAI's errors."""
    return str(scope["path"]).startswith(PREFIX)
