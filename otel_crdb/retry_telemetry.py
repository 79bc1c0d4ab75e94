# SPDX-License-Identifier: Apache-2.0
"""What is told of a transaction that is retried: its span, its events, its log lines, its counts.

One logical transaction is one INTERNAL span around its attempts. A retry is an event of that span, a log
record and a count, with the same words in all three.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Protocol

from django.db import connections
from opentelemetry import context as context_api
from opentelemetry import trace
from opentelemetry.trace import SpanKind, Status, StatusCode

from . import database_log, events, facts, outcomes, run_log, semconv, signals
from .database_log import Line
from .hooks import Hook
from .operations import is_untold
from .state import current_request, last_error

if TYPE_CHECKING:
    from opentelemetry.trace import Span

    from .attempts import Ended
    from .errors import Classification
    from .policy import Attempt, Policy


class Run(Protocol):
    """What is told of: one logical transaction."""

    id: str
    name: str
    policy: Policy
    #: Attempts begun.
    begun: int
    #: Those that failed.
    attempts: list[Attempt]
    #: The last attempt's, or the whole's once it is over.
    outcome: str | None
    #: How the last attempt failed; None where it did not.
    ended: Ended | None


class LogicalSpan:
    """The span around all attempts of one logical transaction."""

    def __init__(self, run: Run) -> None:
        signal = signals.current
        assert signal is not None  # _begin_run() asked
        self.run = run
        self.place = _place_of(run)
        self.span = signal.tracer.start_span(
            f"run_transaction {run.name}",
            None,
            SpanKind.INTERNAL,
            {**self.place, semconv.TXN_ID: run.id, semconv.TXN_NAME: run.name},
        )
        self._token = context_api.attach(trace.set_span_in_context(self.span))

    def finish(self, result: Any, error: BaseException | None) -> None:
        """End it with the outcome of the whole."""
        context_api.detach(self._token)
        known, own = last_error.get(), self.span.get_span_context().trace_id
        if known is not None and known.trace_id == own:  # what is logged next is in the trace around the run
            around = trace.get_current_span().get_span_context().trace_id
            last_error.set(known._replace(trace_id=around))
        try:
            self._describe_end(error)
        finally:
            self.span.end()

    def _describe_end(self, error: BaseException | None) -> None:
        run, signal = self.run, signals.current
        outcome = run.outcome or outcomes.ROLLED_BACK
        if signal is not None and run.begun:
            name = signal.instruments.bounded_name(run.name)
            words = {**self.place, semconv.TXN_NAME: name, semconv.TXN_OUTCOME: outcome}
            within = trace.set_span_in_context(self.span)
            signal.instruments.transaction_attempts.record(run.begun, words, within)
        self.span.set_attributes({semconv.TXN_ATTEMPTS: run.begun, semconv.TXN_OUTCOME: outcome})
        if error is not None and outcome in outcomes.FAILURES:
            told, failure = error, None
            if run.ended is not None and run.ended.error is not None:  # the database's, under what is raised
                told, failure = run.ended.error, run.ended.failure
            self.span.set_attributes(events.words_of(told, failure).span)
            self.span.set_status(Status(StatusCode.ERROR))


class Telling:
    """One run while it is under way: its span, where it has one, and its lines."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.span = None if is_untold(run.policy.using) else LogicalSpan(run)
        self.log = run_log.RunLog(run.id, idempotent=run.policy.idempotent)

    def finish(self, result: Any, error: BaseException | None) -> None:
        """End the span, and say what the run itself has not said."""
        try:
            if self.span is not None:
                self.span.finish(result, error)
        finally:
            self.log.tell_waiting()
            self._tell_doubt()

    def _tell_doubt(self) -> None:
        """Say that a run ended in doubt, where no COMMIT of it has been said to be."""
        run, signal = self.run, signals.current
        told = self.log.in_doubt_told or (self.span is None and signal is not None and not signal.silent)
        if run.outcome != outcomes.AMBIGUOUS or told:
            return
        failure = run.ended.failure if run.ended is not None else None
        _say(
            run,
            database_log.AMBIGUOUS,
            logging.ERROR,
            "%s: COMMIT was sent and its answer is unknown, after %d of %d attempts: the transaction may or "
            "may not have been applied.",
            (run.name, run.begun, run.policy.max_attempts),
            failure,
            span=None if self.span is None else self.span.span,
        )


def _say(run: Run, *args: Any, **more: Any) -> None:
    """Say a line about a run; the arguments are those of :func:`_line`."""
    database_log.tell(_line(run, *args, **more))


def _line(
    run: Run,
    kind: str,
    level: int,
    template: str,
    args: tuple[object, ...],
    failure: Classification | None = None,
    *,
    span: Span | None = None,
    **more: Any,
) -> Line:
    """Return a line about a run."""
    alias, attempt = run.policy.using, run.begun
    fields = database_log.fields_of(
        kind, alias, failure, txn_id=run.id, txn_attempt=attempt, txn_name=run.name, **more
    )
    if failure is not None and failure.retry_reason:
        fields["retry_reason"] = failure.retry_reason
    return Line(level, template, args, fields, run.name, span)


def _taken_over(run: Run) -> dict[str, Any]:
    """Return what is known of the call that failed, which is told with the run, and not by itself."""
    log = run_log.run_under_way(run.id)
    return {} if log is None else log.take_over()


def _tell_retry(run: Run, attempt: Attempt) -> None:
    failure, untold = attempt.failure, is_untold(run.policy.using)
    line = _line(
        run,
        database_log.RETRIED,
        logging.WARNING,
        "%s: attempt %d of %d was refused (%s, %s); it is run again in %.3f s.",
        (
            run.name,
            attempt.number,
            run.policy.max_attempts,
            failure.error_class,
            failure.retry_reason,
            attempt.backoff or 0.0,
        ),
        failure,
        backoff=attempt.backoff or 0.0,
        **_taken_over(run),
    )
    request = current_request.get()
    if request is not None:
        request.retries += 1
        request.retry_reasons.append(failure.retry_reason or "unknown")
    try:
        if not untold:
            _record_retry(run, attempt, line)
    finally:
        database_log.tell(line)


def _record_retry(run: Run, attempt: Attempt, line: Line) -> None:
    failure = attempt.failure
    attributes = {
        semconv.TXN_ID: run.id,
        semconv.TXN_NAME: run.name,
        semconv.TXN_ATTEMPT: attempt.number,
        semconv.RETRY_BACKOFF: attempt.backoff or 0.0,
        **events.words_of(attempt.error, failure).span,
        **events.findings_of(failure),
    }
    events.emit(trace.get_current_span(), semconv.RETRY_EVENT, attributes, line)
    signal = signals.current
    if signal is not None:
        counted = {
            **_place_of(run),
            semconv.TXN_NAME: signal.instruments.bounded_name(run.name),
            semconv.ERROR_CLASS: failure.error_class,
            semconv.RETRY_REASON: failure.retry_reason or "unknown",
            semconv.RETRY_CAUSE: failure.retry_cause or "unknown",
        }
        signal.instruments.retries.add(1, counted)


def _place_of(run: Run) -> facts.Attributes:
    """Return the attributes of the database that the run is on, as its settings tell them."""
    return facts.of_settings(connections[run.policy.using].settings_dict).metric


def _tell_committed(run: Run) -> None:
    if run.attempts:
        _say(
            run,
            database_log.COMMITTED,
            logging.INFO,
            "%s: committed by attempt %d of %d.",
            (run.name, run.begun, run.policy.max_attempts),
        )


def _tell_exhausted(run: Run) -> None:
    last, log = run.attempts[-1].failure, run_log.run_under_way(run.id)
    kept = log.kept if log is not None else None
    if log is not None:
        log.kept = None
    _say(
        run,
        database_log.EXHAUSTED,
        logging.ERROR,
        "%s: refused %d times, last for %s (%s)%s; nothing was applied.",
        (
            run.name,
            run.begun,
            last.retry_reason,
            last.error_class,
            f", and is not run again: {kept.fields['obstacle']}" if kept is not None else "",
        ),
        last,
        **_taken_over(run),
    )


def _tell_kept_from_retrying(run: Run, failure: Classification, obstacle: str) -> None:
    line = _line(
        run,
        database_log.KEPT,
        logging.WARNING,
        "%s: attempt %d of %d was refused (%s, %s) and is not run again: %s.",
        (
            run.name,
            run.begun,
            run.policy.max_attempts,
            failure.error_class,
            failure.retry_reason,
            obstacle,
        ),
        failure,
        obstacle=obstacle,
        **_taken_over(run),
    )
    log = run_log.run_under_way(run.id)
    if log is None:
        database_log.tell(line)
    else:
        log.kept = line  # said when the run is over, unless that says it itself


def _tell_view_ended(run: Run) -> None:
    """Leave what became of a view that is retried where the request's span finds it."""
    request = current_request.get()
    if request is not None:
        request.attempts = run.begun


def _tell_failed_after_commit(run: Run, error: BaseException) -> None:
    failure = run.ended.failure if run.ended is not None else None
    _say(
        run,
        database_log.AFTER_COMMIT,
        logging.ERROR,
        "%s: COMMIT was acknowledged, and then %s was raised (an on_commit hook, or what the database said "
        "of a schema change): the transaction is committed and is not run again.",
        (run.name, type(error).__name__),
        failure,
        **_taken_over(run),
    )


RUN = Hook("run_transaction", Telling)
RETRIED = Hook("run_transaction.retried", _tell_retry)
COMMITTED = Hook("run_transaction.committed", _tell_committed)
EXHAUSTED = Hook("run_transaction.exhausted", _tell_exhausted)
KEPT = Hook("run_transaction.kept_from_retrying", _tell_kept_from_retrying)
VIEW_ENDED = Hook("retry_view.ended", _tell_view_ended)
AFTER_COMMIT = Hook("run_transaction.failed_after_commit", _tell_failed_after_commit)

retried = RETRIED.run
committed = COMMITTED.run
exhausted = EXHAUSTED.run
kept_from_retrying = KEPT.run
view_ended = VIEW_ENDED.run
failed_after_commit = AFTER_COMMIT.run
