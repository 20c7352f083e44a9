"""A receiver for OTLP traces, over gRPC and over HTTP: keeps the very bytes, and reads the spans in them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent import futures
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
from msgspec import Struct
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue

WAIT_S = 60
_SERVICE = "opentelemetry.proto.collector.trace.v1.TraceService"


class Received(Struct, frozen=True):
    """A span as it came. Ids are in hexadecimal, times in nanoseconds; `status` 0 is unset, 1 ok, 2 an error."""

    name: str
    trace: str
    id: str
    parent: str
    kind: int
    began: int
    ended: int
    status: int
    attributes: Mapping[str, Any]
    resource: Mapping[str, Any]
    scope: str


class Receiver:
    """What has come so far, and the address at which it comes."""

    def __init__(self, protocol: str) -> None:
        self.protocol = protocol
        self.endpoint = ""
        self.bodies: list[bytes] = []

    @property
    def environment(self) -> dict[str, Any]:
        """The variables that send a process's spans here, soon after each has ended."""
        return {
            "OTEL_EXPORTER_OTLP_ENDPOINT": self.endpoint,
            "OTEL_EXPORTER_OTLP_PROTOCOL": self.protocol,
            "OTEL_BSP_SCHEDULE_DELAY": "100",
        }

    @property
    def spans(self) -> list[Received]:
        """Every span that has come."""
        return [span for body in list(self.bodies) for span in read(body)]

    def trace(self, trace: str) -> dict[str, Received]:
        """The spans of one trace, by name."""
        return {span.name: span for span in self.spans if span.trace == trace}

    def wait(self, condition: Callable[[list[Received]], bool]) -> list[Received]:
        """The spans, once they fulfil a condition."""
        deadline = time.monotonic() + WAIT_S
        while not condition(spans := self.spans):
            assert time.monotonic() < deadline, f"came: {sorted(span.name for span in spans)}"
            time.sleep(0.1)
        return spans

    def wait_for(self, trace: str, *names: str) -> dict[str, Received]:
        """The spans of one trace by name, once those names are there."""
        self.wait(lambda spans: set(names) <= {span.name for span in spans if span.trace == trace})
        return self.trace(trace)


@contextmanager
def receiving(protocol: str) -> Iterator[Receiver]:
    """Receive over `grpc` or `http/protobuf` as long as the block lasts."""
    receiver = Receiver(protocol)
    with _over_grpc(receiver) if protocol == "grpc" else _over_http(receiver):
        yield receiver


@contextmanager
def _over_grpc(receiver: Receiver) -> Iterator[None]:
    def export(body: bytes, _: grpc.ServicerContext) -> bytes:
        receiver.bodies.append(body)
        return b""  # an ExportTraceServiceResponse that complains of nothing

    handlers = {"Export": grpc.unary_unary_rpc_method_handler(export)}
    server = grpc.server(futures.ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_SERVICE, handlers),))
    receiver.endpoint = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield
    finally:
        server.stop(None).wait()


@contextmanager
def _over_http(receiver: Receiver) -> Iterator[None]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            known = self.path == "/v1/traces" and self.headers["content-type"] == "application/x-protobuf"
            if known:
                receiver.bodies.append(body)
            self.send_response(200 if known else 404)
            self.send_header("content-type", "application/x-protobuf")
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        receiver.endpoint = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


def read(body: bytes) -> Iterator[Received]:
    """The spans in one request."""
    for of_resource in ExportTraceServiceRequest.FromString(body).resource_spans:
        resource = _attributes(of_resource.resource.attributes)
        for of_scope in of_resource.scope_spans:
            for span in of_scope.spans:
                yield Received(
                    name=span.name,
                    trace=span.trace_id.hex(),
                    id=span.span_id.hex(),
                    parent=span.parent_span_id.hex(),
                    kind=span.kind,
                    began=span.start_time_unix_nano,
                    ended=span.end_time_unix_nano,
                    status=span.status.code,
                    attributes=_attributes(span.attributes),
                    resource=resource,
                    scope=of_scope.scope.name,
                )


def _attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in list[KeyValue](pairs)}


def _value(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(one) for one in value.array_value.values]
    return getattr(value, kind) if kind else None
