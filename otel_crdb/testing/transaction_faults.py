# SPDX-License-Identifier: Apache-2.0
"""The faults that end a transaction: serialization failures, refused savepoints, a COMMIT in doubt."""

from __future__ import annotations

from dataclasses import replace
from typing import Final, Literal, get_args

from .fault import ErrorFields, Fault, Link, Upstream
from .restarts import DEFAULT_VERSION, Wrapping, restart, unknown, version_number

_ROLLBACK_TO: Final = r"\A\s*ROLLBACK\s+(?:(?:WORK|TRANSACTION)\s+)?TO\b"
_SAVEPOINTS_SOURCE: Final = "pkg/sql/conn_executor_savepoints.go"
_FEATURE_HINT: Final = "You have attempted to use a feature that is not yet implemented."
#: github.com/cockroachdb/errors, stdstrings: follows the hint of what should not have happened.
ISSUE_REFERRAL: Final = (
    "\n\nPlease check the public issue tracker to check whether this problem is\n"
    "already tracked. If you cannot find it there, please report the error\n"
    "with details by creating a new issue.\n\n"
    "If you would rather not post publicly, please contact us directly\n"
    "using the support form.\n\n"
    "We appreciate your feedback.\n"
)
#: The text of a range's circuit breaker (kvpb.ReplicaUnavailableError).
REPLICA_UNAVAILABLE: Final = (
    "replica unavailable: (n1,s1):1 unable to serve request to r106:/Table/10{6-7} "
    "[(n1,s1):1, (n2,s2):2, (n3,s3):3, next=4, gen=5]: "
    "have been waiting 62.00s for slow proposal Put [/Table/106/1/5/0]"
)


def of_variant(function: str, *parts: str) -> str:
    """Give the name of a variant: the words that are there, set apart by dots."""
    return ".".join((function, *filter(None, parts)))


def serialization_failure(
    reason: str = "RETRY_SERIALIZABLE", *, version: str = DEFAULT_VERSION, wrapping: Wrapping = ""
) -> Fault:
    """Have a transaction run again (40001), in the words of one version.

    An aborted transaction (`ABORT_REASON_…`) has lost its locks at once; any other keeps them until the
    client ends it or restarts it by `cockroach_restart`.

    Args:
        reason: a name of `otel_crdb.testing.restarts.RESTARTS`.
        version: "v22.1" to "v26.3".
        wrapping: what stands before the reason. "force_retry": `crdb_internal.force_retry()` asked for it. Of
            READ COMMITTED, which the transaction's string then shows: "read_committed_limit", the server has
            tried often enough, and "streamed", it cannot try again, for rows have gone to the client.

    Raises:
        ValueError: that version has no such reason; the message names those it has.

    """
    row, error = restart(reason, version, wrapping)
    guess = "The reason that stands inside is an example." if wrapping not in {"", row.wrapping} else ""
    return Fault(
        name=of_variant("serialization_failure", reason, wrapping) + _suffix(version),
        summary="The transaction must be run again.",
        errors=(error,),
        upstream=Upstream.RELEASED if reason.startswith("ABORT_REASON_") else Upstream.ABORTED,
        place=row.place,
        matching=_ROLLBACK_TO if reason == "savepoint_rollback_refused" else None,
        source="pkg/kv/kvpb/errors.go, pkg/roachpb/data.go, pkg/sql/pgwire/pgerror/flatten.go",
        uncertain=" ".join(filter(None, (row.uncertain, guess))),
    )


def _suffix(version: str) -> str:
    return "" if version == DEFAULT_VERSION else f"@{version}"


def rollback_to_refused(version: str = DEFAULT_VERSION) -> Fault:
    """Refuse to go back to a nested savepoint after a 40001 (by another 40001): all must run again.

    Strikes at ROLLBACK TO. The older wording `cannot rollback to savepoint because the transaction has been
    aborted` is of versions before v20.1, which are not played.

    Args:
        version: "v22.1" to "v26.3"; only the link of the hint differs.

    """
    return replace(
        serialization_failure("savepoint_rollback_refused", version=version),
        name="rollback_to_refused" + _suffix(version),
        summary="A nested savepoint cannot be gone back to after a serialization failure.",
        source="pkg/kv/kvclient/kvcoord/txn_coord_sender_savepoints.go",
    )


def savepoint_not_after_error() -> Fault:
    """Refuse to go back to a savepoint, as after most errors of the key-value layer (0A000).

    Strikes at ROLLBACK TO; the transaction stays aborted.
    """
    return Fault(
        name="savepoint_not_after_error",
        summary="A savepoint cannot be gone back to after this error.",
        errors=(
            ErrorFields(
                "0A000",
                "unimplemented: cannot rollback to savepoint after error",
                hint=_FEATURE_HINT + ISSUE_REFERRAL,
            ),
        ),
        matching=_ROLLBACK_TO,
        source="pkg/kv/kvclient/kvcoord/txn_coord_sender_savepoints.go, pkg/util/errorutil/unimplemented",
    )


def savepoint_not_after_ddl() -> Fault:
    """Refuse to go back to a savepoint once the schema was changed after it (0A000).

    Strikes at ROLLBACK TO; the transaction stays aborted.
    """
    return Fault(
        name="savepoint_not_after_ddl",
        summary="A savepoint cannot be gone back to after a schema change.",
        errors=(ErrorFields("0A000", "ROLLBACK TO SAVEPOINT not yet supported after DDL statements"),),
        matching=_ROLLBACK_TO,
        source=_SAVEPOINTS_SOURCE,
        uncertain="Hint and prefix, if there are any, are not known.",
    )


def restart_savepoint_not_first(version: str = DEFAULT_VERSION) -> Fault:
    """Refuse a `cockroach_restart` that comes too late (42601): data was touched before it.

    Args:
        version: "v22.1" to "v26.3", which word it alike; earlier ones leave the name without quotes.

    """
    version_number(version)
    message = 'SAVEPOINT "cockroach_restart" needs to be the first statement in a transaction'
    return _restart_savepoint("restart_savepoint_not_first", "comes after a statement", message)


def restart_savepoint_nested() -> Fault:
    """Refuse a `cockroach_restart` that stands inside another savepoint (42601)."""
    message = 'SAVEPOINT "cockroach_restart" cannot be nested'
    return _restart_savepoint("restart_savepoint_nested", "is nested", message)


def _restart_savepoint(name: str, what: str, message: str) -> Fault:
    return Fault(
        name=name,
        summary=f"The savepoint `cockroach_restart` {what}.",
        errors=(ErrorFields("42601", message),),
        matching=r'\A\s*SAVEPOINT\s+"?cockroach_restart',
        source=_SAVEPOINTS_SOURCE,
    )


def aborted() -> Fault:
    """Refuse a statement, for the transaction has failed before (25P02)."""
    return _in_wrong_state("aborted", "25P02")


def committed() -> Fault:
    """Refuse a statement, for RELEASE of `cockroach_restart` has committed; COMMIT may follow (25000)."""
    return _in_wrong_state("committed", "25000")


def _in_wrong_state(state: str, sqlstate: str) -> Fault:
    message = f"current transaction is {state}, commands ignored until end of transaction block"
    return Fault(
        name=state,
        summary=f"The transaction is {state} already.",
        errors=(ErrorFields(sqlstate, message),),
        source="pkg/sql/sqlerrors/errors.go, pkg/sql/conn_executor_exec.go",
    )


Doubt = Literal[
    "propagate",
    "exhausted",
    "intent_missing",
    "server_shutdown",
    "store_stopping",
    "snapshot",
    "replica_unavailable",
]
DOUBTS: tuple[Doubt, ...] = get_args(Doubt)
_RPC = (
    "error=rpc error: code = Unavailable desc = error reading from server: "
    "read tcp 10.0.0.1:54321->10.0.0.2:26257: read: connection reset by peer"
)
_CAUSES: Final[dict[Doubt, str]] = {
    "propagate": f"{_RPC} [propagate] (last error: <nil>)",
    "exhausted": f"{_RPC} [exhausted] (last error: failed to send RPC)",
    "intent_missing": f"{_RPC} [intent missing]",
    "server_shutdown": "server shutdown",
    "store_stopping": "store is stopping",
    "snapshot": "unable to determine whether command was applied via snapshot",
    "replica_unavailable": REPLICA_UNAVAILABLE,
}


def ambiguous_commit(cause: Doubt = "propagate", *, applied: bool = False) -> Fault:
    """Answer COMMIT by a doubt whether it has happened (40003).

    Strikes at COMMIT and at RELEASE of `cockroach_restart`; by a rule that says so also at a statement in
    autocommit, which is its own transaction.

    Args:
        cause: what was in the way; one of `DOUBTS`.
        applied: whether it was committed after all. The client is told the same.

    """
    if cause not in _CAUSES:
        raise unknown("cause of doubt", cause, DOUBTS)
    example = _RPC in _CAUSES[cause] or cause == "replica_unavailable"
    return Fault(
        name=of_variant("ambiguous_commit", cause, "applied" if applied else ""),
        summary="COMMIT was answered, but by a doubt.",
        errors=(ErrorFields("40003", f"result is ambiguous: {_CAUSES[cause]}"),),
        upstream=Upstream.APPLIED if applied else Upstream.ABORTED,
        place="commit",
        source="pkg/kv/kvpb/errors.go, pkg/kv/kvclient/kvcoord/dist_sender.go, pkg/kv/kvserver",
        uncertain="What stands inside the cause is an example." if example else "",
    )


def lost_commit(*, applied: bool = False) -> Fault:
    """Never answer COMMIT, and reset the connection instead.

    Args:
        applied: whether the transaction was committed. The client sees the same.

    """
    return Fault(
        name=of_variant("lost_commit", "applied" if applied else ""),
        summary="The connection is reset while COMMIT is under way.",
        upstream=Upstream.APPLIED if applied else Upstream.ABORTED,
        link=Link.RESET,
        place="commit",
        source="TCP",
    )


def committed_with_ddl_failure(version: str = DEFAULT_VERSION) -> Fault:
    """Commit, and say that the schema change failed afterwards (XXA00): never to be run again.

    Strikes at COMMIT. It has two hints, which a server joins by a line of two dashes.

    Args:
        version: "v22.1" to "v26.3"; it stands in the link of the second hint.

    """
    version_number(version)
    hints = (
        (
            "Some of the non-DDL statements may have committed successfully, but some of the DDL "
            "statement(s) failed.\nManual inspection may be required to determine the actual state of the "
            "database."
        ),
        f"See: https://go.crdb.dev/issue-v/42061/{version}",
    )
    message = (
        "transaction committed but schema change aborted with error: (23505): "
        'duplicate key value violates unique constraint "accounts_email_key"'
    )
    return Fault(
        name="committed_with_ddl_failure",
        summary="The transaction was committed, its schema change failed.",
        errors=(ErrorFields("XXA00", message, hint="\n--\n".join(hints)),),
        upstream=Upstream.APPLIED,
        place="commit",
        source="pkg/sql/conn_executor.go",
        uncertain="The error of the schema change is an example.",
    )
