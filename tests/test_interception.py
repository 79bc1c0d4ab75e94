# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: F401, F811 - fixtures come by name
"""Faults as the drivers meet them: exception classes, the connection afterwards, prepared statements, pipelines."""

from __future__ import annotations

import io
import itertools
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Any

import psycopg
import psycopg2
import pytest
from psycopg.pq import TransactionStatus

from otel_crdb.testing import faults

from .errors_of_cockroachdb import table
from .wire_client import PAY_1, PAY_2, Onlooker, behind, eventually, onlooker, proxy

if TYPE_CHECKING:
    from collections.abc import Iterator

    from otel_crdb.testing import FaultProxy

# psycopg2's constants are libpq's and so the same numbers.
IDLE, IN_TRANSACTION, IN_ERROR = (
    TransactionStatus.IDLE,
    TransactionStatus.INTRANS,
    TransactionStatus.INERROR,
)
PAY_ANY = "UPDATE purse SET balance = balance - 10 WHERE id = %s"
drivers = pytest.mark.parametrize("driver", [psycopg, psycopg2], ids=lambda driver: driver.__name__)

# A class by its name in both drivers' `errors`, or the generic one; then what PEP 249 calls it.
CLASSES = table("""
fault                          | code  | named                     | generic
serialization_failure          | 40001 | SerializationFailure      | OperationalError
ambiguous_commit               | 40003 | StatementCompletionUnknown | OperationalError
statement_timeout              | 57014 | QueryCanceled             | OperationalError
disk_exceeded.temporary        | 53100 | DiskFull                  | OperationalError
memory_exceeded.sql            | 53200 | OutOfMemory               | OperationalError
too_many_transactions          | 53400 | ConfigurationLimitExceeded | OperationalError
lock_timeout                   | 55P03 | LockNotAvailable          | OperationalError
lock_not_available             | 55P03 | LockNotAvailable          | OperationalError
range_unavailable.range        | 58C00 | -                         | OperationalError
range_unavailable.internal     | 58C01 | -                         | OperationalError
range_unavailable.breaker      | XXUUU | -                         | InternalError
internal_error                 | XX000 | InternalError_            | InternalError
committed_with_ddl_failure     | XXA00 | -                         | InternalError
license_throttled              | XXC02 | -                         | InternalError
bounded_staleness_unsatisfied  | XCUBS | -                         | InternalError
aborted                        | 25P02 | InFailedSqlTransaction    | InternalError
committed                      | 25000 | InvalidTransactionState   | InternalError
read_only                      | 25006 | ReadOnlySqlTransaction    | InternalError
restricted_internals           | 42501 | InsufficientPrivilege     | ProgrammingError
savepoint_not_after_error      | 0A000 | FeatureNotSupported       | NotSupportedError
""")


def connect(driver: Any, proxy: FaultProxy, **options: Any) -> Any:
    return driver.connect(proxy.url, **options)


def code_of(error: Any) -> str | None:
    """Give the SQLSTATE, which the drivers keep under two names."""
    return getattr(error, "sqlstate", None) or getattr(error, "pgcode", None)


def run(connection: Any, *texts: str) -> None:
    with closing(connection.cursor()) as cursor:
        for text in texts:
            cursor.execute(text)


# --- exceptions --------------------------------------------------------------------------------------------


@drivers
@pytest.mark.parametrize(("fault", "code", "named", "generic"), CLASSES, ids=[row[0] for row in CLASSES])
def test_the_class_of_an_error(
    proxy: FaultProxy, driver: Any, fault: str, code: str, named: str, generic: str
) -> None:
    """The driver raises the class of the SQLSTATE with message and hint, and goes on with the connection."""
    sent = faults.named(fault).errors[0]
    with closing(connect(driver, proxy)) as connection:
        run(connection, PAY_1)
        proxy.inject(fault, on="statement", matching="id = 2")
        with pytest.raises(driver.Error) as raised:
            run(connection, PAY_2)
        error = raised.value
        assert code_of(error) == code
        assert isinstance(error, getattr(driver, generic))
        assert type(error) is getattr(
            driver.errors if named != "-" else driver, named if named != "-" else generic
        )
        assert error.diag.message_primary == sent.message
        assert (error.diag.message_hint or "") == sent.hint
        assert error.diag.severity == "ERROR"
        assert error.diag.statement_position is None
        assert connection.info.transaction_status == IN_ERROR
        with pytest.raises(driver.errors.InFailedSqlTransaction):
            run(connection, PAY_2)
        connection.rollback()
        assert connection.info.transaction_status == IDLE
        run(connection, PAY_2)


@drivers
@pytest.mark.parametrize(
    ("fault", "code", "applied"),
    [
        ("serialization_failure", "40001", False),
        ("ambiguous_commit", "40003", False),
        ("ambiguous_commit.store_stopping.applied", "40003", True),
        ("committed_with_ddl_failure", "XXA00", True),
    ],
)
def test_commit_fails(
    proxy: FaultProxy, onlooker: Onlooker, driver: Any, fault: str, code: str, *, applied: bool
) -> None:
    """After a COMMIT that failed the driver knows of no transaction, sends no ROLLBACK, and goes on."""
    with closing(connect(driver, proxy)) as connection:
        run(connection, PAY_1)
        proxy.inject(fault, on="commit")
        proxy.wire_log(clear=True)
        with pytest.raises(driver.Error) as raised:
            connection.commit()
        assert code_of(raised.value) == code
        assert connection.info.transaction_status == IDLE
        connection.rollback()
        assert proxy.wire_log().texts("statement") == ["COMMIT"]
        assert onlooker.balances[1] == (90 if applied else 100)
        run(connection, PAY_2)
        connection.commit()
    assert onlooker.balances[2] == 90


@drivers
@pytest.mark.parametrize(
    ("fault", "on", "code"),
    [
        ("connection_reset", "statement", None),
        ("server_closed", "statement", None),
        ("lost_commit", "commit", None),
        ("lost_commit.applied", "commit", None),
        ("draining_statement", "statement", "57014"),
    ],
)
def test_the_link_ends(
    proxy: FaultProxy, onlooker: Onlooker, driver: Any, fault: str, on: Any, code: str | None
) -> None:
    """A link that ends is an OperationalError; the connection is of no use afterwards, and a new one is."""
    connection = connect(driver, proxy)
    run(connection, PAY_1)
    proxy.inject(fault, on=on)
    with pytest.raises(driver.OperationalError) as raised:
        if on == "commit":
            connection.commit()
        else:
            run(connection, PAY_2)
    # Of several results psycopg2 tells the last, which is libpq's own: that the server closed the connection.
    assert code_of(raised.value) == (None if driver is psycopg2 else code)
    with suppress(driver.Error):
        run(connection, "SELECT 1")
    with pytest.raises((driver.OperationalError, driver.InterfaceError)):
        run(connection, "SELECT 1")
    assert connection.closed
    connection.close()
    with closing(connect(driver, proxy)) as another:
        run(another, PAY_2)
        another.commit()
    assert onlooker.balances == {1: 90 if fault == "lost_commit.applied" else 100, 2: 90}


@drivers
@pytest.mark.parametrize(
    ("fault", "code", "message"),
    [
        ("shutting_down", "57P01", "server is shutting down"),
        ("idle_session_timeout.timeout", "XXUUU", "read tcp "),
        ("idle_session_timeout.silent", None, "server closed the connection unexpectedly"),
    ],
)
def test_an_idle_connection_is_closed(
    proxy: FaultProxy, driver: Any, fault: str, code: str | None, message: str
) -> None:
    """A connection that was closed while it was idle fails at its next use; psycopg 3 knows the last words."""
    connection = connect(driver, proxy)
    proxy.inject(fault)
    with pytest.raises(driver.Error) as raised:
        run(connection, "SELECT 1")
    if driver is psycopg2:  # its libpq throws away what has come before the statement is sent
        code, message = None, "server closed the connection unexpectedly"
    assert code_of(raised.value) == code
    assert message in str(raised.value)
    connection.close()


@drivers
@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("too_many_clients", "sorry, too many clients already"),
        ("not_accepting_clients", "server is not accepting clients, try another node"),
        ("connection_reset", "connection"),
        ("server_closed", "server closed the connection unexpectedly"),
    ],
)
def test_a_connection_is_refused(proxy: FaultProxy, driver: Any, fault: str, message: str) -> None:
    """A refused connection is an OperationalError with the server's message; the next one is let in."""
    proxy.inject(fault, on="connect")
    with pytest.raises(driver.OperationalError, match=message):
        connect(driver, proxy)
    connect(driver, proxy).close()


# --- prepared and binary statements of psycopg 3 -----------------------------------------------------------


@pytest.mark.parametrize("options", [{"prepare": True}, {"binary": True}, {"prepare": False}], ids=str)
@pytest.mark.parametrize("autocommit", [True, False])
def test_a_prepared_statement_is_struck_and_used_again(
    proxy: FaultProxy, onlooker: Onlooker, options: dict[str, bool], *, autocommit: bool
) -> None:
    """A statement with parameters fails at the fault, and the very same one works afterwards."""
    with connect(psycopg, proxy, autocommit=autocommit) as connection:
        for fault in (None, "serialization_failure", "serialization_failure.ABORT_REASON_ABORT_SPAN", None):
            if fault is None:
                connection.execute(PAY_ANY, (1,), **options)
                connection.commit()
            else:
                proxy.inject(fault)
                with pytest.raises(psycopg.errors.SerializationFailure):
                    connection.execute(PAY_ANY, (1,), **options)
                assert connection.info.transaction_status == (IDLE if autocommit else IN_ERROR)
                connection.rollback()
    assert onlooker.balances[1] == 80


def test_a_server_side_cursor_is_struck(proxy: FaultProxy) -> None:
    """A fault in the middle of a named cursor's rows ends the transaction; the cursor closes quietly."""
    with connect(psycopg, proxy) as connection:
        proxy.inject("serialization_failure", matching="FETCH", nth=2)
        with pytest.raises(psycopg.errors.SerializationFailure), connection.cursor("named") as cursor:
            cursor.itersize = 2
            cursor.execute("SELECT generate_series(1, 10)")
            assert [next(cursor) for _ in range(2)] == [(1,), (2,)]
            next(cursor)
        connection.rollback()
        assert connection.execute("SELECT 1").fetchone() == (1,)


@drivers
def test_copy_is_struck(proxy: FaultProxy, onlooker: Onlooker, driver: Any) -> None:
    """COPY that fails at once leaves the connection usable; the same COPY works afterwards."""
    import io

    with closing(connect(driver, proxy)) as connection:

        def copy() -> None:
            with connection.cursor() as cursor:
                if driver is psycopg2:
                    cursor.copy_expert("COPY purse FROM STDIN", io.StringIO("3\t100\n"))
                else:
                    with cursor.copy("COPY purse FROM STDIN") as rows:
                        rows.write("3\t100\n")
            connection.commit()

        proxy.inject("memory_exceeded.sql", matching="copy")
        with pytest.raises(driver.errors.OutOfMemory):
            copy()
        connection.rollback()
        copy()
    assert onlooker.balances == {1: 100, 2: 100, 3: 100}


# --- pipelines of psycopg 3 --------------------------------------------------------------------------------


def outcomes(cursors: list[psycopg.Cursor[Any]]) -> list[str]:
    """Tell of each cursor of a pipeline whether it has a result."""
    return ["done" if cursor.pgresult is not None else "nothing" for cursor in cursors]


@pytest.mark.parametrize("fault", ["serialization_failure", "serialization_failure.ABORT_REASON_ABORT_SPAN"])
@pytest.mark.parametrize("first", ["the first", "a later"])
def test_a_fault_in_a_pipeline(proxy: FaultProxy, onlooker: Onlooker, fault: str, first: str) -> None:
    """A fault on the second statement fails it and what stands behind it; the transaction is aborted."""
    with connect(psycopg, proxy) as connection:
        if first == "a later":
            connection.execute("SELECT 1")
        proxy.inject(fault, matching="balance - 10")
        cursors = [connection.cursor() for _ in range(3)]
        with pytest.raises(psycopg.errors.SerializationFailure), connection.pipeline():
            cursors[0].execute("UPDATE purse SET balance = 1 WHERE id = %s", (1,))
            cursors[1].execute(PAY_ANY, (2,))
            cursors[2].execute("UPDATE purse SET balance = 3 WHERE id = %s", (2,))
        assert outcomes(cursors) == ["done", "nothing", "nothing"]
        assert connection.info.transaction_status == IN_ERROR
        assert onlooker.locked(1) is (fault == "serialization_failure")
        assert not onlooker.locked(2)
        connection.rollback()
        assert not onlooker.locked(1)
        connection.execute(PAY_1)
        connection.commit()
    assert onlooker.balances == {1: 90, 2: 100}


def test_a_fault_in_a_pipeline_with_syncs(proxy: FaultProxy, onlooker: Onlooker) -> None:
    """In autocommit with a Sync after each statement a fault meets its own statement and no other."""
    with connect(psycopg, proxy, autocommit=True) as connection:
        rule = proxy.inject("serialization_failure", matching="UPDATE", nth=2)
        with connection.pipeline() as pipeline:
            cursors = [connection.cursor() for _ in range(3)]
            for cursor, number in zip(cursors, (1, 2, 1), strict=True):
                cursor.execute(PAY_ANY, (number,))
                with suppress(psycopg.errors.SerializationFailure):
                    pipeline.sync()
        assert outcomes(cursors) == ["done", "nothing", "done"]
        assert rule.hits == 1
    assert onlooker.balances == {1: 80, 2: 100}


def test_an_implicit_transaction_of_a_pipeline(proxy: FaultProxy, onlooker: Onlooker) -> None:
    """In autocommit what is sent without a Sync is one transaction: a fault on the second undoes the first."""
    with connect(psycopg, proxy, autocommit=True) as connection:
        rule = proxy.inject("serialization_failure", matching="UPDATE", nth=2, times=None)
        with pytest.raises(psycopg.errors.SerializationFailure), connection.pipeline():
            for number in (1, 2, 1):
                connection.execute(PAY_ANY, (number,))
        assert rule.hits == 1
        assert connection.info.transaction_status == IDLE
    assert onlooker.balances == {1: 100, 2: 100}


@pytest.mark.parametrize(
    ("fault", "code", "balance"),
    [
        ("serialization_failure", "40001", 100),
        ("ambiguous_commit", "40003", 100),
        ("ambiguous_commit.propagate.applied", "40003", 90),
        ("committed_with_ddl_failure", "XXA00", 90),
    ],
)
def test_commit_fails_in_a_pipeline(
    proxy: FaultProxy, onlooker: Onlooker, fault: str, code: str, balance: int
) -> None:
    """A COMMIT that is sent along with its statements fails, what was sent behind it with it, and all is idle."""
    with connect(psycopg, proxy, autocommit=True) as connection:
        proxy.inject(fault, on="commit")
        with pytest.raises(psycopg.Error) as raised, connection.pipeline():
            for text in ("BEGIN", PAY_1, "COMMIT", PAY_2):
                connection.execute(text)
        assert raised.value.sqlstate == code
        assert connection.info.transaction_status == IDLE
        assert onlooker.balances == {1: balance, 2: 100}
        connection.execute(PAY_2)
    assert onlooker.balances == {1: balance, 2: 90}


@pytest.mark.parametrize(
    ("fault", "balance"), [("serialization_failure", 100), ("ambiguous_commit.propagate.applied", 90)]
)
def test_commit_of_the_connection_in_a_pipeline(
    proxy: FaultProxy, onlooker: Onlooker, fault: str, balance: int
) -> None:
    """`commit()` within a pipeline raises what COMMIT answered, and the pipeline can go on."""
    with connect(psycopg, proxy) as connection, connection.pipeline():
        proxy.inject(fault, on="commit")
        connection.execute(PAY_1)
        with pytest.raises(psycopg.OperationalError):
            connection.commit()
        connection.execute(PAY_2)
        connection.commit()
    assert onlooker.balances == {1: balance, 2: 90}


def test_executemany_is_struck(proxy: FaultProxy, onlooker: Onlooker) -> None:
    """`executemany` runs as a pipeline: a fault on one of many fails them all, and the transaction."""
    with connect(psycopg, proxy) as connection:
        rule = proxy.inject("serialization_failure", nth=3)
        with pytest.raises(psycopg.errors.SerializationFailure):
            connection.cursor().executemany(PAY_ANY, [(1,)] * 5)
        assert rule.hits == 1
        assert connection.info.transaction_status == IN_ERROR
        connection.rollback()
        connection.cursor().executemany(PAY_ANY, [(1,)] * 5)
        connection.commit()
    assert onlooker.balances == {1: 50, 2: 100}


@pytest.mark.parametrize("fault", ["connection_reset", "server_closed", "draining_statement"])
def test_the_link_ends_in_a_pipeline(proxy: FaultProxy, onlooker: Onlooker, fault: str) -> None:
    """A link that ends amid a pipeline is an OperationalError, and nothing of the open transaction stays."""
    connection = connect(psycopg, proxy, application_name="pipelined")
    proxy.inject(fault, matching="id = 2")
    with pytest.raises(psycopg.OperationalError), connection.pipeline():
        for text in (PAY_1, PAY_2, PAY_1):
            connection.execute(text)
    connection.close()
    assert eventually(lambda: onlooker.sessions("pipelined") == 0)
    assert not onlooker.locked(1)
    assert onlooker.balances == {1: 100, 2: 100}


def test_many_faults_in_one_transaction_after_another(proxy: FaultProxy, onlooker: Onlooker) -> None:
    """A session that is struck again and again, in every way, is as good as new each time."""
    with connect(psycopg, proxy) as connection:
        for name, prepare in itertools.product(
            (
                "serialization_failure",
                "statement_timeout",
                "serialization_failure.ABORT_REASON_CLIENT_REJECT",
            ),
            (True, False, True),
        ):
            connection.execute(PAY_ANY, (1,), prepare=prepare)
            with proxy.inject(name), pytest.raises(psycopg.OperationalError):
                connection.execute(PAY_ANY, (2,), prepare=prepare)
            connection.rollback()
            with pytest.raises(psycopg.OperationalError), proxy.inject(name, on="commit"):
                connection.execute(PAY_ANY, (1,), prepare=prepare)
                connection.commit()
        connection.execute(PAY_1)
        connection.commit()
    assert onlooker.balances == {1: 90, 2: 100}


def test_a_fault_at_commit_is_heard_before_the_sync(proxy: FaultProxy, onlooker: Onlooker) -> None:
    """Who flushes and reads in a pipeline hears at once that COMMIT failed; nothing waits for the Sync."""
    with connect(psycopg, proxy) as connection:
        proxy.inject("serialization_failure", on="commit")
        with pytest.raises(psycopg.errors.SerializationFailure), connection.pipeline():
            connection.execute(PAY_1)
            connection.commit()
            connection.execute("SELECT 1").fetchone()
        connection.rollback()
    assert onlooker.balances[1] == 100


@drivers
def test_copy_cannot_be_applied_and_failed(proxy: FaultProxy, onlooker: Onlooker, driver: Any) -> None:
    """A COPY FROM STDIN outside a transaction has no data yet that could be applied: it only fails."""
    with closing(connect(driver, proxy)) as connection, closing(connection.cursor()) as cursor:
        connection.autocommit = True
        proxy.inject("ambiguous_commit.propagate.applied", on="statement", matching="COPY")
        with pytest.raises(driver.errors.StatementCompletionUnknown):
            if driver is psycopg:
                with cursor.copy("COPY purse FROM STDIN") as copy:
                    copy.write(b"7\t1\n")
            else:
                cursor.copy_expert("COPY purse FROM STDIN", io.BytesIO(b"7\t1\n"))
        cursor.execute("SELECT 1")
    assert 7 not in onlooker.balances


def test_silence_lifted_at_once_ends(proxy: FaultProxy) -> None:
    """A session that a rule had fall silent is over when the rule is lifted, however soon that is."""
    for _ in range(20):
        with closing(psycopg.connect(proxy.url, autocommit=True)) as connection:
            proxy.inject("half_open").lift()
            with pytest.raises(psycopg.OperationalError):
                connection.execute("SELECT 1")
