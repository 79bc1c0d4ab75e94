# SPDX-License-Identifier: Apache-2.0
"""One call to the database: its CLIENT span, its data point, and what its failure means.

Span, data point and log line share one duration and the same words. The first look at an error is here, so
that what a span, an event, a counter, a line and the transaction's record say of it is one finding.
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

from django.db import connections
from opentelemetry import context as context_api
from opentelemetry import trace
from opentelemetry.context import _SUPPRESS_INSTRUMENTATION_KEY
from opentelemetry.trace import SpanKind, Status, StatusCode

from . import call_log, errors, events, facts, run_log, semconv, signals
from .database_log import GUARD
from .hooks import Hook
from .state import LastError, current_request, last_error

if TYPE_CHECKING:
    from collections.abc import Mapping

    from opentelemetry.context import Context
    from opentelemetry.metrics import Histogram
    from opentelemetry.trace import Span

    from .facts import Facts
    from .state import Transaction

#: A finding that only repeats the transaction's first error is not counted anew.
CONSEQUENCES = frozenset({"25P02"})
#: First words of calls whose success says nothing of an error before them: they are how it is dealt with.
DEALINGS = frozenset({"SAVEPOINT", "RELEASE", "ROLLBACK"})

#: In the context: the transaction's span that was made current for a block.
BLOCK = context_api.create_key("otel_crdb.block")


class ClientOperation:
    """A call that is under way; :meth:`finish` ends its span and records its duration.

    Where telemetry is suppressed, or another instrumentation makes the span, only the
    transaction's record is kept: what may be retried is read from it.
    """

    __slots__ = (
        "_driver_token",
        "_handled",
        "attributes",
        "called",
        "connection",
        "goes_back",
        "histogram",
        "phase",
        "span",
        "span_attributes",
        "started",
        "transaction",
    )

    def __init__(
        self,
        known: Facts,
        name: str,
        span_attributes: Mapping[str, Any],
        *,
        phase: errors.Phase,
        histogram: Histogram,
        attributes: dict[str, Any],
        transaction: Transaction | None = None,
        quiet: bool = False,
        suppress_driver: bool = False,
        goes_back: bool = False,
        connection: Any = None,
    ) -> None:
        self.phase = phase
        #: As its span.
        self.called = name
        self.span_attributes = span_attributes
        #: The driver's connection, once there is one.
        self.connection = connection
        #: To a savepoint: refused where the transaction had failed before.
        self.goes_back = goes_back
        self.histogram = histogram
        self.attributes = attributes
        self.transaction = transaction
        # An old error that the application is dealing with hangs behind whatever fails now.
        self._handled = sys.exc_info()[1]
        context = context_api.get_current()
        self.started = time.time_ns()
        self.span: Span | None = None
        if not quiet:
            own = {**known.span, **span_attributes}
            if transaction is not None:
                own[semconv.TXN_ID] = transaction.id
            self.span = SPAN.run(self, name, own, context)
        self._driver_token = (
            context_api.attach(context_api.set_value(_SUPPRESS_INSTRUMENTATION_KEY, True))
            if suppress_driver
            else None
        )

    def finish(self, result: Any, error: BaseException | None) -> None:
        """Note what an error means, end the call's span, and record its duration.

        The transaction's record first: what may be retried is read from it, so nothing that fails in
        telling may keep it from being true.
        """
        ended = max(time.time_ns(), self.started)
        if self._driver_token is not None:
            context_api.detach(self._driver_token)
        taken = ended - self.started
        if self.transaction is not None:
            self.transaction.database_time += taken
        failure = None if error is None else CLASSIFY.run(self, error)
        consequence = self._is_consequence(failure)
        self.settle(error, failure)
        if failure is not None and not consequence:
            GUARD.run(self._remember_error, failure)
        elif error is None and last_error.get() is not None:
            GUARD.run(self._forget_error)
        if self.span is None:
            return
        try:
            if error is not None:
                self._tell(self.span, error, failure, taken / 1e9, consequence=consequence)
            elif call_log.is_awaited(taken):
                GUARD.run(call_log.call_succeeded, self, taken / 1e9)
        finally:
            try:
                request = current_request.get()
                if request is not None:
                    request.database_time += taken
                # Its exemplar names the call itself, and not what is current around it.
                self.histogram.record(taken / 1e9, self.attributes, trace.set_span_in_context(self.span))
            finally:
                self.span.end(ended)

    def settle(self, error: BaseException | None, failure: errors.Classification | None) -> None:
        """Write the call's end into the transaction's record."""
        transaction = self.transaction
        if transaction is None:
            return
        if error is None:
            transaction.open_seen = True
            # Nothing succeeds in a transaction that the server has given up.
            if transaction.error is not None:
                transaction.mended = (transaction.error, transaction.failure)
                transaction.error = transaction.failure = None
                GUARD.run(run_log.dealt_with, transaction)
        elif transaction.error is None:
            transaction.error, transaction.failure = error, failure

    @property
    def alias(self) -> str:
        """The database, as Django calls it; looked up where something is to be told, not at every call."""
        if self.transaction is not None and self.transaction.alias:
            return self.transaction.alias
        wrappers = connections.all(initialized_only=True)
        return next((str(each.alias) for each in wrappers if each.connection is self.connection), "")

    @property
    def text(self) -> str:
        """The statement, as its span has it: masked; empty where there is none."""
        return self.span_attributes.get(semconv.DB_QUERY_TEXT, "")  # type: ignore[no-any-return]

    @property
    def proves_health(self) -> bool:
        """Whether its success says that the database works, and that what failed before is over."""
        if self.phase == "connect" or self.called.partition(" ")[0] in DEALINGS:
            return False
        # A COMMIT is answered by ROLLBACK in a transaction that has failed, without an error.
        return self.transaction is None or not self.transaction.silent_abort

    @property
    def commits_work(self) -> bool:
        """Whether its success says that something was written."""
        return self.phase == "commit" or (self.phase == "autocommit" and not self.called.startswith("SELECT"))

    def _remember_error(self, failure: errors.Classification) -> None:
        last_error.set(LastError(failure.sqlstate or "", failure.error_class, self.alias, *self._trace_ids()))

    def _trace_ids(self) -> tuple[int, int]:
        """Return the trace of the work that this is part of, and that of the transaction's own span."""
        transaction = self.transaction
        around = trace.get_current_span() if transaction is None else transaction.outer
        own = around if transaction is None or transaction.span is None else transaction.span
        return around.get_span_context().trace_id, own.get_span_context().trace_id

    def _forget_error(self) -> None:
        known = last_error.get()
        if known is not None and self.proves_health and known.alias == self.alias:
            last_error.set(None)

    def _tell(
        self,
        span: Span,
        error: BaseException,
        failure: errors.Classification | None,
        seconds: float,
        *,
        consequence: bool,
    ) -> None:
        words = events.words_of(error, failure)
        self.attributes = {**self.attributes, **words.metric}
        span.set_attributes(words.span)
        span.set_status(Status(StatusCode.ERROR, words.message))
        if consequence:
            return
        line = GUARD.run(call_log.failure_line, self, seconds, failure, words)
        events.database_error(span, error, failure, words, line)
        if line is not None:
            GUARD.run(call_log.call_failed, self, failure, line)

    def _is_consequence(self, failure: errors.Classification | None) -> bool:
        """Whether the error only repeats that the transaction had failed before."""
        if self.transaction is None or self.transaction.error is None or failure is None:
            return False
        return failure.sqlstate in CONSEQUENCES or self.goes_back


def parent_of(transaction: Transaction | None, context: Context) -> Context:
    """Return the context of the span that a call in this transaction belongs below.

    The transaction's span, unless the application has opened a span of its own since the
    transaction began (or has moved on to another request, with autocommit off).
    """
    if transaction is None or transaction.context is None:
        return context
    current = trace.get_current_span(context)
    # What is current may be a block's span: this one's, or that of a block on another connection.
    ours = current is transaction.outer or current is context.get(BLOCK)
    return transaction.context if ours else context


def is_suppressed() -> bool:
    """Whether nothing is to be told: by ``suppress_instrumentation()``, or for want of ``instrument()``."""
    signal = signals.current
    return signal is None or signal.silent or bool(context_api.get_value(_SUPPRESS_INSTRUMENTATION_KEY))


def is_untold(alias: str) -> bool:
    """Whether nothing is to be told of what is done on this alias now."""
    signal = signals.current
    return signal is None or alias in signal.excluded.aliases or is_suppressed()


def _start_span(
    operation: ClientOperation, name: str, attributes: dict[str, Any], context: Context
) -> Span | None:
    signal = signals.current
    if signal is None:
        return None
    parent = parent_of(operation.transaction, context)
    return signal.tracer.start_span(name, parent, SpanKind.CLIENT, attributes, start_time=operation.started)


def _classify(operation: ClientOperation, error: BaseException) -> errors.Classification | None:
    connection = operation.connection
    gone = connection is not None and facts.transaction_status(connection) == facts.UNKNOWN
    return errors.classify(error, phase=operation.phase, handled=operation._handled, connection_gone=gone)


# Guarded by themselves, within a call's hook: where they fail, the record is kept all the same.
SPAN = Hook("ClientOperation.span", _start_span)
CLASSIFY = Hook("ClientOperation.classify", _classify)
