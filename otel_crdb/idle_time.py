# SPDX-License-Identifier: Apache-2.0
"""How long a transaction was open on the server with no call of it under way: ``cockroachdb.txn.idle_time``.

From its first statement, which BEGIN rides with, to the begin of COMMIT or ROLLBACK; or to where the server,
or the link, ended it before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .state import Transaction


def count(transaction: Transaction, now: int) -> None:
    """Count what lies between the calls of a transaction, where another call begins."""
    if transaction.first_sent == 0:
        transaction.first_sent = now
    elif not transaction.closing:
        transaction.idle_time = now - transaction.first_sent - transaction.database_time


def seconds(transaction: Transaction, ended: int) -> float:
    """Return the whole, where a transaction has ended; without a call, if its connection was closed."""
    if transaction.first_sent:
        count(transaction, ended)
    return max(0, transaction.idle_time) / 1e9
