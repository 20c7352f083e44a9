"""HLO on Ray Serve: `serve run deploy.ray.app:build replicas=2`.

HLO's own app is the ingress: it routes questions and makes prompts. The replicas of `Generator` hold the engine that
the settings (`HLO_*`) name. Ray sends each adapter's requests to a replica that has it, by its model multiplexing.
"""

from __future__ import annotations

import logging
from typing import Any

from pydantic import BaseModel, Field
from ray import serve
from ray.serve import Application
from ray.serve.handle import DeploymentHandle

from deploy.ray.generator import Generator
from deploy.ray.handle import RayEngine
from hlo import assemble, logs
from hlo.contracts import Engine, EngineOptions
from hlo.service.app import create_app
from hlo.service.state import Service
from hlo.settings import Settings, load_settings
from hlo.telemetry.metrics import Metrics

logger = logging.getLogger("hlo")


class Arguments(BaseModel, extra="forbid"):
    """What `serve run` or a configuration file can choose; CPUs and GPUs are for each replica of the engine."""

    replicas: int = Field(default=2, ge=1)
    cpus: float = Field(default=1, ge=0)
    gpus: float = Field(default=0, ge=0)
    requests: int = Field(default=256, ge=1)


@serve.deployment(max_ongoing_requests=1024, ray_actor_options={"num_cpus": 0})
@serve.ingress()
class Hlo:
    """HLO's app, with an engine that is Ray's handle to all replicas."""

    def __init__(self, generators: DeploymentHandle) -> None:
        self._generators = generators

    def __serve_build_asgi_app__(self) -> Any:
        """The app itself: made here, in the replica, since it can not be sent there."""
        settings = load_settings()
        logs.configure(settings.log_level, settings.log_format)
        service = Service(settings, self._start)
        if not service.keys.closed:
            logger.warning("there is no API key: whoever reaches Ray's proxy may ask; `hlo keys new NAME` makes one")
        return create_app(service)

    async def _start(self, settings: Settings, metrics: Metrics, report: assemble.Report) -> assemble.Runtime:
        async def begin(options: EngineOptions) -> Engine:
            return await RayEngine.start(self._generators, options)

        return await assemble.assemble(settings, metrics, report, begin)


def build(given: dict[str, Any]) -> Application:
    """The application, for `serve run` and for configuration files, whose arguments are those of `Arguments`."""
    arguments = Arguments.model_validate(given)
    generators = Generator.options(  # type: ignore[attr-defined]
        num_replicas=arguments.replicas,
        max_ongoing_requests=arguments.requests,
        ray_actor_options={"num_cpus": arguments.cpus, "num_gpus": arguments.gpus},
    )
    return Hlo.bind(generators.bind())  # type: ignore[attr-defined]
