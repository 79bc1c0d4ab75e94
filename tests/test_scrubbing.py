# SPDX-License-Identifier: Apache-2.0
"""Rows and keys of database errors are taken out of what others have recorded, and nothing else is."""

import pytest
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import Link, Status, StatusCode

from otel_crdb.scrubbing import ScrubbingLogRecordExporter, ScrubbingSpanExporter

ERROR = (
    'duplicate key value violates unique constraint "account_email_key"\n'
    "DETAIL:  Key (lower(email::text))=(secret@example.com) already exists."
)


@pytest.fixture
def spans():
    """A tracer whose spans are exported scrubbed, and where they arrive."""
    exporter, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(ScrubbingSpanExporter(exporter)))
    return provider.get_tracer("application"), exporter


def test_exception_and_status_of_a_foreign_span(spans):
    """Event and status description lose the row; name, attributes, links and times stay."""
    tracer, exporter = spans
    with tracer.start_as_current_span("linked") as other:
        link = Link(other.get_span_context())
    with (
        pytest.raises(ValueError, match="Key"),
        tracer.start_as_current_span("mine", attributes={"a": 1}, links=[link]),
    ):
        raise ValueError(ERROR)
    span = exporter.get_finished_spans()[1]
    assert "secret@example.com" not in span.to_json()
    assert (span.name, dict(span.attributes), len(span.links)) == ("mine", {"a": 1}, 1)
    assert span.status.status_code is StatusCode.ERROR
    assert "account_email_key" in span.status.description
    assert span.end_time > span.start_time


def test_span_without_a_database_error_is_the_very_span(spans):
    """A span with nothing to hide is handed on as it is."""
    tracer, exporter = spans
    span = tracer.start_span("plain")
    span.set_status(Status(StatusCode.ERROR, "no such file"))
    span.add_event("exception", {"exception.message": "no such file"})
    span.end()
    (exported,) = exporter.get_finished_spans()
    assert exported.status.description == "no such file"
    assert exported.events[0].attributes["exception.message"] == "no such file"


def test_log_record_of_others():
    """Body and exception texts of a log record lose the row, its other attributes stay."""
    exporter, provider = InMemoryLogRecordExporter(), LoggerProvider(shutdown_on_exit=False)
    provider.add_log_record_processor(SimpleLogRecordProcessor(ScrubbingLogRecordExporter(exporter)))
    attributes = {"exception.message": ERROR, "exception.stacktrace": f"Traceback\n{ERROR}", "attempt": 2}
    provider.get_logger("application").emit(body=f"failed: {ERROR}", attributes=attributes)
    provider.get_logger("application").emit(body={"structured": 1}, attributes={"attempt": 3})
    dirty, clean = (record.log_record for record in exporter.get_finished_logs())
    assert "secret@example.com" not in f"{dirty.body} {dict(dirty.attributes)}"
    assert dirty.attributes["attempt"] == 2
    assert (clean.body, dict(clean.attributes)) == ({"structured": 1}, {"attempt": 3})


def test_flush_and_shutdown_reach_the_exporter(spans):
    """``force_flush`` and ``shutdown`` are the wrapped exporter's."""
    _, exporter = spans
    wrapped = ScrubbingSpanExporter(exporter)
    assert wrapped.force_flush(1000)
    wrapped.shutdown()
    assert exporter._stopped
