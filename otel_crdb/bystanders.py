# SPDX-License-Identifier: Apache-2.0
"""What an attempt does on the other aliases: a ROLLBACK of its own does not undo it.

Of any backend, not only of CockroachDB's: so they are watched through Django's ``execute_wrappers`` and
through ``_commit`` of the one wrapper, for as long as the attempt lasts.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from django.db import connections

from . import errors, statements
from .cursors import text_of

#: Statements that leave nothing behind; anything else may.
READING = frozenset(
    {"BEGIN", "DECLARE", "EXPLAIN", "FETCH", "PRAGMA", "RELEASE", "ROLLBACK", "SAVEPOINT", "SELECT", "SET"}
    | {"SHOW", "START", "TABLE", "VALUES"}
)


class Bystanders:
    """The connections of this thread beside the one that an attempt is made on."""

    def __init__(self, using: str) -> None:
        self._using = using
        self._watches: list[_Watch] = []

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Watch them for one attempt."""
        with ExitStack() as stack:
            self._watches = [
                stack.enter_context(_watched(connections[alias]))
                for alias in connections
                if alias != self._using
            ]
            yield

    def changed(self) -> str | None:
        """Return the alias on which the attempt has left something that outlives it, None where none is."""
        return next((watch.alias for watch in self._watches if watch.lasting), None)


class _Watch:
    """One connection in one attempt."""

    def __init__(self, wrapper: Any) -> None:
        self.alias: str = wrapper.alias
        #: Something was written that a ROLLBACK of the attempt does not take back.
        self.lasting = False
        self._wrapper = wrapper
        self._open_before = wrapper.connection is not None and not wrapper.autocommit
        self._written = False
        self._commit = wrapper._commit

    def execute(self, execute: Any, sql: Any, params: Any, many: bool, context: Any) -> Any:
        text = text_of(sql, context["cursor"].cursor)
        writes = statements.describe(text).operation not in READING
        try:
            result = execute(sql, params, many, context)
        except Exception as error:
            self.lasting |= writes and not self._in_transaction() and _in_doubt(error, "autocommit")
            raise
        self._written |= writes
        self.lasting |= writes and (self._open_before or not self._in_transaction())
        return result

    def commit(self) -> None:
        try:
            self._commit()
        except Exception as error:
            self.lasting |= self._written and _in_doubt(error, "commit")
            raise
        self.lasting |= self._written

    def _in_transaction(self) -> bool:
        return bool(self._wrapper.in_atomic_block or not self._wrapper.autocommit)


def _in_doubt(error: BaseException, phase: errors.Phase) -> bool:
    failure = errors.classify(error, phase=phase)
    return failure is not None and failure.retry == "if_idempotent"


@contextmanager
def _watched(wrapper: Any) -> Iterator[_Watch]:
    watch = _Watch(wrapper)
    wrapper.execute_wrappers.insert(0, watch.execute)  # innermost of all: what the application's make of it
    wrapper._commit = watch.commit
    try:
        yield watch
    finally:
        del wrapper._commit
        wrapper.execute_wrappers.remove(watch.execute)
