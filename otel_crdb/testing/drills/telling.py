# SPDX-License-Identifier: Apache-2.0
"""The same thing in all signals: expectations that belong together, for the words that a drill says once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from otel_crdb import semconv
from otel_crdb.call_log import ERRORS

from .expectations import ANY, OneOf, WantedEvent, WantedLog, WantedPoint, WantedSpan

if TYPE_CHECKING:
    from .expectations import Expectation, Fitting

#: The error of a driver that got no answer from the server; of psycopg 3 where a connect took too long.
NO_ANSWER = OneOf(("psycopg.OperationalError", "psycopg2.OperationalError"))
CONNECT_TIMEOUT = OneOf(("psycopg.errors.ConnectionTimeout", "psycopg2.OperationalError"))
#: The transaction of a transfer, as the bank runs it.
MOVE = "bank.transfers.move"


@dataclass(frozen=True)
class Words:
    """What every signal says of one error: class, SQLSTATE, reason and cause of a retry.

    `type` is `error.type` where no SQLSTATE is known.
    """

    error_class: str
    sqlstate: str = ""
    reason: str = ""
    cause: str = ""
    type: str | Fitting = ""

    @property
    def on_span(self) -> dict[str, Any]:
        """What spans say."""
        words = {semconv.ERROR_TYPE: self.sqlstate or self.type, semconv.ERROR_CLASS: self.error_class}
        return {**words, semconv.DB_RESPONSE_STATUS_CODE: self.sqlstate} if self.sqlstate else words

    @property
    def counted(self) -> dict[str, Any]:
        """What the count of errors says."""
        return {**self.on_span, semconv.RETRY_REASON: self.reason} if self.reason else self.on_span

    @property
    def told(self) -> dict[str, Any]:
        """What events and log records say."""
        return {**self.counted, semconv.RETRY_CAUSE: self.cause} if self.cause else self.counted

    @property
    def told_of_end(self) -> dict[str, Any]:
        """What is said of it where a transaction's end is told: the same but for `error.type`."""
        return {name: word for name, word in self.told.items() if name != semconv.ERROR_TYPE}


def request(
    name: str, status: int, *, retries: int = 0, error: bool = False, seconds: float = 0.0, times: int = 1
) -> tuple[Expectation, ...]:
    """Want the request's span: its answer, its retries, and an error where it is one of the server's."""
    told = {"http.response.status_code": status, semconv.REQUEST_RETRIES: retries}
    state = "ERROR" if error else "UNSET"
    return (WantedSpan(name, told, times=times, span_kind="SERVER", status=state, seconds=seconds),)


def crashed(name: str, exception: str, *, times: int = 1) -> tuple[Expectation, ...]:
    """Want a request that ended in a 500, with the exception that nobody handled."""
    told = {semconv.EXCEPTION_TYPE: exception, semconv.EXCEPTION_STACKTRACE: ANY}
    return (
        *request(name, 500, error=True, times=times),
        WantedEvent(semconv.EXCEPTION_EVENT, told, times=times),
        WantedLog(semconv.REQUEST_EXCEPTION_EVENT, told, times=times, severity="ERROR"),
    )


def failed(
    operation: str, words: Words, *, times: int = 1, seconds: float = 0.0, metric: str = ""
) -> tuple[Expectation, ...]:
    """Want an operation that failed: its span, the event, the log record, the count, its duration."""
    metric = metric or semconv.DB_OPERATION_DURATION
    return (
        WantedSpan(operation, words.on_span, times=times, status="ERROR", seconds=seconds),
        *told_of(words, times=times),
        WantedPoint(metric, words.on_span, by=times),
    )


def told_of(words: Words, *, times: int = 1) -> tuple[Expectation, ...]:
    """Want that an error is told of: the event, the log record, the count."""
    told = {**words.told, semconv.EXCEPTION_MESSAGE: ANY}
    severity = "ERROR" if words.error_class in ERRORS else "WARNING"
    return (
        WantedEvent(semconv.DB_EXCEPTION_EVENT, told, times=times),
        WantedLog(semconv.DB_EXCEPTION_EVENT, told, times=times, severity=severity),
        WantedPoint(semconv.CLIENT_ERRORS, words.counted, by=times),
    )


def run_again(words: Words, attempt: int = 1) -> tuple[Expectation, ...]:
    """Want that an attempt was run again: the event, the log record, the count."""
    told = {**words.told, semconv.TXN_NAME: MOVE, semconv.TXN_ATTEMPT: attempt, semconv.RETRY_BACKOFF: ANY}
    return (WantedEvent(semconv.RETRY_EVENT, told), WantedLog(semconv.RETRY_EVENT, told))


def retries_counted(words: Words, times: int = 1) -> tuple[Expectation, ...]:
    """Want the count of what was run again for a reason."""
    counted = {
        semconv.TXN_NAME: MOVE,
        semconv.ERROR_CLASS: words.error_class,
        semconv.RETRY_REASON: words.reason,
        semconv.RETRY_CAUSE: words.cause,
    }
    return (WantedPoint(semconv.TXN_RETRIES, counted, by=times),)


def attempts(outcome: str, number: int, words: Words | None = None) -> tuple[Expectation, ...]:
    """Want the span around all attempts of a transfer, and how many there were."""
    told = {semconv.TXN_NAME: MOVE, semconv.TXN_ATTEMPTS: number, semconv.TXN_OUTCOME: outcome}
    counted = {semconv.TXN_NAME: MOVE, semconv.TXN_OUTCOME: outcome}
    error = words.on_span if words is not None else {}
    status = "ERROR" if error else "UNSET"
    return (
        WantedSpan(f"run_transaction {MOVE}", {**told, **error}, span_kind="INTERNAL", status=status),
        WantedPoint(semconv.TXN_ATTEMPTS_METRIC, counted, by=1, total=number),
    )


def transaction(outcome: str, words: Words | None = None, *, attempt: int = 1) -> tuple[Expectation, ...]:
    """Want the span of one attempt, or of a block that is not retried."""
    told = {semconv.TXN_ATTEMPT: attempt, semconv.TXN_OUTCOME: outcome, semconv.TXN_ID: ANY}
    error = words.on_span if words is not None else {}
    status = "ERROR" if words is not None else "UNSET"
    return (WantedSpan("transaction", {**told, **error}, span_kind="INTERNAL", status=status),)


def transactions_timed(outcome: str, words: Words | None = None, times: int = 1) -> tuple[Expectation, ...]:
    """Want that the durations of transactions were recorded, by outcome."""
    error = words.on_span if words is not None else {}
    return (WantedPoint(semconv.TXN_DURATION, {semconv.TXN_OUTCOME: outcome, **error}, by=times),)
