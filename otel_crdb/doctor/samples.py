# SPDX-License-Identifier: Apache-2.0
"""One span, one log record, one data point, by the name ``otel_crdb.doctor``; and how they are encoded."""

from __future__ import annotations

import time
from importlib import import_module
from typing import Any

from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.sdk._logs import ReadableLogRecord
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Metric,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, TraceFlags

from otel_crdb.version import __version__

#: What the test span, record and metric are called.
NAME = "otel_crdb.doctor"
SCOPE = InstrumentationScope(NAME, __version__)
ATTRIBUTES = {"otel_crdb.test": True}
#: Where exporters have their encoders, by signal.
ENCODERS = {
    "traces": ("opentelemetry.exporter.otlp.proto.common.trace_encoder", "encode_spans"),
    "metrics": ("opentelemetry.exporter.otlp.proto.common.metrics_encoder", "encode_metrics"),
    "logs": ("opentelemetry.exporter.otlp.proto.common._log_encoder", "encode_logs"),
}


def batch(signal: str, resource: Resource) -> Any:
    """Return what the exporter of a signal takes, with one thing in it."""
    makers = {"traces": _spans, "metrics": _metrics, "logs": _log_records}
    return makers[signal](resource)


def _spans(resource: Resource) -> list[ReadableSpan]:
    ids, now = RandomIdGenerator(), time.time_ns()
    context = SpanContext(
        ids.generate_trace_id(), ids.generate_span_id(), is_remote=False, trace_flags=TraceFlags(1)
    )
    span = ReadableSpan(
        NAME,
        context,
        resource=resource,
        attributes=ATTRIBUTES,
        start_time=now,
        end_time=now,
        instrumentation_scope=SCOPE,
    )
    return [span]


def _log_records(resource: Resource) -> list[ReadableLogRecord]:
    now = time.time_ns()
    record = LogRecord(
        timestamp=now,
        observed_timestamp=now,
        severity_number=SeverityNumber.INFO,
        severity_text="INFO",
        body="a test of otel-crdb doctor",
        attributes=ATTRIBUTES,
        event_name=NAME,
    )
    return [ReadableLogRecord(record, resource, SCOPE)]


def _metrics(resource: Resource) -> MetricsData:
    now = time.time_ns()
    point = NumberDataPoint(ATTRIBUTES, now, now, 1)
    data = Sum([point], AggregationTemporality.CUMULATIVE, is_monotonic=True)
    metric = Metric(NAME, "a test of otel-crdb doctor", "{test}", data)
    return MetricsData([ResourceMetrics(resource, [ScopeMetrics(SCOPE, [metric], "")], "")])


def encoded(signal: str, things: Any) -> bytes:
    """Return the export request of a batch; empty where the exporters keep their encoder elsewhere."""
    module, name = ENCODERS[signal]
    try:
        return bytes(getattr(import_module(module), name)(things).SerializeToString())
    except Exception:  # noqa: BLE001 - an empty request is one too
        return b""
