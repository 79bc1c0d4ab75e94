# SPDX-License-Identifier: Apache-2.0
"""What is told of an error: one set of words for spans, events, log records and metrics."""

from __future__ import annotations

import logging
import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from opentelemetry import trace
from opentelemetry._logs import SeverityNumber

from . import database_log, errors, redaction, run_log, semconv, signals
from .metrics import OTHER

if TYPE_CHECKING:
    from opentelemetry.trace import Span

    from .database_log import Line
    from .state import Transaction

#: A log record's severity, by the level of the line that has the same words.
SEVERITIES = {
    logging.WARNING: (SeverityNumber.WARN, "WARNING"),
    logging.ERROR: (SeverityNumber.ERROR, "ERROR"),
}

#: The conflict's parts that an error's text tells, and their names. Never the key.
FINDINGS = (
    ("retry_reason", semconv.RETRY_REASON),
    ("retry_cause", semconv.RETRY_CAUSE),
    ("server_txn_id", semconv.TXN_SERVER_ID),
    ("conflict_server_txn_id", semconv.CONFLICT_SERVER_TXN_ID),
    ("table_id", semconv.CONFLICT_TABLE_ID),
    ("index_id", semconv.CONFLICT_INDEX_ID),
)


@dataclass(frozen=True, slots=True)
class ErrorWords:
    """What spans and metrics say of one error."""

    #: ``error.type``, and where known SQLSTATE and class.
    span: dict[str, str]
    #: The same, on data points: all of them bounded.
    metric: dict[str, str]
    #: The text with every key, row and value masked.
    message: str

    @property
    def error_type(self) -> str:
        """``error.type``."""
        return self.span[semconv.ERROR_TYPE]


def words_of(error: BaseException, failure: errors.Classification | None) -> ErrorWords:
    """Name an error once for all signals.

    Args:
        error: what the caller is about to see.
        failure: what it means; None where it is not a database error.

    """
    sqlstate = failure.sqlstate if failure is not None else None
    words = {semconv.ERROR_TYPE: sqlstate or errors.error_type(error)}
    if sqlstate:
        words[semconv.DB_RESPONSE_STATUS_CODE] = sqlstate
    message = ""
    if failure is not None:
        words[semconv.ERROR_CLASS] = failure.error_class
        message = redaction.mask_error_text(errors.driver_error(error), sqlstate)
    return ErrorWords(words, _bounded(words), message)


def _bounded(words: dict[str, str]) -> dict[str, str]:
    """Return the words as they stand on data points: codes and classes can be made up without end."""
    signal, word = signals.current, words[semconv.ERROR_TYPE]
    if signal is None or signal.instruments.bounded_error(word) == word:
        return words
    kept = {name: value for name, value in words.items() if name != semconv.DB_RESPONSE_STATUS_CODE}
    return {**kept, semconv.ERROR_TYPE: OTHER}


def findings_of(failure: errors.Classification | None) -> dict[str, Any]:
    """Return the retry reason and what is known of the conflict, by attribute name."""
    if failure is None:
        return {}
    found = {}
    for field, name in FINDINGS:
        value = getattr(failure, field)
        if value is not None:
            found[name] = value
    return found


def database_error(
    span: Span,
    error: BaseException,
    failure: errors.Classification | None,
    words: ErrorWords,
    line: Line | None,
) -> None:
    """Record an error, once: the event, on the span or as a log record, and the count.

    Where it leaves as a log record, ``line`` has that record's words and is marked as told over OTLP.
    """
    signal = signals.current
    if signal is None:
        return
    driver_error = type(errors.driver_error(error))
    attributes = {
        semconv.EXCEPTION_TYPE: f"{driver_error.__module__}.{driver_error.__qualname__}",
        semconv.EXCEPTION_MESSAGE: words.message,
        **words.span,
        **findings_of(failure),
    }
    if signal.exceptions != "logs" and span.is_recording():
        span.add_event(semconv.DB_EXCEPTION_EVENT, attributes)
    if signal.exceptions != "spans":
        if line is None:
            _emit(span, semconv.DB_EXCEPTION_EVENT, attributes, words.message)
        else:
            _emit_line(span, semconv.DB_EXCEPTION_EVENT, attributes, line)
    if failure is not None:
        counted = dict(words.metric)
        if failure.retry_reason:
            counted[semconv.RETRY_REASON] = failure.retry_reason
        signal.instruments.errors.add(1, counted, trace.set_span_in_context(span))


def request_exception(span: Span, error: BaseException) -> None:
    """Record on a request's span the exception that nobody handled: its stack, without rows or keys."""
    signal = signals.current
    if signal is None or not span.is_recording():
        return
    stack = "".join(traceback.format_exception(error))
    attributes = {
        semconv.EXCEPTION_TYPE: f"{type(error).__module__}.{type(error).__qualname__}",
        semconv.EXCEPTION_MESSAGE: _message_of(error),
        semconv.EXCEPTION_STACKTRACE: redaction.scrub_text(stack),
    }
    if signal.exceptions != "logs":
        span.add_event(semconv.EXCEPTION_EVENT, attributes)
    if signal.exceptions != "spans":
        _emit(span, semconv.REQUEST_EXCEPTION_EVENT, attributes, _message_of(error), logging.ERROR)


def _message_of(error: BaseException) -> str:
    failure = errors.classify(error)
    if failure is None:
        return redaction.scrub_text(error)
    return redaction.mask_error_text(error, failure.sqlstate)


def transaction_event(span: Span, name: str, transaction: Transaction, namespace: str) -> None:
    """Tell of a transaction that ended otherwise than its caller will think.

    As an event of its span, as a log record over OTLP, and as a line of the database's log.
    """
    failure = transaction.commit_failure or transaction.failure
    attributes = {semconv.TXN_ID: transaction.id, semconv.DB_NAMESPACE: namespace, **findings_of(failure)}
    if failure is not None:
        attributes[semconv.ERROR_CLASS] = failure.error_class
        if failure.sqlstate:
            attributes[semconv.DB_RESPONSE_STATUS_CODE] = failure.sqlstate
    level = logging.WARNING
    if name == semconv.AMBIGUOUS_EVENT and not run_log.will_be_known(transaction):
        level = logging.ERROR  # somebody has to look
    kind = database_log.SILENT_ABORT if name == semconv.SILENT_ABORT_EVENT else database_log.AMBIGUOUS
    fields = database_log.fields_of(
        kind, transaction.alias, failure, txn_id=transaction.id, txn_attempt=transaction.attempt
    )
    line = database_log.Line(
        level,
        "%s",
        (MESSAGES[name],),
        fields,
        transaction.name,
        span,
    )
    emit(span, name, attributes, line)
    database_log.GUARD.run(run_log.tell_of_transaction, line, transaction)


#: What a person reads of a transaction's event.
MESSAGES = {
    semconv.SILENT_ABORT_EVENT: "The block ended without an exception, but its transaction was rolled back: "
    "an error of one of its statements was swallowed, and nothing it wrote is there.",
    semconv.AMBIGUOUS_EVENT: "COMMIT was sent and its answer is unknown: the transaction may or may not have "
    "been applied.",
}


def emit(span: Span, name: str, attributes: dict[str, Any], line: Line) -> None:
    """Tell of an event on the span that it befell, and as a log record of a line's words."""
    span.add_event(name, attributes)
    _emit_line(span, name, attributes, line)


def _emit_line(span: Span, name: str, attributes: dict[str, Any], line: Line) -> None:
    """Tell of an event as a log record, and mark the line: it has left over OTLP."""
    _emit(span, name, attributes, line.text, line.level)
    line.fields[database_log.EVENT_FIELD] = name


def _emit(span: Span, name: str, attributes: dict[str, Any], body: str, level: int = logging.WARNING) -> None:
    signal = signals.current
    if signal is not None:
        severity_number, severity_text = SEVERITIES[level]
        signal.logger.emit(
            context=trace.set_span_in_context(span),
            severity_number=severity_number,
            severity_text=severity_text,
            event_name=name,
            body=body,
            attributes=attributes,
        )
