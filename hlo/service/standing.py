"""How a server stands, for its metrics: read when a scrape asks for it."""

from __future__ import annotations

import hlo
from hlo.errors import EngineError
from hlo.service.state import Service
from hlo.telemetry.standing import Standing


async def standing(service: Service) -> Standing:
    """What there is to tell now, be the server ready or not."""
    try:
        runtime = service.runtime
    except EngineError:
        return Standing(hlo.__version__)
    pipeline, encoder, drifts = runtime.pipeline, runtime.encoder.encoder, service.metrics.drifts
    try:
        await pipeline.engine.check_health()
        ready = True
    except EngineError:
        ready = False
    return Standing(
        version=hlo.__version__,
        ready=ready,
        engine=pipeline.engine.info,
        encoder=(encoder.name, encoder.fingerprint),
        adapters={name: entry.adapter for name, entry in pipeline.catalog.entries.items()},
        refusals=pipeline.catalog.refusals,
        activity=getattr(pipeline.engine, "activity", None),
        waiting=pipeline.line.waiting,
        drifts=tuple(drifts.drifts()),
        questions=drifts.questions(),
    )
