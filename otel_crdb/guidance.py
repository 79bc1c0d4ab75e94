# SPDX-License-Identifier: Apache-2.0
"""What to tell the person on call about each class and reason of error. Data only, no values.

Pages and anchors are those of CockroachDB's documentation (docs/stable).
"""

from __future__ import annotations

from typing import NamedTuple

DOCS = "https://www.cockroachlabs.com/docs/stable/"


class Guidance(NamedTuple):
    """One sentence for the person on call, and the page of CockroachDB's documentation that tells more."""

    advice: str
    page: str


_RETRY_PAGE = "transaction-retry-error-reference"

#: By error class: every class has a row.
GUIDANCE: dict[str, Guidance] = {
    "retryable": Guidance("The server rolled the transaction back; run all of it again.", _RETRY_PAGE),
    "ambiguous": Guidance(
        "The transaction may or may not have committed; look for its effect before running it again.",
        "common-errors#result-is-ambiguous",
    ),
    "timeout": Guidance(
        "The statement or transaction ran longer than its timeout; make it shorter or raise the timeout.",
        "query-behavior-troubleshooting",
    ),
    "cancelled": Guidance(
        "Somebody cancelled the query or the node is draining; find out who before running it again.",
        "manage-long-running-queries",
    ),
    "unavailable": Guidance(
        "The node is going away; connect again through the load balancer and check the nodes.",
        "node-shutdown",
    ),
    "connection": Guidance(
        "The link to the node broke; check node, load balancer and network, then connect again.",
        "common-errors#connection-refused",
    ),
    "permission": Guidance(
        "The server refused user, credentials or privileges; correct the role or the TLS settings.",
        "authorization",
    ),
    "overload": Guidance(
        "A limit of the node or of the connection pool is reached; lower concurrency or raise the limit.",
        "recommended-production-settings",
    ),
    "committed_with_ddl_failure": Guidance(
        "The transaction committed but its schema change failed; inspect the schema and do not run it again.",
        "online-schema-changes",
    ),
    "license": Guidance(
        "The cluster is throttled for want of a valid licence; install one, for retries feed the throttle.",
        "licensing-faqs",
    ),
    "aborted_state": Guidance(
        "The transaction had already failed; roll it back and look at its first error.", "transactions"
    ),
    "constraint": Guidance("The data breaks a constraint; correct what is written.", "constraints"),
    "data": Guidance("A value does not fit its type or range; correct the value.", "data-types"),
    "schema": Guidance(
        "Statement and schema do not fit together; correct the statement or migrate.", "sql-statements"
    ),
    "internal": Guidance(
        "The server failed in a way it has no code for; keep the message and the node's log.", "common-errors"
    ),
    "other": Guidance("The server refused the statement; its code and message say why.", "common-errors"),
}

_DEADLOCK = (
    "Another transaction aborted this one (deadlock, priority or overload); retry and lock rows in one order."
)
_LEASE = "A range moved or its node is overloaded; retry, and look at the cluster if it goes on."

#: By reason, where there is more to say than for its class.
REASON_GUIDANCE: dict[str, Guidance] = {
    **{
        name: Guidance(advice, f"{_RETRY_PAGE}#{name.lower()}")
        for name, advice in {
            "RETRY_WRITE_TOO_OLD": "Another transaction wrote the row first; retry, lock it by FOR UPDATE.",
            "RETRY_SERIALIZABLE": "What the transaction read has changed; retry and keep it short.",
            "RETRY_ASYNC_WRITE_FAILURE": _LEASE,
            "RETRY_COMMIT_DEADLINE_EXCEEDED": "The transaction ran too long; a retry may fail too.",
            "ABORT_REASON_ABORTED_RECORD_FOUND": _DEADLOCK,
            "ABORT_REASON_CLIENT_REJECT": _DEADLOCK,
            "ABORT_REASON_PUSHER_ABORTED": _DEADLOCK,
            "ABORT_REASON_ABORT_SPAN": _DEADLOCK,
            "ABORT_REASON_NEW_LEASE_PREVENTS_TXN": _LEASE,
            "ABORT_REASON_TIMESTAMP_CACHE_REJECTED": _LEASE,
        }.items()
    },
    "ReadWithinUncertaintyInterval": Guidance(
        "A read met a write its clock cannot order; retry, and keep the nodes' clocks close.",
        f"{_RETRY_PAGE}#readwithinuncertaintyintervalerror",
    ),
    "injected": Guidance(
        "A session variable injects this error for tests; switch it off in production.",
        f"{_RETRY_PAGE}#injected-by-inject_retry_errors_enabled-session-variable",
    ),
    "memory": Guidance(
        "The query passed the node's memory budget; make it smaller or raise --max-sql-memory.",
        "common-errors#memory-budget-exceeded",
    ),
    "lock_timeout": Guidance(
        "Another transaction held the row's lock past lock_timeout; retry, and shorten the holder.",
        "select-for-update",
    ),
    "range_unavailable": Guidance(
        "A range has lost its quorum; restore its nodes and retry slowly meanwhile.",
        "cluster-setup-troubleshooting",
    ),
    "pool_exhausted": Guidance(
        "The application's own connection pool is used up; enlarge it or hold connections for less time.",
        "connection-pooling",
    ),
    "pool_closed": Guidance(
        "The application's own connection pool is closed; open it again.", "connection-pooling"
    ),
    "prepared_statement_lost": Guidance(
        "A pooler gave the session to another server connection; switch prepared statements off behind it.",
        "connection-pooling",
    ),
}
