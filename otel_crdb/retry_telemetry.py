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

from . import events, facts, outcomes, semconv, signals
from .hooks import Hook
from .operations import is_untold
from .state import current_request

if TYPE_CHECKING:
    from .attempts import Ended
    from .errors import Classification
    from .policy import Attempt, Policy

logger = logging.getLogger("otel_crdb.retry")


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
            signal.instruments.transaction_attempts.record(run.begun, words)
        self.span.set_attributes({semconv.TXN_ATTEMPTS: run.begun, semconv.TXN_OUTCOME: outcome})
        if error is not None and outcome in outcomes.FAILURES:
            told, failure = error, None
            if run.ended is not None and run.ended.error is not None:  # the database's, under what is raised
                told, failure = run.ended.error, run.ended.failure
            self.span.set_attributes(events.words_of(told, failure).span)
            self.span.set_status(Status(StatusCode.ERROR))


def _begin_run(run: Run) -> LogicalSpan | None:
    return None if is_untold(run.policy.using) else LogicalSpan(run)


def _tell_retry(run: Run, attempt: Attempt) -> None:
    failure = attempt.failure
    logger.warning(
        "%s: attempt %d of %d was refused (%s, %s); it is run again in %.3f s. txn_id=%s error_code=%s",
        run.name,
        attempt.number,
        run.policy.max_attempts,
        failure.error_class,
        failure.retry_reason,
        attempt.backoff or 0.0,
        run.id,
        failure.sqlstate or "",
    )
    request = current_request.get()
    if request is not None:
        request.retries += 1
        request.retry_reasons.append(failure.retry_reason or "unknown")
    if is_untold(run.policy.using):
        return
    attributes = {
        semconv.TXN_ID: run.id,
        semconv.TXN_NAME: run.name,
        semconv.TXN_ATTEMPT: attempt.number,
        semconv.RETRY_BACKOFF: attempt.backoff or 0.0,
        **events.words_of(attempt.error, failure).span,
        **events.findings_of(failure),
    }
    events.emit(trace.get_current_span(), semconv.RETRY_EVENT, attributes, "The transaction is run again.")
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
        logger.info(
            "%s: committed by attempt %d of %d. txn_id=%s",
            run.name,
            run.begun,
            run.policy.max_attempts,
            run.id,
        )


def _tell_exhausted(run: Run) -> None:
    last = run.attempts[-1].failure
    logger.error(
        "%s: refused %d times, last for %s (%s); nothing was applied. txn_id=%s error_code=%s",
        run.name,
        run.begun,
        last.retry_reason,
        last.error_class,
        run.id,
        last.sqlstate or "",
    )


def _tell_kept_from_retrying(run: Run, failure: Classification, obstacle: str) -> None:
    logger.warning(
        "%s: attempt %d of %d was refused (%s, %s) and is not run again: %s. txn_id=%s error_code=%s",
        run.name,
        run.begun,
        run.policy.max_attempts,
        failure.error_class,
        failure.retry_reason,
        obstacle,
        run.id,
        failure.sqlstate or "",
    )


def _tell_view_ended(run: Run) -> None:
    """Leave what became of a view that is retried where the request's span finds it."""
    request = current_request.get()
    if request is not None:
        request.attempts = run.begun


def _tell_failed_after_commit(run: Run, error: BaseException) -> None:
    logger.error(
        "%s: COMMIT was acknowledged, and then %s was raised (an on_commit hook, or what the database said "
        "of a schema change): the transaction is committed and is not run again. txn_id=%s",
        run.name,
        type(error).__name__,
        run.id,
    )


RUN = Hook("run_transaction", _begin_run)
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
