# SPDX-License-Identifier: Apache-2.0
"""What is going on now: the transaction on a connection, and the request of a context.

Transactions are recorded on Django's ``DatabaseWrapper``, beside its ``atomic_blocks``: one
``Atomic`` object is shared by all threads that run the function it decorates, and the driver's
connection may be swapped underneath. A request is one mutable object in a ContextVar, so that the
threads and tasks which copy the context all count into the same totals.
"""

from __future__ import annotations

import os
import threading
import time
from contextvars import ContextVar
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from . import facts, signals

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span, SpanContext

    from .errors import Classification
    from .facts import Facts
    from .signals import Signals
    from .sqlmodes import Value

#: The attribute of a ``DatabaseWrapper`` that holds its :class:`ConnectionRecord`.
RECORD = "_otel_crdb"


class Phase(IntEnum):
    """How far a transaction has come on the wire."""

    NOTHING_SENT = 0
    STATEMENT_SENT = 1
    COMMIT_SENT = 2
    COMMIT_ANSWERED = 3


def new_transaction_id() -> str:
    """Return a UUIDv7 (RFC 9562) in 32 hex digits.

    Ours, not the server's, and not in the DB Console. The random part comes from the operating
    system: a forked worker must not repeat its siblings' ids.
    """
    milliseconds = time.time_ns() // 1_000_000
    random = int.from_bytes(os.urandom(10), "big")
    return (
        f"{milliseconds << 80 | 0x7 << 76 | (random >> 68) << 64 | 0b10 << 62 | random & (1 << 62) - 1:032x}"
    )


@dataclass(slots=True)
class Characteristics:
    """What is known of one transaction; a value of None is not known any more."""

    known: dict[str, Value] = field(default_factory=dict)
    #: What of it was said after a savepoint: going back to one may undo it.
    in_savepoint: set[str] = field(default_factory=set)
    #: What it said of the session's later transactions: theirs once it is committed.
    session: dict[str, Value] = field(default_factory=dict)
    forgets: bool = False


@dataclass(slots=True)
class Transaction:
    """One transaction, from the moment Django opened it to the answer of COMMIT or ROLLBACK."""

    #: The span that was current when it began.
    outer: Span
    #: Nanoseconds since the epoch.
    started: int
    #: Opened by ``Atomic``, which has a frame to make the span current in; else by
    #: ``set_autocommit(False)``.
    atomic: bool
    #: The exception that was being handled when it began: not this transaction's business.
    handled: BaseException | None
    #: Of the database, as Django calls it.
    alias: str = ""
    id: str = field(default_factory=new_transaction_id)
    #: Of the thread that it began in.
    thread: int = field(default_factory=threading.get_ident)
    attempt: int = 1
    #: Of the logical transaction that this is an attempt of.
    name: str = ""
    #: Made with the first statement; None also where Django's TestCase opened the transaction.
    span: Span | None = None
    context: Context | None = None
    phase: Phase = Phase.NOTHING_SENT
    statements: int = 0
    savepoints: int = 0
    #: Nanoseconds spent in calls of the driver.
    database_time: int = 0
    #: When its first statement was sent, and BEGIN with it; nanoseconds since the epoch, 0 before.
    first_sent: int = 0
    #: Nanoseconds between its calls, up to the one that began last.
    idle_time: int = 0
    #: Nothing of it is open on the server any more, or its end is under way: no further time in it is idle.
    closing: bool = False
    as_of_system_time: str = ""
    #: How it runs, as far as that was asked for; None: nobody has looked yet.
    characteristics: Characteristics | None = None
    #: A statement was sent that CockroachDB takes for a change of the schema: from v25.1 it may commit what
    #: came before it (``autocommit_before_ddl``).
    schema_change: bool = False
    #: The first error since a statement last succeeded, and what it means.
    error: BaseException | None = None
    failure: Classification | None = None
    #: The last such error that a savepoint mended: it may still be on its way out of the block.
    mended: tuple[BaseException, Classification | None] | None = None
    #: What the refusal of COMMIT, or its silence, means.
    commit_error: BaseException | None = None
    commit_failure: Classification | None = None
    #: A statement has succeeded in it: it is open on the server.
    open_seen: bool = False
    #: Somebody has ended it behind Django's back (COMMIT as text, a schema change): a part may be applied.
    committed_within: bool = False
    #: Somebody has rolled it back behind Django's back (ROLLBACK as text).
    rolled_back_within: bool = False
    #: The hook on COMMIT or ROLLBACK has run: the phase is to be trusted.
    end_seen: bool = False
    #: By ``set_rollback(True)``.
    rollback_asked: bool = False
    #: The block was left as if all were well, in a transaction that the server had given up.
    silent_abort: bool = False


@dataclass(slots=True)
class LogicalTransaction:
    """One attempt of a transaction that may be retried, and what became of it."""

    #: The id that all its attempts share.
    id: str
    #: From 1.
    attempt: int
    name: str
    #: Of the database, as Django calls it.
    alias: str
    #: The attempt's record; None as long as Django has not opened a transaction for it.
    transaction: Transaction | None = None


@dataclass(slots=True)
class ConnectionRecord:
    """What we know of one ``DatabaseWrapper``."""

    #: The ``instrument()`` that this was recorded for: what an earlier one left is stale.
    signals: Signals | None
    #: The driver's connection that the facts were read from.
    connection: Any = None
    facts: Facts | None = None
    transaction: Transaction | None = None
    #: Autocommit is off and no ``Atomic`` block turned it off: each commit or rollback ends one
    #: transaction and the next statement opens the next.
    manual: bool = False
    #: Waits for the transaction that Django opens next.
    logical: LogicalTransaction | None = None


@dataclass(slots=True)
class RequestRecord:
    """The totals of one request."""

    #: Django's request: its route is known once it has been resolved.
    request: Any
    transactions: int = 0
    statements: int = 0
    retries: int = 0
    #: A word for each of the retries.
    retry_reasons: list[str] = field(default_factory=list)
    #: How often the view was run; 0 for one that is not retried.
    attempts: int = 0
    #: Nanoseconds.
    database_time: int = 0
    #: What nobody handled, before Django makes a 500 of it.
    exception: BaseException | None = None
    #: Of its SERVER span.
    span_context: SpanContext | None = None

    @property
    def route(self) -> str:
        """The route that the request was resolved to, empty where none was."""
        match = getattr(self.request, "resolver_match", None)
        return getattr(match, "route", None) or ""


current_request: ContextVar[RequestRecord | None] = ContextVar("otel_crdb_request", default=None)
#: The request whose span has just ended: Django and the server have lines to log about it yet.
late_request: ContextVar[RequestRecord | None] = ContextVar("otel_crdb_late_request", default=None)


class LastError(NamedTuple):
    """The last database error of a context, until a later statement on its alias succeeds."""

    #: Empty where unknown.
    sqlstate: str
    error_class: str
    alias: str
    #: Of the trace that the work was in; 0: of none. In another trace it is somebody else's.
    trace_id: int = 0
    #: Of the transaction's own span, which began a trace where there was none.
    own_trace_id: int = 0


last_error: ContextVar[LastError | None] = ContextVar("otel_crdb_last_error", default=None)


class Work(Protocol):
    """What a log line is about: a transaction, or the run of one."""

    @property
    def id(self) -> str:
        """The id that all attempts share."""

    @property
    def attempt(self) -> int:
        """From 1; 0 before the first."""

    @property
    def alias(self) -> str:
        """Of the database, as Django calls it."""


class OpenWork(threading.local):
    """What is open on the connections of a thread, the last begun last.

    Connections are a thread's own, so what is open on them is too: no context that a task or a generator
    takes along can tell it of somebody else.
    """

    def __init__(self) -> None:
        self.stack: list[Work] = []

    def begin(self, work: Work) -> None:
        """Put it on top."""
        self.stack.append(work)

    def end(self, work: Work) -> None:
        """Take it away, wherever it lies."""
        for place in range(len(self.stack) - 1, -1, -1):
            if self.stack[place] is work:
                del self.stack[place]
                return


open_work = OpenWork()


def record_of(wrapper: Any) -> ConnectionRecord:
    """Return the record of a ``DatabaseWrapper``, made at first use after ``instrument()``."""
    record: ConnectionRecord | None = wrapper.__dict__.get(RECORD)
    if record is None or record.signals is not signals.current:
        off = wrapper.connection is not None and not wrapper.autocommit
        record = ConnectionRecord(signals.current, manual=off and not wrapper.in_atomic_block)
        wrapper.__dict__[RECORD] = record
    return record


def connected(wrapper: Any) -> ConnectionRecord:
    """Return the record of a ``DatabaseWrapper`` that has a connection, with that one's facts."""
    record = record_of(wrapper)
    connection = wrapper.connection
    if record.connection is not connection or record.facts is None:
        node_id = record.signals is None or record.signals.config.node_id
        record.connection = connection
        record.facts = facts.of_connection(connection, node_id=node_id)
    return record
