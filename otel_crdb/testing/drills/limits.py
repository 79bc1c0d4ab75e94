# SPDX-License-Identifier: Apache-2.0
"""The drills in which something is used up, takes too long, or is not allowed."""

from __future__ import annotations

from otel_crdb import semconv

from .conflicts import SELECT, SELECTED, TRANSFER, UPDATE, UPDATED
from .drill import AMOUNT, AtOnce, Drill, Inject, Lift, page, transfer
from .expectations import WantedPoint, WantedSpan
from .outages import ACCOUNTS, CONNECTED, CREATE_TIME, UNANSWERED
from .telling import (
    Words,
    attempts,
    crashed,
    failed,
    request,
    retries_counted,
    run_again,
    told_of,
    transaction,
    transactions_timed,
)

OPERATIONAL_ERROR = "django.db.utils.OperationalError"
POOL_TIMEOUT = "psycopg_pool.PoolTimeout"

NO_CONNECTION_LEFT = Words("overload", type=POOL_TIMEOUT, reason="pool_exhausted", cause="unknown")
TOO_MANY = Words("overload", "53300", "too_many_connections", "cluster")
MEMORY = Words("overload", "53200", "memory", "cluster")
TIMEOUT = Words("timeout", "57014", "statement_timeout", "unknown")
LICENSE = Words("license", "XXC02")
RESTRICTED = Words("permission", "42501")
HELD_FOR = 1.0

LIMITS = (
    Drill(
        name="too_many_clients",
        title="The node has too many connections",
        summary="The node has as many connections as server.max_connections_per_gateway allows, and refuses "
        "the next: 53300, sorry, too many clients already.",
        user_notices="Nothing, as long as one becomes free soon: the transfer connects again and is made "
        "(201).",
        on_call="Red spans connect with 53300, and retries of the reason too_many_connections. Count "
        "processes × threads against the limit, and put a pooler between, or a pool into Django, before "
        "raising it.",
        steps=(Inject("too_many_clients"), transfer(201)),
        expects=(
            *request(TRANSFER, 201, retries=1),
            *attempts("committed", 2),
            *run_again(TOO_MANY),
            *retries_counted(TOO_MANY),
            *failed("connect", TOO_MANY, metric=CREATE_TIME),
            *CONNECTED,
            *transaction("committed", attempt=2),
        ),
        connection="new",
        moved=AMOUNT,
    ),
    Drill(
        name="memory_pressure",
        title="The node is out of memory for SQL",
        summary="The node's memory budget for queries (--max-sql-memory) is spent, and it refuses whatever "
        "needs more: 53200.",
        user_notices="The transfer is refused (409), and nothing was moved.",
        on_call="cockroachdb.client.errors of the class overload, reason memory. It was run again once "
        "only, not three times, so that retries do not keep the node full. Look in the DB Console for the "
        "queries that hold the memory.",
        steps=(Inject("memory_exceeded.sql", matching=UPDATE, times=None), transfer(409)),
        expects=(
            *request(TRANSFER, 409, retries=1),
            *attempts("failed", 2, MEMORY),
            *run_again(MEMORY),
            *retries_counted(MEMORY),
            *transactions_timed("retryable", MEMORY, 2),
            *failed(UPDATED, MEMORY, times=2),
        ),
    ),
    Drill(
        name="statement_timeout",
        title="A statement runs into its timeout",
        summary="A report takes longer than statement_timeout, and CockroachDB cancels it: 57014, query "
        "execution canceled due to statement timeout.",
        user_notices="An error page (500) in place of the report.",
        on_call="cockroachdb.client.errors of the class timeout, reason statement_timeout; db.query.summary "
        "and http.route name the statement. It is not run again: it would take as long. Look at its plan "
        "(EXPLAIN ANALYZE), read AS OF SYSTEM TIME, or give it more time.",
        steps=(Inject("statement_timeout", matching="bank_transfer"), page("/report/", 500)),
        expects=(
            *crashed("GET report/", OPERATIONAL_ERROR),
            *failed("SELECT bank_transfer", TIMEOUT),
        ),
    ),
    Drill(
        name="license_throttle",
        title="The licence has expired",
        summary="Without a valid licence, CockroachDB v24.3 and later allow a handful of open transactions "
        "at a time and refuse the others: XXC02.",
        user_notices="An error page (500): nothing was moved, and it may work a moment later.",
        on_call="cockroachdb.client.errors of the class license. Nothing is run again, for retries would "
        "feed the throttle. Install a licence; until then, fewer transactions at once.",
        steps=(Inject("license_throttled.expired", matching=SELECT), transfer(500)),
        expects=(
            *crashed(TRANSFER, "django.db.utils.InternalError"),
            *attempts("failed", 1, LICENSE),
            *transaction("failed", LICENSE),
            *transactions_timed("failed", LICENSE),
            *failed(SELECTED, LICENSE),
        ),
    ),
    Drill(
        name="restricted_internals",
        title="Internals are closed to applications",
        summary="From v26.1 on, crdb_internal and system are closed: what reads them gets 42501. A page "
        "that worked before the upgrade no longer does.",
        user_notices="An error page (500) in place of the list of nodes.",
        on_call="cockroachdb.client.errors of the class permission, from the hour of the upgrade. The "
        "statement's span names the table; take what is open (SHOW …, information_schema), not "
        "allow_unsafe_internals.",
        steps=(Inject("restricted_internals"), page("/nodes/", 500)),
        expects=(
            *crashed("GET nodes/", "django.db.utils.ProgrammingError"),
            *failed("SELECT crdb_internal.gossip_nodes", RESTRICTED),
        ),
    ),
    Drill(
        name="pooler_exhaustion",
        title="A pooler has no connection left",
        summary="A pooler between the bank and CockroachDB has given out all its connections. It takes a "
        "new client, and lets it wait without a word.",
        user_notices="The page hangs for two seconds, then it is an error page (500); when connections are "
        "free again, all is well.",
        on_call="Red spans connect that took as long as connect_timeout, while CockroachDB itself is idle: "
        "then it is the pooler, not the network. Look at its count of waiting clients.",
        steps=(
            Inject("black_hole", on="connect", times=None),
            page("/accounts/", 500),
            Lift(),
            page("/accounts/", 200),
        ),
        expects=(
            *crashed(ACCOUNTS, OPERATIONAL_ERROR),
            *failed("connect", UNANSWERED, metric=CREATE_TIME, seconds=1.5),
            *request(ACCOUNTS, 200),
            *CONNECTED,
        ),
        connection="new",
    ),
    Drill(
        name="pool_exhaustion",
        title="Django's pool has no connection left",
        summary="A slow statement holds the only connection of Django's pool (OPTIONS pool, psycopg 3), and "
        "another request waits for one until the pool's timeout (0.3 s) is over.",
        user_notices="One page is slow (200), the other is an error page (500).",
        on_call="db.client.connection.wait_time is up, spans pool acquire are red with PoolTimeout, class "
        "overload, and CockroachDB itself is not busy. Find out who holds connections for long (spans of "
        "statements and cockroachdb.txn.idle_time) before enlarging the pool.",
        steps=(
            Inject("slow_statement", matching=SELECT, delay=HELD_FOR),
            AtOnce((page("/accounts/", 200), page("/accounts/", 500))),
        ),
        expects=(
            *request(ACCOUNTS, 200, seconds=HELD_FOR),
            *crashed(ACCOUNTS, OPERATIONAL_ERROR),
            WantedSpan("pool acquire", NO_CONNECTION_LEFT.on_span, status="ERROR", seconds=0.25),
            WantedSpan("pool acquire", {semconv.DB_OPERATION_NAME: "acquire"}),
            *told_of(NO_CONNECTION_LEFT),
            WantedPoint(semconv.DB_CONNECTION_WAIT_TIME, NO_CONNECTION_LEFT.on_span),
            WantedSpan(SELECTED, seconds=HELD_FOR),
        ),
        bank="pooled",
    ),
)
