"""The Litestar app."""

from __future__ import annotations

from litestar import Litestar, Router
from litestar.di import Provide
from litestar.exceptions import HTTPException
from litestar.openapi import OpenAPIConfig
from litestar.types import Message, Scope

import hlo
from hlo.errors import HLOError
from hlo.service import console, openai, problems
from hlo.service.access import OPEN, Access
from hlo.service.arriving import Arriving
from hlo.service.cards import card
from hlo.service.routes import HANDLERS
from hlo.service.state import Service
from hlo.service.stopping import Stopping
from hlo.service.traced import Traced


def create_app(service: Service) -> Litestar:
    """The app around one service; the app's lifespan starts and stops it."""

    async def count(message: Message, scope: Scope) -> None:
        if message["type"] == "http.response.start":
            service.metrics.responded(str(scope.get("path_template") or "unknown"), message["status"])

    return Litestar(
        route_handlers=[*HANDLERS, card, *console.HANDLERS, *openai.HANDLERS],
        dependencies={"service": Provide(lambda: service, sync_to_thread=False)},
        lifespan=[service.lifespan],
        middleware=[
            Stopping(),
            Access(service.keys, service.metrics),
            Traced(service),
            Arriving(service.settings.receive_timeout_s),
        ],
        exception_handlers={
            HLOError: problems.from_hlo,
            HTTPException: problems.from_http,
            UnicodeDecodeError: problems.from_decoder,
            RecursionError: problems.from_decoder,
            Exception: problems.from_bug,
        },
        before_send=[count],
        request_max_body_size=service.settings.max_body_bytes,
        openapi_config=OpenAPIConfig(
            title="HLO",
            version=hlo.__version__,
            openapi_router=Router("/schema", route_handlers=[], opt=OPEN, include_in_schema=False),
        ),
        logging_config=None,
    )
