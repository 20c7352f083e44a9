"""On what terms a request is served: who asks, and how long it may take."""

from __future__ import annotations

import math
from typing import Any

from litestar import Request

from hlo.deadline import Deadline, Terms
from hlo.errors import InvalidRequest
from hlo.service.access import caller_of
from hlo.settings import Settings

HEADER = "hlo-timeout"


def terms_of(request: Request[Any, Any, Any], settings: Settings, timeout_s: float | None = None) -> Terms:
    """The terms of a request that comes now. `timeout_s` is its body's, and comes before its header's.

    Raises `InvalidRequest` for a time that is none, or longer than the operator allows.
    """
    caller = caller_of(request)
    field, given = "$.timeout_s", timeout_s
    if given is None and (said := request.headers.get(HEADER)) is not None:
        field, given = HEADER, _seconds(said)
    if given is None:
        given = min(settings.request_timeout_s, settings.max_request_timeout_s)
    elif given > settings.max_request_timeout_s:
        raise InvalidRequest(
            f"{given:g} seconds were asked for; at most {settings.max_request_timeout_s:g} are allowed.",
            field=field,
            remedy="Ask for less, or raise HLO_MAX_REQUEST_TIMEOUT_S.",
        )
    return Terms(caller.key if caller else None, Deadline.after(given))


def _seconds(said: str) -> float:
    try:
        seconds = float(said)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise InvalidRequest("The header holds no number of seconds above 0.", field=HEADER, remedy="Send `2.5`.")
    return seconds
