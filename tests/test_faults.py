# SPDX-License-Identifier: Apache-2.0
"""The catalogue of faults: what each sends byte for byte, what becomes of the rest, and what it is known as."""

from __future__ import annotations

import inspect
import re
import struct
from pathlib import Path

import psycopg
import pytest

from otel_crdb.errors import Classification, classify
from otel_crdb.testing import faults, faults_page
from otel_crdb.testing.fault import ErrorFields, Fault, Link, Node, Upstream
from otel_crdb.testing.restarts import DEFAULT_VERSION, RESTARTS, VERSIONS, Txn, restart_fields

from .errors_of_cockroachdb import ANSWERS, ROWS, cases, none_or, table
from .errors_of_cockroachdb import RESTARTS as MEANINGS

PAGE = Path(__file__).parents[1] / "docs" / "faults.md"
DOCS = "https://www.cockroachlabs.com/docs/"
REFERENCE = "/transaction-retry-error-reference.html"

# Every fault: the row of the design's table, else of the table of restarts, that says what it means; where it
# strikes; what becomes of the transaction and of the link; the message of each error. Words in capitals stand for
# the texts below.
GOLDEN = table("""
name | row                    | place               | upstream  | link   | text
serialization_failure.RETRY_SERIALIZABLE | serializable           | statement           | aborted   | open   | AGAIN TransactionRetryError: retry txn (RETRY_SERIALIZABLE): OWN
serialization_failure.RETRY_SERIALIZABLE.refresh | refresh                | statement           | aborted   | open   | AGAIN TransactionRetryError: retry txn (RETRY_SERIALIZABLE - failed preemptive refresh): OWN
serialization_failure.RETRY_SERIALIZABLE.value_on_key@v23.1 | value-v22              | statement           | aborted   | open   | AGAIN TransactionRetryError: retry txn (RETRY_SERIALIZABLE - failed preemptive refresh due to a conflict: committed value on key KEY): OWN_V23
serialization_failure.RETRY_SERIALIZABLE.intent_on_key@v23.1 | intent-v22             | statement           | aborted   | open   | AGAIN TransactionRetryError: retry txn (RETRY_SERIALIZABLE - failed preemptive refresh due to a conflict: intent on key KEY): OWN_V23
serialization_failure.RETRY_SERIALIZABLE.committed_value | value-v23              | statement           | aborted   | open   | AGAIN TransactionRetryError: retry txn (RETRY_SERIALIZABLE - failed preemptive refresh due to encountered recently written committed value KEY @WRITE): OWN
serialization_failure.RETRY_SERIALIZABLE.conflicting_locks | locks-v23              | statement           | aborted   | open   | AGAIN TransactionRetryError: retry txn (RETRY_SERIALIZABLE - failed preemptive refresh due to conflicting locks on KEY [reason=wait_policy] - conflicting txn: OTHER): OWN
serialization_failure.RETRY_WRITE_TOO_OLD | write-too-old          | statement           | aborted   | open   | AGAIN TransactionRetryError: retry txn (RETRY_WRITE_TOO_OLD): OWN
serialization_failure.RETRY_WRITE_TOO_OLD.flag@v23.1 | too-old-flag           | statement           | aborted   | open   | AGAIN TransactionRetryError: retry txn (RETRY_WRITE_TOO_OLD - WriteTooOld flag converted to WriteTooOldError): OWN_V23
serialization_failure.RETRY_ASYNC_WRITE_FAILURE | async-write            | commit              | aborted   | open   | AGAIN TransactionRetryError: retry txn (RETRY_ASYNC_WRITE_FAILURE): OWN
serialization_failure.RETRY_ASYNC_WRITE_FAILURE.missing_intent | missing-intent         | commit              | aborted   | open   | AGAIN TransactionRetryError: retry txn (RETRY_ASYNC_WRITE_FAILURE - missing intent on: KEY): OWN
serialization_failure.RETRY_COMMIT_DEADLINE_EXCEEDED | deadline               | commit              | aborted   | open   | AGAIN TransactionRetryError: retry txn (RETRY_COMMIT_DEADLINE_EXCEEDED - txn timestamp pushed too much; deadline exceeded by 100ms (WRITE > 1760000000.150000000,0)): OWN
serialization_failure.RETRY_REASON_UNKNOWN | unknown                | statement           | aborted   | open   | AGAIN TransactionRetryError: retry txn (RETRY_REASON_UNKNOWN): OWN
serialization_failure.ABORT_REASON_UNKNOWN | aborted-unknown        | statement           | released  | open   | AGAIN TransactionAbortedError(ABORT_REASON_UNKNOWN): DEAD
serialization_failure.ABORT_REASON_ABORTED_RECORD_FOUND | aborted-record         | statement           | released  | open   | AGAIN TransactionAbortedError(ABORT_REASON_ABORTED_RECORD_FOUND): DEAD
serialization_failure.ABORT_REASON_CLIENT_REJECT | client-reject          | statement           | released  | open   | AGAIN TransactionAbortedError(ABORT_REASON_CLIENT_REJECT): DEAD
serialization_failure.ABORT_REASON_PUSHER_ABORTED | pusher-aborted         | statement           | released  | open   | AGAIN TransactionAbortedError(ABORT_REASON_PUSHER_ABORTED): DEAD
serialization_failure.ABORT_REASON_ABORT_SPAN | abort-span             | statement           | released  | open   | AGAIN TransactionAbortedError(ABORT_REASON_ABORT_SPAN): DEAD
serialization_failure.ABORT_REASON_RECORD_ALREADY_WRITTEN_POSSIBLE_REPLAY | replay                 | statement           | released  | open   | AGAIN TransactionAbortedError(ABORT_REASON_RECORD_ALREADY_WRITTEN_POSSIBLE_REPLAY): DEAD
serialization_failure.ABORT_REASON_TIMESTAMP_CACHE_REJECTED | timestamp-cache        | statement           | released  | open   | AGAIN TransactionAbortedError(ABORT_REASON_TIMESTAMP_CACHE_REJECTED): DEAD
serialization_failure.ABORT_REASON_NEW_LEASE_PREVENTS_TXN | new-lease              | statement           | released  | open   | AGAIN TransactionAbortedError(ABORT_REASON_NEW_LEASE_PREVENTS_TXN): DEAD
serialization_failure.ReadWithinUncertaintyInterval | uncertainty            | statement           | aborted   | open   | AGAIN ReadWithinUncertaintyIntervalError: read at time READ encountered previous write with future timestamp WRITE within uncertainty interval `t <= (local=1760000000.300000000,0, global=1760000000.600000000,0)`; observed timestamps: [{1 READ}]: OWN
serialization_failure.ReadWithinUncertaintyInterval.local | uncertainty            | statement           | aborted   | open   | AGAIN ReadWithinUncertaintyIntervalError: read at time READ encountered previous write with future timestamp WRITE (local=1760000000.200000000,0) within uncertainty interval `t <= (local=1760000000.300000000,0, global=1760000000.600000000,0)`; observed timestamps: [{1 READ}]: OWN
serialization_failure.WriteTooOld | too-old-key            | statement           | aborted   | open   | AGAIN WriteTooOldError: write for key KEY at timestamp READ too old; must write at or above WRITE: OWN
serialization_failure.WriteTooOld.no_key | too-old-no-key         | statement           | aborted   | open   | AGAIN WriteTooOldError: write at timestamp READ too old; must write at or above WRITE: OWN
serialization_failure.ExclusionViolation | exclusion              | statement           | aborted   | open   | AGAIN write exclusion on key KEY expected since READ but found write at WRITE: OWN
serialization_failure.TransactionPush | push                   | statement           | aborted   | open   | AGAIN failed to push PUSHED: OWN
serialization_failure.injected | injected               | statement           | aborted   | open   | AGAIN injected by `inject_retry_errors_enabled` session variable
serialization_failure.injected.on_commit | injected-commit        | commit              | aborted   | open   | AGAIN injected by `inject_retry_errors_on_commit_enabled` session variable
serialization_failure.forced | forced                 | statement           | aborted   | open   | RESTART crdb_internal.force_retry(): PROTO forced by crdb_internal.force_retry()
serialization_failure.timestamp_pushed | pushed                 | statement           | aborted   | open   | AGAIN serializable transaction timestamp pushed (detected by connExecutor)
serialization_failure.RETRY_SERIALIZABLE@v22.1 | txn-v22                | statement           | aborted   | open   | AGAIN TransactionRetryError: retry txn (RETRY_SERIALIZABLE): OWN_V22
serialization_failure.RETRY_SERIALIZABLE@v23.1 | serializable           | statement           | aborted   | open   | AGAIN TransactionRetryError: retry txn (RETRY_SERIALIZABLE): OWN_V23
serialization_failure.RETRY_SERIALIZABLE@v25.2 | txn-v25.2              | statement           | aborted   | open   | AGAIN TransactionRetryError: retry txn (RETRY_SERIALIZABLE): OWN_V25
serialization_failure.WriteTooOld.read_committed_limit | too-old-key            | statement           | aborted   | open   | RESTART read committed retry limit exceeded; set by max_retries_for_read_committed=100: PROTO WriteTooOldError: write for key KEY at timestamp READ too old; must write at or above WRITE: OWN_RC
serialization_failure.WriteTooOld.streamed | too-old-key            | statement           | aborted   | open   | RESTART cannot automatically retry since some results were already sent to the client: PROTO WriteTooOldError: write for key KEY at timestamp READ too old; must write at or above WRITE: OWN_RC
rollback_to_refused | savepoint              | statement           | aborted   | open   | AGAIN cannot rollback to savepoint after a transaction restart
savepoint_not_after_error | 0A000                  | statement           | aborted   | open   | unimplemented: cannot rollback to savepoint after error
savepoint_not_after_ddl | 0A000                  | statement           | aborted   | open   | ROLLBACK TO SAVEPOINT not yet supported after DDL statements
restart_savepoint_not_first | 42601                  | statement           | aborted   | open   | SAVEPOINT "cockroach_restart" needs to be the first statement in a transaction
restart_savepoint_nested | 42601                  | statement           | aborted   | open   | SAVEPOINT "cockroach_restart" cannot be nested
aborted | 25P02                  | statement           | aborted   | open   | current transaction is aborted, commands ignored until end of transaction block
committed | 25000                  | statement           | aborted   | open   | current transaction is committed, commands ignored until end of transaction block
read_only | 25006                  | statement           | aborted   | open   | cannot execute INSERT in a read-only transaction
ambiguous_commit.propagate | 40003                  | commit              | aborted   | open   | result is ambiguous: BROKEN_LINK [propagate] (last error: <nil>)
ambiguous_commit.propagate.applied | 40003                  | commit              | applied   | open   | result is ambiguous: BROKEN_LINK [propagate] (last error: <nil>)
ambiguous_commit.exhausted | 40003                  | commit              | aborted   | open   | result is ambiguous: BROKEN_LINK [exhausted] (last error: failed to send RPC)
ambiguous_commit.exhausted.applied | 40003                  | commit              | applied   | open   | result is ambiguous: BROKEN_LINK [exhausted] (last error: failed to send RPC)
ambiguous_commit.intent_missing | 40003                  | commit              | aborted   | open   | result is ambiguous: BROKEN_LINK [intent missing]
ambiguous_commit.intent_missing.applied | 40003                  | commit              | applied   | open   | result is ambiguous: BROKEN_LINK [intent missing]
ambiguous_commit.server_shutdown | 40003                  | commit              | aborted   | open   | result is ambiguous: server shutdown
ambiguous_commit.server_shutdown.applied | 40003                  | commit              | applied   | open   | result is ambiguous: server shutdown
ambiguous_commit.store_stopping | 40003                  | commit              | aborted   | open   | result is ambiguous: store is stopping
ambiguous_commit.store_stopping.applied | 40003                  | commit              | applied   | open   | result is ambiguous: store is stopping
ambiguous_commit.snapshot | 40003                  | commit              | aborted   | open   | result is ambiguous: unable to determine whether command was applied via snapshot
ambiguous_commit.snapshot.applied | 40003                  | commit              | applied   | open   | result is ambiguous: unable to determine whether command was applied via snapshot
ambiguous_commit.replica_unavailable | 40003                  | commit              | aborted   | open   | result is ambiguous: BREAKER
ambiguous_commit.replica_unavailable.applied | 40003                  | commit              | applied   | open   | result is ambiguous: BREAKER
lost_commit | -                      | commit              | aborted   | reset  | -
lost_commit.applied | -                      | commit              | applied   | reset  | -
committed_with_ddl_failure | XXA00                  | commit              | applied   | open   | transaction committed but schema change aborted with error: (23505): duplicate key value violates unique constraint "accounts_email_key"
statement_timeout | 57014-statement        | statement           | aborted   | open   | query execution canceled due to statement timeout
transaction_timeout | 57014-transaction      | statement           | aborted   | open   | query execution canceled due to transaction timeout
query_canceled | 57014-bare             | statement           | aborted   | open   | query execution canceled
idle_in_transaction_timeout.timeout | XXUUU-read-tcp         | idle_in_transaction | released  | closed | read tcp 10.0.0.1:26257->10.0.0.2:54321: i/o timeout
idle_in_transaction_timeout.silent | -                      | idle_in_transaction | released  | closed | -
idle_session_timeout.timeout | XXUUU-read-tcp         | idle                | released  | closed | read tcp 10.0.0.1:26257->10.0.0.2:54321: i/o timeout
idle_session_timeout.silent | -                      | idle                | released  | closed | -
drain | 57014-bare 57P01 57P01 | node                | released  | closed | query execution canceled ¦ server is shutting down ¦ server is not accepting clients, try another node
draining_statement | 57014-bare 57P01       | statement           | released  | closed | query execution canceled ¦ server is shutting down
shutting_down | 57P01                  | idle                | released  | closed | server is shutting down
not_accepting_clients | 57P01                  | connect             | aborted   | closed | server is not accepting clients, try another node
too_many_clients | 53300                  | connect             | aborted   | closed | sorry, too many clients already
too_many_transactions | 53400                  | statement           | aborted   | open   | cannot execute operation due to server.max_open_transactions_per_gateway cluster setting
memory_exceeded.sql | 53200                  | statement           | aborted   | open   | sql: memory budget exceeded: 10240 bytes requested, 134213632 currently allocated, 134217728 bytes in budget
memory_exceeded.root | 53200                  | statement           | aborted   | open   | root: memory budget exceeded: 10240 bytes requested, 134213632 currently allocated, 134217728 bytes in budget
disk_exceeded.temporary | 53100                  | statement           | aborted   | open   | disk budget exceeded: 10240 bytes requested, 34359734272 currently allocated, 34359738368 bytes in budget
disk_exceeded.store | 53100                  | statement           | aborted   | open   | store 1 has insufficient remaining capacity to ingest data (remaining: 1.2 GiB / 0.5%, min required: 5.0%)
license_throttled.expired | XXC02                  | statement           | aborted   | open   | License expired on 2026-08-01 00:00:00 +0000 UTC. The maximum number of concurrently open transactions has been reached.
license_throttled.none | XXC02                  | statement           | aborted   | open   | No license installed. The maximum number of concurrently open transactions has been reached.
license_throttled.diagnostics | XXC02                  | statement           | aborted   | open   | The maximum number of concurrently open transactions has been reached because the license requires diagnostic reporting, but none has been received by Cockroach Labs.
rows_limit_exceeded | 54000                  | statement           | aborted   | open   | txn has read 1001 rows, which is above the limit: TxnID 07d42834-5a1c-4c7e-9f0a-3d2b1c0e9f8a SessionID 1863a5b0c4d2e6f80000000000000001
full_scan_refused | P0003                  | statement           | aborted   | open   | query `SELECT * FROM accounts` contains a full table/index scan which is explicitly disallowed
lock_not_available | 55P03-nowait           | statement           | aborted   | open   | could not obtain lock on row (id)=(5) in accounts@accounts_pkey
lock_timeout | 55P03-timeout          | statement           | aborted   | open   | canceling statement due to lock timeout on row (id)=(5) in accounts@accounts_pkey
range_unavailable.breaker | XXUUU-replica          | statement           | aborted   | open   | BREAKER
range_unavailable.range | 58C00                  | statement           | aborted   | open   | key range id:106 is unavailable: failed to send RPC: sending to all replicas failed
range_unavailable.internal | 58C01                  | statement           | aborted   | open   | inbox communication error: rpc error: code = Unavailable desc = error reading from server: EOF
range_unavailable.commit | 40003                  | commit              | aborted   | open   | result is ambiguous: BREAKER
bounded_staleness_unsatisfied | XCUBS                  | statement           | aborted   | open   | bounded staleness read with minimum timestamp bound of READ could not be satisfied by a local resolved timestamp of 1759999990.100000000,0
restricted_internals | 42501                  | statement           | aborted   | open   | Access to crdb_internal and system is restricted.
prepared_statement_missing | 26000                  | statement           | aborted   | open   | prepared statement "_pg3_0" does not exist
schema_locked | 57000                  | statement           | aborted   | open   | schema changes are disallowed on table "accounts" because it is locked
internal_error | XX000                  | statement           | aborted   | open   | internal error: unexpected error from the vectorized engine: index out of range [3]
slow_statement | -                      | statement           | untouched | open   | -
latency | -                      | node                | untouched | open   | -
connection_reset | -                      | statement           | released  | reset  | -
server_closed | -                      | statement           | released  | closed | -
black_hole | -                      | statement           | released  | silent | -
half_open | -                      | idle                | released  | silent | -
partition | -                      | node                | untouched | open   | -
connection_refused | -                      | node                | untouched | open   | -
node_killed | -                      | node                | released  | reset  | -
""")
_META = "ts=1760000000.250000000,1 min=1760000000.100000000,0"
_OWN = f"pri=0.01253025 epo=0 {_META} seq=2}} lock=true stat=PENDING rts=1760000000.100000000,0"
_LIMIT = "gul=1760000000.600000000,0"
_OBSERVED = "obs={n1@1760000000.100000000,0}"
OWN = f'"sql txn" meta={{id=07d42834 key=/Table/106/1/5/0 iso=Serializable {_OWN} {_LIMIT} {_OBSERVED}'
OTHER = f"meta={{id=1b2bf263 key=/Table/106/1/9/0 iso=Serializable pri=0.00831417 epo=0 {_META} seq=1}}"
WORDS = {
    "AGAIN": "restart transaction: TransactionRetryWithProtoRefreshError:",
    "RESTART": "restart transaction:",
    "PROTO": "TransactionRetryWithProtoRefreshError:",
    "OWN": OWN,
    "OWN_V22": f'"sql txn" meta={{id=07d42834 key=/Table/106/1/5/0 {_OWN} wto=false {_LIMIT}',
    "OWN_V23": f'"sql txn" meta={{id=07d42834 key=/Table/106/1/5/0 iso=Serializable {_OWN} wto=false {_LIMIT}',
    "OWN_V25": f'"sql txn" meta={{id=07d42834 key=/Table/106/1/5/0 iso=Serializable {_OWN} wto=false {_LIMIT} {_OBSERVED}',
    "OWN_RC": OWN.replace("Serializable", "ReadCommitted"),
    "DEAD": OWN.replace("PENDING", "ABORTED"),
    "OTHER": OTHER,
    "PUSHED": f'"sql txn" {OTHER} lock=true stat=PENDING rts=1760000000.100000000,0 {_LIMIT} {_OBSERVED}',
    "KEY": "/Table/106/1/5/0",
    "READ": "1760000000.100000000,0",
    "WRITE": "1760000000.250000000,1",
    "BROKEN_LINK": "error=rpc error: code = Unavailable desc = error reading from server: read tcp 10.0.0.1:54321->10.0.0.2:26257: read: connection reset by peer",
    "BREAKER": "replica unavailable: (n1,s1):1 unable to serve request to r106:/Table/10{6-7} [(n1,s1):1, (n2,s2):2, (n3,s3):3, next=4, gen=5]: have been waiting 62.00s for slow proposal Put [/Table/106/1/5/0]",
}
_WORD = re.compile(rf"\b(?:{'|'.join(WORDS)})\b")
SERVER_ROWS = {row[0]: row for row in ROWS}
RESTART_ROWS = {row[0]: row for row in MEANINGS}
PHASES = ("statement", "commit", "autocommit")

# The hints of all that is no 40001.
_REFERRAL = "\n\nPlease check the public issue tracker to check whether this problem is\nalready tracked. If you cannot find it there, please report the error\nwith details by creating a new issue.\n\nIf you would rather not post publicly, please contact us directly\nusing the support form.\n\nWe appreciate your feedback.\n"
HINTS = {
    "savepoint_not_after_error": f"You have attempted to use a feature that is not yet implemented.{_REFERRAL}",
    "committed_with_ddl_failure": "Some of the non-DDL statements may have committed successfully, but some of the DDL statement(s) failed.\nManual inspection may be required to determine the actual state of the database.\n--\nSee: https://go.crdb.dev/issue-v/42061/v26.2",
    "too_many_clients": "the maximum number of allowed connections is 500 and can be modified using the server.max_connections_per_gateway config key",
    "too_many_transactions": "the maximum number of open transactions is 50",
    "memory_exceeded.root": "Consider increasing --max-sql-memory startup parameter.",
    "license_throttled.expired": "Obtain and install a new license to continue.",
    "license_throttled.none": "Obtain and install a valid license to continue.",
    "license_throttled.diagnostics": "Ensure diagnostic reporting is enabled and verify that nothing is blocking network access to the Cockroach Labs reporting server. You can also consider changing your license to one that doesn't require diagnostic reporting to be emitted.",
    "full_scan_refused": "try overriding the `disallow_full_table_scans` or increasing the `large_full_scan_rows` cluster/session settings",
    "restricted_internals": "These interfaces are unsupported in production. To proceed, set the session variable allow_unsafe_internals = true (not recommended), or contact Cockroach Labs for a supported alternative.",
    "internal_error": f"You have encountered an unexpected error.{_REFERRAL}",
}


def spelled(text: str) -> list[str]:
    """Give the messages of a row with their words put in."""
    return [_WORD.sub(lambda word: WORDS[word.group()], part) for part in text.split(" ¦ ") if part != "-"]


def fields_of(data: bytes) -> list[tuple[str, str]]:
    """Take an ErrorResponse apart as a driver would."""
    kind, length = struct.unpack("!cI", data[:5])
    assert (kind, length) == (b"E", len(data) - 1)
    assert data.endswith(b"\0\0")
    return [(field[:1].decode(), field[1:].decode()) for field in data[5:-2].split(b"\0")]


def raised(error: ErrorFields) -> psycopg.Error:
    """Make the error that psycopg 3 raises for the bytes."""
    fields = dict(fields_of(error.to_bytes()))
    exc = psycopg.errors._class_for_state(fields["C"])(fields["M"])
    exc.sqlstate = fields["C"]
    return exc


def found(error: ErrorFields, phase: str | None = None) -> Classification:
    """Tell what an error means."""
    classification = classify(raised(error), phase=phase)
    assert classification is not None
    return classification


every_fault = pytest.mark.parametrize("row", **cases(GOLDEN))


def test_catalogue_is_complete() -> None:
    """The catalogue holds the faults of the table, in its order, each under its own name and in one family."""
    assert [row[0] for row in GOLDEN] == list(faults.CATALOGUE)
    assert all(name == fault.name for name, fault in faults.CATALOGUE.items())
    assert sum(len(family) for family in faults.FAMILIES.values()) == len(faults.CATALOGUE)


@every_fault
def test_recipe(row: list[str]) -> None:
    """Each fault has its messages to the letter, its codes, its place, and its end for transaction and link."""
    name, meaning, place, upstream, link, text = row
    fault = faults.CATALOGUE[name]
    codes = (
        ["40001"]
        if meaning in RESTART_ROWS
        else [SERVER_ROWS[each][1] for each in meaning.split() if each != "-"]
    )
    assert [error.message for error in fault.errors] == spelled(text)
    assert [error.sqlstate for error in fault.errors] == codes
    assert (fault.place, fault.upstream, fault.link) == (place, Upstream(upstream), Link(link))


@every_fault
def test_meaning(row: list[str]) -> None:
    """Each error is known as the design's table says, in every phase, with the reason of its text."""
    name, meaning, *_ = row
    restarted = RESTART_ROWS.get(meaning)
    expected = ["40001"] if restarted else meaning.split()
    for error, each in zip(
        faults.CATALOGUE[name].errors, (one for one in expected if one != "-"), strict=True
    ):
        _, code, error_class, *answers, reconnect, reason, cause, _ = SERVER_ROWS[each]
        for phase, answer in zip(PHASES, answers, strict=True):
            got = found(error, phase)
            assert (got.sqlstate, got.error_class, got.retry) == (code, error_class, ANSWERS[answer]), phase
            assert got.reconnect == (reconnect == "R")
        if restarted:
            _, reason, cause, own, other, *_ = restarted
            assert (got.server_txn_id, got.conflict_server_txn_id) == (none_or(own), none_or(other))
        assert (got.retry_reason, got.retry_cause) == (none_or(reason), none_or(cause))


@pytest.mark.parametrize("fault", faults.CATALOGUE.values(), ids=lambda fault: fault.name)
def test_fields_and_their_order(fault: Fault) -> None:
    """Every error has severity twice, code, detail and hint where there are any, and its message last."""
    for error in fault.errors:
        fields = fields_of(error.to_bytes())
        present = [("D", error.detail), ("H", error.hint)]
        assert fields == [
            ("S", "ERROR"),
            ("V", "ERROR"),
            ("C", error.sqlstate),
            *((tag, text) for tag, text in present if text),
            ("M", error.message),
        ]


def test_all_fields() -> None:
    """An error with every field has them in CockroachDB's order, the constraint before the source."""
    error = ErrorFields("23505", "m", hint="h", detail="d", constraint="c", source=("f.go", 7, "fn"))
    assert error.to_bytes() == b"E\x00\x00\x00\x33SERROR\0VERROR\0C23505\0Dd\0Hh\0nc\0Ff.go\0L7\0Rfn\0Mm\0\0"


def test_bytes_of_a_drain() -> None:
    """A new connection to a draining node gets these bytes."""
    assert faults.not_accepting_clients().errors[0].to_bytes() == (
        b"E\x00\x00\x00\x4dSERROR\0VERROR\0C57P01\0Mserver is not accepting clients, try another node\0\0"
    )


@pytest.mark.parametrize("name", [name for name, fault in faults.CATALOGUE.items() if fault.errors])
def test_hints(name: str) -> None:
    """A hint is there where CockroachDB gives one; that of a 40001 is a link."""
    for error in faults.CATALOGUE[name].errors:
        if error.sqlstate == "40001":
            assert error.hint.startswith(f"See: {DOCS}v")
        else:
            assert error.hint == HINTS.get(name, "")


ANCHORS = table("""
name                                                       | version | anchor
serialization_failure.RETRY_SERIALIZABLE                   | v26.2 | #retry_serializable
serialization_failure.RETRY_SERIALIZABLE@v22.1             | v22.1 | #retry_serializable
serialization_failure.RETRY_WRITE_TOO_OLD.flag@v23.1       | v23.1 | #retry_write_too_old
serialization_failure.RETRY_COMMIT_DEADLINE_EXCEEDED@v24.3 | v24.3 | #retry_commit_deadline_exceeded
serialization_failure.ABORT_REASON_ABORT_SPAN              | v26.2 | #abort_reason_abort_span
serialization_failure.ReadWithinUncertaintyInterval        | v26.2 | #readwithinuncertaintyinterval
serialization_failure.WriteTooOld                          | v26.2 |
serialization_failure.ExclusionViolation@v25.3             | v25.3 |
serialization_failure.TransactionPush                      | v26.2 |
serialization_failure.injected                             | v26.2 |
serialization_failure.forced                               | v26.2 |
rollback_to_refused                                        | v26.2 |
""")


@pytest.mark.parametrize("row", **cases(ANCHORS))
def test_links(row: list[str]) -> None:
    """The link is to the server's own version, and has an anchor where the message names a reason."""
    name, version, anchor = row
    (error,) = faults.named(name).errors
    assert error.hint == f"See: {DOCS}{version}{REFERENCE}{anchor}"


# Seen in public logs; the last in CockroachDB's documentation.
V22 = Txn(
    id="dcf48ead",
    key="/Table/123/8/3/0",
    priority=0.03551682,
    write_timestamp="1672851243.656743278,1",
    min_timestamp="1672851232.686813476,0",
    sequence=1012,
    read_timestamp="1672851232.686813476,0",
    uncertainty_limit="1672851233.186813476,0",
)
V26 = Txn(
    id="a41090f6",
    key="/Table/112137/1/1/0",
    priority=0.011404,
    write_timestamp="1786878125.562938098,1",
    min_timestamp="1786878125.561464471,0",
    sequence=2,
    read_timestamp="1786878125.561464471,0",
    uncertainty_limit="1786878126.061464471,0",
    observed="n1@1786878125.561464471,0",
)
SAMPLES = {
    "v22.2": (
        "TransactionRetryError: retry txn (RETRY_SERIALIZABLE - failed preemptive refresh due to a conflict: committed value on key /Table/123/8/2/0)",
        V22,
        'restart transaction: TransactionRetryWithProtoRefreshError: TransactionRetryError: retry txn (RETRY_SERIALIZABLE - failed preemptive refresh due to a conflict: committed value on key /Table/123/8/2/0): "sql txn" meta={id=dcf48ead key=/Table/123/8/3/0 pri=0.03551682 epo=0 ts=1672851243.656743278,1 min=1672851232.686813476,0 seq=1012} lock=true stat=PENDING rts=1672851232.686813476,0 wto=false gul=1672851233.186813476,0',
        f"See: {DOCS}v22.2{REFERENCE}#retry_serializable",
    ),
    "v26.2": (
        "TransactionRetryError: retry txn (RETRY_SERIALIZABLE)",
        V26,
        'restart transaction: TransactionRetryWithProtoRefreshError: TransactionRetryError: retry txn (RETRY_SERIALIZABLE): "sql txn" meta={id=a41090f6 key=/Table/112137/1/1/0 iso=Serializable pri=0.01140400 epo=0 ts=1786878125.562938098,1 min=1786878125.561464471,0 seq=2} lock=true stat=PENDING rts=1786878125.561464471,0 gul=1786878126.061464471,0 obs={n1@1786878125.561464471,0}',
        f"See: {DOCS}v26.2{REFERENCE}#retry_serializable",
    ),
    "v23.1": (
        "injected by `inject_retry_errors_enabled` session variable",
        None,
        "restart transaction: TransactionRetryWithProtoRefreshError: injected by `inject_retry_errors_enabled` session variable",
        f"See: {DOCS}v23.1{REFERENCE}",
    ),
}


@pytest.mark.parametrize("version", SAMPLES)
def test_real_samples(version: str) -> None:
    """What real servers were seen to send comes out to the letter."""
    inner, txn, message, hint = SAMPLES[version]
    assert restart_fields(inner, version=version, txn=txn) == ErrorFields("40001", message, hint=hint)


def test_everything_a_transaction_tells() -> None:
    """Counts are told where they are not zero, in CockroachDB's order; a transaction may lack locks and writes."""
    txn = Txn(
        key="/Min",
        epoch=3,
        locking=False,
        status="STAGING",
        lock_spans=1,
        in_flight_writes=2,
        ignored_sequences=4,
        observed="",
    )
    assert txn.text("v26.2").endswith(
        "epo=3 ts=1760000000.250000000,1 min=1760000000.100000000,0 seq=2} lock=false stat=STAGING "
        "rts=1760000000.100000000,0 gul=1760000000.600000000,0 int=1 ifw=2 isn=4"
    )


TOLD = table("""
version | iso | wto | obs
v22.1   |     | yes |
v22.2   |     | yes |
v23.1   | yes | yes |
v23.2   | yes | yes |
v24.1   | yes | yes |
v24.2   | yes | yes |
v24.3   | yes | yes |
v25.1   | yes | yes |
v25.2   | yes | yes | yes
v25.3   | yes |     | yes
v25.4   | yes |     | yes
v26.1   | yes |     | yes
v26.2   | yes |     | yes
v26.3   | yes |     | yes
""")


@pytest.mark.parametrize("row", **cases(TOLD))
def test_transaction_of_every_version(row: list[str]) -> None:
    """Each version tells of a transaction what it had learnt to tell and not yet unlearnt."""
    version, *told = row
    (error,) = faults.serialization_failure(version=version).errors
    assert [part in error.message for part in (" iso=", " wto=false", " obs={")] == [
        each == "yes" for each in told
    ]
    assert error.hint == f"See: {DOCS}{version}{REFERENCE}#retry_serializable"


# The reasons that not every version has.
LIMITED = table("""
reason                               | since | until
RETRY_SERIALIZABLE.value_on_key      | v22.2 | v23.1
RETRY_SERIALIZABLE.intent_on_key     | v22.2 | v23.1
RETRY_SERIALIZABLE.committed_value   | v23.2 | v26.3
RETRY_SERIALIZABLE.conflicting_locks | v23.2 | v26.3
RETRY_WRITE_TOO_OLD.flag             | v22.1 | v23.1
ExclusionViolation                   | v25.3 | v26.3
injected.on_commit                   | v23.1 | v26.3
""")


def test_reasons_of_every_version() -> None:
    """A version has the reasons of its time; asked for another it says which it has."""
    limits = {row[0]: row[1:] for row in LIMITED}
    for reason in RESTARTS:
        since, until = limits.get(reason, ["v22.1", "v26.3"])
        for number, version in enumerate(VERSIONS):
            if VERSIONS.index(since) <= number <= VERSIONS.index(until):
                assert faults.serialization_failure(reason, version=version).errors[0].sqlstate == "40001"
            else:
                with pytest.raises(
                    ValueError,
                    match=rf"{version} has no .* of {since} to {until}; there is RETRY_SERIALIZABLE, ",
                ):
                    faults.serialization_failure(reason, version=version)


WRAPPED = table("""
wrapping             | version | iso           | before
force_retry          | v22.1   |               | crdb_internal.force_retry():
read_committed_limit | v23.2   | ReadCommitted | read committed retry limit exceeded; set by max_retries_for_read_committed=10:
read_committed_limit | v25.2   | ReadCommitted | read committed retry limit exceeded; set by max_retries_for_read_committed=10:
read_committed_limit | v25.3   | ReadCommitted | read committed retry limit exceeded; set by max_retries_for_read_committed=100:
streamed             | v26.2   | ReadCommitted | cannot automatically retry since some results were already sent to the client:
""")


@pytest.mark.parametrize("row", **cases(WRAPPED))
def test_wrapping(row: list[str]) -> None:
    """A wrapping text stands between prefix and error, and READ COMMITTED's is of such a transaction."""
    wrapping, version, isolation, before = row
    fault = faults.serialization_failure("WriteTooOld", version=version, wrapping=wrapping)
    message = fault.errors[0].message
    assert message.startswith(
        f"restart transaction: {before} TransactionRetryWithProtoRefreshError: WriteTooOldError: "
    )
    assert f"iso={isolation} " in message if isolation else " iso=" not in message
    assert found(fault.errors[0]).retry_reason == "WriteTooOld"


MISTAKES = {
    "version": (
        lambda: faults.serialization_failure(version="v21.2"),
        "no version 'v21.2'; there is v22.1, v22.2, .*v26.3",
    ),
    "version of a savepoint": (lambda: faults.restart_savepoint_not_first("v1"), "no version 'v1'"),
    "version of a schema change": (lambda: faults.committed_with_ddl_failure("v1"), "no version 'v1'"),
    "reason": (
        lambda: faults.serialization_failure("RETRY_SERIALISABLE"),
        "did you mean 'RETRY_SERIALIZABLE'",
    ),
    "wrapping": (lambda: faults.serialization_failure(wrapping="stream"), "did you mean 'streamed'"),
    "read committed": (
        lambda: faults.serialization_failure(version="v23.1", wrapping="streamed"),
        "v23.1 has no READ COMMITTED",
    ),
    "cause": (lambda: faults.ambiguous_commit("propagated"), "did you mean 'propagate'"),
    "monitor": (lambda: faults.memory_exceeded("bulk"), "there is 'sql', 'root'"),
    "disk": (lambda: faults.disk_exceeded("temporal"), "did you mean 'temporary'"),
    "form": (lambda: faults.range_unavailable("braker"), "did you mean 'breaker'"),
    "licence": (lambda: faults.license_throttled("expires"), "did you mean 'expired'"),
    "internals": (lambda: faults.restricted_internals("v25.3"), "v25.3 restricts no internals"),
    "ending": (lambda: faults.idle_session_timeout("time-out"), "did you mean 'timeout'"),
    "name": (lambda: faults.named("lock_timeuot"), "no fault 'lock_timeuot'; did you mean 'lock_timeout'"),
    "variant": (lambda: faults.named("memory_exceeded.rot"), "did you mean 'memory_exceeded.root'"),
    "reason of a version": (
        lambda: faults.named("serialization_failure.injected.on_commit@v22.2"),
        "v22.2 has no 'injected.on_commit'",
    ),
    "version by name": (lambda: faults.named("serialization_failure.injected@v9"), "no version 'v9'"),
    "version of another": (lambda: faults.named("drain@v26.2"), "did you mean 'drain'"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes(mistake: str) -> None:
    """What does not exist is refused by a sentence that names the nearest thing, or all there are."""
    make, words = MISTAKES[mistake]
    with pytest.raises(ValueError, match=words):
        make()


CONSTRUCTORS = [
    name for name in faults.__all__ if inspect.isfunction(getattr(faults, name)) and name != "named"
]


@pytest.mark.parametrize("name", CONSTRUCTORS)
def test_functions(name: str) -> None:
    """Each function's default is what its name alone gives; each is documented and tells its source."""
    function = getattr(faults, name)
    fault = faults.named(name)
    assert function() == fault
    assert fault.name.partition(".")[0] == name
    assert function.__doc__
    assert fault.source
    assert fault.summary.endswith(".")


def test_no_function_is_forgotten() -> None:
    """All that stands in the catalogue is made by a public function of its name."""
    assert {name.partition(".")[0] for name in faults.CATALOGUE} == set(CONSTRUCTORS)


def test_names_of_every_version() -> None:
    """A reason and a version name a fault, though the catalogue has not every one."""
    name = "serialization_failure.ABORT_REASON_CLIENT_REJECT@v24.1"
    fault = faults.named(name)
    assert name not in faults.CATALOGUE
    assert fault == faults.serialization_failure("ABORT_REASON_CLIENT_REJECT", version="v24.1")
    assert fault.name == name
    assert (
        faults.named(f"serialization_failure.forced@{DEFAULT_VERSION}").name == "serialization_failure.forced"
    )


def test_arguments() -> None:
    """What a function is asked for is in what it gives."""
    assert (
        faults.too_many_clients(7)
        .errors[0]
        .hint.startswith("the maximum number of allowed connections is 7 and")
    )
    assert faults.too_many_transactions(8).errors[0].hint == "the maximum number of open transactions is 8"
    assert (
        faults.prepared_statement_missing("s1").errors[0].message == 'prepared statement "s1" does not exist'
    )
    assert faults.read_only("UPSERT").errors[0].message == "cannot execute UPSERT in a read-only transaction"
    assert faults.committed_with_ddl_failure("v24.1").errors[0].hint.endswith("/issue-v/42061/v24.1")
    assert faults.rollback_to_refused("v22.1").errors[0].hint == f"See: {DOCS}v22.1{REFERENCE}"
    assert faults.range_unavailable(delay=2.5).delay == 2.5
    assert (faults.latency(0.3).delay, faults.slow_statement(4).delay) == (0.3, 4)
    assert faults.lock_timeout().after(1.5).delay == 1.5


NODES = {
    "drain": Node.DRAINING,
    "node_killed": Node.DEAD,
    "connection_refused": Node.REFUSING,
    "partition": Node.PARTITIONED,
    "latency": Node.DISTANT,
}


def test_faults_of_the_node() -> None:
    """Those and no others are of the whole node, and so is their place."""
    assert {name: fault.node for name, fault in faults.CATALOGUE.items() if fault.node} == NODES
    assert {name for name, fault in faults.CATALOGUE.items() if fault.place == "node"} == set(NODES)


STATEMENTS = table("""
name                        | strikes | statement
rollback_to_refused         | yes     | ROLLBACK TO SAVEPOINT "s1_x1"
rollback_to_refused         | yes     | rollback transaction to savepoint s
rollback_to_refused         |         | ROLLBACK
savepoint_not_after_ddl     |         | INSERT INTO t VALUES ('ROLLBACK TO')
restart_savepoint_not_first | yes     | SAVEPOINT "cockroach_restart"
restart_savepoint_nested    | yes     | savepoint cockroach_restart
restart_savepoint_nested    |         | SAVEPOINT s1
read_only                   | yes     |  INSERT INTO t VALUES (1)
read_only                   |         | SELECT 'INSERT'
restricted_internals        | yes     | SELECT crdb_internal.node_id()
restricted_internals        | yes     | SELECT * FROM "crdb_internal"."gossip_nodes"
restricted_internals        | yes     | SELECT * FROM system.users
restricted_internals        |         | SELECT * FROM crdb_internal.cluster_locks
restricted_internals        |         | SELECT * FROM "crdb_internal"."transaction_contention_events"
restricted_internals        | yes     | SELECT * FROM crdb_internal.cluster_locks, crdb_internal.ranges
restricted_internals        | yes     | SELECT * FROM crdb_internal.zones_of_mine
restricted_internals        |         | SELECT * FROM account
schema_locked               | yes     | ALTER TABLE accounts ADD COLUMN note TEXT
schema_locked               |         | UPDATE accounts SET note = 'ALTER TABLE'
""")


@pytest.mark.parametrize("row", STATEMENTS, ids=lambda row: f"{row[0]}: {row[2]}")
def test_statements_that_are_struck(row: list[str]) -> None:
    """A fault of certain statements strikes those and leaves the others."""
    name, strikes, statement = row
    matching = faults.CATALOGUE[name].matching
    assert matching is not None
    assert bool(re.search(matching, statement, re.IGNORECASE)) == (strikes == "yes")


def test_internal_error_has_its_stack() -> None:
    """The detail of an internal error is a stack trace."""
    assert faults.internal_error().errors[0].detail.startswith("stack trace:\n")


def test_page_is_true() -> None:
    """docs/faults.md is what the catalogue says (`python -m otel_crdb.testing.faults_page > docs/faults.md`)."""
    assert PAGE.read_text() == faults_page.page()


ROW_OF_THE_PAGE = "| `drain` | node | The node drains. **57014** `query execution canceled`; **57P01** `server is shutting down`; **57P01** `server is not accepting clients, try another node` | aborted, its locks are gone | every session is closed, new ones are refused | pkg/sql/pgwire/server.go, pkg/sql/pgwire/conn.go. *Not sure:* Whether a new connection is refused before or after it was authenticated, by version. |"


def test_page_names_every_fault_once() -> None:
    """The page has a heading a family and a row a fault, which tells all a stranger needs; no bar breaks a table."""
    lines = PAGE.read_text().splitlines()
    assert [line[3:] for line in lines if line.startswith("## ")] == list(faults.FAMILIES)
    rows = [line for line in lines if line.startswith("| `")]
    assert [line.split("`")[1] for line in rows] == list(faults.CATALOGUE)
    assert ROW_OF_THE_PAGE in rows
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in rows} == {7}
