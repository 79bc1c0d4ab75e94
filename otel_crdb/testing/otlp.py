# SPDX-License-Identifier: Apache-2.0
"""Spans, data points and log records as plain values, decoded from OTLP."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue

KINDS = ("UNSPECIFIED", "INTERNAL", "SERVER", "CLIENT", "PRODUCER", "CONSUMER")
STATUSES = ("UNSET", "OK", "ERROR")
CUMULATIVE = 2


class Described:
    """Something with attributes: `it["db.response.status_code"]` gives one."""

    attributes: dict[str, Any]

    def __getitem__(self, name: str) -> Any:
        if name not in self.attributes:
            raise KeyError(f"{name}; there are {', '.join(sorted(self.attributes)) or 'none'}")
        return self.attributes[name]


@dataclass(frozen=True)
class Event(Described):
    """Something that happened within a span; `time` is in nanoseconds."""

    name: str
    attributes: dict[str, Any]
    time: int = field(default=0, repr=False)


@dataclass(frozen=True)
class Span(Described):
    """One span. Times are in nanoseconds, ids are hex; `process` tells workers apart."""

    process: str = field(repr=False)
    trace_id: str = field(repr=False)
    span_id: str
    parent_id: str = field(repr=False)
    name: str
    kind: str
    start: int = field(repr=False)
    end: int = field(repr=False)
    status: str
    attributes: dict[str, Any]
    events: tuple[Event, ...]

    @property
    def seconds(self) -> float:
        """How long it took."""
        return (self.end - self.start) / 1e9


@dataclass(frozen=True)
class Point(Described):
    """A data point, as it last stood.

    `value` is a sum's value or a histogram's count, `total` what a histogram's values add up to.
    """

    process: str = field(repr=False)
    metric: str
    attributes: dict[str, Any]
    value: float
    total: float = 0.0


@dataclass(frozen=True)
class LogRecord(Described):
    """One log record. The ids are those of the span it was written in, zeros or empty where there was none.

    `event` is OpenTelemetry's event name, empty for an ordinary line.
    """

    process: str = field(repr=False)
    trace_id: str = field(repr=False)
    event: str
    attributes: dict[str, Any]
    body: Any = None
    severity: str = ""
    span_id: str = field(default="", repr=False)


def attributes_of(pairs: Iterable[KeyValue]) -> dict[str, Any]:
    """Turn OTLP's key-value pairs into a dictionary."""
    return {pair.key: value_of(pair.value) for pair in pairs}


def value_of(value: AnyValue) -> Any:
    """Turn OTLP's value into Python's."""
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [value_of(item) for item in value.array_value.values]
    if kind == "kvlist_value":
        return attributes_of(value.kvlist_value.values)
    return getattr(value, kind) if kind else None


def _process(resource: Any) -> str:
    told = attributes_of(resource.attributes)
    return str(told.get("service.instance.id") or told.get("process.pid") or "unnamed")


def spans_of(request: Any) -> Iterator[Span]:
    """Yield the spans of an ExportTraceServiceRequest."""
    for group in request.resource_spans:
        process = _process(group.resource)
        for scope in group.scope_spans:
            for span in scope.spans:
                yield Span(
                    process=process,
                    trace_id=span.trace_id.hex(),
                    span_id=span.span_id.hex(),
                    parent_id=span.parent_span_id.hex(),
                    name=span.name,
                    kind=KINDS[span.kind],
                    start=span.start_time_unix_nano,
                    end=span.end_time_unix_nano,
                    status=STATUSES[span.status.code],
                    attributes=attributes_of(span.attributes),
                    events=tuple(map(_event, span.events)),
                )


def _event(event: Any) -> Event:
    return Event(event.name, attributes_of(event.attributes), event.time_unix_nano)


def points_of(request: Any) -> Iterator[tuple[tuple[Any, ...], Point]]:
    """Yield the sums and histograms of an ExportMetricsServiceRequest, with what their series is known by.

    Cumulative series are known by their attributes, so that the last point stands for all before it.
    """
    for group in request.resource_metrics:
        process = _process(group.resource)
        for scope in group.scope_metrics:
            for metric in scope.metrics:
                shape = metric.WhichOneof("data")
                data = getattr(metric, shape) if shape else None
                for point in getattr(data, "data_points", ()):
                    attributes = attributes_of(point.attributes)
                    series = repr(sorted(attributes.items()))
                    key: tuple[Any, ...] = (process, scope.scope.name, metric.name, series)
                    if getattr(data, "aggregation_temporality", CUMULATIVE) != CUMULATIVE:
                        key += (point.start_time_unix_nano, point.time_unix_nano)
                    yield key, Point(process, metric.name, attributes, *_numbers(point))


def _numbers(point: Any) -> tuple[float, ...]:
    names = point.DESCRIPTOR.fields_by_name
    if "count" in names:
        return point.count, point.sum
    return (getattr(point, point.WhichOneof("value") or "as_int"),)


def log_records_of(request: Any) -> Iterator[LogRecord]:
    """Yield the log records of an ExportLogsServiceRequest."""
    for group in request.resource_logs:
        process = _process(group.resource)
        for scope in group.scope_logs:
            for record in scope.log_records:
                yield LogRecord(
                    process=process,
                    trace_id=record.trace_id.hex(),
                    event=record.event_name,
                    attributes=attributes_of(record.attributes),
                    body=value_of(record.body),
                    severity=record.severity_text,
                    span_id=record.span_id.hex(),
                )
