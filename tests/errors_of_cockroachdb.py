# SPDX-License-Identifier: Apache-2.0
"""CockroachDB's errors as the tests know them: codes, texts of every version, and what each of them means.

Keys, rows and values in the texts are planted: none of `PLANTED` may ever leave the process.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace


def table(text: str) -> list[list[str]]:
    """Split a table of columns set apart by `|`; the last column may hold one."""
    lines = [line for line in text.strip().splitlines() if line.strip()]
    width = lines[0].count("|")
    return [[cell.strip() for cell in line.split("|", width)] for line in lines[1:]]


def cases(rows: list[list[str]]) -> dict[str, object]:
    """Name each case after its first column."""
    return {"argvalues": rows, "ids": [row[0] for row in rows]}


ANSWERS = {"yes": "yes", "no": "no", "if": "if_idempotent"}


def none_or(cell: str) -> str | None:
    """Read a table's cell in which `-` stands for none."""
    return None if cell == "-" else cell


# The table of the design, row by row: `if` for if_idempotent, `R` for a new connection, `-` for none.
ROWS = table("""
id                     | code  | class       | st  | CO  | au  | R | reason                | cause      | text
40001                  | 40001 | retryable   | yes | yes | yes |   | unknown               | unknown    | restart transaction: x
40001-postgresql       | 40001 | retryable   | yes | yes | yes |   | unknown               | unknown    | could not serialize access due to read/write dependencies
40002                  | 40002 | retryable   | yes | yes | yes |   | transaction_integrity | unknown    |
40P01                  | 40P01 | retryable   | yes | yes | yes |   | deadlock              | contention | deadlock detected
40003                  | 40003 | ambiguous   | if  | if  | if  |   | ambiguous_result      | cluster    | result is ambiguous: server shutdown
55P03-timeout          | 55P03 | retryable   | yes | yes | yes |   | lock_timeout          | contention | canceling statement due to lock timeout on row
55P03-nowait           | 55P03 | retryable   | no  | no  | no  |   | lock_not_available    | contention | could not obtain lock on row (id)=(1) in t@t_pkey
XCUBS                  | XCUBS | retryable   | yes | yes | yes |   | bounded_staleness     | cluster    | bounded staleness read with minimum timestamp
55C01                  | 55C01 | retryable   | yes | yes | yes |   | schema_change         | cluster    |
55C02                  | 55C02 | schema      | no  | no  | no  |   | -                     | -          |
57014-statement        | 57014 | timeout     | no  | if  | if  |   | statement_timeout     | unknown    | query execution canceled due to statement timeout
57014-transaction      | 57014 | timeout     | no  | if  | if  |   | transaction_timeout   | unknown    | query execution canceled due to transaction timeout
57014-bare             | 57014 | cancelled   | no  | if  | if  |   | canceled              | unknown    | query execution canceled
57P01                  | 57P01 | unavailable | yes | if  | if  | R | admin_shutdown        | cluster    | server is shutting down
57P02                  | 57P02 | unavailable | yes | if  | if  | R | crash_shutdown        | cluster    |
57P03                  | 57P03 | unavailable | yes | if  | if  | R | cannot_connect_now    | cluster    |
57P05                  | 57P05 | connection  | yes | if  | if  | R | idle_session_timeout  | cluster    |
08000                  | 08000 | connection  | yes | if  | if  | R | connection_lost       | cluster    |
08001                  | 08001 | connection  | yes | if  | if  | R | connection_lost       | cluster    |
08003                  | 08003 | connection  | yes | if  | if  | R | connection_lost       | cluster    |
08004                  | 08004 | connection  | yes | if  | if  | R | connection_lost       | cluster    |
08006                  | 08006 | connection  | yes | if  | if  | R | connection_lost       | cluster    |
lost                   | -     | connection  | yes | if  | if  | R | connection_lost       | cluster    | server closed the connection unexpectedly
closed                 | -     | connection  | yes | if  | if  | R | connection_lost       | cluster    | the connection is closed
translated             | -     | connection  | yes | if  | if  | R | connection_lost       | cluster    | die Verbindung wurde unerwartet beendet
XXUUU-read-tcp         | XXUUU | connection  | yes | if  | if  | R | connection_lost       | cluster    | read tcp 10.0.0.1:26257->(10.0.0.2:5): i/o timeout
XXUUU-EOF              | XXUUU | connection  | yes | if  | if  | R | connection_lost       | cluster    | EOF
refused                | -     | connection  | yes | if  | yes | R | connect_failed        | cluster    | connection to server at "h", port 1 failed: refused
DNS-libpq              | -     | connection  | yes | if  | yes | R | connect_failed        | cluster    | could not translate host name "h" to address: x
DNS-psycopg            | -     | connection  | yes | if  | yes | R | connect_failed        | cluster    | failed to resolve host 'h': [Errno -2] x
08007                  | 08007 | ambiguous   | if  | if  | if  | R | ambiguous_result      | cluster    |
08P01                  | 08P01 | permission  | no  | no  | no  |   | -                     | -          |
28000                  | 28000 | permission  | no  | no  | no  |   | -                     | -          |
28P01                  | 28P01 | permission  | no  | no  | no  |   | -                     | -          |
53000                  | 53000 | overload    | yes | if  | if  |   | insufficient_resources | cluster   |
53300                  | 53300 | overload    | yes | if  | if  | R | too_many_connections  | cluster    | sorry, too many clients already
53400                  | 53400 | overload    | yes | if  | yes |   | transaction_limit     | cluster    | cannot execute operation due to server.max_open_
53200                  | 53200 | overload    | yes | if  | if  |   | memory                | cluster    | memory budget exceeded: 1 bytes requested
53100                  | 53100 | overload    | no  | no  | no  |   | -                     | -          | disk budget exceeded: x
58C00                  | 58C00 | unavailable | yes | if  | if  |   | range_unavailable     | cluster    | key range id:5 is unavailable: x
58C01                  | 58C01 | unavailable | yes | if  | if  |   | node_connection       | cluster    |
XXUUU-replica          | XXUUU | unavailable | yes | if  | if  |   | range_unavailable     | cluster    | replica unavailable: (n1,s1):1 …: result is ambiguous
26000                  | 26000 | connection  | yes | if  | yes | R | prepared_statement_lost | cluster  | prepared statement "x" does not exist
XXA00                  | XXA00 | committed_with_ddl_failure | no | no | no | | -           | -          | transaction committed but schema change
XXC02                  | XXC02 | license     | no  | no  | no  |   | -                     | -          | License expired on x. The maximum number of
25000                  | 25000 | aborted_state | no | no | no |   | -                     | -          | current transaction is committed, commands ignored
25001                  | 25001 | aborted_state | no | no | no |   | -                     | -          |
25006                  | 25006 | aborted_state | no | no | no |   | -                     | -          |
25P01                  | 25P01 | aborted_state | no | no | no |   | -                     | -          |
25P02                  | 25P02 | aborted_state | no | no | no |   | -                     | -          | current transaction is aborted, commands ignored
3B001                  | 3B001 | aborted_state | no | no | no |   | -                     | -          | savepoint "x" does not exist
23502                  | 23502 | constraint  | no  | no  | no  |   | -                     | -          |
23503                  | 23503 | constraint  | no  | no  | no  |   | -                     | -          |
23505                  | 23505 | constraint  | no  | no  | no  |   | -                     | -          | duplicate key value violates unique constraint "x"
23514                  | 23514 | constraint  | no  | no  | no  |   | -                     | -          |
22001                  | 22001 | data        | no  | no  | no  |   | -                     | -          |
22003                  | 22003 | data        | no  | no  | no  |   | -                     | -          |
22012                  | 22012 | data        | no  | no  | no  |   | -                     | -          |
22023                  | 22023 | data        | no  | no  | no  |   | -                     | -          |
22P02                  | 22P02 | data        | no  | no  | no  |   | -                     | -          |
22C01                  | 22C01 | data        | no  | no  | no  |   | -                     | -          |
42501                  | 42501 | permission  | no  | no  | no  |   | -                     | -          |
42601                  | 42601 | schema      | no  | no  | no  |   | -                     | -          | at or near "EOF": syntax error
42703                  | 42703 | schema      | no  | no  | no  |   | -                     | -          |
42P01                  | 42P01 | schema      | no  | no  | no  |   | -                     | -          | relation "x" does not exist
42C01                  | 42C01 | schema      | no  | no  | no  |   | -                     | -          |
3D000                  | 3D000 | schema      | no  | no  | no  |   | -                     | -          | database "x" does not exist
3F000                  | 3F000 | schema      | no  | no  | no  |   | -                     | -          |
0A000                  | 0A000 | schema      | no  | no  | no  |   | -                     | -          | unimplemented: x
57000                  | 57000 | schema      | no  | no  | no  |   | -                     | -          |
54000                  | 54000 | other       | no  | if  | no  |   | unknown               | unknown    | txn has read 5 rows, which is above the limit
P0003                  | P0003 | other       | no  | if  | no  |   | unknown               | unknown    |
XXC01                  | XXC01 | other       | no  | if  | no  |   | unknown               | unknown    |
XCEXF                  | XCEXF | other       | no  | if  | no  |   | unknown               | unknown    |
unheard-of             | ZZ999 | other       | no  | if  | no  |   | unknown               | unknown    |
XX000                  | XX000 | internal    | no  | if  | no  |   | unknown               | unknown    | internal error: x
XXUUU                  | XXUUU | internal    | no  | if  | no  |   | unknown               | unknown    | something new
""")

# Table 1.2 of the reference, old forms and the samples of 1.4 included: every inner text of a 40001, with the
# word and cause it stands for, and with what it tells: this transaction, the other one, table, index.
RESTARTS = table("""
id              | reason              | cause      | own      | other    | table | index | text
unknown         | RETRY_REASON_UNKNOWN | unknown   | 07d42834 | -        | -   | - | TransactionRetryError: retry txn (RETRY_REASON_UNKNOWN): OWN
write-too-old   | RETRY_WRITE_TOO_OLD | contention | 07d42834 | -        | -   | - | TransactionRetryError: retry txn (RETRY_WRITE_TOO_OLD): OWN
too-old-flag    | RETRY_WRITE_TOO_OLD | contention | 07d42834 | -        | -   | - | TransactionRetryError: retry txn (RETRY_WRITE_TOO_OLD - WriteTooOld flag converted to WriteTooOldError): OWN22
serializable    | RETRY_SERIALIZABLE  | contention | 07d42834 | -        | -   | - | TransactionRetryError: retry txn (RETRY_SERIALIZABLE): OWN
txn-v20         | RETRY_SERIALIZABLE  | contention | 07d42834 | -        | -   | - | TransactionRetryError: retry txn (RETRY_SERIALIZABLE): OWN20
txn-v22         | RETRY_SERIALIZABLE  | contention | 07d42834 | -        | -   | - | TransactionRetryError: retry txn (RETRY_SERIALIZABLE): OWN22
txn-v25.2       | RETRY_SERIALIZABLE  | contention | 07d42834 | -        | -   | - | TransactionRetryError: retry txn (RETRY_SERIALIZABLE): OWN25
txn-v26         | RETRY_SERIALIZABLE  | contention | 07d42834 | -        | -   | - | TransactionRetryError: retry txn (RETRY_SERIALIZABLE): OWN26
txn-unwritten   | RETRY_SERIALIZABLE  | contention | 07d42834 | -        | -   | - | TransactionRetryError: retry txn (RETRY_SERIALIZABLE): UNWRITTEN
refresh         | RETRY_SERIALIZABLE  | contention | 07d42834 | -        | -   | - | TransactionRetryError: retry txn (RETRY_SERIALIZABLE - failed preemptive refresh): OWN
two-blanks      | RETRY_SERIALIZABLE  | contention | 07d42834 | -        | -   | - | TransactionRetryError: retry txn (RETRY_SERIALIZABLE  - failed preemptive refresh): OWN
value-v22       | RETRY_SERIALIZABLE  | contention | 07d42834 | -        | 106 | 1 | TransactionRetryError: retry txn (RETRY_SERIALIZABLE - failed preemptive refresh due to a conflict: committed value on key KEY): OWN22
intent-v22      | RETRY_SERIALIZABLE  | contention | 07d42834 | -        | 106 | 1 | TransactionRetryError: retry txn (RETRY_SERIALIZABLE - failed preemptive refresh due to a conflict: intent on key KEY): OWN22
value-v23       | RETRY_SERIALIZABLE  | contention | 07d42834 | -        | 106 | 1 | TransactionRetryError: retry txn (RETRY_SERIALIZABLE - failed preemptive refresh due to encountered recently written committed value KEY @1786878125.562938098,1): OWN
locks-v23       | RETRY_SERIALIZABLE  | contention | 07d42834 | 1b2bf263 | 106 | 1 | TransactionRetryError: retry txn (RETRY_SERIALIZABLE - failed preemptive refresh due to conflicting locks on KEY [reason=wait_policy] - conflicting txn: OTHER): OWN
locks-v26       | RETRY_SERIALIZABLE  | contention | 07d42834 | 1b2bf263 | 106 | 2 | TransactionRetryError: retry txn (RETRY_SERIALIZABLE - failed preemptive refresh due to conflicting locks on TENANT [reason=wait_policy] - conflicting txn: OTHER): OWN26
intents-v22     | RETRY_SERIALIZABLE  | contention | 07d42834 | -        | 106 | 1 | TransactionRetryError: retry txn (RETRY_SERIALIZABLE - failed preemptive refresh due to conflicting intents on KEY): OWN22
no-middle-name  | RETRY_SERIALIZABLE  | contention | 07d42834 | -        | -   | - | BARE TransactionRetryError: retry txn (RETRY_SERIALIZABLE): OWN
sample-v22.2    | RETRY_SERIALIZABLE  | contention | dcf48ead | -        | 123 | 8 | TransactionRetryError: retry txn (RETRY_SERIALIZABLE - failed preemptive refresh due to a conflict: committed value on key /Table/123/8/2/0): "sql txn" meta={id=dcf48ead key=/Table/123/8/3/0 pri=0.03551682 epo=0 ts=1672851243.656743278,1 min=1672851232.686813476,0 seq=1012} lock=true stat=PENDING rts=1672851232.686813476,0 wto=false gul=1672851233.186813476,0
sample-v26.2    | RETRY_SERIALIZABLE  | contention | a41090f6 | -        | -   | - | TransactionRetryError: retry txn (RETRY_SERIALIZABLE): "sql txn" meta={id=a41090f6 key=/Table/112137/1/1/0 iso=Serializable pri=0.01140400 epo=0 ts=1786878125.562938098,1 min=1786878125.561464471,0 seq=2} lock=true stat=PENDING rts=1786878125.561464471,0 gul=1786878126.061464471,0 obs={n1@1786878125.561464471,0}
async-write     | RETRY_ASYNC_WRITE_FAILURE | cluster | 07d42834 | -     | -   | - | TransactionRetryError: retry txn (RETRY_ASYNC_WRITE_FAILURE): OWN
missing-intent  | RETRY_ASYNC_WRITE_FAILURE | cluster | 07d42834 | -     | 106 | 1 | TransactionRetryError: retry txn (RETRY_ASYNC_WRITE_FAILURE - missing intent on: KEY): OWN
deadline        | RETRY_COMMIT_DEADLINE_EXCEEDED | cluster | 07d42834 | - | -  | - | TransactionRetryError: retry txn (RETRY_COMMIT_DEADLINE_EXCEEDED - txn timestamp pushed too much; deadline exceeded by 1.5s (1786878127.1,0 > 1786878125.6,0)): OWN
deadline-docs   | RETRY_COMMIT_DEADLINE_EXCEEDED | cluster | 07d42834 | - | -  | - | TransactionRetryError: transaction deadline exceeded: OWN
new-reason      | unknown             | unknown    | 07d42834 | -        | -   | - | TransactionRetryError: retry txn (RETRY_OF_NEXT_YEAR): OWN
uncertainty-v21 | ReadWithinUncertaintyInterval | contention | 07d42834 | - | - | - | ReadWithinUncertaintyIntervalError: read at time 1672851243.6,0 encountered previous write with future timestamp 1672851243.7,0 within uncertainty interval `t <= 1672851244.1,0`; observed timestamps: [{1 1672851243.6,0} {2 1672851243.7,0}]: OWN20
uncertainty     | ReadWithinUncertaintyInterval | contention | 07d42834 | - | - | - | ReadWithinUncertaintyIntervalError: read at time 1786878125.5,0 encountered previous write with future timestamp 1786878125.6,0 (local=1786878125.7,0) within uncertainty interval `t <= (local=1786878125.8,0, global=1786878126.0,0)`; observed timestamps: [{1 1786878125.5,0}]: OWN
too-old-key     | WriteTooOld         | contention | 07d42834 | -        | 106 | 1 | WriteTooOldError: write for key KEY at timestamp 1786878125.5,0 too old; must write at or above 1786878125.6,1: OWN
too-old-no-key  | WriteTooOld         | contention | 07d42834 | -        | -   | - | WriteTooOldError: write at timestamp 1786878125.5,0 too old; must write at or above 1786878125.6,1: OWN
too-old-v20     | WriteTooOld         | contention | 07d42834 | -        | -   | - | WriteTooOldError: write at timestamp 1672851243.6,0 too old; wrote at 1672851243.7,1: OWN20
exclusion       | ExclusionViolation  | contention | 07d42834 | -        | 106 | 1 | write exclusion on key KEY expected since 1786878125.5,0 but found write at 1786878125.6,0: OWN26
push            | TransactionPush     | contention | 07d42834 | 1b2bf263 | -   | - | failed to push PUSHED: OWN
injected        | injected            | unknown    | -        | -        | -   | - | injected by `inject_retry_errors_enabled` session variable
injected-commit | injected            | unknown    | -        | -        | -   | - | injected by `inject_retry_errors_on_commit_enabled` session variable
forced          | forced              | unknown    | -        | -        | -   | - | forced by crdb_internal.force_retry()
pushed          | timestamp_pushed    | contention | -        | -        | -   | - | serializable transaction timestamp pushed (detected by connExecutor)
savepoint       | savepoint_rollback_refused | unknown | -    | -        | -   | - | cannot rollback to savepoint after a transaction restart
savepoint-old   | savepoint_rollback_refused | unknown | -    | -        | -   | - | cannot rollback to savepoint because the transaction has been aborted
aborted-unknown | ABORT_REASON_UNKNOWN | unknown   | 07d42834 | -        | -   | - | TransactionAbortedError(ABORT_REASON_UNKNOWN): ABORTED
aborted-record  | ABORT_REASON_ABORTED_RECORD_FOUND | contention | 07d42834 | - | - | - | TransactionAbortedError(ABORT_REASON_ABORTED_RECORD_FOUND): ABORTED
client-reject   | ABORT_REASON_CLIENT_REJECT | contention | 07d42834 | - | -   | - | TransactionAbortedError(ABORT_REASON_CLIENT_REJECT): ABORTED
pusher-aborted  | ABORT_REASON_PUSHER_ABORTED | contention | 07d42834 | - | -  | - | TransactionAbortedError(ABORT_REASON_PUSHER_ABORTED): ABORTED
abort-span      | ABORT_REASON_ABORT_SPAN | contention | 07d42834 | -    | -   | - | TransactionAbortedError(ABORT_REASON_ABORT_SPAN): ABORTED
replay          | ABORT_REASON_RECORD_ALREADY_WRITTEN_POSSIBLE_REPLAY | cluster | 07d42834 | - | - | - | TransactionAbortedError(ABORT_REASON_RECORD_ALREADY_WRITTEN_POSSIBLE_REPLAY): ABORTED
timestamp-cache | ABORT_REASON_TIMESTAMP_CACHE_REJECTED | cluster | 07d42834 | - | - | - | TransactionAbortedError(ABORT_REASON_TIMESTAMP_CACHE_REJECTED): ABORTED
new-lease       | ABORT_REASON_NEW_LEASE_PREVENTS_TXN | cluster | 07d42834 | - | - | - | TransactionAbortedError(ABORT_REASON_NEW_LEASE_PREVENTS_TXN): ABORTED
""")
FORCED = "crdb_internal.force_retry(): "
LIMIT = "read committed retry limit exceeded; set by max_retries_for_read_committed=10: "
STREAMED = "cannot automatically retry since some results were already sent to the client: "
#: What the server may put between the prefix and the reason.
WRAPPINGS = {"": "", "forced": FORCED, "limit": LIMIT, "streamed": STREAMED}

# Tables 2.1 to 2.5 of the reference: the text of every version, by the row of the design it belongs to.
TEXTS = table("""
id                   | row             | text
rpc-propagated       | 40003           | result is ambiguous: error=rpc error: code = Unavailable desc = error reading from server: read tcp 10.0.0.1:26257->10.0.0.2:5: use of closed network connection: Put [KEY,/Min), EndTxn(parallel commit) [KEY] [propagate] (last error: <nil>)
rpc-exhausted        | 40003           | result is ambiguous: error=ba: Put [KEY,/Min) RPC error: grpc: node unavailable [code 14/Unavailable] [exhausted] (last error: failed to send RPC)
intent-missing       | 40003           | result is ambiguous: error=Put [KEY,/Min) [intent missing]
shutdown             | 40003           | result is ambiguous: server shutdown
store                | 40003           | result is ambiguous: store is stopping
snapshot             | 40003           | result is ambiguous: unable to determine whether command was applied via snapshot
store-v20            | 40003           | result is ambiguous (store is stopping)
replica              | 40003           | result is ambiguous: replica unavailable: (n1,s1):1 unable to serve request to r18:/Table/{106/1/"hunter2"-107} [(n1,s1):1, next=2, gen=0]: operation "Put [KEY]" timed out
aborted              | 25P02           | current transaction is aborted, commands ignored until end of transaction block
committed            | 25000           | current transaction is committed, commands ignored until end of transaction block
already              | 25001           | there is already a transaction in progress
none                 | 25P01           | there is no transaction in progress
read-only            | 25006           | cannot execute INSERT in a read-only transaction
savepoint-refused    | 0A000           | unimplemented: cannot rollback to savepoint after error
aost-inconsistent    | 0A000           | inconsistent AS OF SYSTEM TIME timestamp; expected: 1786878125.562938098; try: SET TRANSACTION AS OF SYSTEM TIME
aost-bounded         | 0A000           | cannot use a bounded staleness query in a transaction
unimplemented        | 0A000           | unimplemented: this syntax ¦ HINT: You have attempted to use a feature that is not yet implemented. See: https://go.crdb.dev/issue-v/42061/v26.2
savepoint            | 3B001           | savepoint "s1234_x1" does not exist
canceled             | 57014-bare      | query execution canceled
statement-timeout    | 57014-statement | query execution canceled due to statement timeout
transaction-timeout  | 57014-transaction | query execution canceled due to transaction timeout
not-accepting        | 57P01           | server is not accepting clients, try another node
shutting-down        | 57P01           | server is shutting down
network              | XXUUU-read-tcp  | read tcp 10.0.0.1:26257->(10.0.0.2:54321): i/o timeout
network-v6           | XXUUU-read-tcp  | read tcp [::1]:26257->[::1]:54321: i/o timeout
eof                  | XXUUU-EOF       | EOF
clients              | 53300           | sorry, too many clients already ¦ HINT: the maximum number of allowed connections is 500 and can be modified using the server.max_connections_per_gateway config key
clients-cloud        | 53300           | this cluster has reached its connection limit ¦ HINT: the maximum number of allowed connections is 5
open-transactions    | 53400           | cannot execute operation due to server.max_open_transactions_per_gateway cluster setting ¦ HINT: the maximum number of open transactions is 50
memory-monitor       | 53200           | sql: memory budget exceeded: 10240 bytes requested, 134213632 currently allocated, 134217728 bytes in budget
memory-root          | 53200           | root: memory budget exceeded: 10240 bytes requested, 134213632 currently allocated, 134217728 bytes in budget ¦ HINT: Consider increasing --max-sql-memory startup parameter.
memory               | 53200           | memory budget exceeded: 10240 bytes requested, 134213632 currently allocated, 134217728 bytes in budget
disk                 | 53100           | disk budget exceeded: 10240 bytes requested, 1 currently allocated, 2 bytes in budget
store-full           | 53100           | store 3 has insufficient remaining capacity to ingest data (remaining: 1.2 GiB / 5.0%, min required: 5.0%)
lock-refused         | 55P03-nowait    | could not obtain lock on row ROW in accounts@accounts_pkey
lock-timeout         | 55P03-timeout   | canceling statement due to lock timeout on row ROW in accounts@accounts_pkey
secure-mode          | 08P01           | node is running secure mode, SSL connection required
password             | 28P01           | password authentication failed for user app
database             | 3D000           | database "bank" does not exist
prepared             | 26000           | prepared statement "_pg3_0" does not exist
range                | 58C00           | key range id:5 is unavailable: KEY
range-redacted       | 58C00           | key range id:5 is unavailable: ‹KEY›
staleness            | XCUBS           | bounded staleness read with minimum timestamp bound of 1786878125.5,0 could not be satisfied by a local resolved timestamp of 1786878124.5,0
license-expired      | XXC02           | License expired on 2026-08-01 00:00:00 +0000 UTC. The maximum number of concurrently open transactions has been reached. ¦ HINT: Obtain and install a new license to continue.
license-none         | XXC02           | No license installed. The maximum number of concurrently open transactions has been reached. ¦ HINT: Obtain and install a valid license to continue.
schema-change        | XXA00           | transaction committed but schema change aborted with error: (23505): duplicate key value violates unique constraint "accounts_email_key" ¦ HINT: Some of the non-DDL statements may have committed successfully, but some of the DDL statement(s) failed.\\nManual inspection may be required to determine the actual state of the database.\\n--\\nSee: https://go.crdb.dev/issue-v/42061/v26.2
schema-change-row    | XXA00           | transaction committed but schema change aborted with error: (23505): duplicate key value ROW violates unique constraint "accounts_email_key"
breaker              | XXUUU-replica   | replica unavailable: (n1,s1):1 unable to serve request to r18:/Table/{106/1/"hunter2"-107} [(n1,s1):1, (n2,s2):2, next=3, gen=4]: closed timestamp: 1786878125.5,0 (2026-08-16 10:00:00); raft status: {}: have been waiting 62.00s for slow proposal Put [KEY], [txn: 54b09f72]
restricted           | 42501           | Access to crdb_internal and system is restricted. ¦ HINT: These interfaces are unsupported in production. To proceed, set allow_unsafe_internals = true.
full-scan            | P0003           | query `SELECT * FROM accounts WHERE email = 'VALUE'` contains a full table/index scan which is explicitly disallowed ¦ HINT: try overriding the `disallow_full_table_scans` or increasing the `large_full_scan_rows` cluster/session settings
guardrail            | 54000           | txn has read 5 rows, which is above the limit: TxnID 07d42834-0000-4000-8000-000000000000 SessionID 1786f
schema-locked        | 57000           | schema changes are disallowed on table "accounts" because it is locked
unique               | 23505           | duplicate key value violates unique constraint "accounts_email_key" ¦ DETAIL: Key (email)=('VALUE') already exists.
unique-v20           | 23505           | duplicate key value ROW violates unique constraint "accounts_email_key"
not-null             | 23502           | null value in column "email" violates not-null constraint
foreign-key          | 23503           | insert on table "payments" violates foreign key constraint "payments_account_fk" ¦ DETAIL: Key (account)=('VALUE') is not present in table "accounts".
check                | 23514           | failed to satisfy CHECK constraint (balance >= 0:::INT8)
no-table             | 42P01           | relation "accounts" does not exist
no-column            | 42703           | column "email" does not exist
syntax               | 42601           | at or near "hunter2": syntax error ¦ DETAIL: source SQL:\\nSELECT 'VALUE' hunter2\\n               ^ ¦ HINT: try \\h SELECT
not-a-number         | 22P02           | could not parse "VALUE" as type int: strconv.ParseInt: parsing "VALUE": invalid syntax
too-large            | 22003           | integer out of range for type int4: 4111111111111111
zero                 | 22012           | division by zero
too-long             | 22001           | value too long for type VARCHAR(3)
parameter            | 22023           | unrecognized timezone 'VALUE'
internal             | XX000           | internal error: unexpected value 'VALUE' ¦ DETAIL: stack trace:\\ngithub.com/cockroachdb/cockroach/pkg/sql/conn_executor.go:1: exec() SELECT 'VALUE' ¦ HINT: You have encountered an unexpected error.
locks                | XXUUU           | conflicting locks on KEY, KEY [reason=lock_wait_queue_max_length_exceeded]
already-failed       | XXUUU           | txn already encountered an error; cannot be used anymore (previous err: conflicting locks on KEY [reason=lock_timeout])
staging              | XXUUU           | found txn in indeterminate STAGING state OWN
too-old-read         | XXUUU           | batch timestamp 1786878125.5,0 must be after replica GC threshold 1786878126.5,0 (r18: KEY)
""")

#: What CockroachDB answers to a start-up packet before it closes, and what that is known as without a SQLSTATE,
#: for the drivers keep none of a failed connect. None of it is sent on a connection that stands.
REFUSALS = table("""
id            | code  | class       | retry | R | reason               | text
draining      | 57P01 | unavailable | yes   | R | admin_shutdown       | server is not accepting clients, try another node
shutting-down | 57P01 | unavailable | yes   | R | admin_shutdown       | server is shutting down
clients       | 53300 | overload    | yes   | R | too_many_connections | sorry, too many clients already ¦ HINT: the maximum number of allowed connections is 500 and can be modified using the server.max_connections_per_gateway config key
clients-cloud | 53300 | overload    | yes   | R | too_many_connections | this cluster has reached its connection limit ¦ HINT: the maximum number of allowed connections is 5
password      | 28P01 | permission  | no    |   | -                    | password authentication failed for user app
role          | 28000 | permission  | no    |   | -                    | app does not have login privilege
secure-mode   | 08P01 | permission  | no    |   | -                    | node is running secure mode, SSL connection required
database      | 3D000 | schema      | no    |   | -                    | database "bank" does not exist
""")

# --- what is planted -------------------------------------------------------------------------------

#: Parts of the keys, rows and values in the texts.
PLANTED = ("hunter2", "alice", "4111111111111111")
_VALUE = "hunter2 alice@example.com"
_IN_KEY = r'"hunter2 \"alice@example.com\" {="/4111111111111111/0'
_ANCHOR = f"/Table/777/9/{_IN_KEY}"
_TIMES = "ts=1786878125.562938098,1 min=1786878125.561464471,0"
_META = f"key={_ANCHOR} iso=Serializable pri=0.01253025 epo=0 {_TIMES} seq=2}}"
_OLD_META = f"key={_ANCHOR} pri=0.01253025 epo=0 {_TIMES} seq=2}}"
_RTS = "rts=1786878125.561464471,0"
_LIMIT = "gul=1786878126.061464471,0"
_OBSERVED = "obs={n1@1786878125.561464471,0 n2@1786878125.561464472,0}"
#: Section 1.3 of the reference: a transaction's own string in the forms of the versions.
_WORDS = {
    "OWN": f'"sql txn" meta={{id=07d42834 {_META} lock=true stat=PENDING {_RTS} wto=false {_LIMIT}',
    "OWN20": f'"sql txn" meta={{id=07d42834 {_OLD_META} rw=true stat=PENDING {_RTS} wto=false max=1.5,0',
    "OWN22": f'"sql txn" meta={{id=07d42834 {_OLD_META} lock=true stat=PENDING {_RTS} wto=false {_LIMIT}',
    "OWN25": f'"sql txn" meta={{id=07d42834 {_META} lock=true stat=PENDING {_RTS} wto=false {_LIMIT} {_OBSERVED}',
    "OWN26": f'"sql txn" meta={{id=07d42834 {_META} lock=true stat=STAGING {_RTS} {_LIMIT} int=1 ifw=2 isn=3 {_OBSERVED}',
    "UNWRITTEN": f'"sql txn" meta={{id=07d42834 key=/Min iso=ReadCommitted pri=0.1 epo=1 {_TIMES} seq=0}} lock=false stat=PENDING {_RTS} {_LIMIT}',
    "ABORTED": f'"sql txn" meta={{id=07d42834 {_META} lock=true stat=ABORTED {_RTS} wto=false {_LIMIT}',
    "PUSHED": f'"sql txn" meta={{id=1b2bf263 {_META} lock=true stat=PENDING {_RTS} wto=false {_LIMIT}',
    "OTHER": f"meta={{id=1b2bf263 {_META}",
    "KEY": f"/Table/106/1/{_IN_KEY}",
    "TENANT": f"/Tenant/3/Table/106/2/{_IN_KEY}",
    "ROW": f"(id, email)=(4111111111111111, '{_VALUE}')",
    "VALUE": _VALUE,
}
_WORD = re.compile(rf"\b(?:{'|'.join(_WORDS)})\b")
#: The detail of errors that have none of their own: it must not leave whatever the code is.
_DETAIL = f"Key (email)=({_VALUE}) already exists. Failing row contains (4111111111111111)."
_HINT = "See: https://www.cockroachlabs.com/docs/v26.2/transaction-retry-error-reference.html"


def planted(text: str) -> str:
    """Put keys, rows, values and transactions in the place of their words."""
    return _WORD.sub(lambda word: _WORDS[word.group()], text)


def restart(text: str, wrapping: str = "") -> str:
    """Return the whole message of a 40001, by the text of `RESTARTS`."""
    bare = text.removeprefix("BARE ")
    middle = "" if bare != text else "TransactionRetryWithProtoRefreshError: "
    return f"restart transaction: {wrapping}{middle}{planted(bare)}"


@dataclass(frozen=True)
class Case:
    """An error as the server sends it, and what it means."""

    name: str
    code: str
    message: str
    error_class: str
    #: By phase: "statement", "commit", "autocommit".
    retry: dict[str, str]
    reconnect: bool
    reason: str | None
    cause: str | None
    detail: str = _DETAIL
    hint: str = _HINT
    server_txn_id: str | None = None
    conflict_server_txn_id: str | None = None
    table_id: int | None = None
    index_id: int | None = None

    def __str__(self) -> str:
        return self.name


def _of_row(row: list[str]) -> Case:
    name, code, error_class, statement, commit, autocommit, reconnect, reason, cause, text = row
    answers = dict(zip(("statement", "commit", "autocommit"), (statement, commit, autocommit), strict=True))
    return Case(
        name,
        code,
        text,
        error_class,
        {phase: ANSWERS[answer] for phase, answer in answers.items()},
        reconnect == "R",
        none_or(reason),
        none_or(cause),
    )


def _of_text(name: str, row: Case, text: str) -> Case:
    message, *parts = text.replace("\\n", "\n").split(" ¦ ")
    fields = {part.partition(": ")[0].lower(): planted(part.partition(": ")[2]) for part in parts}
    return replace(row, name=f"{row.code}-{name}", message=planted(message), **fields)


def _of_restart(name: str, row: Case, restarted: list[str], wrapping: str = "") -> Case:
    _, reason, cause, own, other, table_id, index_id, text = restarted
    return replace(
        row,
        name=f"40001-{name}",
        message=restart(text, wrapping),
        reason=reason,
        cause=cause,
        server_txn_id=none_or(own),
        conflict_server_txn_id=none_or(other),
        table_id=None if table_id == "-" else int(table_id),
        index_id=None if index_id == "-" else int(index_id),
    )


def _all_cases() -> list[Case]:
    """Return what a server can send: each row, each text of every version, 40001 in each of its wrappings.

    Rows without a SQLSTATE are no answer of a server; they are the drivers' own words.
    """
    rows = {row[0]: _of_row(row) for row in ROWS if row[1] != "-"}
    by_name = {row[0]: row for row in RESTARTS}
    wrapped = [
        _of_restart(f"{name}-{wrapping}", rows["40001"], by_name[name], WRAPPINGS[wrapping])
        for name, wrapping in (
            ("forced", "forced"),
            ("too-old-key", "limit"),
            ("locks-v23", "streamed"),
        )
    ]
    limit = replace(
        rows["40001"],
        name="40001-limit",
        message="restart transaction: read committed retry limit exceeded; set by max_retries_for_read_committed=10",
        reason="read_committed_retry_limit",
        cause="contention",
    )
    return [
        *rows.values(),
        *(_of_text(name, rows[row], text) for name, row, text in TEXTS),
        *(_of_restart(row[0], rows["40001"], row) for row in RESTARTS),
        *wrapped,
        limit,
    ]


CASES = _all_cases()
