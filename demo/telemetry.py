# SPDX-License-Identifier: Apache-2.0
"""What was received, decoded: spans, data points and log records as plain values."""

from __future__ import annotations

import threading
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue

KINDS = ("UNSPECIFIED", "INTERNAL", "SERVER", "CLIENT", "PRODUCER", "CONSUMER")
STATUSES = ("UNSET", "OK", "ERROR")
CUMULATIVE = 2


@dataclass(frozen=True)
class Event:
    """Something that happened within a span."""

    name: str
    attributes: dict[str, Any]


@dataclass(frozen=True)
class Span:
    """One span. Times are in nanoseconds, ids are hex; `process` tells workers apart."""

    process: str
    trace_id: str
    span_id: str
    parent_id: str
    name: str
    kind: str
    start: int
    end: int
    status: str
    attributes: dict[str, Any]
    events: tuple[Event, ...]

    @property
    def seconds(self) -> float:
        """How long it took."""
        return (self.end - self.start) / 1e9


@dataclass(frozen=True)
class Point:
    """A data point, as it last stood.

    `value` is a sum's value or a histogram's count, `total` what a histogram's values add up to.
    """

    process: str
    metric: str
    attributes: dict[str, Any]
    value: float
    total: float = 0.0


@dataclass(frozen=True)
class LogRecord:
    """One log record."""

    process: str
    trace_id: str
    event: str
    attributes: dict[str, Any]


@dataclass
class Telemetry:
    """All that was received. A batch that an exporter sends twice counts once, where ids tell."""

    _spans: dict[tuple[str, str], Span] = field(default_factory=dict)
    _points: dict[tuple[Any, ...], Point] = field(default_factory=dict)
    _logs: list[LogRecord] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, signal: str, request: Any) -> None:
        """Take in a decoded export request of `traces`, `metrics` or `logs`."""
        with self._lock:
            if signal == "traces":
                self._spans.update(((span.trace_id, span.span_id), span) for span in _spans(request))
            elif signal == "metrics":
                self._points.update(_points(request))
            else:
                self._logs.extend(_logs(request))

    @property
    def spans(self) -> list[Span]:
        """The spans, by start."""
        with self._lock:
            return sorted(self._spans.values(), key=lambda span: span.start)

    @property
    def points(self) -> list[Point]:
        """The last data point of every series."""
        with self._lock:
            return list(self._points.values())

    @property
    def logs(self) -> list[LogRecord]:
        """The log records."""
        with self._lock:
            return list(self._logs)

    def processes(self) -> set[str]:
        """Name the processes whose spans have come."""
        with self._lock:
            return {span.process for span in self._spans.values()}

    def traces(self) -> dict[str, list[Span]]:
        """Return the spans of each trace, by start."""
        traces = defaultdict(list)
        for span in self.spans:
            traces[span.trace_id].append(span)
        return dict(traces)


def attributes_of(pairs: Iterable[KeyValue]) -> dict[str, Any]:
    """Turn OTLP's key-value pairs into a dictionary."""
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(item) for item in value.array_value.values]
    if kind == "kvlist_value":
        return attributes_of(value.kvlist_value.values)
    return getattr(value, kind) if kind else None


def _process(resource: Any) -> str:
    told = attributes_of(resource.attributes)
    return str(told.get("service.instance.id") or told.get("process.pid") or "unnamed")


def _spans(request: Any) -> Iterator[Span]:
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
                    events=tuple(Event(event.name, attributes_of(event.attributes)) for event in span.events),
                )


def _points(request: Any) -> Iterator[tuple[tuple[Any, ...], Point]]:
    """Yield sums and histograms with what their series is known by.

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
                    key = (process, scope.scope.name, metric.name, repr(sorted(attributes.items())))
                    if getattr(data, "aggregation_temporality", CUMULATIVE) != CUMULATIVE:
                        key += (point.start_time_unix_nano, point.time_unix_nano)
                    yield key, Point(process, metric.name, attributes, *_numbers(point))


def _numbers(point: Any) -> tuple[float, ...]:
    names = point.DESCRIPTOR.fields_by_name
    if "count" in names:
        return point.count, point.sum
    return (getattr(point, point.WhichOneof("value") or "as_int"),)


def _logs(request: Any) -> Iterator[LogRecord]:
    for group in request.resource_logs:
        process = _process(group.resource)
        for scope in group.scope_logs:
            for record in scope.log_records:
                yield LogRecord(
                    process, record.trace_id.hex(), record.event_name, attributes_of(record.attributes)
                )
