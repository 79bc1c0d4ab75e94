# SPDX-License-Identifier: Apache-2.0
"""The life of a transaction: from ``set_autocommit(False)`` to the answer of COMMIT or ROLLBACK.

``Atomic`` needs no hook of its own: it turns autocommit off with
``force_begin_transaction_with_broken_autocommit=True`` and on again in its ``finally``, after COMMIT
or ROLLBACK and before the ``on_commit`` hooks. BEGIN rides with the first statement on both drivers,
so a block that sent nothing was no transaction, and has no span.
"""

from __future__ import annotations

import sys
import threading
import time
from typing import TYPE_CHECKING, Any

from opentelemetry import context as context_api
from opentelemetry import trace
from opentelemetry.trace import SpanKind, Status, StatusCode

from . import characteristics, database_log, events, facts, idle_time, outcomes, semconv, signals
from .hooks import Hook, call_back
from .operations import BLOCK
from .state import ConnectionRecord, Phase, Transaction, current_request, open_work, record_of

if TYPE_CHECKING:
    from opentelemetry.trace import Span

    from .errors import Classification
    from .signals import Signals


def for_statement(wrapper: Any, record: ConnectionRecord, *, untold: bool) -> Transaction | None:
    """Return the transaction that the next statement belongs to, begun on the wire by it."""
    transaction = record.transaction
    if transaction is None:
        if not record.manual or facts.transaction_status(wrapper.connection) != facts.IDLE:
            return None  # autocommit, or a transaction that was under way before instrument()
        transaction = record.transaction = Transaction(
            outer=trace.get_current_span(),
            started=time.time_ns(),
            atomic=False,
            handled=sys.exc_info()[1],
            alias=wrapper.alias,
        )
        open_work.begin(transaction)
    if transaction.phase is Phase.NOTHING_SENT:
        transaction.phase = Phase.STATEMENT_SENT
        if not untold and not of_testcase(wrapper):
            OPEN_SPAN.run(wrapper, record, transaction)
    elif transaction.open_seen and STATUS.run(wrapper.connection) == facts.IDLE:
        note_unseen_commit(transaction)
    if transaction.atomic and transaction.span is not None:
        _make_current(transaction, transaction.span)
    return transaction


def of_testcase(wrapper: Any) -> bool:
    """Whether Django's TestCase opened the transaction: it is the test's, not the application's.

    It has no span then, and its statements stay below the span that is current.
    """
    blocks = wrapper.atomic_blocks
    return bool(blocks) and blocks[0]._from_testcase


def _open_span(wrapper: Any, record: ConnectionRecord, transaction: Transaction) -> None:
    signal, known = signals.current, record.facts
    if signal is None or known is None:
        return
    outer = context_api.get_current()
    transaction.span = signal.tracer.start_span(
        f"transaction {known.namespace}",
        trace.set_span_in_context(transaction.outer, outer),
        SpanKind.INTERNAL,
        {**known.span, semconv.TXN_ID: transaction.id, semconv.TXN_ATTEMPT: transaction.attempt},
        start_time=transaction.started,
    )
    transaction.context = trace.set_span_in_context(transaction.span, outer)
    # Told when the span closes: later statements may say otherwise, and no attribute can be taken back.
    transaction.characteristics = characteristics.at_begin(wrapper.connection)
    if signal.config.transaction_hook is not None and transaction.span.is_recording():
        TRANSACTION_HOOK.run(signal.config.transaction_hook, transaction.span, wrapper)


def _make_current(transaction: Transaction, span: Span) -> None:
    """Make a block's span current in the block's thread, unless the application has opened one since."""
    if trace.get_current_span() is transaction.outer and threading.get_ident() == transaction.thread:
        context_api.attach(context_api.set_value(BLOCK, span, trace.set_span_in_context(span)))


def close(record: ConnectionRecord) -> None:
    """End the transaction on this connection with its one outcome."""
    transaction, record.transaction = record.transaction, None
    if transaction is None:
        return
    open_work.end(transaction)
    try:
        if transaction.span is not None:
            _end_span(record, transaction, transaction.span)
    finally:
        characteristics.settle(record.connection, transaction)


def _end_span(record: ConnectionRecord, transaction: Transaction, span: Span) -> None:
    _leave_context(transaction)
    signal, known = signals.current, record.facts
    ended = max(time.time_ns(), transaction.started)
    try:
        if signal is not None and known is not None:
            _describe_end(signal, known, transaction, ended)
    finally:
        span.end(ended)


def forget(record: ConnectionRecord) -> None:
    """Let go of a transaction that goes on unobserved: its span ends here, its outcome is not known."""
    transaction, record.transaction = record.transaction, None
    if transaction is None:
        return
    open_work.end(transaction)
    if transaction.span is not None:
        _leave_context(transaction)
        transaction.span.end()


def _leave_context(transaction: Transaction) -> None:
    """Put back the span that was current, and only that: what else the context holds is not ours."""
    if trace.get_current_span() is transaction.span:
        context_api.attach(trace.set_span_in_context(transaction.outer))


def _describe_end(signal: Signals, known: facts.Facts, transaction: Transaction, ended: int) -> None:
    span = transaction.span
    assert span is not None
    outcome = outcomes.outcome_of(transaction)
    failure = transaction.commit_failure or transaction.failure
    taken = ended - transaction.started
    words: dict[str, Any] = {semconv.TXN_OUTCOME: outcome}
    measured = {**known.metric, **words}
    if outcome in outcomes.FAILURES or transaction.silent_abort:
        error = transaction.commit_error or transaction.error
        if error is not None:
            told = events.words_of(error, failure)
            words.update(told.span)
            measured.update(told.metric)
        span.set_status(Status(StatusCode.ERROR))
    request = current_request.get()
    name = transaction.name or (request.route if request is not None else "")
    if name:
        measured[semconv.TXN_NAME] = signal.instruments.bounded_name(name)
    within = trace.set_span_in_context(span)  # what its exemplar names
    signal.instruments.transaction_duration.record(taken / 1e9, measured, within)
    span.set_attributes(
        {
            **words,
            semconv.TXN_STATEMENTS: transaction.statements,
            semconv.TXN_SAVEPOINTS: transaction.savepoints,
            semconv.TXN_IDLE_TIME: idle_time.seconds(transaction, ended),
            **characteristics.attributes_of(transaction),
        }
    )
    if transaction.as_of_system_time:
        span.set_attribute(semconv.TXN_AS_OF_SYSTEM_TIME, transaction.as_of_system_time)
    if failure is not None and failure.server_txn_id:
        span.set_attribute(semconv.TXN_SERVER_ID, failure.server_txn_id)
    if transaction.silent_abort:
        events.transaction_event(span, semconv.SILENT_ABORT_EVENT, transaction, known.namespace)
        signal.instruments.silent_aborts.add(1, known.metric, within)
    elif outcome == outcomes.AMBIGUOUS:
        events.transaction_event(span, semconv.AMBIGUOUS_EVENT, transaction, known.namespace)
    if request is not None:
        request.transactions += 1


def note_unseen_commit(transaction: Transaction) -> None:
    """Note that nothing is open where something was: somebody has ended it behind Django's back.

    Not after a COMMIT that we know of, refused or not, nor after a ROLLBACK.
    """
    unseen = transaction.phase is Phase.STATEMENT_SENT and not transaction.rolled_back_within
    transaction.committed_within |= unseen


# --- autocommit --------------------------------------------------------------------------------


class _AutocommitOff:
    """``set_autocommit(False)``: by ``Atomic`` it opens a transaction, by hand it lets statements."""

    __slots__ = ("alias", "atomic", "handled", "outer", "record", "started")

    def __init__(self, record: ConnectionRecord, alias: str, *, atomic: bool) -> None:
        self.record = record
        self.alias = alias
        self.atomic = atomic
        self.outer = trace.get_current_span()
        self.started = time.time_ns()
        self.handled = sys.exc_info()[1]

    def finish(self, result: Any, error: BaseException | None) -> None:
        database_log.release()
        if error is not None:
            return
        if not self.atomic:
            self.record.manual = True
            return
        record = self.record
        record.manual = False
        opened = record.transaction = Transaction(
            outer=self.outer, started=self.started, atomic=True, handled=self.handled, alias=self.alias
        )
        open_work.begin(opened)
        logical, record.logical = record.logical, None
        if logical is not None:
            opened.id, opened.attempt, opened.name = logical.id, logical.attempt, logical.name
            logical.transaction = opened


class _AutocommitOn:
    """``set_autocommit(True)``: whatever transaction there was has been ended before.

    Within it Django runs the ``on_commit`` hooks: what they log is about the transaction they waited for.
    """

    __slots__ = ("committed", "record")

    def __init__(self, record: ConnectionRecord, committed: Transaction | None) -> None:
        self.record = record
        self.committed = committed
        if committed is not None:
            open_work.begin(committed)

    def finish(self, result: Any, error: BaseException | None) -> None:
        if self.committed is not None:
            open_work.end(self.committed)
        if error is None:
            self.record.manual = False
            close(self.record)
        database_log.release()  # last: a handler may write to the database


def _begin_set_autocommit(
    wrapper: Any,
    autocommit: bool,
    force_begin_transaction_with_broken_autocommit: bool = False,
) -> _AutocommitOff | _AutocommitOn | None:
    if signals.current is None or wrapper.in_atomic_block:
        return None  # Django forbids it within a block
    record = record_of(wrapper)
    ended = record.transaction
    database_log.hold()
    if ended is not None and ended.atomic:
        # Now, not at the end: Django runs the on_commit hooks within this call.
        close(record)
    if autocommit:
        return _AutocommitOn(record, ended)
    if force_begin_transaction_with_broken_autocommit:
        # Django keeps it beyond its transaction, and names it as the cause of what goes wrong in this one.
        wrapper.rollback_exc = None
    return _AutocommitOff(record, wrapper.alias, atomic=force_begin_transaction_with_broken_autocommit)


def settle_commit(
    transaction: Transaction | None, error: BaseException | None, failure: Classification | None
) -> None:
    """Write what became of a COMMIT that was sent into the transaction's record."""
    if transaction is None:
        return
    if error is None:
        transaction.phase = Phase.COMMIT_ANSWERED
    else:
        transaction.commit_error, transaction.commit_failure = error, failure


# --- close -------------------------------------------------------------------------------------


class _Close:
    """``close()`` with a transaction open: the server rolls back what it has not committed."""

    __slots__ = ("record",)

    def __init__(self, record: ConnectionRecord) -> None:
        self.record = record

    def finish(self, result: Any, error: BaseException | None) -> None:
        close(self.record)


def _begin_close(wrapper: Any) -> _Close | None:
    if signals.current is None or wrapper.connection is None:
        return None
    record = record_of(wrapper)
    return _Close(record) if record.transaction is not None else None


# --- set_rollback ------------------------------------------------------------------------------


def _begin_set_rollback(wrapper: Any, rollback: bool) -> None:
    """Note that the application asks for a rollback: what comes of it is no surprise to it."""
    if signals.current is not None:
        transaction = record_of(wrapper).transaction
        if transaction is not None and not any(wrapper.savepoint_ids):  # else to that savepoint only
            transaction.rollback_asked = rollback


TRANSACTION_HOOK = Hook("transaction_hook", call_back)
OPEN_SPAN = Hook("transactions.span", _open_span)
STATUS = Hook("transactions.status", facts.transaction_status)
SET_ROLLBACK = Hook("DatabaseWrapper.set_rollback", _begin_set_rollback)
SET_AUTOCOMMIT = Hook("DatabaseWrapper.set_autocommit", _begin_set_autocommit)
CLOSE = Hook("DatabaseWrapper.close", _begin_close)
