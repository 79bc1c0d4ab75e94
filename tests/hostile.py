# SPDX-License-Identifier: Apache-2.0
"""What the tests of hostile input share: a call's outcome, and what all telemetry must be.

``OTEL_CRDB_TEST_EXAMPLES`` is how many examples a property is tried with (25 unless told); the long forms of the
bounds run with ``OTEL_CRDB_TEST_BOUNDS=long``.
"""

import io
import os
import re
from collections.abc import Iterator

from django.db import connections
from django.db.backends.postgresql.psycopg_any import is_psycopg3
from hypothesis import HealthCheck, settings
from opentelemetry.exporter.otlp.proto.common._log_encoder import encode_logs
from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.trace import SpanKind

from otel_crdb import hooks

from .telemetry import Telemetry

if is_psycopg3:
    from psycopg import sql as compose
else:
    from psycopg2 import sql as compose  # noqa: F401 - for the tests

EXAMPLES = int(os.environ.get("OTEL_CRDB_TEST_EXAMPLES", "25"))
LONG = os.environ.get("OTEL_CRDB_TEST_BOUNDS") == "long"

#: Looks like nothing else, and stays in one piece in every quoting and encoding.
SECRET = "s3cr3tV4lue"
#: A DB span with a text of 4,096 characters of four bytes, a message twice, and its names.
SPAN_BYTES = 32 * 1024
#: A request's span besides has a stack trace of at most 16 KiB.
REQUEST_BYTES = 48 * 1024
RECORD_BYTES = 32 * 1024
#: Where the conventions, or the documentation, set a limit to a value.
LIMITS = {"db.query.text": 4096, "db.query.summary": 255, "exception.message": 16 * 1024}
VALUE_LIMIT = 4096

PROPERTY = settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    derandomize="OTEL_CRDB_TEST_EXAMPLES" not in os.environ,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def told(error):
    """Return all that a caller can see of an error: type, arguments, SQLSTATE, and the same of its cause."""
    if error is None:
        return None
    sqlstate = getattr(error, "sqlstate", None) or getattr(error, "pgcode", None)
    return type(error), _plain(error.args), sqlstate, told(error.__cause__), error.__suppress_context__


def _plain(args):
    """Return values without what differs between any two calls: addresses in memory, and a cursor itself."""
    return tuple(
        re.sub(r"0x[0-9a-f]{6,}", "0x", arg)
        if isinstance(arg, str)
        else type(arg)
        if hasattr(arg, "fetchone")
        else arg
        for arg in args
    )


def outcome(call, alias="default"):
    """Return what the caller of ``call(cursor)`` gets: what it returns, or what it raises."""
    connection = connections[alias]
    if not connection.is_usable() if connection.connection is not None else True:
        connection.close()
        connection.ensure_connection()
    try:
        with connection.cursor() as cursor:
            result = call(cursor)
            rows = cursor.fetchall() if cursor.description else None
            return (
                "returned",
                _plain((result,)),
                rows,
                cursor.rowcount,
                [column[0] for column in cursor.description or ()],
            )
    except Exception as error:  # noqa: BLE001 - whatever the driver makes of it is what is compared
        return "raised", told(error)


class NoFault:
    """No hook of ours fails within the block."""

    def __enter__(self):
        self._before = hooks.fault_counts()
        return self

    def __exit__(self, *_):
        now = hooks.fault_counts()
        assert now == self._before, f"hooks failed: {now.items() - self._before.items()}"


def exported(telemetry):
    """Return all that left, as OTLP over the wire, decoded again: spans, log records, metrics.

    Every string is valid UTF-8 and within its limit, and each part is small.
    """
    traces = _round_trip(encode_spans(telemetry.spans), ExportTraceServiceRequest)
    logs = _round_trip(encode_logs(telemetry.log_exporter.get_finished_logs()), ExportLogsServiceRequest)
    data = telemetry.metric_reader.get_metrics_data()
    metrics = _round_trip(encode_metrics(data), ExportMetricsServiceRequest) if data else None
    spans = [span for group in traces.resource_spans for scope in group.scope_spans for span in scope.spans]
    records = [
        record for group in logs.resource_logs for scope in group.scope_logs for record in scope.log_records
    ]
    assert len(spans) == len(telemetry.spans)
    originals = {span.context.span_id.to_bytes(8, "big"): span for span in telemetry.spans}
    for span in spans:
        original = originals[span.span_id]
        limit = REQUEST_BYTES if original.kind is SpanKind.SERVER else SPAN_BYTES
        assert span.ByteSize() <= limit, span.name
        assert len(span.name) <= 255
        assert len(span.status.message) <= 1000
        # An attribute that cannot be encoded is left out by the exporter, and nobody is told.
        assert len(span.attributes) == len(original.attributes)
        assert_bounded(span.attributes)
        for event, original_event in zip(span.events, original.events, strict=True):
            assert len(event.attributes) == len(original_event.attributes)
            assert_bounded(event.attributes)
    for record in records:
        assert record.ByteSize() <= RECORD_BYTES
        assert_bounded(record.attributes)
    return spans, records, metrics


def _round_trip(message, kind):
    return kind.FromString(message.SerializeToString())


def assert_bounded(pairs):
    """No value is longer than its limit."""
    for key, text in _strings(pairs):
        limit = 16 * 1024 if key == "exception.stacktrace" else LIMITS.get(key, VALUE_LIMIT)
        assert len(text) <= limit, (key, len(text))


def _strings(pairs) -> Iterator[tuple[str, str]]:
    for pair in pairs:
        kind = pair.value.WhichOneof("value")
        if kind == "string_value":
            yield pair.key, pair.value.string_value
        elif kind == "array_value":
            yield from ((pair.key, value.string_value) for value in pair.value.array_value.values)


def wire(telemetry):
    """Return the bytes of all that left: what no secret may be in."""
    spans, records, metrics = exported(telemetry)
    parts = [part.SerializeToString() for part in (*spans, *records)]
    return b"\n".join([*parts, metrics.SerializeToString() if metrics else b""])


def same_both_ways(make_call, *, secrets=(SECRET,)):
    """Make a call without and with ``instrument()``; return the outcome that both have, and what left.

    ``make_call`` gives a new ``call(cursor)`` with new arguments each time, for a call may use its own up.
    """
    plain = outcome(make_call())
    with Telemetry() as telemetry, NoFault():
        observed = outcome(make_call())
    assert observed == plain
    sent = wire(telemetry)
    for secret in secrets:
        assert secret.encode() not in sent
    return plain, telemetry


def copying(sql):
    """Return a call that copies in, the driver's way."""
    if not is_psycopg3:
        return lambda cursor: cursor.copy_expert(sql, io.StringIO("x\n"))

    def call(cursor):
        with cursor.copy(sql) as copy:
            copy.write("x\n")

    return call
