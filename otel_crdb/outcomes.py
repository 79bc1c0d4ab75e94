# SPDX-License-Identifier: Apache-2.0
"""The one word for how a transaction ended, read from its record."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from .state import Phase

if TYPE_CHECKING:
    from .errors import Classification
    from .state import Transaction

#: COMMIT was acknowledged, or the server says itself that the data are committed (XXA00).
COMMITTED: Final = "committed"
#: Asked for, by an exception of the application's own, or silently by the server.
ROLLED_BACK: Final = "rolled_back"
#: Refused, and running it again is right.
RETRYABLE: Final = "retryable"
#: COMMIT was sent, and what became of it is not known.
AMBIGUOUS: Final = "ambiguous"
#: Any other database error.
FAILED: Final = "failed"
FAILURES: Final = frozenset({RETRYABLE, AMBIGUOUS, FAILED})


def outcome_of(transaction: Transaction) -> str:
    """Return the one word for how a transaction ended, read from its record."""
    if transaction.silent_abort or (transaction.rolled_back_within and not transaction.committed_within):
        return ROLLED_BACK
    if transaction.committed_within or transaction.phase is Phase.COMMIT_ANSWERED:
        return COMMITTED
    if transaction.phase is Phase.COMMIT_SENT:
        return _outcome_of_refused_commit(transaction.commit_failure)
    if transaction.error is None:
        return ROLLED_BACK
    failure = transaction.failure
    return RETRYABLE if failure is not None and failure.retry == "yes" else FAILED


def _outcome_of_refused_commit(failure: Classification | None) -> str:
    """Return what a COMMIT that was sent and not acknowledged came to.

    No answer at all (the process was told to stop while it waited) is as unknown as a lost one.
    """
    if failure is None or failure.retry == "if_idempotent":
        return AMBIGUOUS
    if failure.error_class == "committed_with_ddl_failure":
        return COMMITTED
    return RETRYABLE if failure.retry == "yes" else FAILED
