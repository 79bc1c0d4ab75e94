# SPDX-License-Identifier: Apache-2.0
"""What an attempt does on the other aliases: a ROLLBACK of its own does not undo it.

Of any backend, not only of CockroachDB's: so they are watched by what Django has for it and by what is put in
front of one wrapper's methods, for as long as the attempt lasts. What looks as if it might write counts as
writing. Connections of other threads, and the drivers' own objects, are not seen.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import lru_cache
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.db import connections

from . import errors, statements
from .cursors import COMMITS, HANDED_THROUGH

#: Statements that leave nothing behind; anything else may.
READING = frozenset(
    {"BEGIN", "DECLARE", "EXPLAIN", "FETCH", "PRAGMA", "RELEASE", "ROLLBACK", "SAVEPOINT", "SELECT", "SET"}
    | {"SHOW", "START", "TABLE", "VALUES"}
)
#: After them what was written before stays, whatever becomes of the block.
ENDING = COMMITS | {"PREPARE"}
#: What may write although the text begins like one that reads: a second statement, a CTE, SELECT INTO,
#: EXPLAIN ANALYZE, the cut end of a long text. A lock (FOR UPDATE) is none.
MAY_WRITE = re.compile(
    r";\s*\S|\b(?:INSERT|DELETE|UPSERT|MERGE|INTO|ANALYZE)\b|(?<!\bFOR)(?<!\bKEY)\s+UPDATE\b|…$",
    re.IGNORECASE,
)
#: The name of a function that is called.
CALLED = re.compile(r"\b([a-z_][\w$.]*)\s*\(", re.IGNORECASE)
#: A function in the place of a table.
CALLED_FOR_ROWS = re.compile(r"\b(?:FROM|JOIN)\s+([a-z_][\w$.]*)\s*\(", re.IGNORECASE)
#: What may stand before a bracket and does nothing; Django itself asks for the version as it connects.
HARMLESS = frozenset(
    {"and", "as", "by", "exists", "from", "in", "not", "or", "over", "select", "values", "where", "with"}
    | {"abs", "avg", "cast", "coalesce", "concat", "count", "date_trunc", "extract", "greatest", "least"}
    | {"length", "lower", "max", "min", "nullif", "round", "substring", "sum", "upper"}
    | {"clock_timestamp", "current_database", "current_schema", "current_setting", "generate_series", "now"}
    | {"pg_backend_pid", "set_config", "statement_timestamp", "transaction_timestamp", "unnest", "version"}
)
#: The cursor's methods that go past ``execute_wrappers``.
PASSING_BY = frozenset({"callproc", "stream", *HANDED_THROUGH})


class Bystanders:
    """The connections of this thread beside the one that an attempt is made on."""

    def __init__(self, using: str) -> None:
        self._using = using
        self._watches: list[_Watch] = []

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Watch them for one attempt."""
        with ExitStack() as stack:
            self._watches = [stack.enter_context(_watched(wrapper)) for wrapper in self._wrappers()]
            yield

    def changed(self) -> str | None:
        """Return the alias on which the attempt has left something that outlives it, None where none is."""
        return next((watch.alias for watch in self._watches if watch.lasting), None)

    def in_doubt(self) -> bool:
        """Whether a COMMIT of the attempt on one of them has no answer."""
        return any(watch.doubtful for watch in self._watches)

    def _wrappers(self) -> Iterator[Any]:
        for alias in connections:
            if alias != self._using:
                # A backend that is not installed writes nothing.
                with suppress(ImproperlyConfigured, ImportError):
                    yield connections[alias]


class _Watch:
    """One connection in one attempt."""

    def __init__(self, wrapper: Any) -> None:
        self.alias: str = wrapper.alias
        #: Something was written that a ROLLBACK of the attempt does not take back.
        self.lasting = False
        #: A COMMIT was sent, and its answer is unknown.
        self.doubtful = False
        self._wrapper = wrapper
        #: A transaction that outlives the attempt; a TestCase's own is rolled back with all else.
        self._open_before = (
            wrapper.connection is not None
            and not wrapper.autocommit
            and not (wrapper.atomic_blocks and all(block._from_testcase for block in wrapper.atomic_blocks))
        )
        self._written = False

    def execute(self, execute: Any, sql: Any, params: Any, many: bool, context: Any) -> Any:
        """Execute a statement, as one of ``execute_wrappers``."""
        statement = statements.describe(statements.text_of(sql, context["cursor"].cursor))
        writes = _may_write(statement)
        try:
            result = execute(sql, params, many, context)
        except Exception as error:
            self.lasting |= writes and not self._in_transaction() and _in_doubt(error, "autocommit")
            raise
        self.lasting |= self._written and statement.operation in ENDING
        if writes:
            self.note_write()
        return result

    def note_write(self) -> None:
        """Note that something was written, or may have been."""
        self._written = True
        self.lasting |= self._open_before or not self._in_transaction()

    def committing(self, commit: Callable[[], None]) -> Callable[[], None]:
        """Return ``_commit``, watched."""

        def watched() -> None:
            try:
                commit()
            except Exception as error:
                self.doubtful |= self._written and _in_doubt(error, "commit")
                self.lasting |= self.doubtful
                raise
            self.lasting |= self._written

        return watched

    def rolling_back(self, roll_back: Callable[[], None]) -> Callable[[], None]:
        """Return ``_rollback``, watched."""

        def watched() -> None:
            roll_back()
            self._written = False

        return watched

    def making(self, make: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """Return ``make_cursor`` or ``make_debug_cursor``, whose cursors tell of what passes us by."""

        def watched(cursor: Any) -> Any:
            made = make(cursor)
            made.__class__ = _telling_class(made.__class__)
            made.watch = self
            return made

        return watched

    def _in_transaction(self) -> bool:
        return bool(self._wrapper.in_atomic_block or not self._wrapper.autocommit)


def _may_write(statement: statements.Statement) -> bool:
    operation, text = statement.operation, statement.text
    if operation not in READING or MAY_WRITE.search(text):
        return True
    # A function may do what it likes. Amid a query of tables they are too many, and mostly the server's own.
    reads_tables = re.search(r"\bFROM\b", text, re.IGNORECASE) and operation == "SELECT"
    called = (CALLED_FOR_ROWS if reads_tables else CALLED).findall(text)
    return any(name.lower() not in HARMLESS for name in called)


def _in_doubt(error: BaseException, phase: errors.Phase) -> bool:
    failure = errors.classify(error, phase=phase)
    return failure is not None and failure.retry == "if_idempotent"


@lru_cache(maxsize=64)
def _telling_class(wrapper_class: Any) -> Any:
    """Return the class of a cursor wrapper that tells its watch of methods no ``execute_wrappers`` see."""

    def look_up(cursor: Any, name: str) -> Any:
        if name in PASSING_BY:
            object.__getattribute__(cursor, "watch").note_write()
        return wrapper_class.__getattribute__(cursor, name)

    return type(wrapper_class.__name__, (wrapper_class,), {"__getattribute__": look_up})


@contextmanager
def _watched(wrapper: Any) -> Iterator[_Watch]:
    watch = _Watch(wrapper)
    before = dict(vars(wrapper))  # a view within a view watches what is watched already
    own = {
        "_commit": watch.committing(wrapper._commit),
        "_rollback": watch.rolling_back(wrapper._rollback),
        "make_cursor": watch.making(wrapper.make_cursor),
        "make_debug_cursor": watch.making(wrapper.make_debug_cursor),
    }
    vars(wrapper).update(own)
    wrapper.execute_wrappers.append(watch.execute)  # innermost: it sees what the application's make of it
    try:
        yield watch
    finally:
        wrapper.execute_wrappers.remove(watch.execute)
        for name in own:
            if name in before:
                setattr(wrapper, name, before[name])
            else:
                delattr(wrapper, name)
