# SPDX-License-Identifier: Apache-2.0
"""The faults that refuse a statement: timeouts, limits, locks, unavailable ranges, licence, privileges."""

from __future__ import annotations

import re
from typing import Final, Literal, get_args

from .fault import ErrorFields, Fault, Place, Upstream
from .restarts import DEFAULT_VERSION, at_least, unknown
from .transaction_faults import ISSUE_REFERRAL, REPLICA_UNAVAILABLE, of_variant

_NUMBERS = "The numbers are examples."


def statement_timeout() -> Fault:
    """End a statement that ran longer than `statement_timeout` (57014)."""
    return _canceled("statement_timeout", " due to statement timeout", "A statement ran into its timeout.")


def transaction_timeout() -> Fault:
    """End a transaction that ran longer than `transaction_timeout` (57014)."""
    return _canceled(
        "transaction_timeout", " due to transaction timeout", "A transaction ran into its timeout."
    )


def query_canceled() -> Fault:
    """Cancel a query, as CANCEL QUERY, a cancel request and a drain do (57014)."""
    return _canceled("query_canceled", "", "A query was cancelled.")


def _canceled(name: str, why: str, summary: str) -> Fault:
    return Fault(
        name=name,
        summary=summary,
        errors=(ErrorFields("57014", f"query execution canceled{why}"),),
        source="pkg/sql/sqlerrors/errors.go, pkg/sql/conn_executor_exec.go",
    )


def too_many_transactions(limit: int = 50) -> Fault:
    """Refuse a statement, for the node has as many open transactions as it may (53400).

    Args:
        limit: `server.max_open_transactions_per_gateway`, told in the hint.

    """
    message = "cannot execute operation due to server.max_open_transactions_per_gateway cluster setting"
    return Fault(
        name="too_many_transactions",
        summary="The node has too many open transactions.",
        errors=(ErrorFields("53400", message, hint=f"the maximum number of open transactions is {limit}"),),
        source="pkg/sql/conn_executor_exec.go",
    )


Monitor = Literal["sql", "root"]
MONITORS: tuple[Monitor, ...] = get_args(Monitor)


def memory_exceeded(monitor: Monitor = "sql") -> Fault:
    """Refuse a query that needs more memory than there is (53200).

    Args:
        monitor: whose budget is spent. "root" is all of the node's; it alone gives a hint.

    """
    if monitor not in MONITORS:
        raise unknown("memory monitor", monitor, MONITORS)
    message = (
        f"{monitor}: memory budget exceeded: 10240 bytes requested, 134213632 currently allocated, "
        "134217728 bytes in budget"
    )
    hint = "Consider increasing --max-sql-memory startup parameter." if monitor == "root" else ""
    return Fault(
        name=of_variant("memory_exceeded", monitor),
        summary="A query needs more memory than the budget holds.",
        errors=(ErrorFields("53200", message, hint=hint),),
        source="pkg/util/mon/bytes_usage.go",
        uncertain=_NUMBERS,
    )


Disk = Literal["temporary", "store"]
DISKS: tuple[Disk, ...] = get_args(Disk)


def disk_exceeded(disk: Disk = "temporary") -> Fault:
    """Find no room left on a disk (53100).

    Args:
        disk: "temporary", where large queries put what memory does not hold, or "store", the data itself.

    """
    messages: dict[Disk, str] = {
        "temporary": (
            "disk budget exceeded: 10240 bytes requested, 34359734272 currently allocated, "
            "34359738368 bytes in budget"
        ),
        "store": (
            "store 1 has insufficient remaining capacity to ingest data "
            "(remaining: 1.2 GiB / 0.5%, min required: 5.0%)"
        ),
    }
    if disk not in messages:
        raise unknown("disk", disk, messages)
    return Fault(
        name=of_variant("disk_exceeded", disk),
        summary="There is no room left on a disk.",
        errors=(ErrorFields("53100", messages[disk]),),
        source="pkg/util/mon, pkg/kv/kvserver",
        uncertain="The numbers are examples; of the store's words only the first half is sure.",
    )


_ROW = "on row (id)=(5) in accounts@accounts_pkey"


def lock_not_available() -> Fault:
    """Refuse a locked row, for NOWAIT asked not to wait or too many wait already (55P03)."""
    return _locked("lock_not_available", f"could not obtain lock {_ROW}", "A row is locked.")


def lock_timeout() -> Fault:
    """Give up on a row that stayed locked for longer than `lock_timeout` (55P03)."""
    return _locked(
        "lock_timeout", f"canceling statement due to lock timeout {_ROW}", "A row stayed locked for too long."
    )


def _locked(name: str, message: str, summary: str) -> Fault:
    return Fault(name, summary, errors=(ErrorFields("55P03", message),), source="pkg/sql/row/errors.go")


Unavailable = Literal["breaker", "range", "internal", "commit"]
UNAVAILABLE: tuple[Unavailable, ...] = get_args(Unavailable)
_SLOW = "failed to send RPC: sending to all replicas failed"
_BROKEN = "rpc error: code = Unavailable desc = error reading from server: EOF"
_CAUSE_UNKNOWN = "What stands after the colon is an example."


def range_unavailable(form: Unavailable = "breaker", *, delay: float = 0.0) -> Fault:
    """Fail for a range that has lost its quorum, or whose leading node cannot be reached.

    Args:
        form: "breaker" is what the replica's circuit breaker says (XXUUU), "range" is the older 58C00,
            "internal" is 58C01, a stream between nodes that broke; "commit" is the breaker at COMMIT, inside
            a 40003.
        delay: seconds before the answer; a server takes up to 60.

    """
    forms: dict[Unavailable, tuple[str, str, Place, str]] = {
        "breaker": ("XXUUU", REPLICA_UNAVAILABLE, "statement", "Span, descriptor and cause are examples."),
        "range": ("58C00", f"key range id:106 is unavailable: {_SLOW}", "statement", _CAUSE_UNKNOWN),
        "internal": ("58C01", f"inbox communication error: {_BROKEN}", "statement", _CAUSE_UNKNOWN),
        "commit": (
            "40003",
            f"result is ambiguous: {REPLICA_UNAVAILABLE}",
            "commit",
            "Span, descriptor and cause are examples.",
        ),
    }
    if form not in forms:
        raise unknown("form of an unavailable range", form, forms)
    sqlstate, message, place, uncertain = forms[form]
    return Fault(
        name=of_variant("range_unavailable", form),
        summary="A range cannot be reached.",
        errors=(ErrorFields(sqlstate, message),),
        delay=delay,
        place=place,
        source="pkg/kv/kvpb/errors.go, pkg/sql/sqlerrors/errors.go, pkg/sql/colflow/colrpc/inbox.go",
        uncertain=uncertain,
    )


Licence = Literal["expired", "none", "diagnostics"]
LICENCES: tuple[Licence, ...] = get_args(Licence)


def license_throttled(kind: Licence = "expired") -> Fault:
    """Refuse a statement, for without a licence few transactions may be open at a time (XXC02, from v24.3).

    Strikes at a statement, not at the BEGIN before it, for a server looks once the transaction is open.

    Args:
        kind: "expired", "none" installed, or "diagnostics": the licence asks for reports, and none has come.

    """
    limit = "The maximum number of concurrently open transactions has been reached"
    texts: dict[Licence, tuple[str, str]] = {
        "expired": (
            f"License expired on 2026-08-01 00:00:00 +0000 UTC. {limit}.",
            "Obtain and install a new license to continue.",
        ),
        "none": (f"No license installed. {limit}.", "Obtain and install a valid license to continue."),
        "diagnostics": (
            (
                f"{limit} because the license requires diagnostic reporting, but none has been received "
                "by Cockroach Labs."
            ),
            (
                "Ensure diagnostic reporting is enabled and verify that nothing is blocking network access "
                "to the Cockroach Labs reporting server. You can also consider changing your license to one "
                "that doesn't require diagnostic reporting to be emitted."
            ),
        ),
    }
    if kind not in texts:
        raise unknown("kind of missing licence", kind, texts)
    message, hint = texts[kind]
    return Fault(
        name=of_variant("license_throttled", kind),
        summary="The node is throttled for want of a valid licence.",
        errors=(ErrorFields("XXC02", message, hint=hint),),
        source="pkg/server/license/enforcer.go, pkg/sql/conn_executor_exec.go",
    )


#: What of crdb_internal stays open to all: tables, then functions.
_OPEN_INTERNALS: Final = (
    *("cluster_contended_indexes", "cluster_contended_keys", "cluster_contended_tables"),
    *("cluster_contention_events", "cluster_locks", "cluster_queries", "cluster_sessions"),
    *("cluster_transactions", "index_usage_statistics", "statement_statistics"),
    *("transaction_contention_events", "transaction_statistics", "zones"),
    *("datums_to_bytes", "increment_feature_counter", "deserialize_session"),
)


def restricted_internals(version: str = DEFAULT_VERSION) -> Fault:
    """Refuse a query that asks for internals which only `allow_unsafe_internals` opens (42501).

    Strikes at a statement that names anything of `crdb_internal` but what is open to all, or of `system`.

    Args:
        version: "v25.4" (where the session variable is on until it is switched off) to "v26.3".

    """
    if not at_least(version, "v25.4"):
        raise ValueError(f"{version} restricts no internals; v25.4 and later do")
    return Fault(
        name="restricted_internals",
        summary="A query asks for restricted internals.",
        errors=(
            ErrorFields(
                "42501",
                "Access to crdb_internal and system is restricted.",
                hint="These interfaces are unsupported in production. To proceed, set the session variable "
                "allow_unsafe_internals = true (not recommended), or contact Cockroach Labs for a supported "
                "alternative.",
            ),
        ),
        planning=True,
        matching=rf'\bcrdb_internal"?\.(?!"?(?:{"|".join(_OPEN_INTERNALS)})\b)|\bsystem"?\."?\w',
        source="CockroachDB's documentation of crdb_internal; messages seen in public logs",
        uncertain="The earliest builds put the hint's words into the message.",
    )


def prepared_statement_missing(name: str = "_pg3_0") -> Fault:
    """Know nothing of a prepared statement (26000), as behind a pooler that changes the server's session.

    Args:
        name: of the statement; psycopg 3 calls its own `_pg3_0`, `_pg3_1` and so on.

    """
    return Fault(
        name="prepared_statement_missing",
        summary="A prepared statement is not there.",
        errors=(ErrorFields("26000", f'prepared statement "{name}" does not exist'),),
        source="pkg/sql/conn_executor_exec.go",
    )


def internal_error() -> Fault:
    """Fail by a defect of the server's own (XX000); the detail holds its stack."""
    return Fault(
        name="internal_error",
        summary="The server has met a defect of its own.",
        errors=(
            ErrorFields(
                "XX000",
                "internal error: unexpected error from the vectorized engine: index out of range [3]",
                hint=f"You have encountered an unexpected error.{ISSUE_REFERRAL}",
                detail="stack trace:\nruntime/panic.go:920: gopanic()\n"
                "github.com/cockroachdb/cockroach/pkg/sql/conn_executor_exec.go:147: execStmt()\n",
            ),
        ),
        source="pkg/sql/pgwire/pgerror/flatten.go, github.com/cockroachdb/errors/assert",
        uncertain="Message and stack are examples.",
    )


def bounded_staleness_unsatisfied() -> Fault:
    """Find no replica near by that is as fresh as a bounded staleness read asks for (XCUBS)."""
    return Fault(
        name="bounded_staleness_unsatisfied",
        summary="No replica is fresh enough for a bounded staleness read.",
        errors=(
            ErrorFields(
                "XCUBS",
                "bounded staleness read with minimum timestamp bound of 1760000000.100000000,0 could not be "
                "satisfied by a local resolved timestamp of 1759999990.100000000,0",
            ),
        ),
        source="pkg/kv/kvpb/errors.go",
    )


def full_scan_refused() -> Fault:
    """Refuse to read a whole table, which `disallow_full_table_scans` forbids (P0003)."""
    return Fault(
        name="full_scan_refused",
        summary="A query would read a whole table.",
        errors=(
            ErrorFields(
                "P0003",
                "query `SELECT * FROM accounts` contains a full table/index scan which is explicitly "
                "disallowed",
                hint="try overriding the `disallow_full_table_scans` or increasing the "
                "`large_full_scan_rows` cluster/session settings",
            ),
        ),
        source="pkg/sql/exec_util.go",
        uncertain="The query in the message is an example, not the one that was sent.",
    )


def read_only(statement: str = "INSERT") -> Fault:
    """Refuse to write in a transaction that only reads, as one AS OF SYSTEM TIME does (25006).

    Args:
        statement: its first word; the fault strikes at such statements.

    """
    return Fault(
        name="read_only",
        summary="A statement writes in a transaction that only reads.",
        errors=(ErrorFields("25006", f"cannot execute {statement} in a read-only transaction"),),
        matching=rf"\A\s*{re.escape(statement)}\b",
        source="pkg/sql/conn_executor_exec.go",
    )


def rows_limit_exceeded() -> Fault:
    """Refuse to read more rows than `transaction_rows_read_err` allows (54000)."""
    return Fault(
        name="rows_limit_exceeded",
        summary="A transaction has read more rows than it may.",
        errors=(
            ErrorFields(
                "54000",
                "txn has read 1001 rows, which is above the limit: "
                "TxnID 07d42834-5a1c-4c7e-9f0a-3d2b1c0e9f8a SessionID 1863a5b0c4d2e6f80000000000000001",
            ),
        ),
        source="pkg/sql/conn_executor_exec.go",
        uncertain="The wording is not sure.",
    )


def schema_locked() -> Fault:
    """Refuse to change a table whose schema is locked (57000). Strikes at ALTER TABLE."""
    return Fault(
        name="schema_locked",
        summary="A table's schema is locked.",
        errors=(
            ErrorFields("57000", 'schema changes are disallowed on table "accounts" because it is locked'),
        ),
        matching=r"\A\s*ALTER\s+TABLE\b",
        source="pkg/sql/sqlerrors/errors.go",
        uncertain="The wording is not sure.",
    )


def slow_statement(seconds: float = 1.0) -> Fault:
    """Have a statement take longer; its own answer follows.

    Args:
        seconds: that it waits before it runs.

    """
    return Fault(
        name="slow_statement",
        summary=f"A statement takes {seconds:g} s longer.",
        upstream=Upstream.UNTOUCHED,
        delay=seconds,
        source="a range whose leaseholder is far away or overloaded",
    )
