"""What OpenTelemetry's standard variables say about traces, and the exporter that they ask for.

The SDK reads samplers, limits, batching, headers, certificates, time-outs and compression from the environment itself;
here is what it leaves to whoever starts it (OpenTelemetry specification, "Environment Variable Specification").
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from hlo.errors import SettingsError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter

_ALL, _TRACES = "OTEL_EXPORTER_OTLP_", "OTEL_EXPORTER_OTLP_TRACES_"
GRACE_S = 2.0  # for a receiver that does not answer as HLO stops
_GRPC, _HTTP = "grpc", "http/protobuf"


def wanted() -> bool:
    """Whether spans are to be sent: an endpoint is set, or OTEL_TRACES_EXPORTER says so, and nothing forbids it.

    Raises `SettingsError` for an exporter that HLO has not.
    """
    exporter = os.environ.get("OTEL_TRACES_EXPORTER", "").strip()
    if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true" or exporter == "none":
        return False
    if exporter not in ("", "otlp"):
        raise SettingsError(f"OTEL_TRACES_EXPORTER={exporter}: HLO sends OTLP only.", remedy="Set otlp or none.")
    return bool(exporter or _of("ENDPOINT"))


def protocol() -> str:
    """How spans travel. Raises `SettingsError` for what OpenTelemetry's Python exporters can not do."""
    chosen = _of("PROTOCOL") or _GRPC
    if chosen not in (_GRPC, _HTTP):
        raise SettingsError(
            f"OTEL_EXPORTER_OTLP_PROTOCOL={chosen} is not supported.", remedy=f"Set {_GRPC} or {_HTTP}."
        )
    return chosen


def endpoint() -> str:
    """Where spans go, as one who is told nothing else has to be told: over HTTP the path is part of it."""
    own, common = os.environ.get(f"{_TRACES}ENDPOINT"), os.environ.get(f"{_ALL}ENDPOINT")
    if own:
        return own
    if protocol() == _HTTP:
        return f"{(common or 'http://localhost:4318').rstrip('/')}/v1/traces"
    return common or "http://localhost:4317"


def environment() -> dict[str, str]:
    """The same for vLLM, which looks only under the names for traces, and has no name for its service."""
    return {f"{_TRACES}ENDPOINT": endpoint(), f"{_TRACES}PROTOCOL": protocol(), "OTEL_SERVICE_NAME": _service()}


def provider(version: str) -> tuple[TracerProvider, Callable[[], None]]:
    """A provider that exports as the environment says, and what sends the rest and stops it. Raises `SettingsError`."""
    try:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        exporter = _exporter()
    except ImportError as error:
        raise SettingsError(
            "OTEL_EXPORTER_OTLP_ENDPOINT is set, but OpenTelemetry's SDK is not installed.",
            remedy="`pip install 'hlo[otel]'`, or unset it.",
        ) from error
    known = Resource({"service.version": version}).merge(Resource.create({"service.name": _service()}))
    made = TracerProvider(resource=known)
    made.add_span_processor(BatchSpanProcessor(exporter))

    def close() -> None:
        # While nobody answers, the exporter tries again and again: the server ends all the same.
        sending = threading.Thread(target=made.shutdown, name="hlo-traces", daemon=True)
        sending.start()
        sending.join(GRACE_S)

    return made, close


def _service() -> str:
    """The service's name: OTEL_SERVICE_NAME's, else that in OTEL_RESOURCE_ATTRIBUTES, else ours."""
    from opentelemetry.sdk.resources import OTELResourceDetector

    return str(OTELResourceDetector().detect().attributes.get("service.name") or "hlo")


def _exporter() -> SpanExporter:
    if protocol() == _HTTP:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as OverHttp

        return OverHttp()
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as OverGrpc

    return OverGrpc()


def _of(name: str) -> str:
    """A variable of the exporter's: the one for traces comes before the one for all signals."""
    return (os.environ.get(f"{_TRACES}{name}") or os.environ.get(f"{_ALL}{name}") or "").strip()
