# SPDX-License-Identifier: Apache-2.0
"""One request's whole tree: a nested block, a caught error, a batch, a CTE, and a COMMIT that is refused."""

import pytest
from django.db.backends.postgresql.psycopg_any import is_psycopg3
from django.test import Client
from opentelemetry.trace import SpanKind, StatusCode

from .project import views
from .servers import interfere

pytestmark = pytest.mark.usefixtures("accounts")

UNSET, ERROR = StatusCode.UNSET, StatusCode.ERROR
SERVER, INTERNAL, CLIENT = SpanKind.SERVER, SpanKind.INTERNAL, SpanKind.CLIENT
#: What is not the same in every run; that it is there is asserted.
VARYING = {
    "cockroachdb.txn.idle_time",
    "cockroachdb.request.db_time",
    "cockroachdb.txn.id",
}


def described(telemetry, span):
    """Return a span and all below it: name, kind, status, attributes, events, children."""
    attributes = {name: "…" if name in VARYING else value for name, value in span.attributes.items()}
    events = [(event.name, dict(event.attributes)) for event in span.events]
    for _, found in events:
        found.pop("exception.stacktrace", None)
    children = [described(telemetry, child) for child in telemetry.children(span)]
    return (span.name, span.kind, span.status.status_code, attributes, events, children)


def test_tree_of_a_request_whose_commit_is_refused(telemetry, crdb, monkeypatch):
    """Names, kinds, parents, attributes, events and status of the whole tree are as the reference says."""
    from django.db import connection

    connection.ensure_connection()
    telemetry.clear()
    monkeypatch.setattr(views, "interfere", interfere)
    assert Client(raise_request_exception=False).get("/conflict/").status_code == 500

    (root,) = [span for span in telemetry.spans if span.parent is None]
    driver = "psycopg" if is_psycopg3 else "psycopg2"
    place = {"db.system.name": "cockroachdb", "db.namespace": crdb.database, "server.address": crdb.host}
    gateway = {**place, "server.port": crdb.port, "cockroachdb.node.id": 1, "cockroachdb.version": "v25.4.0"}

    def statement(summary, text, *, status=UNSET, events=(), **more):
        attributes = {
            **gateway,
            "db.query.summary": summary,
            "db.query.text": text,
            "cockroachdb.txn.id": "…",
            **more,
        }
        return (summary, CLIENT, status, attributes, list(events), [])

    duplicate = {
        "error.type": "23505",
        "db.response.status_code": "23505",
        "cockroachdb.error.class": "constraint",
    }
    refused = {
        "error.type": "40001",
        "db.response.status_code": "40001",
        "cockroachdb.error.class": "retryable",
    }
    message = "could not serialize access due to read/write dependencies among transactions"
    assert described(telemetry, root) == (
        "GET conflict/",
        SERVER,
        ERROR,
        {
            "http.request.method": "GET",
            "url.scheme": "http",
            "url.path": "/conflict/",
            "server.address": "testserver",
            "server.port": 80,
            "client.address": "127.0.0.1",
            "network.protocol.version": "1.1",
            "http.route": "conflict/",
            "http.response.status_code": 500,
            "error.type": "500",
            "cockroachdb.request.transactions": 1,
            "cockroachdb.request.statements": 4,
            "cockroachdb.request.retries": 0,
            "cockroachdb.request.db_time": "…",
        },
        [("exception", {"exception.type": "django.db.utils.OperationalError", "exception.message": message})],
        [
            (
                f"transaction {crdb.database}",
                INTERNAL,
                ERROR,
                {
                    **gateway,
                    **refused,
                    "cockroachdb.txn.id": "…",
                    "cockroachdb.txn.attempt": 1,
                    "cockroachdb.txn.outcome": "retryable",
                    "cockroachdb.txn.statements": 4,
                    "cockroachdb.txn.savepoints": 1,
                    "cockroachdb.txn.idle_time": "…",
                },
                [],
                [
                    statement(
                        "SELECT account",
                        'SELECT "account"."id", "account"."email", "account"."balance" FROM "account"',
                    ),
                    statement("SAVEPOINT", "SAVEPOINT ?"),
                    statement(
                        "INSERT account",
                        'INSERT INTO "account" ("email", "balance") VALUES (%s, %s) RETURNING "account"."id"',
                        status=ERROR,
                        events=[
                            (
                                "db.client.operation.exception",
                                {
                                    **duplicate,
                                    "exception.type": f"{driver}.errors.UniqueViolation",
                                    "exception.message": "duplicate key value violates unique constraint "
                                    '"account_email_key"',
                                },
                            )
                        ],
                        **duplicate,
                    ),
                    statement("ROLLBACK TO SAVEPOINT", "ROLLBACK TO SAVEPOINT ?"),
                    statement("RELEASE SAVEPOINT", "RELEASE SAVEPOINT ?"),
                    statement(
                        "BATCH INSERT account",
                        "INSERT INTO account (email, balance) VALUES (%s, %s)",
                        **{"db.operation.batch.size": 3},
                    ),
                    statement(
                        "SELECT account UPDATE account",
                        "WITH rich AS (SELECT id FROM account WHERE balance > ?) "
                        "UPDATE account SET balance = balance - ? FROM rich WHERE account.id = rich.id",
                    ),
                    (
                        "COMMIT",
                        CLIENT,
                        ERROR,
                        {
                            **gateway,
                            **refused,
                            "db.query.summary": "COMMIT",
                            "db.operation.name": "COMMIT",
                            "cockroachdb.txn.id": "…",
                        },
                        [
                            (
                                "db.client.operation.exception",
                                {
                                    **refused,
                                    "exception.type": f"{driver}.errors.SerializationFailure",
                                    "exception.message": message,
                                    "cockroachdb.retry.reason": "unknown",
                                    "cockroachdb.retry.cause": "unknown",
                                },
                            )
                        ],
                        [],
                    ),
                ],
            )
        ],
    )
