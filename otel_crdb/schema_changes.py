# SPDX-License-Identifier: Apache-2.0
"""What a statement leaves open on the server, where it may have ended the transaction by itself.

From v25.1 CockroachDB commits what came before a schema change (``autocommit_before_ddl``), and then runs the
change alone; a change that comes first stays within its transaction. So where one leaves nothing open,
something before it was committed, or that COMMIT was refused, and only the error tells which
(maybeAutoCommitBeforeDDL() in pkg/sql/conn_executor_ddl.go).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from . import errors, facts
from .state import Phase

if TYPE_CHECKING:
    from .state import Transaction
    from .statements import Statement


def see_what_is_open(
    connection: Any, transaction: Transaction, statement: Statement, error: BaseException | None
) -> None:
    """Look at what a statement that failed, or changed the schema, has left open; no round trip."""
    status = facts.transaction_status(connection)
    if status in (facts.IDLE, facts.UNKNOWN):
        transaction.closing = True
    if status != facts.IDLE or not statement.schema_change:
        return
    if transaction.phase is not Phase.STATEMENT_SENT or transaction.rolled_back_within:
        return  # it had been ended before, and that is in the record
    if error is None:
        transaction.committed_within = True
    elif transaction.open_seen or ";" in statement.text.rstrip("; "):
        # Else it was the first statement, and BEGIN was refused.
        _note_commit_before(transaction, error)


def _note_commit_before(transaction: Transaction, error: BaseException) -> None:
    """Note the COMMIT before a schema change that failed: it took effect, unless the error may be its own."""
    failure = errors.classify(error, phase="commit")
    if failure is not None and failure.retry == "no":
        transaction.committed_within = True
        return
    transaction.phase = Phase.COMMIT_SENT
    transaction.commit_error = error
    # Even 40001 leaves it open: it may be the change's, which ran after a COMMIT that took effect.
    transaction.commit_failure = None if failure is None else replace(failure, retry="if_idempotent")
