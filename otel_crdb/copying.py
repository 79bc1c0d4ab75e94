# SPDX-License-Identifier: Apache-2.0
"""psycopg 3's ``copy()``: a block, whose end is the statement's.

What the application does between its writes and reads is time within the transaction and outside the
database, as between two statements; only the calls count as the database's. psycopg2's COPY is one call, and
counts as one.
"""

from __future__ import annotations

import time
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from .hooks import Operation

#: What of ``psycopg.Copy`` may wait for the server; its iterators go through these.
CALLS = ("read", "read_row", "write", "write_row", "finish")


class CopyBlock:
    """The block that ``copy()`` gives, with its operation around it."""

    def __init__(
        self,
        copying: Any,
        begin: Callable[[], Operation | None],
        finish: Callable[[Operation, Any, BaseException | None], None],
    ) -> None:
        self._copying = copying
        self._begin = begin
        self._finish = finish
        self._operation: Operation | None = None
        self._copy: Any = None
        self._entered = 0

    def __enter__(self) -> Any:
        self._operation = self._begin()
        try:
            self._copy = self._copying.__enter__()
        except BaseException as error:
            self._end(error)
            raise
        if self._operation is not None and _count_calls(self._copy):
            self._entered = time.time_ns()
        return self._copy

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> Any:
        self._leave_out_the_applications_time()
        try:
            swallowed = self._copying.__exit__(kind, error, trace)
        except BaseException as end:
            self._end(end)
            raise
        self._end(error)
        return swallowed

    def _leave_out_the_applications_time(self) -> None:
        transaction = getattr(self._operation, "transaction", None)
        if transaction is not None and self._entered:
            within = time.time_ns() - self._entered
            # The whole block is counted when it ends.
            transaction.database_time -= max(0, within - self._copy.otel_crdb_calls)

    def _end(self, error: BaseException | None) -> None:
        if self._operation is not None:
            self._finish(self._operation, None, error)


def _count_calls(copy: Any) -> bool:
    """Have the nanoseconds counted that the calls of a ``psycopg.Copy`` take; False where that cannot be."""
    try:
        copy.otel_crdb_calls = 0
        copy.__class__ = _counting_class(copy.__class__)
    except (AttributeError, TypeError):
        return False  # somebody's own, of another shape: the whole block counts as the database's
    return True


@lru_cache(maxsize=16)
def _counting_class(copy_class: Any) -> type:
    calls = {name: _counted(getattr(copy_class, name)) for name in CALLS}
    return type(copy_class.__name__, (copy_class,), {"__module__": copy_class.__module__, **calls})


def _counted(call: Callable[..., Any]) -> Callable[..., Any]:
    def counted(copy: Any, *args: Any, **kwargs: Any) -> Any:
        began = time.time_ns()
        try:
            return call(copy, *args, **kwargs)
        finally:
            copy.otel_crdb_calls += time.time_ns() - began

    return counted
