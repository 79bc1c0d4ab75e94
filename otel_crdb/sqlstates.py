# SPDX-License-Identifier: Apache-2.0
"""What is known of CockroachDB's errors, as tables. Data only: `otel_crdb.errors` reads them.

Sources: the codes are CockroachDB's pkg/sql/pgwire/pgcode/codes.go and PostgreSQL's appendix A; the texts of
40001 are pkg/kv/kvpb/errors.go and errors.proto with the docs page transaction-retry-error-reference; other
texts have theirs beside the row. Those of libpq, psycopg 3.3 and psycopg2 2.9 were read off the drivers.
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

Retry = Literal["yes", "if_idempotent", "no"]
Cause = Literal["contention", "cluster", "unknown"]

YES: Retry = "yes"
IF: Retry = "if_idempotent"
NO: Retry = "no"


class Rule(NamedTuple):
    """What one kind of error means, by where the transaction stood when it came.

    `statement` also answers for connecting and for a connection lost before a byte was sent. Where an error
    cannot come at COMMIT or from a write in autocommit, the column says `if_idempotent`: it then hides a
    loss.
    """

    error_class: str
    statement: Retry
    commit: Retry
    autocommit: Retry
    reconnect: bool = False
    reason: str | None = None
    cause: Cause | None = None
    #: The code the server meant, where the driver passes on its words without the code.
    sqlstate: str | None = None
    #: The error was raised before a connection stood: nothing was sent on it.
    at_connect: bool = False
    #: The error only says that an earlier one was not dealt with.
    consequence: bool = False


SERIALIZATION = Rule("retryable", YES, YES, YES, reason="unknown", cause="unknown")
LOCK_TIMEOUT = Rule("retryable", YES, YES, YES, reason="lock_timeout", cause="contention")
LOCK_REFUSED = Rule("retryable", NO, NO, NO, reason="lock_not_available", cause="contention")
AMBIGUOUS = Rule("ambiguous", IF, IF, IF, reason="ambiguous_result", cause="cluster")
CANCELLED = Rule("cancelled", NO, IF, IF, reason="canceled", cause="unknown")
STATEMENT_TIMEOUT = Rule("timeout", NO, IF, IF, reason="statement_timeout", cause="unknown")
TRANSACTION_TIMEOUT = STATEMENT_TIMEOUT._replace(reason="transaction_timeout")
SHUTDOWN = Rule("unavailable", YES, IF, IF, True, "admin_shutdown", "cluster")
CRASH = SHUTDOWN._replace(reason="crash_shutdown")
STARTING = SHUTDOWN._replace(reason="cannot_connect_now")
LOST = Rule("connection", YES, IF, IF, True, "connection_lost", "cluster")
REFUSED = LOST._replace(autocommit=YES, reason="connect_failed", at_connect=True)
RANGE_UNAVAILABLE = Rule("unavailable", YES, IF, IF, reason="range_unavailable", cause="cluster")
TOO_MANY = Rule("overload", YES, IF, IF, True, "too_many_connections", "cluster")
POOL_EXHAUSTED = Rule("overload", NO, IF, NO, reason="pool_exhausted", cause="unknown", at_connect=True)
POOL_CLOSED = Rule("connection", NO, IF, NO, reason="pool_closed", cause="unknown", at_connect=True)
PREPARED_LOST = Rule("connection", YES, IF, YES, True, "prepared_statement_lost", "cluster")
MEMORY = Rule("overload", YES, IF, IF, reason="memory", cause="cluster")
PERMISSION = Rule("permission", NO, NO, NO)
SCHEMA = Rule("schema", NO, NO, NO)
CONSTRAINT = Rule("constraint", NO, NO, NO)
DATA = Rule("data", NO, NO, NO)
ABORTED_STATE = Rule("aborted_state", NO, NO, NO)
ABORTED = ABORTED_STATE._replace(consequence=True)
INTERNAL = Rule("internal", NO, IF, NO, reason="unknown", cause="unknown")
OTHER = Rule("other", NO, IF, NO, reason="unknown", cause="unknown")

#: By the whole SQLSTATE.
RULES: dict[str, Rule] = {
    "40001": SERIALIZATION,
    "40002": SERIALIZATION._replace(reason="transaction_integrity"),
    "40P01": SERIALIZATION._replace(reason="deadlock", cause="contention"),
    "40003": AMBIGUOUS,
    "55P03": LOCK_TIMEOUT,
    "XCUBS": Rule("retryable", YES, YES, YES, reason="bounded_staleness", cause="cluster"),
    "55C01": Rule("retryable", YES, YES, YES, reason="schema_change", cause="cluster"),
    "55C02": SCHEMA,
    "57014": CANCELLED,
    "57P01": SHUTDOWN,
    "57P02": CRASH,
    "57P03": STARTING,
    "57P05": LOST._replace(reason="idle_session_timeout"),
    "08007": AMBIGUOUS._replace(reconnect=True),
    "08P01": PERMISSION,
    "53300": TOO_MANY,
    # pkg/sql/conn_executor_exec.go: server.max_open_transactions_per_gateway.
    "53400": Rule("overload", YES, IF, YES, reason="transaction_limit", cause="cluster"),
    "53200": MEMORY,
    "53100": Rule("overload", NO, NO, NO),
    "58C00": RANGE_UNAVAILABLE,
    "58C01": RANGE_UNAVAILABLE._replace(reason="node_connection"),
    "26000": PREPARED_LOST,
    "XXA00": Rule("committed_with_ddl_failure", NO, NO, NO),
    "XXC02": Rule("license", NO, NO, NO),
    "25P02": ABORTED,
    "3B001": ABORTED_STATE,
    "42501": PERMISSION,
    "3D000": SCHEMA,
    "3F000": SCHEMA,
    "0A000": SCHEMA,
    "57000": SCHEMA,
    "XXC01": OTHER,
    "XCEXF": OTHER,
}

#: By the class (first two characters) of a SQLSTATE without a row of its own; the rest is `OTHER`.
CLASS_RULES: dict[str, Rule] = {
    "08": LOST,
    "22": DATA,
    "23": CONSTRAINT,
    "25": ABORTED_STATE,
    "28": PERMISSION,
    "42": SCHEMA,
    "53": MEMORY._replace(reason="insufficient_resources"),
    "XX": INTERNAL,
}

SAVEPOINT_REFUSED = "cannot rollback to savepoint"
_CONNECT_TEXT = (
    r"\A(?:connection (?:failed|is bad|timeout expired)|timeout expired)|could not connect to"
    r"|\bconnection to server (?:at|on socket) |could not translate host name|failed to resolve host"
)
_LINK_TEXT = (
    r"connection (?:is |was |has been |already )?(?:closed|lost|reset)\b|connection timed out"
    r"|server closed the connection|connection not open|connection to server was lost|SSL SYSCALL"
    r"|SSL connection has been closed|no connection to the server|broken pipe|consuming input failed"
    r"|could not (?:receive data from|send data to) server|lost synchronization with server"
    r"|error with status PGRES_\w{1,32} and no message"
)

#: Codes whose meaning hangs on the words: the first text found in the message decides.
VARIANTS: dict[str, tuple[tuple[re.Pattern[str], Rule], ...]] = {
    # pkg/kv/kvclient/kvcoord/txn_coord_sender_savepoints.go; not a new conflict.
    "40001": ((re.compile(SAVEPOINT_REFUSED), SERIALIZATION._replace(consequence=True)),),
    "0A000": ((re.compile(SAVEPOINT_REFUSED), SCHEMA._replace(consequence=True)),),
    # pkg/sql/row/errors.go: NOWAIT and a full lock queue say "obtain", lock_timeout says "timeout".
    "55P03": (
        (re.compile(r"lock timeout"), LOCK_TIMEOUT),
        (re.compile(r"could not obtain lock"), LOCK_REFUSED),
    ),
    # pkg/sql/sqlerrors/errors.go. A drain cuts a running query with 57014 and then says why.
    "57014": (
        (re.compile(r"due to statement timeout"), STATEMENT_TIMEOUT),
        (re.compile(r"due to transaction timeout"), TRANSACTION_TIMEOUT),
        (re.compile(r"server is shutting down|" + _LINK_TEXT, re.IGNORECASE), SHUTDOWN),
    ),
    # kvpb ReplicaUnavailableError; what a closed socket looks like from the gateway (cockroach issue 173964).
    "XXUUU": (
        (re.compile(r"\breplica unavailable\b"), RANGE_UNAVAILABLE),
        (re.compile(r"\bresult is ambiguous\b"), AMBIGUOUS),
        (re.compile(r"\b(?:read|write) tcp |\A(?:unexpected )?EOF\s*\Z|: (?:unexpected )?EOF\s*\Z"), LOST),
    ),
}

#: Errors without a SQLSTATE, by the words of the server or of libpq. The first row found wins: in a list of
#: failed hosts what no retry can mend comes before what may pass.
TEXT_RULES: tuple[tuple[re.Pattern[str], Rule], ...] = tuple(
    (re.compile(pattern, re.IGNORECASE), rule)
    for pattern, rule in (
        (r"\Aresult is ambiguous\b", AMBIGUOUS._replace(sqlstate="40003")),
        (r"\Arestart transaction\b", SERIALIZATION._replace(sqlstate="40001")),
        # pkg/sql/pgwire/auth.go, auth_methods.go; libpq fe-auth.c.
        (
            r"password authentication failed|no password supplied",
            PERMISSION._replace(sqlstate="28P01", at_connect=True),
        ),
        (
            r'no pg_hba\.conf entry|role "[^"\n]{1,128}" does not exist|login privilege|auth\w* failed',
            PERMISSION._replace(sqlstate="28000", at_connect=True),
        ),
        (r"node is running secure mode", PERMISSION._replace(sqlstate="08P01", at_connect=True)),
        (
            r"server does not support SSL|certificate verify failed|server certificate for ",
            PERMISSION._replace(at_connect=True),
        ),
        (r'database "[^"\n]{1,128}" does not exist', SCHEMA._replace(sqlstate="3D000", at_connect=True)),
        # pkg/sql/pgwire/server.go (drain); PostgreSQL's words for the same.
        (
            r"server is not accepting clients",
            SHUTDOWN._replace(sqlstate="57P01", at_connect=True),
        ),
        (
            r"server is shutting down|due to administrator command",
            SHUTDOWN._replace(sqlstate="57P01"),
        ),
        (r"because of crash of another server process", CRASH._replace(sqlstate="57P02")),
        (
            r"the database system is |the database system is not yet accepting",
            STARTING._replace(sqlstate="57P03", at_connect=True),
        ),
        # pkg/sql/pgwire/server.go: server.max_connections_per_gateway.
        (
            (
                r"too many clients already|too many connections for|remaining connection slots are reserved"
                r"|maximum number of allowed connections is"
            ),
            TOO_MANY._replace(sqlstate="53300", at_connect=True),
        ),
        # The frame libpq and psycopg put round a failed connect, whatever the language of what it holds.
        (_CONNECT_TEXT, REFUSED),
        (_LINK_TEXT, LOST),
    )
)

#: Errors without a SQLSTATE, by the name of their class, whatever they say. A string is the code the name
#: stands for: psycopg2 gives a code only to what a server sent, not to what an application's test raises by
#: hand.
NAMED_CLASSES: dict[str, Rule | str] = {
    "PoolTimeout": POOL_EXHAUSTED,
    "TooManyRequests": POOL_EXHAUSTED,
    "PoolClosed": POOL_CLOSED,
    "TransactionManagementError": ABORTED,
    "PipelineAborted": ABORTED,
    "ConnectionTimeout": REFUSED,
    "SerializationFailure": "40001",
    "DeadlockDetected": "40P01",
    "StatementCompletionUnknown": "40003",
    "QueryCanceled": "57014",
    "AdminShutdown": "57P01",
    "CrashShutdown": "57P02",
    "CannotConnectNow": "57P03",
    "LockNotAvailable": "55P03",
    "TooManyConnections": "53300",
    "InFailedSqlTransaction": "25P02",
}

#: The same, by the class of the Python database API, where neither name nor words told more.
DBAPI_CLASSES: dict[str, Rule] = {
    "IntegrityError": CONSTRAINT,
    "DataError": DATA,
    "ProgrammingError": SCHEMA,
    "NotSupportedError": SCHEMA,
    "InternalError": INTERNAL,
    # No server answered with a code: in either driver this is the link, also where the words are translated.
    "OperationalError": LOST,
}


class Reason(NamedTuple):
    """One word for why a transaction must run again, and whether rivals or the cluster brought it."""

    word: str
    cause: Cause


_CLUSTER_REASONS = frozenset(
    {
        "RETRY_ASYNC_WRITE_FAILURE",
        "RETRY_COMMIT_DEADLINE_EXCEEDED",
        "ABORT_REASON_RECORD_ALREADY_WRITTEN_POSSIBLE_REPLAY",
        "ABORT_REASON_TIMESTAMP_CACHE_REJECTED",
        "ABORT_REASON_NEW_LEASE_PREVENTS_TXN",
    }
)
_UNKNOWN_REASONS = frozenset({"RETRY_REASON_UNKNOWN", "ABORT_REASON_UNKNOWN"})
_CONTENTION_REASONS = frozenset(
    {
        "RETRY_WRITE_TOO_OLD",
        "RETRY_SERIALIZABLE",
        "ABORT_REASON_ABORTED_RECORD_FOUND",
        "ABORT_REASON_CLIENT_REJECT",
        "ABORT_REASON_PUSHER_ABORTED",
        "ABORT_REASON_ABORT_SPAN",
    }
)

#: What stands in a 40001's message (kvpb/errors.go, errors.proto) and the word for it.
REASONS: dict[str, Reason] = {
    **{name: Reason(name, "contention") for name in _CONTENTION_REASONS},
    **{name: Reason(name, "cluster") for name in _CLUSTER_REASONS},
    **{name: Reason(name, "unknown") for name in _UNKNOWN_REASONS},
    "ReadWithinUncertaintyInterval": Reason("ReadWithinUncertaintyInterval", "contention"),
    "WriteTooOldError": Reason("WriteTooOld", "contention"),
    "write exclusion on key": Reason("ExclusionViolation", "contention"),
    "ExclusionViolationError": Reason("ExclusionViolation", "contention"),
    "TransactionPushError": Reason("TransactionPush", "contention"),
    "failed to push": Reason("TransactionPush", "contention"),
    "serializable transaction timestamp pushed": Reason("timestamp_pushed", "contention"),
    # The form the docs page still prints.
    "transaction deadline exceeded": Reason("RETRY_COMMIT_DEADLINE_EXCEEDED", "cluster"),
    "injected by": Reason("injected", "unknown"),
    "forced by crdb_internal.force_retry": Reason("forced", "unknown"),
    SAVEPOINT_REFUSED: Reason("savepoint_rollback_refused", "unknown"),
}

#: The structural words precede every key in the message, so the leftmost one is the server's and not a row's.
REASON_TEXT = re.compile(
    r"\b(?:RETRY_[A-Z_]{1,64}|ABORT_REASON_[A-Z_]{1,64}|"
    + "|".join(re.escape(text) for text in REASONS if not text.startswith(("RETRY_", "ABORT_")))
    + ")"
)

#: Texts wrapped round a reason; they count where the reason itself is missing (conn_executor_exec.go).
WRAPPING_REASONS: dict[str, Reason] = {
    "read committed retry limit exceeded": Reason("read_committed_retry_limit", "contention"),
    "cannot automatically retry": Reason("results_already_sent", "contention"),
}
