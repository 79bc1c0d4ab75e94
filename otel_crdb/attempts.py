# SPDX-License-Identifier: Apache-2.0
"""One attempt at a transaction: run, and told how it ended.

Whether it may be repeated is read from the record that the hooks keep of it (how far it had come on the
wire, and what the server said first), not from the exception that reaches us: when the link breaks at
COMMIT, what is raised in the end is Django's failed *reconnect*. That COMMIT returned is known from Django
itself, by an ``on_commit`` function of ours that runs before all others. The exception only fills in what
no record knows, and then the most cautious answer counts.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from django.db import transaction
from django.db.transaction import TransactionManagementError

from . import errors, facts, outcomes
from .policy import AmbiguousCommitError, RetriesExhaustedError
from .state import Phase, record_of

if TYPE_CHECKING:
    from .errors import Classification
    from .state import LogicalTransaction, Transaction


@dataclass(frozen=True, slots=True)
class Ended:
    """How an attempt ended."""

    #: One of the five words.
    outcome: str
    #: What the function returned.
    result: Any = None
    #: What the caller is to see, where it is not to be run again; None: it ended well.
    error: BaseException | None = None
    #: The database error that decides whether it may be run again; None: none does.
    failure: Classification | None = None
    #: The connection of the attempt is of no more use.
    reconnect: bool = False


class AttemptBlock:
    """The block of one attempt. :meth:`run` runs it; :meth:`failed` says how, where that raised."""

    def __init__(
        self,
        wrapper: Any,
        logical: LogicalTransaction,
        *,
        in_testcase: bool,
        insists: Callable[[Classification | None], bool],
    ) -> None:
        self.wrapper = wrapper
        self.logical = logical
        #: The driver's connection, as the block began.
        self.connection: Any = None
        self._in_testcase = in_testcase
        #: Whether an error that the function swallowed is raised all the same; else what it returned counts.
        self._insists = insists
        self._given_way = False
        self._handled = sys.exc_info()[1]
        self._phase: errors.Phase = "connect"
        #: COMMIT has returned: Django runs what is registered first.
        self._committed = False
        #: What the function raised; Django may put an error of its own in its place.
        self._left_with: BaseException | None = None

    @property
    def record(self) -> Transaction | None:
        """What the hooks have recorded; None where Django opened no transaction that they saw."""
        return self.logical.transaction

    def run(self, function: Callable[[], Any]) -> Ended:
        """Call the function in a durable block of its own."""
        record_of(self.wrapper).logical = self.logical
        try:
            with transaction.atomic(using=self.wrapper.alias, durable=True):
                self._phase = "statement"
                self.connection = self.wrapper.connection
                if not self._in_testcase:
                    transaction.on_commit(self._note_commit, using=self.wrapper.alias)
                try:
                    result = function()
                    _refuse_unfinished(result)
                except BaseException as error:
                    self._left_with = error
                    raise
                self._refuse_doomed()
                self._phase = "commit"
        finally:
            record_of(self.wrapper).logical = None
        return self._left(result)

    def _note_commit(self) -> None:
        self._committed = True

    def _refuse_doomed(self) -> None:
        """Raise where the block is about to end as if all were well, in a transaction that is lost.

        Here, and not when COMMIT has been answered by ROLLBACK: Django would run the ``on_commit`` functions.
        """
        wrapper, record = self.wrapper, self.record
        if record is not None and record.phase is Phase.COMMIT_SENT and record.commit_error is not None:
            raise record.commit_error  # of a COMMIT behind Django's back, which may have taken effect
        if wrapper.needs_rollback and record is not None and record.rollback_asked:
            return
        lost = wrapper.needs_rollback or wrapper.closed_in_transaction or wrapper.connection is None
        if not lost:
            status = facts.transaction_status(wrapper.connection)
            lost = status == facts.IN_ERROR or (
                status == facts.UNKNOWN and record is not None and record.error is not None
            )
            if record is not None and record.rolled_back_within:
                lost = True
            elif status == facts.IDLE and record is not None and record.open_seen:
                record.committed_within |= record.phase is Phase.STATEMENT_SENT
        if not lost:
            return
        marked = wrapper.needs_rollback and not wrapper.closed_in_transaction
        dealt_with = marked or (record is not None and record.error is not None)
        if dealt_with and not self._insists(None if record is None else record.failure):
            self._given_way = True
            return
        if record is None or record.error is None:
            raise TransactionManagementError(
                "The function returned as if all were well, but its transaction is lost: an exception was "
                "swallowed in it, it was rolled back, or its connection closed. Nothing was written."
            )
        record.silent_abort = True
        raise record.error

    def _left(self, result: Any) -> Ended:
        """Say how a block ended that raised nothing."""
        record = self.record
        if self._in_testcase:
            return Ended(outcomes.COMMITTED, result)
        if self._committed and (record is None or not record.silent_abort):
            return Ended(outcomes.COMMITTED, result)
        if self._given_way or (record is not None and record.rollback_asked):
            return Ended(outcomes.ROLLED_BACK, result)
        error = record.error if record is not None else None
        return Ended(
            outcomes.ROLLED_BACK,
            error=error
            or TransactionManagementError("The transaction ended without COMMIT: nothing was written."),
            failure=record.failure if record is not None else None,
        )

    def failed(self, error: BaseException) -> Ended:
        """Say how a block ended that raised."""
        record, left_with = self.record, self._left_with
        silent = record is not None and record.silent_abort
        if (self._committed and not silent) or (record is not None and record.committed_within):
            return Ended(outcomes.COMMITTED, error=error)
        if left_with is not None and not isinstance(left_with, Exception):
            error = left_with  # a failed reconnect does not stand in for what ends the process
        subject = left_with or error
        if not isinstance(error, Exception) or _has_final(subject, self._handled):
            return Ended(self._outcome(), error=error)
        if record is None or (self._phase == "commit" and not record.end_seen):
            return self._unrecorded(error, subject)
        if record.phase >= Phase.COMMIT_SENT:
            refusal = record.commit_error
            return self._ended(error, record.commit_failure or _classified(refusal, "commit"))
        if record.error is not None:
            return self._ended(error, record.failure or _classified(record.error, "statement"))
        return self._unknown_to_the_record(error, subject, record)

    def _outcome(self) -> str:
        if self.record is not None:
            return outcomes.outcome_of(self.record)
        return outcomes.AMBIGUOUS if self._phase == "commit" else outcomes.ROLLED_BACK

    def _ended(self, error: BaseException, failure: Classification | None) -> Ended:
        return Ended(
            self._outcome(),
            error=error,
            failure=failure,
            reconnect=failure is not None and failure.reconnect,
        )

    def _unrecorded(self, error: Exception, subject: BaseException) -> Ended:
        """Tell it from how far the function had come.

        The hooks did not run (a backend of the application's own overrides what they are on), or failed.
        An error that came after the function had returned may be COMMIT's.
        """
        failure = errors.classify(subject, phase=self._phase, handled=self._handled)
        doubtful = self._phase == "commit" and (failure is None or failure.retry == "if_idempotent")
        outcome = outcomes.AMBIGUOUS if doubtful else outcomes.ROLLED_BACK
        return Ended(outcome, error=error, failure=failure, reconnect=self._phase == "connect")

    def _unknown_to_the_record(self, error: Exception, subject: BaseException, record: Transaction) -> Ended:
        """Tell it from the exception: of another connection, or of a cursor that the hooks do not see."""
        mended = record.mended[0] if record.mended is not None else None
        if mended is not None and any(link is mended for link in _chain(subject, self._handled)):
            return Ended(outcomes.ROLLED_BACK, error=error)  # a savepoint had dealt with it
        failure = errors.classify(subject, phase=None, handled=record.handled)
        certain = failure is not None and failure.retry == "yes"
        return Ended(outcomes.RETRYABLE if certain else outcomes.ROLLED_BACK, error=error, failure=failure)


def _classified(error: BaseException | None, phase: errors.Phase) -> Classification | None:
    return None if error is None else errors.classify(error, phase=phase)


def _chain(error: BaseException, handled: BaseException | None) -> Iterator[BaseException]:
    """Yield an exception and those it came from, up to the one that was being handled before."""
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and link is not handled and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)


def _has_final(error: BaseException, handled: BaseException | None) -> bool:
    """Whether another retried transaction, within this one, has said its last word."""
    return any(
        isinstance(link, (AmbiguousCommitError, RetriesExhaustedError)) for link in _chain(error, handled)
    )


def _refuse_unfinished(result: Any) -> None:
    """Refuse a result whose work has yet to be done: it would be done outside the transaction."""
    if inspect.isawaitable(result) or inspect.isgenerator(result) or inspect.isasyncgen(result):
        if inspect.iscoroutine(result):
            result.close()
        raise TypeError(
            f"The function returned a {type(result).__name__}, whose body would run when the transaction is "
            "over. Return what it yields, or make it a plain function."
        )
