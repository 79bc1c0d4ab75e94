# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: F401, F811 - fixtures come by name
"""Every fault of the catalogue, byte for byte on the wire, and what a second connection then finds.

The tables say what a client hears, in the notation of `wire_client`, and what becomes of data, locks and link.
They are written from CockroachDB's sequences, not from the faults.
"""

from __future__ import annotations

import itertools
import socket
import ssl
import subprocess
import time
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlencode

import psycopg
import pytest

from otel_crdb.testing import FaultProxy, Server, ServerError, faults
from otel_crdb.testing.frames import query

from .errors_of_cockroachdb import table
from .wire_client import (
    PAY_1,
    PAY_2,
    SYNC,
    Onlooker,
    Relay,
    WireClient,
    behind,
    cancel,
    client,
    eventually,
    onlooker,
    protocols,
    proxy,
    send_cancel,
    step,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

OPENED = "BEGIN Z(T)", "UPDATE 1 Z(T)", "SAVEPOINT Z(T)"
ORDER_OF_FIELDS = "SVCDHnFLRM"


# --- the tables --------------------------------------------------------------------------------------------


class Recipe(NamedTuple):
    """One row: which faults, what is heard, what becomes of the locks or the data, how the message begins."""

    names: str
    heard: str
    state: str
    says: str


def recipes(text: str) -> list[Recipe]:
    return [Recipe(*row) for row in table(text)]


RESTART = "restart transaction: TransactionRetryWithProtoRefreshError: "

# Of a statement. `heard` stands before ReadyForQuery, or before the end of the link; the locks of what ran before
# are `kept` until the client ends the transaction, or `gone` at once.
AT_STATEMENT = recipes(f"""
names                                        | heard       | locks | says
serialization_failure.ABORT_REASON_*         | 40001       | gone  | {RESTART}TransactionAbortedError(ABORT_REASON_
serialization_failure.RETRY_SERIALIZABLE*    | 40001       | kept  | {RESTART}TransactionRetryError: retry txn (RETRY_SERIALIZABLE
serialization_failure.RETRY_WRITE_TOO_OLD*   | 40001       | kept  | {RESTART}TransactionRetryError: retry txn (RETRY_WRITE_TOO_OLD
serialization_failure.RETRY_REASON_UNKNOWN   | 40001       | kept  | {RESTART}TransactionRetryError: retry txn (RETRY_REASON_UNKNOWN): "sql txn" meta=
serialization_failure.ReadWithinUnc*         | 40001       | kept  | {RESTART}ReadWithinUncertaintyIntervalError: read at time
serialization_failure.*.read_committed_limit | 40001       | kept  | restart transaction: read committed retry limit exceeded; set by max_retries_for_read_committed=100: TransactionRetry
serialization_failure.*.streamed             | 40001       | kept  | restart transaction: cannot automatically retry since some results were already sent to the client: TransactionRetry
serialization_failure.WriteTooOld*           | 40001       | kept  | {RESTART}WriteTooOldError: write
serialization_failure.ExclusionViolation     | 40001       | kept  | {RESTART}write exclusion on key
serialization_failure.TransactionPush        | 40001       | kept  | {RESTART}failed to push "sql txn"
serialization_failure.injected               | 40001       | kept  | {RESTART}injected by `inject_retry_errors_enabled` session variable
serialization_failure.forced                 | 40001       | kept  | restart transaction: crdb_internal.force_retry(): TransactionRetry
serialization_failure.timestamp_pushed       | 40001       | kept  | {RESTART}serializable transaction timestamp pushed (detected by connExecutor)
rollback_to_refused                          | 40001       | kept  | {RESTART}cannot rollback to savepoint after a transaction restart
savepoint_not_after_error                    | 0A000       | kept  | unimplemented: cannot rollback to savepoint after error
savepoint_not_after_ddl                      | 0A000       | kept  | ROLLBACK TO SAVEPOINT not yet supported after DDL statements
restart_savepoint_not_first                  | 42601       | kept  | SAVEPOINT "cockroach_restart" needs to be the first statement in a transaction
restart_savepoint_nested                     | 42601       | kept  | SAVEPOINT "cockroach_restart" cannot be nested
aborted                                      | 25P02       | kept  | current transaction is aborted, commands ignored until end of transaction block
committed                                    | 25000       | kept  | current transaction is committed, commands ignored until end of transaction block
read_only                                    | 25006       | kept  | cannot execute INSERT in a read-only transaction
statement_timeout                            | 57014       | kept  | query execution canceled due to statement timeout
transaction_timeout                          | 57014       | kept  | query execution canceled due to transaction timeout
query_canceled                               | 57014       | kept  | query execution canceled
draining_statement                           | 57014 57P01 FIN | gone | query execution canceled
too_many_transactions                        | 53400       | kept  | cannot execute operation due to server.max_open_transactions_per_gateway cluster setting
memory_exceeded.*                            | 53200       | kept  |
disk_exceeded.temporary                      | 53100       | kept  | disk budget exceeded:
disk_exceeded.store                          | 53100       | kept  | store 1 has insufficient remaining capacity
license_throttled.expired                    | XXC02       | kept  | License expired on
license_throttled.none                       | XXC02       | kept  | No license installed. The maximum number of concurrently open transactions has been reached.
license_throttled.diagnostics                | XXC02       | kept  | The maximum number of concurrently open transactions has been reached
rows_limit_exceeded                          | 54000       | kept  | txn has read
full_scan_refused                            | P0003       | kept  | query `
lock_not_available                           | 55P03       | kept  | could not obtain lock on row (
lock_timeout                                 | 55P03       | kept  | canceling statement due to lock timeout on row (
range_unavailable.breaker                    | XXUUU       | kept  | replica unavailable: (n1,s1):1 unable to serve request to r
range_unavailable.range                      | 58C00       | kept  | key range id:106 is unavailable:
range_unavailable.internal                   | 58C01       | kept  | inbox communication error:
bounded_staleness_unsatisfied                | XCUBS       | kept  | bounded staleness read with minimum timestamp bound of
restricted_internals                         | 42501       | kept  | Access to crdb_internal and system is restricted.
prepared_statement_missing                   | 26000       | kept  | prepared statement "_pg3_0" does not exist
schema_locked                                | 57000       | kept  |
internal_error                               | XX000       | kept  | internal error:
connection_reset                             | RST         | gone  |
server_closed                                | FIN         | gone  |
black_hole                                   | silence     | gone  |
""")

# Of COMMIT: whether what the transaction wrote is `there`. The server has cleaned up in either case.
AT_COMMIT = recipes(f"""
names                                            | heard      | data  | says
serialization_failure.RETRY_ASYNC_WRITE_FAILURE* | 40001 Z(I) | gone  | {RESTART}TransactionRetryError: retry txn (RETRY_ASYNC_WRITE_FAILURE
serialization_failure.RETRY_COMMIT_DEADLINE_EXC* | 40001 Z(I) | gone  | {RESTART}TransactionRetryError: retry txn (RETRY_COMMIT_DEADLINE_EXCEEDED -
serialization_failure.injected.on_commit         | 40001 Z(I) | gone  | {RESTART}injected by `inject_retry_errors_on_commit_enabled` session variable
ambiguous_commit.*.applied                       | 40003 Z(I) | there | result is ambiguous:
ambiguous_commit.*                               | 40003 Z(I) | gone  | result is ambiguous:
range_unavailable.commit                         | 40003 Z(I) | gone  | result is ambiguous: replica unavailable:
lost_commit.applied                              | RST        | there |
lost_commit                                      | RST        | gone  |
committed_with_ddl_failure                       | XXA00 Z(I) | there | transaction committed but schema change aborted with error: (
""")

# Of a session that waits for its next statement. Its locks are gone with it.
WHILE_IDLE = recipes("""
names                               | heard     | where          | says
shutting_down                       | 57P01 FIN | idle           | server is shutting down
idle_session_timeout.timeout        | XXUUU FIN | idle           | read tcp 10.0.0.1:26257->10.0.0.2:54321: i/o timeout
idle_session_timeout.silent         | FIN       | idle           |
half_open                           | silence   | idle           |
idle_in_transaction_timeout.timeout | XXUUU FIN | in transaction | read tcp 10.0.0.1:26257->10.0.0.2:54321: i/o timeout
idle_in_transaction_timeout.silent  | FIN       | in transaction |
""")

# Of a new connection, once it is authenticated.
AT_CONNECT = recipes("""
names                 | heard       | -  | says
not_accepting_clients | R 57P01 FIN | -  | server is not accepting clients, try another node
too_many_clients      | R 53300 FIN | -  | sorry, too many clients already
""")

#: Tested one by one: they delay or concern the whole node.
APART = {"slow_statement", "drain", "latency", "partition", "connection_refused", "node_killed"}
TABLES = {"statement": AT_STATEMENT, "commit": AT_COMMIT, "idle": WHILE_IDLE, "connect": AT_CONNECT}


def row_of(name: str) -> tuple[str, Recipe] | None:
    """Give a fault's table and row: of several the one that comes first, COMMIT's table before the others."""
    order = ["commit", "statement", "idle", "connect"]
    rows = ((place, recipe) for place in order for recipe in TABLES[place])
    return next((row for row in rows if fnmatchcase(name, row[1].names)), None)


def named_in(place: str) -> list[tuple[str, Recipe]]:
    rows = ((name, row_of(name)) for name in faults.CATALOGUE)
    return [(name, row[1]) for name, row in rows if row is not None and row[0] == place]


def each_of(place: str, where: Callable[[str, Recipe], bool] = lambda *_: True) -> pytest.MarkDecorator:
    rows = [row for row in named_in(place) if where(*row)]
    return pytest.mark.parametrize(("name", "recipe"), rows, ids=[name for name, _ in rows])


def test_every_fault_has_its_recipe() -> None:
    """Every fault of the catalogue stands in one of the tables or is tested apart, and no row is idle."""
    without = {name for name in faults.CATALOGUE if row_of(name) is None}
    used = {row[1] for name in faults.CATALOGUE if (row := row_of(name)) is not None}
    assert without == APART
    assert used == set(itertools.chain(*TABLES.values()))


def check_errors(client: WireClient, name: str, says: str) -> None:
    """The errors that were heard have the recipe's fields in their order, and are the fault's to the byte."""
    for error in client.errors:
        tags = "".join(tag for tag, _ in error.fields)
        assert tags == "".join(sorted(tags, key=ORDER_OF_FIELDS.index)), tags
        assert tags.startswith("SVC")
        assert tags.endswith("M")
        assert error["S"] == error["V"] == "ERROR"
    assert [error.data for error in client.errors] == [
        error.to_bytes() for error in faults.CATALOGUE[name].errors
    ]
    if client.errors:
        assert client.errors[0]["M"].startswith(says)
    else:
        assert not says
    client.errors.clear()


# --- at a statement ----------------------------------------------------------------------------------------

#: What is struck where the fault is of a certain statement.
STRUCK = {
    "rollback_to_refused": "ROLLBACK TO SAVEPOINT middle",
    "savepoint_not_after_*": "ROLLBACK TO SAVEPOINT middle",
    "read_only": "INSERT INTO purse VALUES (3, 100)",
    "restricted_internals": "SELECT * FROM crdb_internal.gossip_nodes",
    "schema_locked": "ALTER TABLE purse ADD COLUMN owner text",
}


def statement_for(name: str) -> str:
    return next((text for pattern, text in STRUCK.items() if fnmatchcase(name, pattern)), PAY_2)


def matching_for(name: str) -> str | None:
    """Give a rule's pattern for faults of `cockroach_restart`, which is refused here without any rule."""
    return "UPDATE" if name.startswith("restart_savepoint") else None


def hears(client: WireClient, statement: str, protocol: str) -> str:
    """Give what is heard of a statement that is struck: when it is executed, or as early as it is planned."""
    if protocol == "simple":
        return client.query(statement)
    planned = "" if "crdb_internal" in statement else "1 2 n "
    answer = client.extended(statement)
    assert answer.startswith((planned, "FIN", "RST")), answer
    return answer.removeprefix(planned)


def strikes(client: WireClient, statement: str, protocol: str, heard: str, status: str) -> None:
    """Run the statement and hear what the recipe says, be it the end of the link or nothing at all."""
    if heard == "silence":
        client.send(step(statement) + SYNC)
    elif heard.endswith(("FIN", "RST")):
        assert hears(client, statement, protocol) == heard
    else:
        assert hears(client, statement, protocol) == f"{heard} Z({status})"


def link_is_as_told(client: WireClient, onlooker: Onlooker, heard: str) -> None:
    """The server's session is gone where the link has ended, and is kept where it has not."""
    if heard.endswith(("FIN", "RST", "silence")):
        assert eventually(lambda: onlooker.sessions(client.name) == 0)
        assert heard != "silence" or client.hears_nothing()
    else:
        assert onlooker.sessions(client.name) == 1


@protocols
@each_of("statement")
def test_a_fault_meets_a_statement_in_a_transaction(
    proxy: FaultProxy, client: WireClient, onlooker: Onlooker, name: str, recipe: Recipe, protocol: str
) -> None:
    """The client hears the recipe, its locks stay or go as the server would have it, and nothing is written."""
    begun = (client.run(text, protocol) for text in ("BEGIN", PAY_1, "SAVEPOINT middle"))
    assert tuple(begun) == OPENED
    rule = proxy.inject(name, matching=matching_for(name))
    strikes(client, statement_for(name), protocol, recipe.heard, "E")
    assert eventually(lambda: rule.hits == 1)
    check_errors(client, name, recipe.says)
    link_is_as_told(client, onlooker, recipe.heard)
    assert onlooker.locked(1) is (recipe.state == "kept")
    assert not onlooker.locked(2)
    if len(recipe.heard) == 5:
        assert client.run("SELECT 1", protocol) == "25P02 Z(E)"
        assert client.errors.pop().fields == [
            ("S", "ERROR"),
            ("V", "ERROR"),
            ("C", "25P02"),
            ("M", "current transaction is aborted, commands ignored until end of transaction block"),
        ]
        assert onlooker.locked(1) is (recipe.state == "kept")
        assert client.run("ROLLBACK", protocol) == "ROLLBACK Z(I)"
        assert client.run(PAY_2, protocol) == "UPDATE 1 Z(I)"
    assert not onlooker.locked(1)
    assert onlooker.balances == {1: 100, 2: 90 if len(recipe.heard) == 5 else 100}


@protocols
@each_of("statement", where=lambda _, recipe: len(recipe.heard) == 5)
def test_commit_of_a_struck_transaction_is_a_rollback(
    proxy: FaultProxy, client: WireClient, onlooker: Onlooker, name: str, recipe: Recipe, protocol: str
) -> None:
    """COMMIT after a statement's error answers by the tag ROLLBACK and no error, and writes nothing."""
    for text in ("BEGIN", PAY_1, "SAVEPOINT middle"):
        client.run(text, protocol)
    proxy.inject(name, matching=matching_for(name))
    strikes(client, statement_for(name), protocol, recipe.heard, "E")
    assert client.run("COMMIT", protocol) == "ROLLBACK Z(I)"
    assert not onlooker.locked(1)
    assert onlooker.balances == {1: 100, 2: 100}


@protocols
@each_of("statement")
def test_a_fault_meets_a_statement_in_autocommit(
    proxy: FaultProxy, client: WireClient, onlooker: Onlooker, name: str, recipe: Recipe, protocol: str
) -> None:
    """Outside a transaction the client hears the same and is told that there is none; nothing is written."""
    rule = proxy.inject(name, matching=matching_for(name))
    strikes(client, statement_for(name), protocol, recipe.heard, "I")
    assert eventually(lambda: rule.hits == 1)
    check_errors(client, name, recipe.says)
    link_is_as_told(client, onlooker, recipe.heard)
    assert not onlooker.locked(2)
    assert onlooker.balances == {1: 100, 2: 100}
    if len(recipe.heard) == 5:
        assert client.run(PAY_2, protocol) == "UPDATE 1 Z(I)"
        assert onlooker.balances[2] == 90


@protocols
@each_of("statement", where=lambda name, recipe: len(recipe.heard) == 5 and statement_for(name) == PAY_2)
def test_a_nested_savepoint_after_a_fault(
    proxy: FaultProxy, client: WireClient, onlooker: Onlooker, name: str, recipe: Recipe, protocol: str
) -> None:
    """A nested savepoint is refused after a 40001, which costs the transaction; after other errors it helps."""
    for text in ("BEGIN", PAY_1, "SAVEPOINT middle"):
        client.run(text, protocol)
    proxy.inject(name, matching=matching_for(name))
    client.run(PAY_2, protocol)
    client.errors.clear()
    answer = client.run("ROLLBACK TO SAVEPOINT middle", protocol)
    if recipe.heard == "40001":
        assert answer == "40001 Z(E)"
        refused = client.errors.pop()
        assert refused["M"] == f"{RESTART}cannot rollback to savepoint after a transaction restart"
        assert refused["H"].endswith("/transaction-retry-error-reference.html")
        assert client.run(PAY_2, protocol) == "25P02 Z(E)"
        assert client.run("COMMIT", protocol) == "ROLLBACK Z(I)"
        assert onlooker.balances == {1: 100, 2: 100}
    else:
        assert answer == "ROLLBACK Z(T)"
        assert onlooker.locked(1)
        assert client.run(PAY_2, protocol) == "UPDATE 1 Z(T)"
        assert client.run("COMMIT", protocol) == "COMMIT Z(I)"
        assert onlooker.balances == {1: 90, 2: 90}


@protocols
@pytest.mark.parametrize(
    ("version", "name", "kept"),
    [
        ("v25.1.0", "statement_timeout", True),
        ("v25.2.0", "statement_timeout", False),
        ("v26.2.0", "memory_exceeded.sql", False),
        ("v25.1.0", "serialization_failure", True),
        ("v26.2.0", "serialization_failure", True),
        ("v25.1.0", "serialization_failure.ABORT_REASON_PUSHER_ABORTED", False),
    ],
)
def test_locks_of_an_aborted_transaction_by_version(
    behind: Server, onlooker: Onlooker, version: str, name: str, *, kept: bool, protocol: str
) -> None:
    """From v25.2 on a transaction without a savepoint is rolled back as it fails, unless it can be restarted."""
    with (
        FaultProxy(replace(behind, crdb_version=None), version=version) as proxy,
        WireClient.connected(proxy) as client,
    ):
        assert client.reported["crdb_version"].startswith(f"CockroachDB CCL {version} (")
        for text in ("BEGIN", "SAVEPOINT within", "RELEASE SAVEPOINT within", PAY_1):
            client.run(text, protocol)
        proxy.inject(name)
        assert client.run(PAY_2, protocol).endswith("Z(E)")
        assert onlooker.locked(1) is kept
        assert client.run("SELECT 1", protocol) == "25P02 Z(E)"
        assert client.run("ROLLBACK", protocol) == "ROLLBACK Z(I)"
        assert not onlooker.locked(1)


# --- at COMMIT ---------------------------------------------------------------------------------------------


@protocols
@pytest.mark.parametrize("ending", ["COMMIT", "commit transaction;", "/* why */ END"])
@each_of("commit")
def test_a_fault_meets_commit(
    proxy: FaultProxy,
    client: WireClient,
    onlooker: Onlooker,
    name: str,
    recipe: Recipe,
    ending: str,
    protocol: str,
) -> None:
    """The client hears the recipe, the data is there or not, and no lock and no transaction is left."""
    assert client.run("BEGIN", protocol) == "BEGIN Z(T)"
    assert client.run(PAY_1, protocol) == "UPDATE 1 Z(T)"
    rule = proxy.inject(name)
    assert hears(client, ending, protocol) == recipe.heard
    assert rule.hits == 1
    check_errors(client, name, recipe.says)
    link_is_as_told(client, onlooker, recipe.heard)
    assert onlooker.balances[1] == (90 if recipe.state == "there" else 100)
    assert not onlooker.locked(1)
    if recipe.heard != "RST":
        assert client.run("BEGIN", protocol) == "BEGIN Z(T)"
        assert client.run(PAY_2, protocol) == "UPDATE 1 Z(T)"
        assert client.run("COMMIT", protocol) == "COMMIT Z(I)"
        assert onlooker.balances[2] == 90


@protocols
@pytest.mark.parametrize("name", [name for name in faults.CATALOGUE if name.startswith("serialization_f")])
def test_every_serialization_failure_can_come_at_commit(
    proxy: FaultProxy, client: WireClient, onlooker: Onlooker, name: str, protocol: str
) -> None:
    """Every 40001 can be the answer of COMMIT: nothing is written, and the transaction is over."""
    client.run("BEGIN", protocol)
    client.run(PAY_1, protocol)
    proxy.inject(name, on="commit")
    assert client.run("COMMIT", protocol) == "40001 Z(I)"
    check_errors(client, name, "restart transaction: ")
    assert not onlooker.locked(1)
    assert onlooker.balances[1] == 100
    assert client.run("COMMIT", protocol) == "N COMMIT Z(I)"


@protocols
@each_of("commit")
def test_autocommit_in_doubt(
    proxy: FaultProxy, client: WireClient, onlooker: Onlooker, name: str, recipe: Recipe, protocol: str
) -> None:
    """A statement in autocommit is its own transaction: it meets what COMMIT meets, with the same effect."""
    rule = proxy.inject(name, on="statement", matching="UPDATE purse")
    assert hears(client, PAY_1, protocol) == recipe.heard
    assert rule.hits == 1
    check_errors(client, name, recipe.says)
    link_is_as_told(client, onlooker, recipe.heard)
    assert onlooker.balances[1] == (90 if recipe.state == "there" else 100)
    assert not onlooker.locked(1)


# --- idle, and at connect ----------------------------------------------------------------------------------


@protocols
@pytest.mark.parametrize("waiting", ["it waits already", "it comes to wait"])
@each_of("idle")
def test_a_fault_meets_a_session_that_waits(
    proxy: FaultProxy,
    client: WireClient,
    onlooker: Onlooker,
    name: str,
    recipe: Recipe,
    waiting: str,
    protocol: str,
) -> None:
    """A session that waits hears the recipe, unasked; what it had begun is gone with it."""
    in_transaction = recipe.state == "in transaction"
    texts = ["BEGIN", PAY_1] if in_transaction else ["BEGIN", PAY_1, "COMMIT"]
    for text in texts[:-1] if waiting == "it comes to wait" else texts:
        client.run(text, protocol)
    with proxy.inject("slow_statement", matching=".") as slow:
        if waiting == "it comes to wait":
            client.send(step(texts[-1]) + SYNC)
            assert eventually(lambda: slow.hits)
        rule = proxy.inject(name)
    if waiting == "it comes to wait":
        assert client.hear().endswith(f"Z({'T' if in_transaction else 'I'})")
    assert recipe.heard == "silence" or client.hear() == recipe.heard
    assert eventually(lambda: rule.hits == 1)
    check_errors(client, name, recipe.says)
    link_is_as_told(client, onlooker, recipe.heard)
    assert not onlooker.locked(1)
    assert onlooker.balances[1] == (100 if in_transaction else 90)


@pytest.mark.parametrize("name", ["black_hole", "half_open"])
def test_silence_ends_when_the_rule_is_lifted(proxy: FaultProxy, client: WireClient, name: str) -> None:
    """A link that has fallen silent ends when its rule is lifted; what the client has said is never answered."""
    rule = proxy.inject(name)
    client.send(query(PAY_1.encode()))
    assert eventually(lambda: rule.hits)
    client.send(query(PAY_2.encode()))
    assert client.hears_nothing()
    rule.lift()
    assert client.hear() in ("FIN", "RST")
    with WireClient.connected(proxy) as another:
        assert another.query(PAY_1) == "UPDATE 1 Z(I)"


@pytest.mark.parametrize("name", ["shutting_down", "idle_session_timeout.timeout", "half_open"])
def test_a_session_in_a_transaction_is_not_idle(proxy: FaultProxy, client: WireClient, name: str) -> None:
    """What meets idle sessions leaves one alone that is in a transaction, until that is over."""
    client.query("BEGIN")
    rule = proxy.inject(name)
    assert client.query(PAY_1) == "UPDATE 1 Z(T)"
    assert rule.hits == 0
    assert client.query("COMMIT") == "COMMIT Z(I)"
    assert eventually(lambda: rule.hits == 1)


@each_of("connect")
def test_a_fault_meets_a_new_connection(
    proxy: FaultProxy, client: WireClient, onlooker: Onlooker, name: str, recipe: Recipe
) -> None:
    """A new connection is authenticated, refused and closed; the next is let in; those that stand go on."""
    rule = proxy.inject(name)
    with WireClient(proxy) as refused:
        assert refused.greet() == recipe.heard
        check_errors(refused, name, recipe.says)
    assert rule.hits == 1
    assert eventually(lambda: onlooker.sessions(refused.name) == 0)
    assert client.query("SELECT 1") == "T D SELECT 1 Z(I)"
    with WireClient(proxy) as following:
        assert following.greet().endswith("K Z(I)")


@pytest.mark.parametrize(
    ("name", "heard"), [("connection_reset", "RST"), ("server_closed", "FIN"), ("black_hole", "silence")]
)
def test_a_broken_link_meets_a_new_connection(
    proxy: FaultProxy, onlooker: Onlooker, name: str, heard: str
) -> None:
    """A link that breaks while the client connects breaks without a word, and the server knows of nobody."""
    rule = proxy.inject(name, on="connect")
    with WireClient(proxy) as refused:
        if heard == "silence":
            assert eventually(lambda: rule.hits == 1)
            assert refused.hears_nothing()
        else:
            assert refused.greet() == heard
        assert onlooker.sessions(refused.name) == 0


# --- delays, cancel requests -------------------------------------------------------------------------------


@protocols
def test_a_slow_statement_is_answered_all_the_same(
    proxy: FaultProxy, client: WireClient, onlooker: Onlooker, protocol: str
) -> None:
    """A slow statement takes as long as it is told, and then runs; meanwhile others are served."""
    rule = proxy.inject(faults.slow_statement(0.3), matching="id = 1")
    begun = time.monotonic()
    client.send(step(PAY_1) + SYNC)
    assert eventually(lambda: rule.hits)
    with WireClient.connected(proxy) as another:
        assert another.run(PAY_2, protocol) == "UPDATE 1 Z(I)"
    assert client.hear() == "1 2 n UPDATE 1 Z(I)"
    assert time.monotonic() - begun >= 0.3
    assert onlooker.balances == {1: 90, 2: 90}


@protocols
@pytest.mark.parametrize("name", ["range_unavailable", "slow_statement", "black_hole", "connection_reset"])
def test_a_delay_is_cancelled(
    proxy: FaultProxy, client: WireClient, onlooker: Onlooker, name: str, protocol: str
) -> None:
    """A cancel request during a fault's delay ends the statement as CockroachDB does, and it is not run."""
    client.run("BEGIN", protocol)
    client.run("SAVEPOINT middle", protocol)
    client.run(PAY_1, protocol)
    rule = proxy.inject(faults.named(name).after(600))
    client.send(query(PAY_2.encode()) if protocol == "simple" else step(PAY_2) + SYNC)
    assert eventually(lambda: rule.hits)
    cancel(proxy, client.key)
    assert client.hear().removeprefix("1 2 n ") == "57014 Z(E)"
    assert client.errors.pop()["M"] == "query execution canceled"
    assert onlooker.locked(1)
    assert client.run("ROLLBACK", protocol) == "ROLLBACK Z(I)"
    assert onlooker.balances == {1: 100, 2: 100}


@pytest.mark.parametrize("name", ["ambiguous_commit.propagate.applied", "lost_commit.applied", "lost_commit"])
def test_a_delayed_commit_is_cancelled(
    proxy: FaultProxy, client: WireClient, onlooker: Onlooker, name: str
) -> None:
    """A COMMIT that is cancelled before its fault came is rolled back."""
    client.query("BEGIN")
    client.query(PAY_1)
    rule = proxy.inject(faults.named(name).after(600))
    client.send(query(b"COMMIT"))
    assert eventually(lambda: rule.hits)
    cancel(proxy, client.key)
    assert client.hear() == "57014 Z(I)"
    assert not onlooker.locked(1)
    assert onlooker.balances[1] == 100


@protocols
def test_a_client_that_goes_during_a_delay(
    proxy: FaultProxy, client: WireClient, onlooker: Onlooker, protocol: str
) -> None:
    """Where the client goes while its statement is delayed, its session and its locks go at once."""
    client.run("BEGIN", protocol)
    client.run(PAY_1, protocol)
    rule = proxy.inject(faults.range_unavailable(delay=600))
    client.send(query(PAY_2.encode()) if protocol == "simple" else step(PAY_2) + SYNC)
    assert eventually(lambda: rule.hits)
    client.close()
    assert eventually(lambda: not onlooker.sessions(client.name))
    assert not onlooker.locked(1)


def test_a_running_statement_is_cancelled(proxy: FaultProxy, client: WireClient, onlooker: Onlooker) -> None:
    """A cancel request reaches the server under its own key; one with a wrong key does nothing."""
    client.send(query(b"SELECT pg_sleep(600)"))
    assert eventually(lambda: onlooker.running(client.name))
    cancel(proxy, client.key[:4] + bytes(4))
    cancel(proxy, bytes(8))
    assert onlooker.running(client.name)
    cancel(proxy, client.key)
    assert client.hear().removeprefix("T ") == "57014 Z(I)"
    cancel(proxy, client.key)  # too late for anything
    assert client.query("SELECT 1") == "T D SELECT 1 Z(I)"


# --- the whole node ----------------------------------------------------------------------------------------


def running_statement(proxy: FaultProxy, onlooker: Onlooker) -> WireClient:
    """Give a client that holds a lock on purse 1 and has a statement under way that does not end."""
    client = WireClient.connected(proxy)
    client.query("BEGIN")
    client.query(PAY_1)
    client.send(query(b"SELECT pg_sleep(600)"))
    assert eventually(lambda: onlooker.running(client.name))
    return client


@protocols
def test_a_drain_lets_transactions_end(
    proxy: FaultProxy, client: WireClient, onlooker: Onlooker, protocol: str
) -> None:
    """Within its grace a draining node closes idle sessions at once, and others when they have ended."""
    with WireClient.connected(proxy) as idle:
        client.run("BEGIN", protocol)
        rule = proxy.inject(faults.drain().after(600))
        assert idle.hear() == "57P01 FIN"
        assert idle.errors.pop()["M"] == "server is shutting down"
        assert eventually(lambda: not onlooker.sessions(idle.name))
    assert client.run(PAY_1, protocol) == "UPDATE 1 Z(T)"
    assert client.run("COMMIT", protocol) == "COMMIT Z(I)"
    assert client.hear() == "57P01 FIN"
    assert client.errors.pop()["M"] == "server is shutting down"
    assert onlooker.balances[1] == 90
    for _ in range(2):
        with WireClient(proxy) as late:
            assert late.greet() == "R 57P01 FIN"
            assert late.errors.pop()["M"] == "server is not accepting clients, try another node"
    rule.lift()
    with WireClient(proxy) as after:
        assert after.greet().endswith("Z(I)")


@pytest.mark.parametrize("grace", [0.0, 0.2])
def test_a_drain_cuts_what_has_not_ended(proxy: FaultProxy, onlooker: Onlooker, grace: float) -> None:
    """At the end of the grace what runs is cancelled and closed, open transactions are closed, locks are gone."""
    with running_statement(proxy, onlooker) as running, WireClient.connected(proxy) as open_one:
        open_one.query("BEGIN")
        open_one.query(PAY_2)
        proxy.inject(faults.drain().after(grace))
        assert running.hear().removeprefix("T ") == "57014 57P01 FIN"
        assert [error["M"] for error in running.errors] == [
            "query execution canceled",
            "server is shutting down",
        ]
        assert open_one.hear() == "57P01 FIN"
        assert eventually(lambda: not onlooker.sessions(running.name) + onlooker.sessions(open_one.name))
        assert not onlooker.locked(1)
        assert not onlooker.locked(2)
        assert onlooker.balances == {1: 100, 2: 100}


def test_a_drain_that_is_lifted_cuts_nothing(proxy: FaultProxy, client: WireClient) -> None:
    """A drain that is taken back within its grace leaves open transactions alone, also in a drain after it."""
    client.query("BEGIN")
    with proxy.inject(faults.drain().after(0.2)):
        pass
    later = proxy.inject(faults.drain().after(600))
    clock = proxy.inject("serialization_failure", matching="never", seconds=0.5)
    assert eventually(lambda: clock not in proxy.rules)
    assert client.query(PAY_1) == "UPDATE 1 Z(T)"
    later.lift()
    assert client.query("COMMIT") == "COMMIT Z(I)"
    assert client.query(PAY_1) == "UPDATE 1 Z(I)"


def test_a_dead_node_and_its_restart(proxy: FaultProxy, onlooker: Onlooker) -> None:
    """A node that dies resets every session and refuses new ones; when it is back it has the same port."""
    port = proxy.port
    with running_statement(proxy, onlooker) as running, WireClient.connected(proxy) as idle:
        rule = proxy.inject("node_killed")
        assert running.hear() in ("RST", "T RST")
        assert idle.hear() == "RST"
        assert eventually(lambda: not onlooker.sessions(running.name) + onlooker.sessions(idle.name))
        assert not onlooker.locked(1)
    with pytest.raises(ConnectionRefusedError):
        WireClient(proxy)
    rule.lift()
    assert proxy.port == port
    with WireClient.connected(proxy) as back:
        assert back.query(PAY_1) == "UPDATE 1 Z(I)"


def test_a_rolling_restart(proxy: FaultProxy, client: WireClient) -> None:
    """A node drains, is gone and comes back, one fault after the other."""
    with proxy.inject("drain"):
        assert client.hear() == "57P01 FIN"
        with proxy.inject("node_killed"), pytest.raises(ConnectionRefusedError):
            WireClient(proxy)
        with WireClient(proxy) as early:
            assert early.greet() == "R 57P01 FIN"
    with WireClient.connected(proxy) as back:
        assert back.query(PAY_1) == "UPDATE 1 Z(I)"


def test_new_connections_are_refused(proxy: FaultProxy, client: WireClient) -> None:
    """Sessions that stand go on while the operating system refuses new ones."""
    with proxy.inject("connection_refused"):
        with pytest.raises(ConnectionRefusedError):
            WireClient(proxy)
        assert client.query(PAY_1) == "UPDATE 1 Z(I)"
    with WireClient.connected(proxy) as another:
        assert another.query(PAY_1) == "UPDATE 1 Z(I)"


# --- networks ----------------------------------------------------------------------------------------------


@protocols
def test_a_partition_holds_back_what_clients_say(
    proxy: FaultProxy, client: WireClient, onlooker: Onlooker, protocol: str
) -> None:
    """Nothing passes, nobody is told; when the partition heals, what was on its way arrives and is answered."""
    with proxy.inject("partition"), WireClient(proxy) as late:
        client.send(query(PAY_1.encode()) if protocol == "simple" else step(PAY_1) + SYNC)
        proxy.wire_log()  # the proxy has come round
        assert client.hears_nothing()
        assert late.hears_nothing()
        assert onlooker.balances[1] == 100
        assert onlooker.sessions(late.name) == 0
        proxy.clear()
        assert client.hear().removeprefix("1 2 n ") == "UPDATE 1 Z(I)"
        assert late.greet().endswith("Z(I)")


def test_a_partition_holds_back_what_the_server_says(
    proxy: FaultProxy, client: WireClient, onlooker: Onlooker
) -> None:
    """A statement that was under way takes effect, and its answer comes when the partition heals."""
    onlooker.execute("BEGIN")
    onlooker.execute(PAY_1.replace("10", "1"))
    client.query("BEGIN ISOLATION LEVEL READ COMMITTED")
    client.send(query(PAY_1.encode()))
    assert eventually(lambda: onlooker.running(client.name))
    with proxy.inject("partition"):
        onlooker.execute("COMMIT")
        assert eventually(lambda: onlooker.in_transaction(client.name))
        proxy.wire_log()
        assert client.hears_nothing()
    assert client.hear() == "UPDATE 1 Z(T)"
    assert client.query("COMMIT") == "COMMIT Z(I)"
    assert onlooker.balances[1] == 89


def test_nobody_hears_through_a_partition_that_the_other_is_gone(
    proxy: FaultProxy, client: WireClient, onlooker: Onlooker
) -> None:
    """A client that goes leaves its locks behind until the partition heals; a server that goes is not heard of."""
    with WireClient.connected(proxy) as another:
        client.query("BEGIN")
        client.query(PAY_1)
        with proxy.inject("partition"):
            client.close()
            onlooker.execute(
                f"SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name = '{another.name}'"
            )
            proxy.wire_log()
            assert another.hears_nothing()
            assert onlooker.in_transaction(client.name)
            assert onlooker.locked(1)
        assert eventually(lambda: not onlooker.sessions(client.name))
        assert not onlooker.locked(1)
        assert another.hear() == "57P01 FIN"


def test_a_drain_and_a_death_are_not_heard_through_a_partition(proxy: FaultProxy, client: WireClient) -> None:
    """What the node does meanwhile is heard when the partition heals."""
    with WireClient.connected(proxy) as in_transaction:
        in_transaction.query("BEGIN")
        partition = proxy.inject("partition")
        drain = proxy.inject(faults.drain().after(600))
        proxy.wire_log()
        assert client.hears_nothing()
        drain.lift()
        killed = proxy.inject("node_killed")
        proxy.wire_log()
        assert in_transaction.hears_nothing()
        partition.lift()
        assert client.hear() == "57P01 FIN"
        assert in_transaction.hear() == "RST"
        killed.lift()


def test_a_cancel_request_does_not_pass_a_partition(
    proxy: FaultProxy, client: WireClient, onlooker: Onlooker
) -> None:
    """A cancel request waits for the partition to heal like everything else."""
    client.send(query(b"SELECT pg_sleep(600)"))
    assert eventually(lambda: onlooker.running(client.name))
    with proxy.inject("partition"), socket.create_connection((proxy.host, proxy.port)) as link:
        send_cancel(link, client.key)
        proxy.wire_log()
        assert onlooker.running(client.name)
        proxy.clear()
        assert client.hear().removeprefix("T ") == "57014 Z(I)"


@protocols
def test_distance(proxy: FaultProxy, client: WireClient, protocol: str) -> None:
    """What clients say arrives later by the distance, of several by their sum; the answers are the same."""
    with proxy.inject(faults.latency(0.1)), proxy.inject(faults.latency(0.2)):
        begun = time.monotonic()
        assert client.run(PAY_1, protocol) == "UPDATE 1 Z(I)"
        assert time.monotonic() - begun >= 0.3


# --- servers of other kinds --------------------------------------------------------------------------------


def at(place: Relay, **options: str) -> str:
    return f"postgresql://root@{options.pop('host', place.host)}:{place.port}/defaultdb?{urlencode(options)}"


def test_a_server_that_says_it_is_cockroachdb(behind: Server, onlooker: Onlooker) -> None:
    """What announces itself as CockroachDB keeps its start-up and its keys, and is not helped with savepoints."""
    with WireClient.connected(behind) as plain:
        with (
            FaultProxy(behind.url, version="v23.1.0", node_id=9) as proxy,
            WireClient.connected(proxy) as client,
        ):
            assert client.greeting == plain.greeting
            assert client.reported == {**plain.reported, "application_name": client.name}
            assert client.key[:4] != plain.key[:4]
            assert int.from_bytes(client.key[:4], "big") >> 20 == behind.node_id
            client.send(query(b"SELECT pg_sleep(600)"))
            assert eventually(lambda: onlooker.running(client.name))
            cancel(proxy, client.key)
            assert client.hear().removeprefix("T ") == "57014 Z(I)"
            client.query("BEGIN")
            client.query(PAY_1)
            proxy.inject("serialization_failure")
            assert client.query(PAY_2) == "40001 Z(E)"
            assert onlooker.locked(1)
            assert client.query("ROLLBACK") == "ROLLBACK Z(I)"
            for text in ("BEGIN", "SAVEPOINT cockroach_restart", PAY_1):
                client.query(text)
            assert client.query("RELEASE SAVEPOINT cockroach_restart") == "RELEASE Z(T)"
            assert onlooker.balances[1] == 100


def test_a_server_that_is_postgresql(behind: Server, onlooker: Onlooker) -> None:
    """PostgreSQL by TCP is introduced as the CockroachDB that was asked for, and named by its node."""
    with (
        Relay(behind) as postgresql,
        FaultProxy(at(postgresql), version="v23.1.9", node_id=9) as proxy,
        WireClient.connected(proxy) as client,
    ):
        assert (
            client.reported["crdb_version"]
            == "CockroachDB CCL v23.1.9 (x86_64-pc-linux-gnu, played by otel_crdb.testing)"
        )
        assert client.reported["server_version"] == "13.0.0"
        assert int.from_bytes(client.key[:4], "big") >> 20 == 9
        client.send(query(b"SELECT pg_sleep(600)"))
        assert eventually(lambda: onlooker.running(client.name))
        cancel(proxy, client.key)
        assert client.hear().removeprefix("T ") == "57014 Z(I)"
        for text in ("BEGIN", "SAVEPOINT cockroach_restart", PAY_1):
            client.query(text)
        assert client.query("RELEASE SAVEPOINT cockroach_restart") == "COMMIT Z(T)"
        assert onlooker.balances[1] == 90
        assert postgresql.encrypted == [False, False]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Give a self-signed certificate of localhost and its key."""
    folder = tmp_path_factory.mktemp("tls")
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    subprocess.run(
        [
            *(
                "openssl",
                "req",
                "-x509",
                "-newkey",
                "rsa:2048",
                "-nodes",
                "-days",
                "2",
                "-subj",
                "/CN=localhost",
            ),
            *("-addext", "subjectAltName=DNS:localhost", "-keyout", key, "-out", certificate),
        ],
        check=True,
        capture_output=True,
    )
    return certificate, key


@pytest.mark.parametrize(
    ("options", "outcome"),
    [
        ({"sslmode": "disable"}, "plain"),
        ({"sslmode": "prefer"}, "TLS"),
        ({}, "TLS"),
        ({"sslmode": "require"}, "TLS"),
        ({"sslmode": "verify-ca"}, "refused"),
        ({"sslmode": "verify-ca", "sslrootcert": "OURS"}, "TLS"),
        ({"sslmode": "verify-full", "sslrootcert": "OURS"}, "refused"),
        ({"sslmode": "verify-full", "sslrootcert": "OURS", "host": "localhost"}, "TLS"),
        ({"sslmode": "require", "sslrootcert": "/dev/null"}, "refused"),
    ],
    ids=str,
)
def test_tls_towards_the_server(
    behind: Server,
    onlooker: Onlooker,
    certificate: tuple[Path, Path],
    options: dict[str, str],
    outcome: str,
) -> None:
    """The proxy obeys `sslmode` as libpq does: by it the link is plain, encrypted, or not made at all."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    url_options = {key: text.replace("OURS", str(certificate[0])) for key, text in options.items()}
    with Relay(behind, context) as relay, FaultProxy(at(relay, **url_options)) as proxy:
        with WireClient(proxy) as client:
            assert client.greet().endswith("FIN" if outcome == "refused" else "Z(I)")
            if outcome != "refused":
                proxy.inject("serialization_failure")
                assert client.query(PAY_1) == "40001 Z(I)"
        assert relay.encrypted == {"plain": [False], "TLS": [True], "refused": []}[outcome]
        assert "ssl" not in proxy.url


@pytest.mark.parametrize(
    ("sslmode", "heard"), [("require", "FIN"), ("prefer", "Z(I)"), ("verify-full", "FIN")]
)
def test_tls_towards_a_server_without_it(
    behind: Server, onlooker: Onlooker, sslmode: str, heard: str
) -> None:
    """A server without TLS is taken only where TLS is no more than preferred."""
    with Relay(behind) as relay, FaultProxy(at(relay, sslmode=sslmode)) as proxy, WireClient(proxy) as client:
        assert client.greet().endswith(heard)


def test_no_server_behind(behind: Server) -> None:
    """Where the server cannot be reached the client's link ends with a word why, and the proxy serves on."""
    with Relay(behind) as relay:
        url = at(relay)
    with FaultProxy(url) as proxy:
        for _ in range(2):
            with WireClient(proxy) as client:
                assert client.greet() == "08001 FIN"


@pytest.mark.parametrize("url", ["http://root@localhost/", "localhost:26257", "postgresql:///defaultdb"])
def test_an_address_that_is_none(url: str) -> None:
    """What is no URL of a server is refused with the form that is wanted."""
    with pytest.raises(ServerError, match="must look like postgresql://"):
        FaultProxy(url)


def test_a_client_that_asks_for_tls(proxy: FaultProxy) -> None:
    """Encryption is refused in good order: who only prefers it goes on without, who requires it is told."""
    with psycopg.connect(proxy.url, sslmode="prefer") as connection:
        assert not connection.pgconn.ssl_in_use
    with pytest.raises(psycopg.OperationalError, match="server does not support SSL"):
        psycopg.connect(proxy.url, sslmode="require")
