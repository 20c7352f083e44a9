"""The cards of the adapters that are served."""

from __future__ import annotations

from litestar import Response, get
from litestar.di import NamedDependency
from litestar.exceptions import NotFoundException
from litestar.params import FromPath

from hlo.generation import adapters
from hlo.service.described import replies
from hlo.service.state import Service


@get(
    "/specialties/{name:str}/card",
    sync_to_thread=True,
    summary="The card of a specialty's adapter.",
    responses=replies(),
)
def card(name: FromPath[str], service: NamedDependency[Service]) -> Response[str]:
    """The README.md that came with the adapter, as it was when the adapter was loaded: Markdown by a stranger."""
    entry = service.runtime.pipeline.catalog.find(name, field="name")
    text = adapters.card(entry.adapter)
    if text is None:
        raise NotFoundException(detail=f"The adapter of `{entry.specialty.name}` came without a card.")
    return Response(text, media_type="text/markdown", headers={"x-content-type-options": "nosniff"})
