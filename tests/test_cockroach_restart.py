# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: F401, F811 - fixtures come by name
"""The savepoint `cockroach_restart` and savepoints after a 40001, as CockroachDB has them and PostgreSQL not."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Any

import psycopg
import psycopg2
import pytest

from .test_fault_proxy import RESTART
from .wire_client import (
    PAY_1,
    PAY_2,
    Onlooker,
    WireClient,
    behind,
    client,
    eventually,
    onlooker,
    protocols,
    proxy,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from otel_crdb.testing import FaultProxy, Server

SAVEPOINT, BACK, RELEASE = (
    f"{words} SAVEPOINT cockroach_restart" for words in ("", "ROLLBACK TO", "RELEASE")
)
SAVEPOINT = SAVEPOINT.strip()
PUSHED = "serialization_failure.ABORT_REASON_PUSHER_ABORTED"
spellings = pytest.mark.parametrize(
    "name",
    [
        "cockroach_restart",
        "Cockroach_Restart",
        '"cockroach_restart"',
        "cockroach_restart_of_ours",
        "/*traceparent='00-1-1-01'*/ cockroach_restart;",
        "cockroach_restart -- the outermost",
    ],
)


def begin(client: WireClient, protocol: str, *texts: str) -> None:
    """Run BEGIN, the savepoint and these statements, all of which succeed."""
    for text in ("BEGIN", SAVEPOINT, *texts):
        assert client.run(text, protocol).endswith("Z(T)"), text


# --- success -----------------------------------------------------------------------------------------------


@protocols
@spellings
@pytest.mark.parametrize("ending", ["COMMIT", "ROLLBACK"])
def test_release_commits(
    client: WireClient, onlooker: Onlooker, name: str, ending: str, protocol: str
) -> None:
    """RELEASE is the COMMIT and says so; only COMMIT or ROLLBACK may follow, and both answer COMMIT."""
    client.run("BEGIN", protocol)
    assert client.run(f"SAVEPOINT {name}", protocol) == "SAVEPOINT Z(T)"
    assert client.run(PAY_1, protocol) == "UPDATE 1 Z(T)"
    assert client.run(f"/* why */ release savepoint {name}", protocol) == "COMMIT Z(T)"
    assert onlooker.balances == {1: 90, 2: 100}
    assert not onlooker.locked(1)
    for text in (PAY_2, SAVEPOINT, BACK, RELEASE, "SHOW server_version", "BEGIN"):
        assert client.run(text, protocol) == "25000 Z(T)", text
        assert client.errors.pop()["M"] == (
            "current transaction is committed, commands ignored until end of transaction block"
        )
    assert client.run(ending, protocol) == "COMMIT Z(I)"
    assert client.run(PAY_2, protocol) == "UPDATE 1 Z(I)"
    assert onlooker.balances == {1: 90, 2: 90}


@protocols
def test_release_without_the_word_savepoint(client: WireClient, onlooker: Onlooker, protocol: str) -> None:
    """RELEASE and ROLLBACK TO take the name alone too."""
    begin(client, protocol, PAY_1)
    assert client.run("ROLLBACK TO cockroach_restart", protocol) == "ROLLBACK Z(T)"
    assert client.run(PAY_2, protocol) == "UPDATE 1 Z(T)"
    assert client.run("RELEASE cockroach_restart", protocol) == "COMMIT Z(T)"
    assert client.run("COMMIT", protocol) == "COMMIT Z(I)"
    assert onlooker.balances == {1: 100, 2: 90}


@protocols
def test_commit_without_release(client: WireClient, onlooker: Onlooker, protocol: str) -> None:
    """A transaction whose savepoint was never released commits by COMMIT."""
    begin(client, protocol, PAY_1)
    assert client.run("COMMIT", protocol) == "COMMIT Z(I)"
    assert onlooker.balances[1] == 90


@protocols
def test_rollback_before_release(client: WireClient, onlooker: Onlooker, protocol: str) -> None:
    """ROLLBACK before RELEASE takes everything back."""
    begin(client, protocol, PAY_1)
    assert client.run("ROLLBACK", protocol) == "ROLLBACK Z(I)"
    assert onlooker.balances[1] == 100


@protocols
def test_a_name_that_is_quoted_in_capitals_is_another(client: WireClient, protocol: str) -> None:
    """`"COCKROACH_RESTART"` is an ordinary savepoint: RELEASE commits nothing."""
    client.run("BEGIN", protocol)
    client.run(PAY_1, protocol)
    assert client.run('SAVEPOINT "COCKROACH_RESTART"', protocol) == "SAVEPOINT Z(T)"
    assert client.run('RELEASE SAVEPOINT "COCKROACH_RESTART"', protocol) == "RELEASE Z(T)"
    assert client.run(PAY_1, protocol) == "UPDATE 1 Z(T)"


def test_release_amid_a_pipeline(client: WireClient, onlooker: Onlooker) -> None:
    """In one pipeline RELEASE commits, and what follows it up to the Sync is refused or ends the transaction."""
    assert client.extended("BEGIN", SAVEPOINT, PAY_1, RELEASE, "COMMIT") == (
        "1 2 n BEGIN 1 2 n SAVEPOINT 1 2 n UPDATE 1 1 2 n COMMIT 1 2 n COMMIT Z(I)"
    )
    assert onlooker.balances[1] == 90
    refused = client.extended("BEGIN", SAVEPOINT, PAY_1, RELEASE, PAY_2)
    assert refused.endswith("25000 Z(T)"), refused
    assert client.query("COMMIT") == "COMMIT Z(I)"
    assert onlooker.balances == {1: 80, 2: 100}


# --- retry -------------------------------------------------------------------------------------------------


@protocols
@pytest.mark.parametrize("fault", ["serialization_failure", PUSHED])
@pytest.mark.parametrize("again", [BACK, SAVEPOINT])
def test_a_transaction_starts_again(
    proxy: FaultProxy, client: WireClient, onlooker: Onlooker, fault: str, again: str, protocol: str
) -> None:
    """After a 40001 ROLLBACK TO, or the SAVEPOINT once more, lets the same transaction run anew and commit."""
    begin(client, protocol)
    rule = proxy.inject(fault, matching="id = 2", times=3)
    for _ in range(3):
        assert client.run(PAY_1, protocol) == "UPDATE 1 Z(T)"
        assert client.run(PAY_2, protocol) == "40001 Z(E)"
        assert onlooker.locked(1) is (fault != PUSHED)
        assert client.run(again, protocol) == "ROLLBACK Z(T)"
        assert not onlooker.locked(1)
    assert rule.hits == 3
    assert client.run(PAY_1, protocol) == "UPDATE 1 Z(T)"
    assert client.run(PAY_2, protocol) == "UPDATE 1 Z(T)"
    assert client.run(RELEASE, protocol) == "COMMIT Z(T)"
    assert client.run("COMMIT", protocol) == "COMMIT Z(I)"
    assert onlooker.balances == {1: 90, 2: 90}


@protocols
@spellings
def test_a_transaction_starts_again_by_any_spelling(
    proxy: FaultProxy, client: WireClient, onlooker: Onlooker, name: str, protocol: str
) -> None:
    """The savepoint may be quoted, in capitals, longer, commented: to go back to it works, in all ways."""
    client.run("BEGIN", protocol)
    client.run(f"SAVEPOINT {name}", protocol)
    for again in ("ROLLBACK TO SAVEPOINT", "SAVEPOINT", "/* c */ rollback work to"):
        with proxy.inject("serialization_failure"):
            assert client.run(PAY_1, protocol) == "40001 Z(E)"
        assert client.run(f"{again} {name}", protocol) == "ROLLBACK Z(T)"
    assert client.run(PAY_1, protocol) == "UPDATE 1 Z(T)"
    assert client.run(f"RELEASE {name}", protocol) == "COMMIT Z(T)"
    assert client.run("COMMIT", protocol) == "COMMIT Z(I)"
    assert onlooker.balances == {1: 90, 2: 100}


@protocols
@pytest.mark.parametrize("fault", ["serialization_failure", "statement_timeout"])
def test_only_going_back_helps(proxy: FaultProxy, client: WireClient, fault: str, protocol: str) -> None:
    """Until the client goes back every other statement is refused; RELEASE too; COMMIT answers ROLLBACK."""
    begin(client, protocol, PAY_1)
    proxy.inject(fault)
    client.run(PAY_2, protocol)
    for text in (PAY_1, RELEASE, "SAVEPOINT other"):
        assert client.run(text, protocol) == "25P02 Z(E)", text
    assert client.run("COMMIT", protocol) == "ROLLBACK Z(I)"


def test_a_transaction_is_begun_anew_without_what_stood_beside_its_begin(
    proxy: FaultProxy, client: WireClient, onlooker: Onlooker
) -> None:
    """Statements that came in one text with BEGIN are not run twice when the transaction is pushed aside."""
    assert client.query(f"BEGIN; {PAY_1}; COMMIT; BEGIN").endswith("Z(T)")
    proxy.inject(PUSHED)
    assert client.query(PAY_2) == "40001 Z(E)"
    assert client.query("ROLLBACK") == "ROLLBACK Z(I)"
    assert onlooker.balances == {1: 90, 2: 100}


# --- RELEASE that fails ------------------------------------------------------------------------------------


@protocols
@pytest.mark.parametrize("fault", ["serialization_failure", PUSHED])
def test_release_that_must_be_retried_keeps_the_savepoint(
    proxy: FaultProxy, client: WireClient, onlooker: Onlooker, fault: str, protocol: str
) -> None:
    """A 40001 of RELEASE leaves the transaction aborted, and it can start again."""
    begin(client, protocol, PAY_1)
    rule = proxy.inject(fault, on="commit")
    assert client.run(RELEASE, protocol) == "40001 Z(E)"
    assert rule.hits == 1
    assert onlooker.locked(1) is (fault != PUSHED)
    assert client.run(PAY_1, protocol) == "25P02 Z(E)"
    assert client.run(BACK, protocol) == "ROLLBACK Z(T)"
    assert client.run(PAY_2, protocol) == "UPDATE 1 Z(T)"
    assert client.run(RELEASE, protocol) == "COMMIT Z(T)"
    assert client.run("COMMIT", protocol) == "COMMIT Z(I)"
    assert onlooker.balances == {1: 100, 2: 90}


@protocols
@pytest.mark.parametrize(
    ("fault", "code", "balance"),
    [
        ("ambiguous_commit.propagate", "40003", 100),
        ("ambiguous_commit.propagate.applied", "40003", 90),
        ("committed_with_ddl_failure", "XXA00", 90),
        ("range_unavailable.commit", "40003", 100),
    ],
)
@pytest.mark.parametrize("ending", ["COMMIT", "ROLLBACK"])
def test_release_that_fails_for_good_takes_the_savepoint_away(
    proxy: FaultProxy,
    client: WireClient,
    onlooker: Onlooker,
    fault: str,
    code: str,
    balance: int,
    ending: str,
    protocol: str,
) -> None:
    """Any other error of RELEASE leaves the transaction aborted without its savepoint, applied or not."""
    begin(client, protocol, PAY_1)
    proxy.inject(fault)
    assert client.run(RELEASE, protocol) == f"{code} Z(E)"
    assert not onlooker.locked(1)
    assert onlooker.balances[1] == balance
    assert client.run(PAY_2, protocol) == "25P02 Z(E)"
    assert client.run(BACK, protocol) == "3B001 Z(E)"
    assert client.run(ending, protocol) == "ROLLBACK Z(I)"
    assert client.run(PAY_2, protocol) == "UPDATE 1 Z(I)"
    assert onlooker.balances == {1: balance, 2: 90}


@protocols
@pytest.mark.parametrize(("fault", "balance"), [("lost_commit", 100), ("lost_commit.applied", 90)])
def test_release_whose_answer_is_lost(
    proxy: FaultProxy, client: WireClient, onlooker: Onlooker, fault: str, balance: int, protocol: str
) -> None:
    """A link that is reset at RELEASE leaves nothing open, applied or not."""
    begin(client, protocol, PAY_1)
    proxy.inject(fault)
    assert client.run(RELEASE, protocol) == "RST"
    assert eventually(lambda: not onlooker.sessions(client.name))
    assert onlooker.balances[1] == balance


@protocols
@pytest.mark.parametrize("again", [BACK, SAVEPOINT])
def test_a_real_conflict_at_release(
    proxy: FaultProxy, client: WireClient, onlooker: Onlooker, again: str, protocol: str
) -> None:
    """A serialization failure of the server's own at RELEASE can be retried by the savepoint as well."""
    begin(client, protocol, "SELECT sum(balance) FROM purse")
    onlooker.execute("BEGIN ISOLATION LEVEL SERIALIZABLE")
    onlooker.execute("SELECT sum(balance) FROM purse")
    client.run(PAY_1, protocol)
    onlooker.execute(PAY_2)
    onlooker.execute("COMMIT")
    assert client.run(RELEASE, protocol) == "40001 Z(E)"
    assert client.run(PAY_1, protocol) == "25P02 Z(E)"
    assert client.run(again, protocol) == "ROLLBACK Z(T)"
    assert client.run(PAY_1, protocol) == "UPDATE 1 Z(T)"
    assert client.run(RELEASE, protocol) == "COMMIT Z(T)"
    assert client.run("COMMIT", protocol) == "COMMIT Z(I)"
    assert onlooker.balances == {1: 90, 2: 90}


@protocols
def test_a_fault_of_commit_meets_release_and_not_the_commit_after(
    proxy: FaultProxy, client: WireClient, onlooker: Onlooker, protocol: str
) -> None:
    """The COMMIT after RELEASE commits nothing: no fault of COMMIT meets it, and none is counted."""
    begin(client, protocol, PAY_1)
    rule = proxy.inject("ambiguous_commit", nth=2, times=None)
    assert client.run(RELEASE, protocol) == "COMMIT Z(T)"
    assert client.run("COMMIT", protocol) == "COMMIT Z(I)"
    assert rule.hits == 0
    begin(client, protocol, PAY_1)
    assert client.run(RELEASE, protocol) == "40003 Z(E)"
    assert rule.hits == 1


# --- where the savepoint may stand -------------------------------------------------------------------------


@protocols
@pytest.mark.parametrize(
    ("before", "message"),
    [
        ([PAY_1], 'SAVEPOINT "cockroach_restart" needs to be the first statement in a transaction'),
        (["SAVEPOINT before"], 'SAVEPOINT "cockroach_restart" cannot be nested'),
        ([SAVEPOINT, "SAVEPOINT within"], 'SAVEPOINT "cockroach_restart" cannot be nested'),
        (
            [SAVEPOINT, PAY_1],
            'SAVEPOINT "cockroach_restart" needs to be the first statement in a transaction',
        ),
    ],
    ids=["after a statement", "in a savepoint", "again in a savepoint", "again after a statement"],
)
def test_the_savepoint_comes_too_late(
    client: WireClient, onlooker: Onlooker, before: list[str], message: str, protocol: str
) -> None:
    """The savepoint is refused after data was touched and inside another one; the transaction is aborted."""
    client.run("BEGIN", protocol)
    for text in before:
        assert client.run(text, protocol).endswith("Z(T)"), text
    assert client.run(SAVEPOINT, protocol) == "42601 Z(E)"
    assert client.errors.pop()["M"] == message
    assert client.run(PAY_1, protocol) == "25P02 Z(E)"
    assert client.run("COMMIT", protocol) == "ROLLBACK Z(I)"
    assert onlooker.balances == {1: 100, 2: 100}


@protocols
@pytest.mark.parametrize(
    "before",
    [
        [],
        ["SET TRANSACTION ISOLATION LEVEL SERIALIZABLE", "SHOW server_version"],
        ["SAVEPOINT before", "RELEASE SAVEPOINT before"],
        [SAVEPOINT],
        [SAVEPOINT, PAY_2, BACK],
    ],
    ids=["first", "after settings", "after a released one", "twice", "again after going back"],
)
def test_the_savepoint_is_taken(
    client: WireClient, onlooker: Onlooker, before: list[str], protocol: str
) -> None:
    """Settings, a released savepoint and the same savepoint before it do no harm."""
    client.run("BEGIN", protocol)
    for text in before:
        client.run(text, protocol)
    assert client.run(SAVEPOINT, protocol) == "SAVEPOINT Z(T)"
    assert client.run(PAY_1, protocol) == "UPDATE 1 Z(T)"
    assert client.run(RELEASE, protocol) == "COMMIT Z(T)"
    assert client.run("COMMIT", protocol) == "COMMIT Z(I)"
    assert onlooker.balances == {1: 90, 2: 100}


# --- other savepoints after a 40001 ------------------------------------------------------------------------


@protocols
@pytest.mark.parametrize("fault", ["serialization_failure", PUSHED])
def test_an_initial_savepoint_restarts_the_transaction(
    proxy: FaultProxy, client: WireClient, onlooker: Onlooker, fault: str, protocol: str
) -> None:
    """A savepoint made before any data was touched can be gone back to after a 40001."""
    client.run("BEGIN", protocol)
    client.run('SAVEPOINT "first ""one"""', protocol)
    client.run(PAY_1, protocol)
    proxy.inject(fault)
    assert client.run(PAY_2, protocol) == "40001 Z(E)"
    assert client.run('ROLLBACK TO SAVEPOINT "first ""one"""', protocol) == "ROLLBACK Z(T)"
    assert not onlooker.locked(1)
    assert client.run(PAY_2, protocol) == "UPDATE 1 Z(T)"
    assert client.run("COMMIT", protocol) == "COMMIT Z(I)"
    assert onlooker.balances == {1: 100, 2: 90}


@protocols
@pytest.mark.parametrize("fault", ["serialization_failure", PUSHED])
@pytest.mark.parametrize(
    "names", [("middle", "middle"), ("middle", "MIDDLE"), ('"Middle"', '"Middle"')], ids=str
)
def test_a_nested_savepoint_is_refused(
    proxy: FaultProxy, client: WireClient, fault: str, names: tuple[str, str], protocol: str
) -> None:
    """A savepoint made after data was touched cannot, however it is written; the outermost one still can."""
    made, named = names
    begin(client, protocol, PAY_1, f"SAVEPOINT {made}")
    proxy.inject(fault)
    assert client.run(PAY_2, protocol) == "40001 Z(E)"
    for _ in range(2):
        assert client.run(f"ROLLBACK TO SAVEPOINT {named}", protocol) == "40001 Z(E)"
        assert client.errors[-1]["M"] == f"{RESTART}cannot rollback to savepoint after a transaction restart"
        assert client.run(PAY_2, protocol) == "25P02 Z(E)"
    assert client.run(BACK, protocol) == "ROLLBACK Z(T)"
    assert client.run(PAY_2, protocol) == "UPDATE 1 Z(T)"


@protocols
def test_the_last_savepoint_of_a_name_counts(proxy: FaultProxy, client: WireClient, protocol: str) -> None:
    """Of two savepoints of one name the last is meant: where data was touched before it, it is refused."""
    for text in ("BEGIN", "SAVEPOINT twice", PAY_1, "SAVEPOINT twice"):
        client.run(text, protocol)
    proxy.inject("serialization_failure")
    assert client.run(PAY_2, protocol) == "40001 Z(E)"
    assert client.run("ROLLBACK TO SAVEPOINT twice", protocol) == "40001 Z(E)"


@protocols
def test_savepoints_made_anew_after_going_back_are_nested_again(
    proxy: FaultProxy, client: WireClient, protocol: str
) -> None:
    """After the transaction has restarted, savepoints are judged by what was done since."""
    begin(client, protocol, PAY_1)
    with proxy.inject("serialization_failure"):
        client.run(PAY_2, protocol)
    client.run(BACK, protocol)
    assert client.run("SAVEPOINT early", protocol) == "SAVEPOINT Z(T)"
    assert client.run(PAY_1, protocol) == "UPDATE 1 Z(T)"
    assert client.run("SAVEPOINT late", protocol) == "SAVEPOINT Z(T)"
    with proxy.inject("serialization_failure"):
        client.run(PAY_2, protocol)
    assert client.run("ROLLBACK TO SAVEPOINT late", protocol) == "40001 Z(E)"
    assert client.run("ROLLBACK TO SAVEPOINT early", protocol) == "ROLLBACK Z(T)"


# --- the documented loop, by both drivers ------------------------------------------------------------------

CONNECT: dict[str, Callable[[str], Any]] = {"psycopg": psycopg.connect, "psycopg2": psycopg2.connect}


def transfer_with_restarts(connection: Any, driver: Any) -> int:
    """Pay from purse 1 into purse 2 by the client-side retry loop of CockroachDB's documentation; count tries."""
    with closing(connection.cursor()) as cursor:
        cursor.execute(SAVEPOINT)
        for attempt in range(1, 10):
            try:
                cursor.execute("UPDATE purse SET balance = balance - %s WHERE id = %s", (10, 1))
                cursor.execute("UPDATE purse SET balance = balance + %s WHERE id = %s", (10, 2))
                cursor.execute(RELEASE)
                connection.commit()
            except driver.errors.SerializationFailure:
                cursor.execute(BACK)
            else:
                return attempt
    raise AssertionError("no end of retries")


def test_the_retry_loop_prepared(proxy: FaultProxy, onlooker: Onlooker) -> None:
    """The loop runs on statements that psycopg 3 has prepared, the savepoint's own among them."""
    with psycopg.connect(proxy.url, prepare_threshold=0) as connection:
        for turn in range(1, 4):
            with proxy.inject("serialization_failure"), proxy.inject(PUSHED, on="commit"):
                assert transfer_with_restarts(connection, psycopg) == 3
            assert onlooker.balances == {1: 100 - 10 * turn, 2: 100 + 10 * turn}


@pytest.mark.parametrize("driver", [psycopg, psycopg2], ids=lambda driver: driver.__name__)
@pytest.mark.parametrize(
    ("faults", "attempts"),
    [
        ([], 1),
        ([{"fault": "serialization_failure", "matching": "balance [+]", "times": 2}], 3),
        ([{"fault": "serialization_failure", "on": "commit", "times": 2}], 3),
        ([{"fault": PUSHED, "matching": "balance [+]"}, {"fault": PUSHED, "on": "commit"}], 3),
    ],
    ids=["no conflict", "at a statement", "at RELEASE", "pushed aside, at both"],
)
def test_the_documented_retry_loop(
    proxy: FaultProxy, onlooker: Onlooker, driver: Any, faults: list[dict[str, Any]], attempts: int
) -> None:
    """The documented loop runs to its end by either driver, and the money has moved once."""
    rules = [proxy.inject(**fault) for fault in faults]
    with closing(CONNECT[driver.__name__](proxy.url)) as connection:
        assert transfer_with_restarts(connection, driver) == attempts
        assert all(rule.hits for rule in rules)
        assert onlooker.balances == {1: 90, 2: 110}
        transfer_with_restarts(connection, driver)
    assert onlooker.balances == {1: 80, 2: 120}


def test_the_retry_loop_through_django(proxy: FaultProxy, onlooker: Onlooker, crdb: Server) -> None:
    """Django's own connection runs the loop with autocommit off, as its users write it."""
    from django.db import OperationalError, connection, transaction

    wrapper = connection.copy("restarted")
    wrapper.settings_dict = {**wrapper.settings_dict, **proxy.django_settings()}
    proxy.inject("serialization_failure", matching="balance [+]")
    proxy.inject("serialization_failure", on="commit")
    attempts = 0
    wrapper.set_autocommit(False)
    with closing(wrapper), wrapper.cursor() as cursor:
        cursor.execute(SAVEPOINT)
        while True:
            attempts += 1
            try:
                cursor.execute("UPDATE purse SET balance = balance - %s WHERE id = %s", [10, 1])
                cursor.execute("UPDATE purse SET balance = balance + %s WHERE id = %s", [10, 2])
                cursor.execute(RELEASE)
                wrapper.commit()
            except OperationalError as error:
                if "restart transaction: " not in str(error):
                    raise
                cursor.execute(BACK)
            else:
                break
    assert attempts == 3
    assert onlooker.balances == {1: 90, 2: 110}
    assert not transaction.get_connection().in_atomic_block


# --- what a review found -----------------------------------------------------------------------------------


@protocols
@pytest.mark.parametrize("made", [(), ("SAVEPOINT cockroach_restart",)], ids=["none", "another"])
def test_release_of_a_savepoint_that_is_not_there_commits_nothing(
    client: WireClient, onlooker: Onlooker, protocol: str, made: tuple[str, ...]
) -> None:
    """RELEASE names a savepoint that was never made: it is refused by 3B001, and nothing is committed."""
    for text in ("BEGIN", *made, PAY_1):
        assert client.run(text, protocol).endswith("Z(T)")
    assert client.run("RELEASE SAVEPOINT cockroach_restart_b", protocol) == "3B001 Z(E)"
    assert client.run("COMMIT", protocol) == "ROLLBACK Z(I)"
    assert onlooker.balances[1] == 100


def test_what_stands_behind_a_release_that_failed_is_skipped(client: WireClient, onlooker: Onlooker) -> None:
    """After an error the server skips to the client's Sync, RELEASE and COMMIT in the pipeline included."""
    assert client.extended("BEGIN", SAVEPOINT, "SELECT 1 / 0", RELEASE, "COMMIT").endswith("22012 Z(E)")
    assert client.query("ROLLBACK") == "ROLLBACK Z(I)"
    assert onlooker.balances[1] == 100
