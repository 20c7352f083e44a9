"""OTLP's encoding of spans, straight into bytes: a tenth of the work of making protobuf's objects one by one.

Encoding would be half of what tracing costs, and it is paid under the interpreter's lock, which answers wait for.
The numbers are the fields' in `opentelemetry/proto/trace/v1/trace.proto`. What is rare (events, links, attributes that
were dropped) is left to OpenTelemetry's own encoder, and a test holds this one to it.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.trace import SpanContext

_HAS_IS_REMOTE, _IS_REMOTE = 0x100, 0x200  # flags: whether the parent is another process's is known, and is so


def encode(spans: Sequence[ReadableSpan]) -> ExportTraceServiceRequest:
    """The request that carries spans of one resource and one scope."""
    from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans

    if any(one.events or one.links or one.dropped_attributes for one in spans):
        return encode_spans(spans)
    request = encode_spans(spans[:1])  # for resource and scope
    scope = request.resource_spans[0].scope_spans[0]
    del scope.spans[:]
    scope.MergeFromString(b"".join([_field(0x12, _span(one)) for one in spans]))
    return request


def _span(span: ReadableSpan) -> bytes:
    context, parent = cast("SpanContext", span.get_span_context()), span.parent
    parts = [b"\x0a\x10", context.trace_id.to_bytes(16, "big"), b"\x12\x08", context.span_id.to_bytes(8, "big")]
    if context.trace_state:
        parts.append(_text(0x1A, ",".join(f"{key}={value}" for key, value in context.trace_state.items())))
    if parent is not None:
        parts += (b"\x22\x08", parent.span_id.to_bytes(8, "big"))
    parts += (_text(0x2A, span.name), b"\x30", _varint(span.kind.value + 1))
    parts.append(struct.pack("<BQBQ", 0x39, span.start_time or 0, 0x41, span.end_time or 0))
    for key, value in (span.attributes or {}).items():
        # Those repeat. Whether it is a truth value is part of what is looked up, since 1 and True are equal.
        known = isinstance(value, (str, int))
        parts.append(_known(key, value is True or value is False, value) if known else _field(0x4A, _pair(key, value)))
    status, told = span.status, b""
    if not status.is_unset:
        told = _text(0x12, status.description) if status.description else b""
        told += b"\x18" + _varint(status.status_code.value)
    parts.append(_field(0x7A, told))
    remote = _IS_REMOTE if parent is not None and parent.is_remote else 0
    parts.append(b"\x85\x01" + struct.pack("<I", _HAS_IS_REMOTE | remote))
    return b"".join(parts)


@lru_cache(4096)
def _known(key: str, _: bool, value: str | int) -> bytes:
    return _field(0x4A, _pair(key, value))


def _pair(key: str, value: object) -> bytes:
    return _text(0x0A, key) + _field(0x12, _value(value))


def _value(value: object) -> bytes:
    if isinstance(value, str):
        return _text(0x0A, value)
    if isinstance(value, bool):
        return b"\x10" + _varint(value)
    if isinstance(value, int):
        return b"\x18" + _varint(value & (1 << 64) - 1)
    if isinstance(value, float):
        return struct.pack("<Bd", 0x21, value)
    if isinstance(value, Sequence):
        return _field(0x2A, b"".join([_field(0x0A, _value(one)) for one in value]))
    raise TypeError(f"`{type(value).__name__}` is no attribute")


def _text(tag: int, text: str) -> bytes:
    return _field(tag, text.encode())


def _field(tag: int, content: bytes) -> bytes:
    return bytes((tag,)) + _varint(len(content)) + content


def _varint(number: int) -> bytes:
    if number < 0x80:
        return bytes((number,))
    made = bytearray()
    while number >= 0x80:
        made.append(number & 0x7F | 0x80)
        number >>= 7
    made.append(number)
    return bytes(made)
