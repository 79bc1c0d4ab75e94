# SPDX-License-Identifier: Apache-2.0
"""Exporters that take the rows and keys of database errors out of what others have recorded.

Our own spans are masked as they are made. A span of contrib's or of the application's that a database
error passed through holds the error's raw text, with ``DETAIL: Key (email)=(…)``; it is scrubbed on
its way out. Applications with a pipeline of their own wrap their exporters::

    BatchSpanProcessor(ScrubbingSpanExporter(OTLPSpanExporter()))
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from opentelemetry.sdk._logs.export import LogRecordExporter
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter
from opentelemetry.trace import Status

from . import semconv
from .redaction import scrub_text
from .signals import SCOPE

if TYPE_CHECKING:
    from opentelemetry.sdk._logs import ReadableLogRecord
    from opentelemetry.sdk._logs.export import LogRecordExportResult
    from opentelemetry.sdk.trace.export import SpanExportResult

#: Where the text of an exception stands.
TEXTS = (semconv.EXCEPTION_MESSAGE, semconv.EXCEPTION_STACKTRACE)


class ScrubbingSpanExporter(SpanExporter):
    """Exports spans through another exporter, scrubbed."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Export, with the texts of exceptions scrubbed."""
        return self._exporter.export([scrubbed_span(span) for span in spans])

    def shutdown(self) -> None:
        """Shut the other exporter down."""
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """Flush the other exporter; ``timeout_millis`` in milliseconds."""
        return self._exporter.force_flush(timeout_millis)


class ScrubbingLogRecordExporter(LogRecordExporter):
    """Exports log records through another exporter, scrubbed."""

    def __init__(self, exporter: LogRecordExporter) -> None:
        self._exporter = exporter

    def export(self, batch: Sequence[ReadableLogRecord]) -> LogRecordExportResult:
        """Export, with body and the texts of exceptions scrubbed."""
        return self._exporter.export([scrubbed_record(record) for record in batch])

    def shutdown(self) -> None:
        """Shut the other exporter down."""
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """Flush the other exporter; ``timeout_millis`` in milliseconds."""
        return self._exporter.force_flush(timeout_millis)


def scrubbed_span(span: ReadableSpan) -> ReadableSpan:
    """Return the span, or where there is something to hide a copy without it."""
    scope = span.instrumentation_scope
    if scope is not None and scope.name == SCOPE:
        return span
    events = [_scrubbed_event(event) for event in span.events]
    description = span.status.description
    hidden = scrub_text(description) if description else description
    if hidden == description and all(new is old for new, old in zip(events, span.events, strict=True)):
        return span
    return ReadableSpan(
        name=span.name,
        context=span.context,
        parent=span.parent,
        resource=span.resource,
        attributes=span.attributes,
        events=events,
        links=span.links,
        kind=span.kind,
        status=Status(span.status.status_code, hidden),
        start_time=span.start_time,
        end_time=span.end_time,
        instrumentation_scope=scope,
    )


def _scrubbed_event(event: Event) -> Event:
    attributes = _scrubbed_texts(event.attributes)
    return event if attributes is None else Event(event.name, attributes, event.timestamp)


def scrubbed_record(record: ReadableLogRecord) -> ReadableLogRecord:
    """Return the log record, or where there is something to hide a copy without it."""
    log_record = record.log_record
    body = scrub_text(log_record.body) if isinstance(log_record.body, str) else log_record.body
    attributes = _scrubbed_texts(log_record.attributes)
    if attributes is None and body == log_record.body:
        return record
    clean, clean_log_record = copy.copy(record), copy.copy(log_record)
    clean_log_record.body = body
    if attributes is not None:
        clean_log_record.attributes = attributes
    object.__setattr__(clean, "log_record", clean_log_record)
    return clean


def _scrubbed_texts(attributes: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return the attributes with the texts of an exception scrubbed, or None: nothing to hide."""
    texts = {name: attributes[name] for name in TEXTS if name in attributes} if attributes else {}
    clean = {name: scrub_text(text) for name, text in texts.items() if isinstance(text, str)}
    changed = {name: text for name, text in clean.items() if text != texts[name]}
    return {**attributes, **changed} if attributes and changed else None
