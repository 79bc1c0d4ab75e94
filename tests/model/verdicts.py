# SPDX-License-Identifier: Apache-2.0
"""What docs/retries.md says of each fault of the catalogue, by where it strikes.

Written down apart from the package's own tables, so that one can be held against the other.
"""

from __future__ import annotations

from enum import Enum

from otel_crdb.testing.faults import CATALOGUE


class Verdict(Enum):
    """What is to follow on an attempt."""

    #: It is committed, and its result is the caller's.
    SUCCESS = "success"
    #: Nothing was applied, and another attempt is right.
    AGAIN = "again"
    #: Nothing was applied, and the error is the caller's.
    NEVER = "never"
    #: It may have been applied: again only where twice is as good as once.
    DOUBT = "doubt"
    #: It was applied, and the error is the caller's.
    APPLIED = "applied"


AGAIN_ANYWHERE = (
    "serialization_failure",
    "rollback_to_refused",
    "lock_timeout",
    "bounded_staleness_unsatisfied",
)
#: Links, nodes and limits that pass; at COMMIT they leave it in doubt.
AGAIN_BEFORE_COMMIT = (
    *("connection_reset", "server_closed", "black_hole", "half_open", "lost_commit", "idle_"),
    *("shutting_down", "draining_statement", "not_accepting_clients", "too_many_clients"),
    *("too_many_transactions", "memory_exceeded", "prepared_statement_missing", "range_unavailable"),
)
#: The server's own word that COMMIT may have happened. Said of a statement before COMMIT it applies nothing, and is
#: run again only where twice is as good as once.
IN_DOUBT_ANYWHERE = ("ambiguous_commit", "range_unavailable.commit")
#: Refused for good wherever it strikes, COMMIT included.
NEVER_ANYWHERE = (
    *("lock_not_available", "disk_exceeded", "license_throttled", "restricted_internals", "schema_locked"),
    *("aborted", "committed", "read_only", "savepoint_not_after_", "restart_savepoint_"),
)
#: Refused for good at a statement; COMMIT does not answer like this, so there it may hide a loss.
NEVER_BEFORE_COMMIT = (
    *(
        "statement_timeout",
        "transaction_timeout",
        "query_canceled",
        "rows_limit_exceeded",
        "full_scan_refused",
    ),
    "internal_error",
)
#: Nothing fails: it only takes longer.
HARMLESS = ("slow_statement", "latency", "partition", "connection_refused")
#: Of the whole node: what they do is told by what follows from them.
OF_THE_NODE = ("drain", "node_killed")


def verdict_on(fault, place, *, idempotent):
    """Give what is to follow where a fault alone struck an attempt; None where it does no harm."""
    if fault.startswith(HARMLESS):
        return None
    if fault == "committed_with_ddl_failure":
        return Verdict.APPLIED if place == "commit" else Verdict.NEVER
    if fault.startswith(IN_DOUBT_ANYWHERE):
        before_commit = Verdict.AGAIN if idempotent else Verdict.NEVER
        return Verdict.DOUBT if place == "commit" else before_commit
    if fault.startswith(AGAIN_ANYWHERE):
        return Verdict.AGAIN
    if fault.startswith(AGAIN_BEFORE_COMMIT):
        return Verdict.DOUBT if place == "commit" else Verdict.AGAIN
    if fault.startswith(NEVER_ANYWHERE):
        return Verdict.NEVER
    assert fault.startswith(NEVER_BEFORE_COMMIT), f"nothing is written down of {fault}"
    return Verdict.DOUBT if place == "commit" else Verdict.NEVER


def without_a_verdict():
    """Name the faults of the catalogue of which nothing is written down."""
    known = (
        *(HARMLESS + OF_THE_NODE + AGAIN_ANYWHERE + AGAIN_BEFORE_COMMIT + IN_DOUBT_ANYWHERE),
        *(NEVER_ANYWHERE + NEVER_BEFORE_COMMIT + ("committed_with_ddl_failure",)),
    )
    return [name for name in CATALOGUE if not name.startswith(known)]
