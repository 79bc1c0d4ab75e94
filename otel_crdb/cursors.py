# SPDX-License-Identifier: Apache-2.0
"""The life of a statement: ``execute``, ``executemany``, ``callproc`` and COPY on Django's cursors.

Cursors get their class from here as Django makes them, so that connections opened before
``instrument()`` are seen too and nothing stands between Django and the driver: the driver's own
functions that insist on its own objects (``psycopg2.extensions.register_type`` and the like) never
meet a proxy. ``stream()`` of psycopg 3 and ``connection.connection.cursor()`` are not seen.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

from . import (
    characteristics,
    database_log,
    idle_time,
    neighbours,
    query_parameters,
    semconv,
    signals,
    statements,
)
from .comments import commented
from .copying import CopyBlock
from .facts import IN_ERROR, transaction_status
from .hooks import Hook, call_back
from .operations import ClientOperation, is_untold
from .schema_changes import see_what_is_open
from .state import Phase, connected, current_request
from .statements import name_of, text_of
from .transactions import for_statement, settle_commit

if TYPE_CHECKING:
    from opentelemetry.trace import Span

    from .errors import Classification
    from .state import ConnectionRecord, Transaction
    from .statements import Statement

#: Statements that only mark a place in a transaction, go back to it or give it up: not counted as statements.
SAVEPOINT_OPERATIONS = frozenset({"SAVEPOINT", "RELEASE", "ROLLBACK"})


#: The attribute of a cursor wrapper that holds the statement which the driver is about to be given.
BEGUN = "_otel_crdb_begun"
#: COMMIT, as text instead of by ``commit()``.
COMMITS = frozenset({"COMMIT", "END"})


class _Statement(ClientOperation):
    """A statement under way."""

    __slots__ = ("commits", "rolls_back", "statement")

    def __init__(
        self,
        wrapper: Any,
        record: ConnectionRecord,
        statement: Statement,
        extra: dict[str, Any],
        watchers: neighbours.Watchers,
    ) -> None:
        signal, known = signals.current, record.facts
        assert signal is not None and known is not None  # noqa: PT018 - _begin() asked
        driver_owns = watchers is not neighbours.NOBODY and watchers.own(signal)
        untold = is_untold(wrapper.alias)
        transaction = for_statement(wrapper, record, untold=untold)
        self.statement = statement
        ends = transaction is not None and statement.operation in COMMITS
        # In a failed transaction the server answers COMMIT with the tag ROLLBACK.
        failed = ends and transaction_status(wrapper.connection) == IN_ERROR
        self.commits = ends and not failed
        self.rolls_back = failed or (transaction is not None and statement.summary == "ROLLBACK")
        if transaction is not None:
            _count(transaction, statement)
            if self.commits:
                transaction.phase = Phase.COMMIT_SENT
        summary = statement.summary
        text = _cut(statement.text, signal.config.query_text_limit)
        super().__init__(
            known,
            summary or semconv.COCKROACHDB,
            {semconv.DB_QUERY_SUMMARY: summary, **({semconv.DB_QUERY_TEXT: text} if text else {}), **extra},
            phase="commit" if self.commits else "autocommit" if transaction is None else "statement",
            histogram=signal.instruments.operation_duration,
            attributes={
                **known.metric,
                semconv.DB_QUERY_SUMMARY: signal.instruments.bounded_summary(summary),
            },
            transaction=transaction,
            quiet=untold or driver_owns or signal.excluded.statement(statement.text),
            suppress_driver=watchers.opentelemetry and not driver_owns,
            goes_back=statement.operation == "ROLLBACK",
            connection=record.connection,
        )
        if transaction is not None:
            idle_time.count(transaction, self.started)
            transaction.closing = transaction.closing or self.commits or self.rolls_back
        request = current_request.get()
        if request is not None and not untold and statement.operation not in SAVEPOINT_OPERATIONS:
            request.statements += 1

    def finish(self, result: Any, error: BaseException | None) -> None:
        """End it, and take in what its text does to the transaction besides."""
        try:
            super().finish(result, error)
        finally:
            statement, transaction = self.statement, self.transaction
            if transaction is not None and (error is not None or statement.schema_change):
                see_what_is_open(self.connection, transaction, statement, error)
            if error is None and statement.modes is not None:
                characteristics.learn(self.connection, transaction, statement.modes)
            elif error is None and self.goes_back and transaction is not None:
                characteristics.go_back(transaction)

    def settle(self, error: BaseException | None, failure: Classification | None) -> None:
        """Write the statement's end into the record; a COMMIT sent as text is a COMMIT."""
        if self.commits:
            settle_commit(self.transaction, error, failure)
            if error is None and self.transaction is not None:
                self.transaction.committed_within = True
        elif self.rolls_back and error is None:
            if self.transaction is not None:
                self.transaction.rolled_back_within = True
        else:
            super().settle(error, failure)


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[: limit - 1].rpartition(' ')[0]} …"[:limit]


def _count(transaction: Transaction, statement: Statement) -> None:
    if statement.operation == "SAVEPOINT":
        transaction.savepoints += 1
    elif statement.operation not in SAVEPOINT_OPERATIONS:
        transaction.statements += 1
    transaction.schema_change |= statement.schema_change
    if statement.as_of_system_time and not transaction.as_of_system_time:
        transaction.as_of_system_time = statement.as_of_system_time


def _begin(
    cursor: Any,
    sql: Any,
    extra: dict[str, Any] | None = None,
    *,
    params: Any = None,
    batch: bool = False,
    watchers: neighbours.Watchers | None = None,
) -> _Statement | None:
    wrapper = cursor.db
    if signals.current is None or wrapper.needs_rollback:
        # Django refuses statements in a broken block (TransactionManagementError): nothing is sent.
        return None
    database_log.release()  # a connection that takes statements is fit for use
    text = text_of(sql, cursor.cursor)
    statement = statements.describe(text)
    if batch:
        statement = statements.batch(statement)
    if watchers is None:
        watchers = neighbours.watchers_of(cursor.cursor)
    begun = _Statement(wrapper, connected(wrapper), statement, extra or {}, watchers)
    config = signals.current.config
    if begun.span is not None and begun.span.is_recording():
        if params is not None and config.query_parameters:
            PARAMETERS.run(begun.span, text, params)
        if config.statement_hook is not None:
            STATEMENT_HOOK.run(config.statement_hook, begun.span, wrapper, sql)
    return begun


def _begin_execute(cursor: Any, sql: Any, params: Any = None, *_: Any) -> _Statement | None:
    return _about_to_be_sent(cursor, _begin(cursor, sql, params=params))


def _begin_executemany(cursor: Any, sql: Any, param_list: Any, *_: Any) -> _Statement | None:
    size = _number_of(param_list)
    if size == 1:
        own: Any = list if issubclass(type(param_list), list) else tuple
        only = own.__getitem__(param_list, 0)
        return _about_to_be_sent(cursor, _begin(cursor, sql, params=only))
    extra = {} if size is None else {semconv.DB_OPERATION_BATCH_SIZE: size}
    return _about_to_be_sent(cursor, _begin(cursor, sql, extra, batch=True))


def _about_to_be_sent(cursor: Any, begun: _Statement | None) -> _Statement | None:
    """Note the statement on its cursor, from where its comment is asked for in the next moment."""
    signal = signals.current
    if begun is not None and begun.span is not None and signal is not None and signal.config.sql_comments:
        cursor.__dict__[BEGUN] = begun
    return begun


def _sent(cursor: Any, sql: Any, *, interpolated: bool) -> Any:
    """Return what the driver is given: the statement, with its comment where it is to have one."""
    begun = cursor.__dict__.pop(BEGUN, None)
    longer = None if begun is None else COMMENT.run(cursor, sql, begun, interpolated=interpolated)
    return sql if longer is None else longer


def _comment(cursor: Any, sql: Any, begun: _Statement, *, interpolated: bool) -> Any:
    if begun.span is None:
        return None
    context = begun.span.get_span_context()
    return commented(cursor, sql, begun.statement.operation, context, interpolated=interpolated)


def _tell_parameters(span: Span, text: str | bytes, params: Any) -> None:
    span.set_attributes(query_parameters.attributes(text, params))


def _number_of(rows: Any) -> int | None:
    """Return how many rows a list or tuple has; others are not asked: a QuerySet would run its query."""
    kind = type(rows)
    if issubclass(kind, list):
        return list.__len__(rows)
    return tuple.__len__(rows) if issubclass(kind, tuple) else None


def _begin_callproc(cursor: Any, procname: Any, *_: Any, **__: Any) -> _Statement | None:
    call = f"CALL {name_of(procname, cursor.cursor)}"
    verb, _space, name = statements.describe(call).summary.partition(" ")  # bounded, and no literal in it
    return _begin(cursor, call, {semconv.DB_STORED_PROCEDURE_NAME: name} if verb == "CALL" and name else {})


# Nobody else makes spans of COPY.
def _begin_copy(cursor: Any, sql: Any, *_: Any, **__: Any) -> _Statement | None:
    return _begin(cursor, sql, watchers=neighbours.NOBODY)


def _begin_copy_from(cursor: Any, _file: Any, table: Any, *_: Any, **__: Any) -> _Statement | None:
    return _begin(cursor, f"COPY {name_of(table, cursor.cursor)} FROM STDIN", watchers=neighbours.NOBODY)


def _begin_copy_to(cursor: Any, _file: Any, table: Any, *_: Any, **__: Any) -> _Statement | None:
    return _begin(cursor, f"COPY {name_of(table, cursor.cursor)} TO STDOUT", watchers=neighbours.NOBODY)


PARAMETERS = Hook("CursorWrapper.parameters", _tell_parameters)
COMMENT = Hook("CursorWrapper.comment", _comment)
STATEMENT_HOOK = Hook("statement_hook", call_back)
EXECUTE = Hook("CursorWrapper._execute", _begin_execute)
EXECUTEMANY = Hook("CursorWrapper._executemany", _begin_executemany)
CALLPROC = Hook("CursorWrapper.callproc", _begin_callproc)
COPY = Hook("CursorWrapper.copy", _begin_copy)
COPY_EXPERT = Hook("CursorWrapper.copy_expert", _begin_copy)
COPY_FROM = Hook("CursorWrapper.copy_from", _begin_copy_from)
COPY_TO = Hook("CursorWrapper.copy_to", _begin_copy_to)


def _traced_copy(cursor: Any, copy: Callable[..., Any]) -> Callable[..., Any]:
    def traced(statement: Any, *args: Any, **kwargs: Any) -> CopyBlock:
        begin = partial(COPY.start, cursor, statement, *args, **kwargs)
        return CopyBlock(copy(statement, *args, **kwargs), begin, COPY.finish)

    return traced


def _traced_call(hook: Hook) -> Callable[[Any, Callable[..., Any]], Callable[..., Any]]:
    def bind(cursor: Any, call: Callable[..., Any]) -> Callable[..., Any]:
        return partial(hook.around(lambda _, *args, **kwargs: call(*args, **kwargs)), cursor)

    return bind


#: What Django's wrapper hands through to the driver's cursor, or wraps only when it logs queries.
HANDED_THROUGH: dict[str, Callable[[Any, Callable[..., Any]], Callable[..., Any]]] = {
    "copy": _traced_copy,
    "copy_expert": _traced_call(COPY_EXPERT),
    "copy_from": _traced_call(COPY_FROM),
    "copy_to": _traced_call(COPY_TO),
}


class TracedCursor:
    """What goes before a cursor wrapper of Django's in the order of its classes."""

    @EXECUTE.around
    def _execute(self, sql: Any, params: Any, *ignored: Any) -> Any:
        sent = _sent(self, sql, interpolated=params is not None)
        return super()._execute(sent, params, *ignored)  # type: ignore[misc]

    @EXECUTEMANY.around
    def _executemany(self, sql: Any, param_list: Any, *ignored: Any) -> Any:
        sent = _sent(self, sql, interpolated=True)
        return super()._executemany(sent, param_list, *ignored)  # type: ignore[misc]

    @CALLPROC.around
    def callproc(self, *args: Any, **kwargs: Any) -> Any:
        """Call a stored procedure, as Django's wrapper does."""
        return super().callproc(*args, **kwargs)  # type: ignore[misc]

    def __getattr__(self, name: str) -> Any:
        value = super().__getattr__(name)  # type: ignore[misc]
        bind = HANDED_THROUGH.get(name)
        return value if bind is None else bind(self, value)


@lru_cache(maxsize=64)
def traced_class(wrapper_class: Any) -> Any:
    """Return the traced form of a cursor wrapper class of Django's, or of somebody's subclass."""
    namespace = {
        name: _own_method(wrapper_class, name) for name in HANDED_THROUGH if hasattr(wrapper_class, name)
    }
    return type(wrapper_class.__name__, (TracedCursor, wrapper_class), {"__module__": __name__, **namespace})


def _own_method(wrapper_class: type, name: str) -> property:
    """Return what hands out a method that the wrapper class itself has, traced."""
    method = getattr(wrapper_class, name)
    return property(lambda cursor: HANDED_THROUGH[name](cursor, partial(method, cursor)))


class _MakeCursor:
    """Django is making a cursor wrapper: give it its traced class."""

    @staticmethod
    def finish(result: Any, error: BaseException | None) -> None:
        if error is None and not isinstance(result, TracedCursor):
            result.__class__ = traced_class(result.__class__)


def _begin_make_cursor(*_: Any, **__: Any) -> type[_MakeCursor] | None:
    return None if signals.current is None else _MakeCursor


MAKE_CURSOR = Hook("DatabaseWrapper.make_cursor", _begin_make_cursor)
MAKE_DEBUG_CURSOR = Hook("DatabaseWrapper.make_debug_cursor", _begin_make_cursor)
