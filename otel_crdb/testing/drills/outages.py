# SPDX-License-Identifier: Apache-2.0
"""The drills in which a node drains or dies, the network is cut or long, or a range cannot be reached."""

from __future__ import annotations

from typing import TYPE_CHECKING

from otel_crdb import semconv

from .commits import LOST
from .conflicts import SELECTED, TRANSFER, UPDATE, UPDATED
from .drill import AMOUNT, Drill, Inject, Lift, page, transfer
from .expectations import ANY, AtLeast, WantedPoint, WantedSpan
from .telling import (
    CONNECT_TIMEOUT,
    NO_ANSWER,
    Words,
    attempts,
    crashed,
    failed,
    request,
    retries_counted,
    run_again,
    transaction,
    transactions_timed,
)

if TYPE_CHECKING:
    from .expectations import Expectation

ACCOUNTS = "GET accounts/"
FAR_AWAY = 0.3

DRAINING = Words("unavailable", "57P01", "admin_shutdown", "cluster")
CUT_BY_DRAIN = Words("unavailable", "57014", "admin_shutdown", "cluster")
REFUSED = Words("connection", type=NO_ANSWER, reason="connect_failed", cause="cluster")
UNANSWERED = Words("connection", type=CONNECT_TIMEOUT, reason="connect_failed", cause="cluster")
RANGE_UNAVAILABLE = Words("unavailable", "XXUUU", "range_unavailable", "cluster")

CREATE_TIME = semconv.DB_CONNECTION_CREATE_TIME
CONNECTED = (WantedSpan("connect", {semconv.DB_OPERATION_NAME: "connect", semconv.VERSION: ANY}),)


def _cut(operation: str, words: Words) -> tuple[Expectation, ...]:
    """Want a transfer whose connection was lost at an operation, and that was made on a new one."""
    return (
        *request(TRANSFER, 201, retries=1),
        *attempts("committed", 2),
        *run_again(words),
        *retries_counted(words),
        *transaction("retryable", words),
        *failed(operation, words),
        *CONNECTED,
        *transaction("committed", attempt=2),
        *transactions_timed("committed"),
    )


OUTAGES = (
    Drill(
        name="drain_idle_connection",
        title="A draining node closes an idle connection",
        summary="The node drains, as in every rolling upgrade. It tells its idle connections 57P01, server "
        "is shutting down, and closes them; behind a load balancer, other nodes go on.",
        user_notices="Nothing: Django finds the connection dead before it uses it (CONN_HEALTH_CHECKS) and "
        "opens another.",
        on_call="A span connect in a request that usually has none, and more in "
        "db.client.connection.create_time. The check itself is Django's own and leaves no span. Without "
        "CONN_HEALTH_CHECKS these requests fail.",
        steps=(Inject("drain"), Lift(), page("/accounts/", 200)),
        expects=(
            *request(ACCOUNTS, 200),
            *CONNECTED,
            WantedPoint(CREATE_TIME, {semconv.DB_CLIENT_CONNECTION_POOL_NAME: ANY}),
            WantedSpan(SELECTED),
        ),
    ),
    Drill(
        name="drain_running_statement",
        title="A draining node cuts a running statement",
        summary="The time that a drain gives to transactions is over, and one is still under way: its "
        "statement is cancelled (57014), the session hears 57P01 and is closed.",
        user_notices="Nothing: the transfer is run again on a new connection and made (201).",
        on_call="Retries of the reason admin_shutdown while nodes are restarted, none before and after. The "
        "bare 57014 is a drain and no cancelled query, because the connection is gone with it. psycopg2 "
        "hears neither code, only that the connection was closed: class connection, reason connection_lost. "
        "Many of them: raise server.shutdown.transactions.timeout, or shorten the transactions.",
        steps=(Inject("draining_statement", matching=UPDATE), transfer(201)),
        expects=_cut(UPDATED, CUT_BY_DRAIN),
        on_psycopg2=_cut(UPDATED, LOST),
        moved=AMOUNT,
    ),
    Drill(
        name="drain_new_connection",
        title="A draining node refuses a new connection",
        summary="The load balancer has not yet heard of the drain and sends a new connection to the node, "
        "which refuses it: 57P01, server is not accepting clients, try another node.",
        user_notices="Nothing: the transfer connects again and is made (201).",
        on_call="A red span connect with 57P01, then a good one. If it goes on for long, the load "
        "balancer's health check is not /health?ready=1, or server.shutdown.initial_wait is shorter than "
        "its interval.",
        steps=(Inject("not_accepting_clients"), transfer(201)),
        expects=(
            *request(TRANSFER, 201, retries=1),
            *attempts("committed", 2),
            *run_again(DRAINING),
            *retries_counted(DRAINING),
            *failed("connect", DRAINING, metric=CREATE_TIME),
            *CONNECTED,
            *transaction("committed", attempt=2),
        ),
        connection="new",
        moved=AMOUNT,
    ),
    Drill(
        name="rolling_restart",
        title="A node drains, is restarted, and comes back",
        summary="The only node that the bank knows drains: idle connections are closed, new ones refused "
        "(57P01). Then its process ends, and the operating system refuses. Then it is back.",
        user_notices="Error pages (500) while the node is away, for reading a page is not run again; then "
        "all is well.",
        on_call="cockroachdb.client.errors by class tells the phases: unavailable (57P01) while it drains, "
        "connection while it is down, then nothing. An application that sees this has no load balancer "
        "before its nodes, or one that sends it to the node that restarts.",
        steps=(
            Inject("drain"),
            page("/accounts/", 500),
            Lift(),
            Inject("node_killed"),
            page("/accounts/", 500),
            Lift(),
            transfer(201),
        ),
        expects=(
            *crashed(ACCOUNTS, "django.db.utils.OperationalError", times=2),
            *failed("connect", DRAINING, metric=CREATE_TIME),
            *failed("connect", REFUSED, metric=CREATE_TIME),
            *CONNECTED,
            *request(TRANSFER, 201),
            *attempts("committed", 1),
        ),
        moved=AMOUNT,
    ),
    Drill(
        name="connection_reset",
        title="The connection breaks in the middle of a transaction",
        summary="The node, or something on the way to it, resets the connection while a statement is under "
        "way. COMMIT was not sent, so it is certain that nothing was applied.",
        user_notices="Nothing: the transfer is run again on a new connection and made (201).",
        on_call="Retries of the reason connection_lost, class connection. Single ones happen; many at once "
        "are a node that died or a load balancer with an idle timeout.",
        steps=(Inject("connection_reset", matching=UPDATE), transfer(201)),
        expects=_cut(UPDATED, LOST),
        moved=AMOUNT,
    ),
    Drill(
        name="node_loss",
        title="The node is lost",
        summary="The only node that the bank knows is killed: its connections are reset, new ones refused. "
        "Later it is started again.",
        user_notices="The transfer is refused after three attempts (409), and nothing was moved; when the "
        "node is back, the next one is made.",
        on_call="Red spans connect and cockroachdb.client.errors of the class connection, reason "
        "connect_failed, from every process at once. Look at the node and at the load balancer; the "
        "application recovers by itself.",
        steps=(Inject("node_killed"), transfer(409), Lift(), transfer(201)),
        expects=(
            *request(TRANSFER, 409, retries=2),
            *attempts("failed", 3, REFUSED),
            *run_again(REFUSED, 1),
            *run_again(REFUSED, 2),
            *retries_counted(REFUSED, 2),
            *failed("connect", REFUSED, times=3, metric=CREATE_TIME),
            *request(TRANSFER, 201),
            *CONNECTED,
            *attempts("committed", 1),
        ),
        moved=AMOUNT,
    ),
    Drill(
        name="partition",
        title="The network is cut",
        summary="Nothing passes between bank and node, and nobody is told. The bank wants a new connection "
        "and hears nothing, until its connect_timeout (2 s) ends the wait.",
        user_notices="The page hangs for two seconds, then it is an error page (500). When the network is "
        "back, all is well.",
        on_call="Red spans connect that took as long as connect_timeout, class connection, and requests "
        "that took as long. Set connect_timeout: without it libpq waits for minutes. A connection that is "
        "open already hangs until tcp_user_timeout ends it (which a proxy on the same machine cannot show, "
        "for the kernel goes on acknowledging).",
        steps=(Inject("partition"), page("/accounts/", 500), Lift(), page("/accounts/", 200)),
        expects=(
            *crashed(ACCOUNTS, "django.db.utils.OperationalError"),
            *failed("connect", UNANSWERED, metric=CREATE_TIME, seconds=1.5),
            *request(ACCOUNTS, 200),
            *CONNECTED,
        ),
        connection="new",
    ),
    Drill(
        name="slow_region",
        title="The node is a region away",
        summary="The load balancer sends the bank to a node in another region, 300 ms away. Everything "
        "works, and every round trip takes that long.",
        user_notices="The page is there (200), but slow.",
        on_call="No error anywhere: db.client.operation.duration is up for all statements alike, and "
        "cockroachdb.request.db_time makes out most of the requests. cockroachdb.node.id on the spans tells "
        "which node answers; the remedy is locality-aware load balancing, or fewer round trips.",
        steps=(Inject("latency", delay=FAR_AWAY), page("/accounts/", 200)),
        expects=(
            WantedSpan(
                ACCOUNTS,
                {"http.response.status_code": 200, semconv.REQUEST_DB_TIME: AtLeast(FAR_AWAY)},
                span_kind="SERVER",
                seconds=FAR_AWAY,
            ),
            WantedSpan(SELECTED, {semconv.NODE_ID: ANY}, seconds=FAR_AWAY),
            WantedPoint(semconv.DB_OPERATION_DURATION, by=1, total=AtLeast(FAR_AWAY)),
        ),
    ),
    Drill(
        name="range_unavailable",
        title="A range has lost its quorum",
        summary="Most replicas of the range that holds the accounts cannot be reached. Its circuit breaker "
        "answers every statement that needs it (replica unavailable, XXUUU).",
        user_notices="The transfer is refused after three attempts (409), and nothing was moved. Whatever "
        "lives in other ranges works.",
        on_call="cockroachdb.client.errors of the class unavailable, reason range_unavailable. The attempts "
        "lie further apart than those of a conflict. The DB Console's page on problem ranges tells which "
        "nodes to bring back.",
        steps=(Inject("range_unavailable.breaker", matching=UPDATE, times=None), transfer(409)),
        expects=(
            *request(TRANSFER, 409, retries=2),
            *attempts("failed", 3, RANGE_UNAVAILABLE),
            *run_again(RANGE_UNAVAILABLE, 1),
            *run_again(RANGE_UNAVAILABLE, 2),
            *retries_counted(RANGE_UNAVAILABLE, 2),
            *transactions_timed("retryable", RANGE_UNAVAILABLE, 3),
            *failed(UPDATED, RANGE_UNAVAILABLE, times=3),
        ),
    ),
)
