"""What OpenAPI is told of the routes beside their own bodies: what else they may answer, and that they stream."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from litestar.openapi.datastructures import ResponseSpec
from litestar.openapi.spec import OpenAPIMediaType, OpenAPIResponse, OpenAPIType, Operation, Schema

from hlo.service.openai_errors import ErrorBody
from hlo.service.problems import MEDIA_TYPE, Problem

_WHY = {
    400: "The request breaks a rule.",
    401: "A key is wanted.",
    403: "The key's role, or the page's origin, does not allow it.",
    404: "No such specialty, adapter or model is served.",
    408: "The request did not arrive in time.",
    413: "The body, or the prompt, is too long.",
    422: "The question is refused.",
    429: "The key has made too many requests.",
    500: "Something failed.",
    503: "Not now: the server starts, is overloaded, or a part of it failed.",
    504: "The deadline has passed.",
}


def replies(reply: Any = None) -> dict[int, ResponseSpec]:
    """What a route may answer: `reply` (None: what its annotation says), or a problem."""
    own = {} if reply is None else {200: ResponseSpec(reply, generate_examples=False, description="The reply.")}
    return own | {
        status: ResponseSpec(Problem, generate_examples=False, description=why, media_type=MEDIA_TYPE)
        for status, why in _WHY.items()
    }


def openai_replies(reply: Any) -> dict[int, ResponseSpec]:
    """What a route of OpenAI's may answer: `reply`, or an error in OpenAI's form."""
    bodies = {200: (reply, "The reply.")} | {status: (ErrorBody, why) for status, why in _WHY.items()}
    return {
        status: ResponseSpec(body, generate_examples=False, description=why) for status, (body, why) in bodies.items()
    }


_WORDS = Schema(type=OpenAPIType.STRING)
_EVENT = Schema(  # of each event, as tools that know OpenAPI 3.2 read it
    type=OpenAPIType.OBJECT, properties={"event": _WORDS, "data": _WORDS}, required=["data"]
)


@dataclass
class Streams(Operation):
    """A route whose reply can be a stream of server-sent events, too."""

    def __post_init__(self) -> None:
        reply = (self.responses or {}).get("200")
        if isinstance(reply, OpenAPIResponse) and reply.content is not None:
            reply.content["text/event-stream"] = OpenAPIMediaType(schema=_EVENT)
