# SPDX-License-Identifier: Apache-2.0
"""Exporters that take secrets, and the rows and keys of database errors, out of what is about to leave.

Our own spans are masked as they are made. A span of contrib's or of the application's holds what they put
there: the raw text of a database error with ``DETAIL: Key (email)=(…)``, a header with a session's key. It
is scrubbed on its way out; numbers and ids stay. Applications with a pipeline of their own wrap their
exporters::

    BatchSpanProcessor(ScrubbingSpanExporter(OTLPSpanExporter()))
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from opentelemetry.sdk._logs.export import LogRecordExporter
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter
from opentelemetry.trace import Link, Status

from . import semconv
from .redaction import mask_url_query
from .secret_values import MASK, is_secret_name, mask_secrets, masked_text, may_hold_secret
from .signals import SCOPE

if TYPE_CHECKING:
    from opentelemetry.sdk._logs import ReadableLogRecord
    from opentelemetry.sdk._logs.export import LogRecordExportResult
    from opentelemetry.sdk.trace.export import SpanExportResult

#: Where the text of an exception stands.
TEXTS = (semconv.EXCEPTION_MESSAGE, semconv.EXCEPTION_STACKTRACE)
#: Attributes of a few known values: names of hosts, of protocols, of places in the code.
KNOWN = frozenset(
    """
    client.address client.port code.column code.column.number code.file.path code.filepath code.function
    code.function.name code.line.number code.lineno code.namespace db.name db.namespace db.operation
    db.operation.name db.response.status_code db.system db.system.name error.type exception.escaped
    exception.type http.flavor http.host http.method http.request.method http.response.status_code http.route
    http.scheme http.server_name http.status_code messaging.operation messaging.system net.host.name
    net.host.port net.peer.ip net.peer.name net.peer.port net.transport network.peer.address network.peer.port
    network.protocol.name network.protocol.version network.transport network.type rpc.system server.address
    server.port thread.id thread.name url.scheme
    """.split()  # noqa: SIM905 - a list of names reads better so
)
#: Of ours what is masked where it is made. A statement holds no literals, but columns called like secrets.
OWN = (
    KNOWN
    | {semconv.DB_QUERY_TEXT, semconv.DB_QUERY_SUMMARY}
    | {name for name in vars(semconv).values() if isinstance(name, str) and name.startswith("cockroachdb.")}
)
#: Texts that are read whatever they look like.
ALWAYS = frozenset((*TEXTS, semconv.URL_QUERY))
#: How deep a log record's body is walked; what lies deeper is masked.
DEPTH = 8


class ScrubbingSpanExporter(SpanExporter):
    """Exports spans through another exporter, scrubbed."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Export, with attributes, events and the status scrubbed."""
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
        """Export, with body and attributes scrubbed."""
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
    unread = OWN if scope is not None and scope.name == SCOPE else KNOWN
    attributes = _scrubbed(span.attributes, unread, span.name)
    events = [_scrubbed_event(event, unread) for event in span.events]
    links = [_scrubbed_link(link) for link in span.links]
    description = span.status.description
    hidden = masked_text(description) if description else description
    if (
        attributes is None
        and hidden == description
        and all(new is old for new, old in zip(events, span.events, strict=True))
        and all(new is old for new, old in zip(links, span.links, strict=True))
    ):
        return span
    return ReadableSpan(
        name=span.name if attributes is None else mask_secrets(span.name),
        context=span.context,
        parent=span.parent,
        resource=span.resource,
        attributes=span.attributes if attributes is None else attributes,
        events=events,
        links=links,
        kind=span.kind,
        status=Status(span.status.status_code, hidden),
        start_time=span.start_time,
        end_time=span.end_time,
        instrumentation_scope=scope,
    )


def _scrubbed_event(event: Event, unread: frozenset[str]) -> Event:
    attributes = _scrubbed(event.attributes, unread, event.name)
    return event if attributes is None else Event(mask_secrets(event.name), attributes, event.timestamp)


def _scrubbed_link(link: Link) -> Link:
    attributes = _scrubbed(link.attributes, KNOWN, "")
    return link if attributes is None else Link(link.context, attributes)


def scrubbed_record(record: ReadableLogRecord) -> ReadableLogRecord:
    """Return the log record, or where there is something to hide a copy without it."""
    log_record, scope = record.log_record, record.instrumentation_scope
    unread = OWN if scope is not None and scope.name == SCOPE else KNOWN
    body = _scrubbed_body(log_record.body)
    attributes = _scrubbed(log_record.attributes, unread, "")
    if attributes is None and body is log_record.body:
        return record
    clean, clean_log_record = copy.copy(record), copy.copy(log_record)
    clean_log_record.body = body
    if attributes is not None:
        clean_log_record.attributes = attributes
    object.__setattr__(clean, "log_record", clean_log_record)
    return clean


def _scrubbed_body(body: Any) -> Any:
    if isinstance(body, str):
        hidden = masked_text(body)
        return body if hidden == body else hidden
    return _scrubbed_value("", body, DEPTH)


def _scrubbed(
    attributes: Mapping[str, Any] | None, unread: frozenset[str], name: str
) -> dict[str, Any] | None:
    """Return the attributes without what is to be hidden, or None: nothing is, in the name neither.

    One look at all names and texts together tells most times that there is nothing.
    """
    if not attributes:
        return {} if name and mask_secrets(name) != name else None
    if not _may_be_dirty(attributes, unread, name):
        return None
    clean = {
        key: value if key in unread else _scrubbed_value(key, value, DEPTH)
        for key, value in attributes.items()
    }
    changed = any(clean[key] is not value for key, value in attributes.items())
    return clean if changed or mask_secrets(name) != name else None


def _may_be_dirty(attributes: Mapping[str, Any], unread: frozenset[str], name: str) -> bool:
    texts = [name]
    for key, value in attributes.items():
        if key in unread or isinstance(value, (int, float)):
            continue
        if key in ALWAYS or is_secret_name(key):
            return True
        if type(value) is str:
            texts.append(value)
        elif _are_texts(value):
            texts += value
        else:
            return True
    return may_hold_secret("\n".join(texts))


def _are_texts(value: Any) -> bool:
    return isinstance(value, (tuple, list)) and all(type(item) is str for item in value)


def _scrubbed_value(name: str, value: Any, depth: int) -> Any:
    """Return the very value, or where there is something to hide in it another one of its kind."""
    if isinstance(value, str):
        hidden = _scrubbed_text(name, value)
        return value if hidden == value else hidden
    if value is None or isinstance(value, (bool, int, float, bytes)):
        return value
    if not depth:
        return MASK
    if isinstance(value, Mapping):
        clean = {key: _scrubbed_value(str(key), item, depth - 1) for key, item in value.items()}
        return clean if any(clean[key] is not item for key, item in value.items()) else value
    if isinstance(value, Sequence):
        items = [_scrubbed_value(name, item, depth - 1) for item in value]
        changed = any(new is not old for new, old in zip(items, value, strict=True))
        return (tuple(items) if isinstance(value, tuple) else items) if changed else value
    return value


def _scrubbed_text(name: str, text: str) -> str:
    if name in TEXTS:
        return masked_text(text)
    if name == semconv.URL_QUERY:
        return mask_secrets(mask_url_query(text))
    return MASK if text and is_secret_name(name) else mask_secrets(text)
