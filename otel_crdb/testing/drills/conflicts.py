# SPDX-License-Identifier: Apache-2.0
"""The drills in which a transaction meets others, or a range that moves, and has to be run again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from otel_crdb import semconv

from .drill import AMOUNT, Drill, Inject, deposit, transfer
from .expectations import ANY, WantedEvent, WantedLog, WantedPoint
from .telling import (
    Words,
    attempts,
    failed,
    request,
    retries_counted,
    run_again,
    transaction,
    transactions_timed,
)

if TYPE_CHECKING:
    from .expectations import Expectation

TRANSFER = "POST transfer/"
UPDATE, UPDATED = 'UPDATE "bank_account"', "UPDATE bank_account"
SELECT, SELECTED = 'SELECT .* FROM "bank_account"', "SELECT bank_account"


def conflict(reason: str, cause: str = "contention") -> Words:
    """Give the words of a serialization failure."""
    return Words("retryable", "40001", reason, cause)


WRITE_TOO_OLD, SERIALIZABLE = conflict("RETRY_WRITE_TOO_OLD"), conflict("RETRY_SERIALIZABLE")
PUSHER_ABORTED, UNCERTAIN = conflict("ABORT_REASON_PUSHER_ABORTED"), conflict("ReadWithinUncertaintyInterval")
NEW_LEASE = conflict("ABORT_REASON_NEW_LEASE_PREVENTS_TXN", "cluster")
ASYNC_WRITE = conflict("RETRY_ASYNC_WRITE_FAILURE", "cluster")
LOCK_TIMEOUT = Words("retryable", "55P03", "lock_timeout", "contention")

_NOTICES_NOTHING = "Nothing: the transfer is made (201), a few milliseconds later than usual."


def _made_by_second_attempt(operation: str, words: Words) -> tuple[Expectation, ...]:
    """Want a transfer that was refused once at an operation, run again, and made."""
    return (
        *request(TRANSFER, 201, retries=1),
        *attempts("committed", 2),
        *run_again(words),
        *retries_counted(words),
        *transaction("retryable", words),
        *failed(operation, words),
        *transaction("committed", attempt=2),
        *transactions_timed("retryable", words),
        *transactions_timed("committed"),
    )


CONFLICTS = (
    Drill(
        name="serialization_failure_at_statement",
        title="A serialization failure at a statement",
        summary="Another transaction has written a row after this one's timestamp. CockroachDB cannot move "
        "the transaction past it, answers the UPDATE with 40001 (RETRY_WRITE_TOO_OLD), and all of it has to "
        "be run again.",
        user_notices=_NOTICES_NOTHING,
        on_call="cockroachdb.client.txn.retries rises by the reason RETRY_WRITE_TOO_OLD, cause contention. "
        "A few are the normal price of SERIALIZABLE; many on one cockroachdb.txn.name name the transaction "
        "that should lock its rows first (SELECT … FOR UPDATE) or be shorter.",
        steps=(Inject("serialization_failure.RETRY_WRITE_TOO_OLD", matching=UPDATE), transfer(201)),
        expects=_made_by_second_attempt(UPDATED, WRITE_TOO_OLD),
        moved=AMOUNT,
    ),
    Drill(
        name="serialization_failure_at_commit",
        title="A serialization failure at COMMIT",
        summary="What the transaction has read was changed before it could commit. CockroachDB answers "
        "COMMIT with 40001 (RETRY_SERIALIZABLE) and rolls back: code that treats COMMIT as a formality "
        "loses the work here.",
        user_notices=_NOTICES_NOTHING,
        on_call="The span COMMIT is red and carries 40001; the attempt's outcome is retryable, the whole's "
        "is committed. Nothing is to be done while the share of retried transactions stays small "
        "(cockroachdb.client.txn.attempts).",
        steps=(Inject("serialization_failure.RETRY_SERIALIZABLE", on="commit"), transfer(201)),
        expects=_made_by_second_attempt("COMMIT", SERIALIZABLE),
        moved=AMOUNT,
    ),
    Drill(
        name="retries_exhausted",
        title="Every attempt is refused",
        summary="Rivals win each time: CockroachDB refuses all three attempts that the bank allows, each at "
        "COMMIT.",
        user_notices="The transfer is refused (409) and nothing was moved; sent again later, it may go "
        "through.",
        on_call="cockroachdb.client.txn.attempts with outcome failed rises, and the log has an error line "
        "of otel_crdb.db. One transaction is too long or one row too popular for this rate of writes: "
        "cockroachdb.txn.name says which.",
        steps=(
            Inject("serialization_failure.RETRY_SERIALIZABLE", on="commit", times=None),
            transfer(409),
        ),
        expects=(
            *request(TRANSFER, 409, retries=2),
            *attempts("failed", 3, SERIALIZABLE),
            *run_again(SERIALIZABLE, 1),
            *run_again(SERIALIZABLE, 2),
            *retries_counted(SERIALIZABLE, 2),
            *transaction("retryable", SERIALIZABLE, attempt=1),
            *transaction("retryable", SERIALIZABLE, attempt=2),
            *transaction("retryable", SERIALIZABLE, attempt=3),
            *transactions_timed("retryable", SERIALIZABLE, 3),
            *failed("COMMIT", SERIALIZABLE, times=3),
        ),
    ),
    Drill(
        name="deadlock_abort",
        title="Aborted by another transaction",
        summary="Two transactions wait for each other's rows. CockroachDB breaks the circle by aborting one "
        "of them: 40001 (ABORT_REASON_PUSHER_ABORTED), and its locks are gone at once.",
        user_notices=_NOTICES_NOTHING,
        on_call="Retries with an ABORT_REASON_… of cause contention: transactions that lock the same rows "
        "in different orders. Have them lock in one order, as the bank does by primary key.",
        steps=(Inject("serialization_failure.ABORT_REASON_PUSHER_ABORTED", matching=UPDATE), transfer(201)),
        expects=_made_by_second_attempt(UPDATED, PUSHER_ABORTED),
        moved=AMOUNT,
    ),
    Drill(
        name="clock_uncertainty",
        title="A read within the uncertainty of the clocks",
        summary="A read meets a value written so shortly before or after it that the nodes' clocks cannot "
        "order the two. CockroachDB mostly settles this by itself; where it has sent results already, it "
        "answers 40001 (ReadWithinUncertaintyInterval).",
        user_notices=_NOTICES_NOTHING,
        on_call="Retries of the reason ReadWithinUncertaintyInterval. Many of them: compare the nodes' "
        "clock offsets in the DB Console, and send large reads AS OF SYSTEM TIME.",
        steps=(
            Inject("serialization_failure.ReadWithinUncertaintyInterval", matching=SELECT),
            transfer(201),
        ),
        expects=_made_by_second_attempt(SELECTED, UNCERTAIN),
        moved=AMOUNT,
    ),
    Drill(
        name="lease_transfer",
        title="A range's lease moves",
        summary="The lease of a range goes to another node while the transaction is under way. First it is "
        "refused at a statement (ABORT_REASON_NEW_LEASE_PREVENTS_TXN), then a write that was sent ahead is "
        "not found at COMMIT (RETRY_ASYNC_WRITE_FAILURE).",
        user_notices=_NOTICES_NOTHING,
        on_call="Retries of the cause cluster, not contention: the application is not to blame. A burst "
        "goes with a rebalance, a drain or an overloaded node; if it lasts, look at the nodes.",
        steps=(
            Inject("serialization_failure.ABORT_REASON_NEW_LEASE_PREVENTS_TXN", matching=UPDATE),
            Inject("serialization_failure.RETRY_ASYNC_WRITE_FAILURE", on="commit"),
            transfer(201),
        ),
        expects=(
            *request(TRANSFER, 201, retries=2),
            *attempts("committed", 3),
            *run_again(NEW_LEASE, 1),
            *run_again(ASYNC_WRITE, 2),
            *retries_counted(NEW_LEASE),
            *retries_counted(ASYNC_WRITE),
            *transaction("retryable", NEW_LEASE, attempt=1),
            *transaction("retryable", ASYNC_WRITE, attempt=2),
            *transaction("committed", attempt=3),
        ),
        moved=AMOUNT,
    ),
    Drill(
        name="lock_timeout",
        title="A row stays locked for too long",
        summary="The row is locked by another transaction for longer than lock_timeout. CockroachDB gives "
        "up with 55P03, and the transaction has to be run again.",
        user_notices="The transfer is made (201), later than usual by the time it waited for the lock.",
        on_call="Retries of the reason lock_timeout. Somebody holds locks for long: look for transaction "
        "spans with a high cockroachdb.txn.idle_time, which hold rows while the application does something "
        "else.",
        steps=(Inject("lock_timeout", matching=UPDATE), transfer(201)),
        expects=_made_by_second_attempt(UPDATED, LOCK_TIMEOUT),
        moved=AMOUNT,
    ),
    Drill(
        name="silent_abort",
        title="An error is swallowed, and COMMIT rolls back",
        summary="A statement fails with 40001, the application catches the error inside its atomic() block "
        "and goes on. The transaction is aborted all the same: CockroachDB answers COMMIT with the tag "
        "ROLLBACK and no error.",
        user_notices="The bank says that the deposit was made (201), and it was not: the balance is what it "
        "was.",
        on_call="cockroachdb.client.txn.silent_aborts is above zero, which it must never be: each one is "
        "work that somebody believes was done. The event cockroachdb.txn.silent_abort is on the "
        "transaction's span; the red statement before it is the error that was swallowed. Mend the except "
        "clause, or use run_transaction, which takes it for the failure that it is.",
        steps=(
            Inject("serialization_failure.RETRY_SERIALIZABLE", matching=r"SELECT COUNT.*bank_ledgerentry"),
            deposit(201),
        ),
        expects=(
            *request("POST deposit/", 201),
            *transaction("rolled_back", SERIALIZABLE),
            *transactions_timed("rolled_back", SERIALIZABLE),
            *failed("SELECT bank_ledgerentry", SERIALIZABLE),
            WantedEvent(semconv.SILENT_ABORT_EVENT, {semconv.TXN_ID: ANY, **SERIALIZABLE.told_of_end}),
            WantedLog(semconv.SILENT_ABORT_EVENT, {semconv.TXN_ID: ANY, **SERIALIZABLE.told_of_end}),
            WantedPoint(semconv.SILENT_ABORTS),
        ),
    ),
)
