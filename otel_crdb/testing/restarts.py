# SPDX-License-Identifier: Apache-2.0
"""The texts of a serialization failure (40001), for every reason and every version of CockroachDB.

Sources: pkg/kv/kvpb/errors.go (pkg/roachpb/errors.go up to v22.2), pkg/roachpb/data.go,
pkg/sql/pgwire/pgerror/flatten.go, and messages seen in public logs.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, get_args

from .fault import ErrorFields, Place

if TYPE_CHECKING:
    from collections.abc import Iterable

SQLSTATE: Final = "40001"
#: The versions whose texts are known, the oldest first.
VERSIONS: Final = (
    *("v22.1", "v22.2", "v23.1", "v23.2", "v24.1", "v24.2", "v24.3"),
    *("v25.1", "v25.2", "v25.3", "v25.4", "v26.1", "v26.2", "v26.3"),
)
OLDEST, NEWEST = VERSIONS[0], VERSIONS[-1]
#: The version that a fault speaks in unless it is told another.
DEFAULT_VERSION: Final = "v26.2"

Wrapping = Literal["", "force_retry", "read_committed_limit", "streamed"]
WRAPPINGS: tuple[Wrapping, ...] = get_args(Wrapping)

_READ = "1760000000.100000000,0"
_WRITE = "1760000000.250000000,1"
_LIMIT = "1760000000.600000000,0"
_KEY = "/Table/106/1/5/0"


def unknown(what: str, given: str, known: Iterable[str]) -> ValueError:
    """Give the error for a word that does not exist: it names the nearest one, else all."""
    known = list(known)
    near = difflib.get_close_matches(given, known, n=1)
    advice = f"did you mean {near[0]!r}?" if near else f"there is {', '.join(map(repr, known))}"
    return ValueError(f"no {what} {given!r}; {advice}")


def version_number(version: str) -> int:
    """Give the place of a version in their order; one that is not known raises ValueError."""
    if version not in VERSIONS:
        raise ValueError(f"no version {version!r}; there is {', '.join(VERSIONS)}")
    return VERSIONS.index(version)


def at_least(version: str, since: str) -> bool:
    """Whether a version is `since` or a later one."""
    return version_number(version) >= version_number(since)


@dataclass(frozen=True)
class Txn:
    """What CockroachDB tells of a transaction at the end of a 40001's message.

    `id` is the first eight hex digits of its UUID, `key` the place of its record, not of the conflict.
    Timestamps are `<seconds>.<nine digits>,<logical>`. The counts are told only where they are not zero.
    """

    id: str = "07d42834"
    key: str = _KEY
    isolation: str = "Serializable"
    priority: float = 0.01253025
    epoch: int = 0
    write_timestamp: str = _WRITE
    min_timestamp: str = _READ
    sequence: int = 2
    locking: bool = True
    status: str = "PENDING"
    read_timestamp: str = _READ
    uncertainty_limit: str = _LIMIT
    lock_spans: int = 0
    in_flight_writes: int = 0
    ignored_sequences: int = 0
    observed: str = f"n1@{_READ}"

    def meta(self, version: str) -> str:
        """Give the part that is also told of the other transaction of a conflict."""
        isolation = f" iso={self.isolation}" if at_least(version, "v23.1") else ""
        return (
            f"meta={{id={self.id} key={self.key}{isolation} pri={self.priority:.8f} epo={self.epoch}"
            f" ts={self.write_timestamp} min={self.min_timestamp} seq={self.sequence}}}"
        )

    def text(self, version: str) -> str:
        """Give the whole string, as that version writes it."""
        too_old = "" if at_least(version, "v25.3") else " wto=false"
        counts = (("int", self.lock_spans), ("ifw", self.in_flight_writes), ("isn", self.ignored_sequences))
        observed = f" obs={{{self.observed}}}" if self.observed and at_least(version, "v25.2") else ""
        return (
            f'"sql txn" {self.meta(version)} lock={str(self.locking).lower()} stat={self.status}'
            f" rts={self.read_timestamp}{too_old} gul={self.uncertainty_limit}"
            + "".join(f" {name}={count}" for name, count in counts if count)
            + observed
        )


#: The transaction that fails, and the one it meets.
OWN = Txn()
OTHER = Txn(id="1b2bf263", key="/Table/106/1/9/0", priority=0.00831417, sequence=1)


class Restart(NamedTuple):
    """One inner text: between which versions it is sent, what ends it, and where it strikes."""

    text: str
    since: str = OLDEST
    until: str = NEWEST
    #: The status its string shows; empty: no string follows.
    status: str = "PENDING"
    place: Place = "statement"
    #: The text that always stands before it.
    wrapping: Wrapping = ""
    uncertain: str = ""


_RETRY = "TransactionRetryError: retry txn"
_REFRESH = "RETRY_SERIALIZABLE - failed preemptive refresh"
_UNCERTAIN_READ = (
    f"ReadWithinUncertaintyIntervalError: read at time {_READ} encountered previous write with future "
    f"timestamp {_WRITE}{{local}} within uncertainty interval `t <= (local=1760000000.300000000,0, "
    f"global={_LIMIT})`; observed timestamps: [{{{{1 {_READ}}}}}]"
)
_TOO_OLD = f"timestamp {_READ} too old; must write at or above {_WRITE}"
_DEADLINE = "1760000000.150000000,0"

_ABORTS = (
    *("UNKNOWN", "ABORTED_RECORD_FOUND", "CLIENT_REJECT", "PUSHER_ABORTED", "ABORT_SPAN"),
    *("RECORD_ALREADY_WRITTEN_POSSIBLE_REPLAY", "TIMESTAMP_CACHE_REJECTED", "NEW_LEASE_PREVENTS_TXN"),
)
#: By reason. What stands before the dot is the reason as `otel_crdb.errors.classify` tells it, after it
#: stands the form. `{other}` and `{pushed}` are the transaction that was met, without and with its name.
RESTARTS: Final[dict[str, Restart]] = {
    "RETRY_SERIALIZABLE": Restart(f"{_RETRY} (RETRY_SERIALIZABLE)"),
    "RETRY_SERIALIZABLE.refresh": Restart(f"{_RETRY} ({_REFRESH})"),
    "RETRY_SERIALIZABLE.value_on_key": Restart(
        f"{_RETRY} ({_REFRESH} due to a conflict: committed value on key {_KEY})", "v22.2", "v23.1"
    ),
    "RETRY_SERIALIZABLE.intent_on_key": Restart(
        f"{_RETRY} ({_REFRESH} due to a conflict: intent on key {_KEY})", "v22.2", "v23.1"
    ),
    "RETRY_SERIALIZABLE.committed_value": Restart(
        f"{_RETRY} ({_REFRESH} due to encountered recently written committed value {_KEY} @{_WRITE})", "v23.2"
    ),
    "RETRY_SERIALIZABLE.conflicting_locks": Restart(
        f"{_RETRY} ({_REFRESH} due to conflicting locks on {_KEY} [reason=wait_policy]"
        " - conflicting txn: {other})",
        "v23.2",
    ),
    "RETRY_WRITE_TOO_OLD": Restart(
        f"{_RETRY} (RETRY_WRITE_TOO_OLD)",
        uncertain="Since about v23.2 a server is hardly seen to send it: two writes then show WriteTooOld.",
    ),
    "RETRY_WRITE_TOO_OLD.flag": Restart(
        f"{_RETRY} (RETRY_WRITE_TOO_OLD - WriteTooOld flag converted to WriteTooOldError)", until="v23.1"
    ),
    "RETRY_ASYNC_WRITE_FAILURE": Restart(f"{_RETRY} (RETRY_ASYNC_WRITE_FAILURE)", place="commit"),
    "RETRY_ASYNC_WRITE_FAILURE.missing_intent": Restart(
        f"{_RETRY} (RETRY_ASYNC_WRITE_FAILURE - missing intent on: {_KEY})", place="commit"
    ),
    "RETRY_COMMIT_DEADLINE_EXCEEDED": Restart(
        f"{_RETRY} (RETRY_COMMIT_DEADLINE_EXCEEDED - txn timestamp pushed too much; "
        f"deadline exceeded by 100ms ({_WRITE} > {_DEADLINE}))",
        place="commit",
        uncertain="CockroachDB's documentation prints another form, `transaction deadline exceeded`.",
    ),
    "RETRY_REASON_UNKNOWN": Restart(f"{_RETRY} (RETRY_REASON_UNKNOWN)"),
    **{
        f"ABORT_REASON_{reason}": Restart(f"TransactionAbortedError(ABORT_REASON_{reason})", status="ABORTED")
        for reason in _ABORTS
    },
    "ReadWithinUncertaintyInterval": Restart(_UNCERTAIN_READ.format(local="")),
    "ReadWithinUncertaintyInterval.local": Restart(
        _UNCERTAIN_READ.format(local=" (local=1760000000.200000000,0)")
    ),
    "WriteTooOld": Restart(f"WriteTooOldError: write for key {_KEY} at {_TOO_OLD}"),
    "WriteTooOld.no_key": Restart(f"WriteTooOldError: write at {_TOO_OLD}"),
    "ExclusionViolation": Restart(
        f"write exclusion on key {_KEY} expected since {_READ} but found write at {_WRITE}",
        "v25.3",
        uncertain="The first version that sends it is v25.3 or v25.4.",
    ),
    "TransactionPush": Restart(
        "failed to push {pushed}", uncertain="The server mostly keeps it to itself; it can reach the client."
    ),
    "injected": Restart("injected by `inject_retry_errors_enabled` session variable", status=""),
    "injected.on_commit": Restart(
        "injected by `inject_retry_errors_on_commit_enabled` session variable",
        "v23.1",
        status="",
        place="commit",
    ),
    "forced": Restart("forced by crdb_internal.force_retry()", status="", wrapping="force_retry"),
    "timestamp_pushed": Restart(
        "serializable transaction timestamp pushed (detected by connExecutor)", status=""
    ),
    "savepoint_rollback_refused": Restart(
        "cannot rollback to savepoint after a transaction restart", status=""
    ),
}

# pkg/sql/pgwire/pgerror: what of the message becomes the anchor of the link.
_ANCHOR = re.compile(r"(?:ABORT_|RETRY_)[A-Z_]*|ReadWithinUncertaintyInterval")


def restart_fields(inner: str, *, version: str, before: str = "", txn: Txn | None = None) -> ErrorFields:
    """Put together the 40001 of an inner text: what stands before it, the transaction, the hint's link.

    Args:
        inner: the text of the error in CockroachDB's key-value layer.
        version: of the server; the link is to its documentation, and the transaction is in its words.
        before: text that ends in `: `, between the prefix and the error.
        txn: whose string ends the message; None: none does.

    """
    ending = f": {txn.text(version)}" if txn else ""
    message = f"restart transaction: {before}TransactionRetryWithProtoRefreshError: {inner}{ending}"
    found = _ANCHOR.search(message)
    page = f"https://www.cockroachlabs.com/docs/{version}/transaction-retry-error-reference.html"
    hint = f"See: {page}#{found.group().lower()}" if found else f"See: {page}"
    return ErrorFields(SQLSTATE, message, hint=hint)


def restart(reason: str, version: str, wrapping: Wrapping = "") -> tuple[Restart, ErrorFields]:
    """Give the row of `RESTARTS` and what a server of that version sends; ValueError where it sends none."""
    number = version_number(version)
    rows = {
        name: row
        for name, row in RESTARTS.items()
        if version_number(row.since) <= number <= version_number(row.until)
    }
    if reason not in rows:
        if reason in RESTARTS:
            row = RESTARTS[reason]
            raise ValueError(
                f"{version} has no {reason!r}, which is of {row.since} to {row.until}; there is "
                f"{', '.join(rows)}"
            )
        raise unknown(f"reason of {version}", reason, rows)
    row = rows[reason]
    before = _before(wrapping or row.wrapping, version)
    isolation = "ReadCommitted" if wrapping in {"read_committed_limit", "streamed"} else "Serializable"
    own, other = (replace(txn, isolation=isolation) for txn in (OWN, OTHER))
    inner = row.text.replace("{other}", other.meta(version)).replace("{pushed}", other.text(version))
    txn = replace(own, status=row.status) if row.status else None
    return row, restart_fields(inner, version=version, before=before, txn=txn)


def _before(wrapping: Wrapping, version: str) -> str:
    """Give the text that stands between the prefix and the error (pkg/sql/conn_executor_exec.go)."""
    if wrapping not in WRAPPINGS:
        raise unknown("wrapping", wrapping, WRAPPINGS)
    if wrapping == "":
        return ""
    if wrapping == "force_retry":
        return "crdb_internal.force_retry(): "
    if not at_least(version, "v23.2"):
        raise ValueError(f"{version} has no READ COMMITTED, of which {wrapping!r} speaks; v23.2 has")
    if wrapping == "streamed":
        return "cannot automatically retry since some results were already sent to the client: "
    limit = 100 if at_least(version, "v25.3") else 10
    return f"read committed retry limit exceeded; set by max_retries_for_read_committed={limit}: "
