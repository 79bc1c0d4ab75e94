# SPDX-License-Identifier: Apache-2.0
"""Who says it: a failure within a transaction that is retried is said once, by the call or by the run.

What the run will say itself (run again, exhausted, kept from it) waits here until that is known.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

from .database_log import AMBIGUOUS, KIND_FIELD, Line, tell

if TYPE_CHECKING:
    from .errors import Classification
    from .state import Transaction


class RunLog:
    """What is to be said of one logical transaction: what it will say itself waits here."""

    __slots__ = ("__weakref__", "id", "idempotent", "in_doubt_told", "kept", "lines")

    def __init__(self, run_id: str, *, idempotent: bool) -> None:
        self.id = run_id
        self.idempotent = idempotent
        #: Of calls that failed, in the attempt under way or that has just ended.
        self.lines: list[Line] = []
        #: Why it is not run again.
        self.kept: Line | None = None
        #: Somebody has been told that it may or may not have been applied.
        self.in_doubt_told = False
        _runs[run_id] = self

    def may_repeat(self, failure: Classification | None) -> bool:
        """Whether the run makes up its mind about such an error, and says so."""
        retry = None if failure is None else failure.retry
        return retry == "yes" or (retry == "if_idempotent" and self.idempotent)

    def take_over(self) -> dict[str, Any]:
        """Say nothing of what has failed, since it is said here; return what is known of that."""
        lines, self.lines = self.lines, []
        known = lines[0].fields if lines else {}
        return {name: known[name] for name in ("sql", "duration") if name in known}

    def tell_waiting(self) -> None:
        """Say what nobody has taken over: it was dealt with, or ends the run."""
        waiting = [*self.lines, *([self.kept] if self.kept else ())]
        self.lines, self.kept = [], None
        for line in waiting:
            tell(line)


#: Those under way: a run holds its own as long as it lives.
_runs: weakref.WeakValueDictionary[str, RunLog] = weakref.WeakValueDictionary()


def run_under_way(transaction_id: str) -> RunLog | None:
    """Return the run that a transaction is an attempt of, if it is one."""
    return _runs.get(transaction_id)


def dealt_with(transaction: Transaction) -> None:
    """Say what waited for the end of a transaction that has got over it, at a savepoint."""
    run = _runs.get(transaction.id)
    if run is not None:
        run.tell_waiting()


def will_be_known(transaction: Transaction) -> bool:
    """Whether a transaction that may or may not have been applied is run again until that is known."""
    run = _runs.get(transaction.id)
    return run is not None and run.idempotent


def tell_of_transaction(line: Line, transaction: Transaction) -> None:
    """Say how a transaction ended, unless it is an attempt of a run that will say it."""
    run = _runs.get(transaction.id)
    if run is not None and line.fields[KIND_FIELD] == AMBIGUOUS:
        if run.idempotent:
            return  # it is run again; the run says it where nobody knows in the end
        run.in_doubt_told = True
    elif run is not None and run.may_repeat(transaction.failure):
        run.lines.append(line)
        return
    tell(line)
