# SPDX-License-Identifier: Apache-2.0
"""Every name that leaves the process, with the convention it comes from.

OpenTelemetry's own names are the stable ones of semantic conventions 1.44.0 unless marked
*development*. What OpenTelemetry lacks follows its rule for system-specific attributes: the
system's name as prefix, here ``cockroachdb.``.
"""

from __future__ import annotations

from typing import Final

SCHEMA_URL: Final = "https://opentelemetry.io/schemas/1.44.0"

# --- OpenTelemetry: database spans -------------------------------------------------------------
DB_SYSTEM_NAME: Final = "db.system.name"
#: Value of :data:`DB_SYSTEM_NAME` (*development*, listed among the SQL systems).
COCKROACHDB: Final = "cockroachdb"
DB_NAMESPACE: Final = "db.namespace"
DB_QUERY_SUMMARY: Final = "db.query.summary"
DB_QUERY_TEXT: Final = "db.query.text"
DB_OPERATION_NAME: Final = "db.operation.name"
DB_OPERATION_BATCH_SIZE: Final = "db.operation.batch.size"
DB_STORED_PROCEDURE_NAME: Final = "db.stored_procedure.name"
DB_RESPONSE_STATUS_CODE: Final = "db.response.status_code"
#: *development*; the alias is not a pool's name, so it is built from address and namespace.
DB_CLIENT_CONNECTION_POOL_NAME: Final = "db.client.connection.pool.name"
ERROR_TYPE: Final = "error.type"
SERVER_ADDRESS: Final = "server.address"
SERVER_PORT: Final = "server.port"

# --- OpenTelemetry: HTTP server spans ----------------------------------------------------------
URL_PATH: Final = "url.path"
NETWORK_PROTOCOL_VERSION: Final = "network.protocol.version"
URL_QUERY: Final = "url.query"

# --- OpenTelemetry: exceptions -----------------------------------------------------------------
EXCEPTION_TYPE: Final = "exception.type"
EXCEPTION_MESSAGE: Final = "exception.message"
EXCEPTION_STACKTRACE: Final = "exception.stacktrace"
#: *development*: one such event an error, on the span or as a log record.
DB_EXCEPTION_EVENT: Final = "db.client.operation.exception"
#: *development*: an exception that became a request's answer, as a log record.
REQUEST_EXCEPTION_EVENT: Final = "http.server.request.exception"
#: The SDK's and contrib's name for an exception recorded on a span.
EXCEPTION_EVENT: Final = "exception"

# --- OpenTelemetry: metrics --------------------------------------------------------------------
DB_OPERATION_DURATION: Final = "db.client.operation.duration"
#: *development*
DB_CONNECTION_CREATE_TIME: Final = "db.client.connection.create_time"
#: *development*
DB_CONNECTION_WAIT_TIME: Final = "db.client.connection.wait_time"
#: Seconds: the bounds that the convention gives for ``db.client.operation.duration``.
DURATION_BOUNDS: Final = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0)

# --- CockroachDB: transactions -----------------------------------------------------------------
TXN_ID: Final = "cockroachdb.txn.id"
TXN_NAME: Final = "cockroachdb.txn.name"
TXN_ATTEMPTS: Final = "cockroachdb.txn.attempts"
TXN_ATTEMPT: Final = "cockroachdb.txn.attempt"
TXN_OUTCOME: Final = "cockroachdb.txn.outcome"
TXN_STATEMENTS: Final = "cockroachdb.txn.statements"
TXN_SAVEPOINTS: Final = "cockroachdb.txn.savepoints"
TXN_IDLE_TIME: Final = "cockroachdb.txn.idle_time"
TXN_ISOLATION_LEVEL: Final = "cockroachdb.txn.isolation_level"
TXN_READ_ONLY: Final = "cockroachdb.txn.read_only"
TXN_PRIORITY: Final = "cockroachdb.txn.priority"
TXN_AS_OF_SYSTEM_TIME: Final = "cockroachdb.txn.as_of_system_time"
TXN_SERVER_ID: Final = "cockroachdb.txn.server_id"
SILENT_ABORT_EVENT: Final = "cockroachdb.txn.silent_abort"
RETRY_EVENT: Final = "cockroachdb.txn.retry"
AMBIGUOUS_EVENT: Final = "cockroachdb.txn.ambiguous"

# --- CockroachDB: errors -----------------------------------------------------------------------
ERROR_CLASS: Final = "cockroachdb.error.class"
RETRY_REASON: Final = "cockroachdb.retry.reason"
RETRY_BACKOFF: Final = "cockroachdb.retry.backoff"
RETRY_CAUSE: Final = "cockroachdb.retry.cause"
CONFLICT_SERVER_TXN_ID: Final = "cockroachdb.conflict.server_txn_id"
CONFLICT_TABLE_ID: Final = "cockroachdb.conflict.table_id"
CONFLICT_INDEX_ID: Final = "cockroachdb.conflict.index_id"

# --- CockroachDB: connections ------------------------------------------------------------------
NODE_ID: Final = "cockroachdb.node.id"
VERSION: Final = "cockroachdb.version"

# --- CockroachDB: requests ---------------------------------------------------------------------
REQUEST_TRANSACTIONS: Final = "cockroachdb.request.transactions"
REQUEST_STATEMENTS: Final = "cockroachdb.request.statements"
REQUEST_RETRIES: Final = "cockroachdb.request.retries"
REQUEST_DB_TIME: Final = "cockroachdb.request.db_time"
#: How often the view was run, where it is one that is retried.
REQUEST_ATTEMPTS: Final = "cockroachdb.request.attempts"
#: A word for each of the request's retries, in their order.
REQUEST_RETRY_REASONS: Final = "cockroachdb.request.retry_reasons"

# --- log records -------------------------------------------------------------------------------
CODE_FILE_PATH: Final = "code.file.path"
CODE_FUNCTION_NAME: Final = "code.function.name"
CODE_LINE_NUMBER: Final = "code.line.number"
THREAD_ID: Final = "thread.id"
THREAD_NAME: Final = "thread.name"
HTTP_REQUEST_METHOD: Final = "http.request.method"
HTTP_RESPONSE_STATUS_CODE: Final = "http.response.status_code"
HTTP_ROUTE: Final = "http.route"
#: Of the database, as Django calls it.
ALIAS: Final = "cockroachdb.alias"
#: What a line of ``otel_crdb.db`` tells of: ``failed``, ``slow``, ``retried``, ….
LOG_KIND: Final = "otel_crdb.log.kind"

# --- CockroachDB: metrics ----------------------------------------------------------------------
TXN_ATTEMPTS_METRIC: Final = "cockroachdb.client.txn.attempts"
#: Attempts: the bounds of :data:`TXN_ATTEMPTS_METRIC`.
ATTEMPT_BOUNDS: Final = (1.0, 2.0, 3.0, 5.0, 8.0, 13.0, 21.0)
TXN_RETRIES: Final = "cockroachdb.client.txn.retries"
TXN_DURATION: Final = "cockroachdb.client.txn.duration"
CLIENT_ERRORS: Final = "cockroachdb.client.errors"
SILENT_ABORTS: Final = "cockroachdb.client.txn.silent_aborts"
#: Faults of our own hooks; see :mod:`otel_crdb.hooks`.
HOOK_FAULTS: Final = "otel_crdb.hook.faults"
#: Which hook a fault was found in.
HOOK_NAME: Final = "otel_crdb.hook.name"
#: What did not reach the collector; see :mod:`otel_crdb.delivery`.
TELEMETRY_DROPPED: Final = "otel_crdb.telemetry.dropped"
#: ``traces``, ``metrics`` or ``logs``.
TELEMETRY_SIGNAL: Final = "otel_crdb.telemetry.signal"
#: Why it was dropped.
TELEMETRY_DROP_REASON: Final = "otel_crdb.telemetry.drop_reason"
