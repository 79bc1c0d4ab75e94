# SPDX-License-Identifier: Apache-2.0
"""COMMIT and ROLLBACK: what ends a transaction on the wire, and what its answer is worth."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from . import database_log, facts, idle_time, neighbours, semconv, signals
from .hooks import Hook
from .operations import ClientOperation, is_untold
from .state import ConnectionRecord, Phase, connected, record_of
from .transactions import STATUS, close, note_unseen_commit, of_testcase, settle_commit

if TYPE_CHECKING:
    from . import errors
    from .errors import Classification
    from .signals import Signals


class _EndOperation(ClientOperation):
    """COMMIT or ROLLBACK under way."""

    __slots__ = ("record",)
    name: str
    phase_of_error: errors.Phase

    def __init__(self, wrapper: Any, record: ConnectionRecord, *, quiet: bool) -> None:
        signal, name = signals.current, self.name
        assert signal is not None and record.facts is not None  # noqa: PT018 - _begin_end() asked
        self.record = record
        super().__init__(
            record.facts,
            name,
            {semconv.DB_QUERY_SUMMARY: name, semconv.DB_OPERATION_NAME: name},
            phase=self.phase_of_error,
            histogram=signal.instruments.operation_duration,
            attributes={**record.facts.metric, semconv.DB_QUERY_SUMMARY: name},
            transaction=record.transaction,
            connection=record.connection,
            quiet=quiet or is_untold(wrapper.alias) or of_testcase(wrapper) or self._is_theirs(signal),
        )
        if self.transaction is not None:
            idle_time.count(self.transaction, self.started)
            self.transaction.closing = True
            if self.transaction.atomic:
                database_log.hold()  # set_autocommit(True) follows

    def finish(self, result: Any, error: BaseException | None) -> None:
        super().finish(result, error)
        if self.transaction is not None and not self.transaction.atomic:
            close(self.record)

    def _is_theirs(self, signal: Signals) -> bool:
        watchers = neighbours.watchers_of(self.record.connection)
        return watchers.datadog and watchers.own(signal)  # OpenTelemetry's make none of COMMIT


class _Commit(_EndOperation):
    __slots__ = ()
    name = "COMMIT"
    phase_of_error = "commit"

    def settle(self, error: BaseException | None, failure: Classification | None) -> None:
        if self.transaction is not None and self.transaction.phase is Phase.COMMIT_SENT:
            settle_commit(self.transaction, error, failure)
        else:
            super().settle(error, failure)


class _Rollback(_EndOperation):
    __slots__ = ()
    name = "ROLLBACK"
    phase_of_error = "statement"

    def settle(self, error: BaseException | None, failure: Classification | None) -> None:
        """Leave the verdict as it is: neither a ROLLBACK that went well nor its error changes it."""


def _begin_commit(wrapper: Any) -> _Commit | None:
    record, status = _open_connection(wrapper)
    if record is None:
        return None
    transaction = record.transaction
    lost = status == facts.UNKNOWN  # and known to be: COMMIT will not be sent
    if transaction is not None:
        transaction.end_seen = True
        if not lost:
            # In a failed transaction the server answers COMMIT with the tag ROLLBACK, and no error.
            transaction.silent_abort = status == facts.IN_ERROR
            transaction.phase = Phase.COMMIT_SENT
    commit = _Commit(wrapper, record, quiet=lost)
    if lost:
        commit.phase = "statement"
    return commit


def _begin_rollback(wrapper: Any) -> _Rollback | None:
    record, status = _open_connection(wrapper)
    if record is None:
        return None
    transaction = record.transaction
    if transaction is not None:
        leaving = sys.exc_info()[1]
        left_normally = leaving is transaction.handled
        # While COMMIT's own error is handled, a rollback proves nothing of it.
        transaction.end_seen = transaction.end_seen or left_normally
        if transaction.error is None and transaction.mended is not None and transaction.mended[0] is leaving:
            transaction.error, transaction.failure = transaction.mended
        if transaction.atomic and status == facts.IN_ERROR and not transaction.rollback_asked:
            # Django rolls back without a word where a block is left normally but marked for rollback.
            transaction.silent_abort |= left_normally and transaction.error is not None
    return _Rollback(wrapper, record, quiet=status == facts.UNKNOWN)


def _open_connection(wrapper: Any) -> tuple[ConnectionRecord | None, int]:
    """Return the record of a connection on which the driver would send something, and its status."""
    if signals.current is None or wrapper.connection is None:
        return None, facts.IDLE
    status = STATUS.run(wrapper.connection)
    transaction = record_of(wrapper).transaction
    if status == facts.IDLE and transaction is not None and transaction.open_seen:
        note_unseen_commit(transaction)
    if status is None:
        status = facts.ACTIVE  # not to be had: as if something were under way, the cautious answer
    return (None if status == facts.IDLE else connected(wrapper)), status


COMMIT = Hook("DatabaseWrapper._commit", _begin_commit)
ROLLBACK = Hook("DatabaseWrapper._rollback", _begin_rollback)
