# SPDX-License-Identifier: Apache-2.0
"""What CockroachDB makes of savepoints and PostgreSQL does not.

That is `cockroach_restart`, and that a 40001 in a nested block costs the whole transaction.

Sources: pkg/sql/conn_executor_savepoints.go, pkg/sql/conn_fsm.go; docs pages savepoint and
advanced-client-side-transaction-retries.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import faults
from .sql_transaction import ABORTED, OPEN

if TYPE_CHECKING:
    from .control_statements import Control
    from .fault import Fault
    from .sql_transaction import SqlTransaction

RESTART = "cockroach_restart"
#: From this version on an error that is no 40001 has the transaction rolled back at once where no savepoint
#: is open (pull request 140160).
ROLLS_BACK_EAGERLY = (25, 2)


def refusal(transaction: SqlTransaction, control: Control, *, emulated: bool) -> Fault | None:
    """Give the error by which CockroachDB refuses a savepoint here; None where it takes it.

    `emulated` says that the server behind does not know `cockroach_restart`.
    """
    if control.kind == "rollback_to" and transaction.status == ABORTED and transaction.restarted:
        restarts = control.is_restart or transaction.is_initial(control.savepoint)
        return None if restarts else faults.rollback_to_refused()
    if emulated and control.kind == "savepoint" and control.is_restart and transaction.status == OPEN:
        if transaction.has_savepoints(but=RESTART):
            return faults.restart_savepoint_nested()
        if transaction.ran:
            return faults.restart_savepoint_not_first()
    return None


def start_again(transaction: SqlTransaction, control: Control) -> bytes | None:
    """Give the ROLLBACK TO for which SAVEPOINT `cockroach_restart` stands in an aborted transaction."""
    if control.kind == "savepoint" and control.is_restart and transaction.status == ABORTED:
        return b"ROLLBACK TO " + _savepoint(control.savepoint)
    return None


def initial_savepoints(transaction: SqlTransaction) -> list[bytes]:
    """Give what makes anew the savepoints that stand at the transaction's beginning."""
    return [_savepoint(name) for name in transaction.initial_savepoints()]


def before_refusal(
    transaction: SqlTransaction,
    control: Control,
    *,
    released: bool,
    retry: bool,
    version: tuple[int, int],
) -> list[bytes]:
    """Give what has the server abort the open transaction as CockroachDB of that version would.

    A savepoint of our own takes the failure, so that the locks of all before it stay; PostgreSQL alone would
    let them go. Where they are to go (`released`), or where RELEASE of `cockroach_restart` failed for good
    (`retry` is False), an empty transaction takes the place of the one that is lost.
    """
    if control.kind == "release" and control.is_restart and not retry:
        return [b"ROLLBACK", transaction.begun_by]
    if released:
        return [b"ROLLBACK", transaction.begun_by, *initial_savepoints(transaction)]
    if not retry and version >= ROLLS_BACK_EAGERLY and not transaction.has_savepoints():
        return []
    return [b"SAVEPOINT otel_crdb_fault"]


def _savepoint(name: str) -> bytes:
    quoted = name.replace('"', '""')
    return f'SAVEPOINT "{quoted}"'.encode()
