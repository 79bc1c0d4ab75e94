# SPDX-License-Identifier: Apache-2.0
"""Secrets, rows and keys are taken out of what others have recorded, and nothing else is."""

import pytest
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import Link, Status, StatusCode

from otel_crdb.scrubbing import (
    ScrubbingLogRecordExporter,
    ScrubbingSpanExporter,
    scrubbed_record,
    scrubbed_span,
)
from otel_crdb.signals import SCOPE

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


SECRET = "s3cr3tAlice"
#: What contrib and applications put on spans and records, and what may be seen of it.
ATTRIBUTES = [
    ("http.request.header.authorization", ("Bearer s3cr3tAlice",), ("…",)),
    ("http.request.header.cookie", ["sessionid=s3cr3tAlice; a=b"], ("…",)),
    ("password", SECRET, "…"),
    ("session", SECRET, "…"),
    ("url.query", "code=s3cr3tAlice&page=2", "code=REDACTED&page=2"),
    (
        "url.full",
        "https://u:s3cr3tAlice@x.example/a?token=s3cr3tAlice&b=1",
        "https://…@x.example/a?token=…&b=1",
    ),
    ("db.statement", "CREATE USER u WITH PASSWORD 's3cr3tAlice'", "CREATE USER u WITH PASSWORD '…'"),
    ("db.connection_string", "host=h password=s3cr3tAlice", "host=h password=…"),
    ("note", "mail to s3cr3tAlice@x.example", "mail to …"),
    ("exception.message", "KeyError: token=s3cr3tAlice", "KeyError: token=…"),
    ("exception.stacktrace", f"Traceback\n{ERROR.replace('secret@', SECRET + '@')}", None),
    ("texts", ("a", "token: s3cr3tAlice"), ("a", "token: …")),
]
#: What stays, to the letter.
IDS = {
    "trace_id": "4bf92f3577b34da6a3ce929d0e0e4736",
    "cockroachdb.txn.id": "550e8400-e29b-41d4-a716-446655440000",
    "order.id": 4111111111111111,
    "row": "1099511627776123456",
    "retry": True,
    "ratio": 0.5,
    "key": "value",
    "numbers": (1, 2),
    "http.route": "reset/<token>",
    "db.query.summary": "SELECT token",
    "code.function.name": "views.password",
}


@pytest.mark.parametrize(("name", "value", "seen"), ATTRIBUTES)
@pytest.mark.parametrize("scope", ["application", SCOPE])
def test_secrets_in_attributes(spans, name, value, seen, scope):
    """A secret leaves neither in an attribute of a span nor of its events or links, whoever made the span."""
    _, exporter = spans
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(ScrubbingSpanExporter(exporter)))
    tracer = provider.get_tracer(scope)
    attributes = {**IDS, name: value}
    with tracer.start_as_current_span("other") as other:
        link = Link(other.get_span_context(), attributes)
    span = tracer.start_span("mine", attributes=attributes, links=[link])
    span.add_event("said", attributes)
    span.end()
    exported = exporter.get_finished_spans()[1]
    assert SECRET not in exported.to_json()
    for left in (exported.attributes, exported.events[0].attributes, exported.links[0].attributes):
        assert {key: left[key] for key in IDS} == IDS
        assert seen is None or left[name] == seen
    assert exported.events[0].timestamp == span.events[0].timestamp
    assert exported.links[0].context == other.get_span_context()


@pytest.mark.parametrize("scope", ["application", SCOPE])
def test_clean_attributes_are_the_very_span(scope):
    """A span with ids, numbers and names that only look like secrets is handed on as it is."""
    span = (
        TracerProvider(shutdown_on_exit=False)
        .get_tracer(scope)
        .start_span("GET reset/<token>", attributes=IDS)
    )
    span.add_event("said", IDS)
    span.end()
    readable = span._readable_span()
    assert scrubbed_span(readable) is readable


def test_a_secret_name_alone_tells(spans):
    """An attribute is masked for its name where no text on the span looks like a secret."""
    tracer, exporter = spans
    tracer.start_span("mine", attributes={"session": "abc", "a": "b"}).end()
    (exported,) = exporter.get_finished_spans()
    assert dict(exported.attributes) == {"session": "…", "a": "b"}


def test_own_statements_stay():
    """In our own statements, which hold no literals, a column may be called like a secret."""
    attributes = {"db.query.text": "UPDATE t SET token = s.other_token"}
    for scope, stays in ((SCOPE, True), ("application", False)):
        span = TracerProvider(shutdown_on_exit=False).get_tracer(scope).start_span("x", attributes=attributes)
        readable = span._readable_span()
        assert (scrubbed_span(readable) is readable) is stays


@pytest.mark.parametrize("given", [{}, {"a": "b"}])
def test_names_and_status_of_a_span(spans, given):
    """A secret in a span's name, an event's name or the status' description is masked."""
    tracer, exporter = spans
    span = tracer.start_span(f"GET /?token={SECRET}", attributes=given)
    span.add_event(f"mail to {SECRET}@x.example", given)
    span.set_status(Status(StatusCode.ERROR, f"password={SECRET}"))
    span.end()
    (exported,) = exporter.get_finished_spans()
    assert (exported.name, exported.events[0].name) == ("GET /?token=…", "mail to …")
    assert exported.status.description == "password=…"


@pytest.mark.parametrize(
    ("body", "seen"),
    [
        (f"login with password={SECRET}", "login with password=…"),
        (
            {"user": {"token": SECRET, "n": 5}, "all": [f"{SECRET}@x.example", 7]},
            {"user": {"token": "…", "n": 5}, "all": ["…", 7]},
        ),
        ([[[[[[[[[SECRET]]]]]]]]], [[[[[[[["…"]]]]]]]]),
    ],
)
def test_secrets_in_log_records(body, seen):
    """A secret in a record's body, however deep, and in its attributes is masked."""
    exporter, provider = InMemoryLogRecordExporter(), LoggerProvider(shutdown_on_exit=False)
    provider.add_log_record_processor(SimpleLogRecordProcessor(ScrubbingLogRecordExporter(exporter)))
    attributes = {**IDS, "password": SECRET, "request": {"headers": {"cookie": SECRET}}}
    provider.get_logger("application").emit(body=body, attributes=attributes)
    (record,) = (record.log_record for record in exporter.get_finished_logs())
    assert SECRET not in f"{record.body} {dict(record.attributes)}"
    assert record.body == seen
    assert {key: record.attributes[key] for key in IDS} == IDS


def test_clean_log_record_is_the_very_record():
    """A record with nothing to hide is handed on as it is."""
    exporter, provider = InMemoryLogRecordExporter(), LoggerProvider(shutdown_on_exit=False)
    provider.add_log_record_processor(SimpleLogRecordProcessor(exporter))
    provider.get_logger("application").emit(body={"state": ["new", 7]}, attributes=IDS)
    (record,) = exporter.get_finished_logs()
    assert scrubbed_record(record) is record


def test_flush_and_shutdown_reach_the_exporter(spans):
    """``force_flush`` and ``shutdown`` are the wrapped exporter's."""
    _, exporter = spans
    wrapped = ScrubbingSpanExporter(exporter)
    assert wrapped.force_flush(1000)
    wrapped.shutdown()
    assert exporter._stopped
