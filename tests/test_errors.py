# SPDX-License-Identifier: Apache-2.0
"""From an exception to what it means: every row of the retry table, every reason, every chain."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import time
from types import SimpleNamespace

import django.db.transaction
import django.db.utils
import psycopg
import psycopg2
import psycopg2.errors
import psycopg_pool
import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_crdb.errors import Classification, classify, driver_error, error_type, sqlstate_of

from .errors_of_cockroachdb import ANSWERS, RESTARTS, ROWS, WRAPPINGS, cases, none_or, restart, table

PHASES = ("connect", "idle", "statement", "commit", "autocommit")
RESTART = "restart transaction: TransactionRetryWithProtoRefreshError: "
OWN = '"sql txn" meta={id=07d42834 key=/Table/777/9/5/0 iso=Serializable pri=0.01 epo=0 ts=1.2,1 min=1.1,0 seq=2}'


def psycopg3_error(code: str | None, text: str) -> psycopg.Error:
    """Make the error psycopg 3 raises for a code."""
    if code is None:
        return psycopg.OperationalError(text)
    error = psycopg.errors._class_for_state(code)(text)
    error.sqlstate = code
    return error


def psycopg2_error(code: str | None, text: str) -> psycopg2.Error:
    """Make the error psycopg2 raises for a code; the code is read-only there but for unpickling."""
    if code is None:
        return psycopg2.OperationalError(text)
    try:
        error = psycopg2.errors.lookup(code)(text)
    except KeyError:
        base = psycopg2.InternalError if code.startswith("XX") else psycopg2.OperationalError
        error = base(text)
    error.__setstate__({"pgcode": code})
    return error


DRIVERS = {"psycopg": (psycopg3_error, psycopg), "psycopg2": (psycopg2_error, psycopg2)}
both_drivers = pytest.mark.parametrize("driver", DRIVERS)


def make(code: str | None, text: str = "", driver: str = "psycopg") -> BaseException:
    """Make a driver's error."""
    return DRIVERS[driver][0](code, text)


def wrapped(error: BaseException, driver: str = "psycopg") -> BaseException:
    """Let Django's own wrapper raise the error again, as it does round every driver call."""
    wrapper = SimpleNamespace(Database=DRIVERS[driver][1], errors_occurred=False)
    try:
        with django.db.utils.DatabaseErrorWrapper(wrapper):
            raise error
    except django.db.utils.Error as exc:
        return exc


def linked(exc: BaseException, *, cause: BaseException | None = None, context: BaseException | None = None):
    """Set the links of a chain as `raise` would."""
    if cause is not None:
        exc.__cause__ = cause
    exc.__context__ = context if context is not None else cause
    return exc


def found(exc: BaseException, **kwargs: object) -> Classification:
    """Classify what must hold a database error."""
    classification = classify(exc, **kwargs)
    assert classification is not None
    return classification


@both_drivers
@pytest.mark.parametrize("row", **cases(ROWS))
def test_row_of_the_retry_table(row: list[str], driver: str) -> None:
    """Each SQLSTATE and text has its class, its reason, its answer for every phase and on the connection."""
    _, code, error_class, statement, commit, autocommit, reconnect, reason, cause, text = row
    exc = wrapped(make(none_or(code), text, driver), driver)
    expected = dict(zip(PHASES, (statement, statement, statement, commit, autocommit), strict=True))
    for phase, answer in expected.items():
        got = found(exc, phase=phase)
        assert (got.error_class, got.retry) == (error_class, ANSWERS[answer]), phase
        assert (got.sqlstate, got.reconnect) == (none_or(code), reconnect == "R")
        assert (got.retry_reason, got.retry_cause) == (none_or(reason), none_or(cause))


@pytest.mark.parametrize("row", **cases(ROWS))
def test_unknown_phase_is_the_most_cautious(row: list[str]) -> None:
    """Without a phase the answer is the most cautious of all phases."""
    caution = ["yes", "if_idempotent", "no"]
    exc = make(none_or(row[1]), row[-1])
    expected = max((found(exc, phase=phase).retry for phase in PHASES), key=caution.index)
    assert found(exc).retry == found(exc, phase="no such phase").retry == expected


@pytest.mark.parametrize("row", **cases(ROWS))
def test_advice_and_page_are_fixed(row: list[str]) -> None:
    """Advice is one sentence and the page is public, whatever the message holds."""
    got = found(make(none_or(row[1]), row[-1]))
    assert got.advice.endswith(".")
    assert "\n" not in got.advice
    assert got.doc_url.startswith("https://www.cockroachlabs.com/docs/stable/")


@both_drivers
@pytest.mark.parametrize("row", **cases(RESTARTS))
def test_reason_of_a_restart(row: list[str], driver: str) -> None:
    """Every inner text of a 40001 has its bounded word and its cause, whatever is wrapped round it."""
    _, reason, cause, *_, text = row
    for wrapping in WRAPPINGS.values():
        got = found(wrapped(make("40001", restart(text, wrapping), driver), driver))
        assert (got.retry, got.retry_reason, got.retry_cause) == ("yes", reason, cause)


@pytest.mark.parametrize(
    ("text", "word", "cause"),
    [
        (
            "restart transaction: read committed retry limit exceeded",
            "read_committed_retry_limit",
            "contention",
        ),
        ("restart transaction: cannot automatically retry since x", "results_already_sent", "contention"),
        ("could not serialize access due to read/write dependencies", "unknown", "unknown"),
    ],
    ids=["limit", "streamed", "postgresql"],
)
def test_restart_without_an_inner_reason(text: str, word: str, cause: str) -> None:
    """The wrapping text is the reason where nothing else is; PostgreSQL's own words are unknown."""
    got = found(make("40001", text))
    assert (got.retry_reason, got.retry_cause) == (word, cause)


# Seen in public logs.
SAMPLE_V22 = (
    f"{RESTART}TransactionRetryError: retry txn (RETRY_SERIALIZABLE - failed preemptive refresh due to a conflict: "
    'committed value on key /Table/123/8/2/0): "sql txn" meta={id=dcf48ead key=/Table/55/7/3/0 pri=0.03551682 '
    "epo=0 ts=1672851243.656743278,1 min=1672851232.686813476,0 seq=1012} lock=true stat=PENDING "
    "rts=1672851232.686813476,0 wto=false gul=1672851233.186813476,0"
)
SAMPLE_V26 = (
    f'{RESTART}TransactionRetryError: retry txn (RETRY_SERIALIZABLE): "sql txn" meta={{id=a41090f6 '
    "key=/Table/112137/1/1/0 iso=Serializable pri=0.01140400 epo=0 ts=1786878125.562938098,1 "
    "min=1786878125.561464471,0 seq=2} lock=true stat=PENDING rts=1786878125.561464471,0 "
    "gul=1786878126.061464471,0 obs={n1@1786878125.561464471,0}"
)
CONFLICTING = (
    f"{RESTART}TransactionRetryError: retry txn (RETRY_SERIALIZABLE - failed preemptive refresh due to conflicting "
    "locks on /Table/106/1/918951292305080321/0 [reason=wait_policy] - conflicting txn: meta={id=1b2bf263 "
    f"key=/Table/301/4/9/0 iso=Serializable pri=0.0 epo=0 ts=1,2 min=1,0 seq=1}}): {OWN}"
)
PUSH = f'failed to push "sql txn" meta={{id=1b2bf263 key=/Table/9/9/9/0}} lock=true: {OWN}'
COMMITTED = f"retry txn (RETRY_SERIALIZABLE - due to encountered recently written committed value /Table/106/5/5/0 @1): {OWN}"


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        pytest.param(SAMPLE_V22, ("dcf48ead", None, 123, 8), id="v22.2"),
        pytest.param(SAMPLE_V26, ("a41090f6", None, None, None), id="v26.2"),
        pytest.param(CONFLICTING, ("07d42834", "1b2bf263", 106, 1), id="conflicting"),
        pytest.param(PUSH, ("07d42834", "1b2bf263", None, None), id="push"),
        pytest.param(COMMITTED, ("07d42834", None, 106, 5), id="committed"),
        pytest.param("injected by `x` session variable", (None, None, None, None), id="injected"),
        pytest.param(
            "WriteTooOldError: write for key /Tenant/3/Table/106/2/5/0", (None, None, 106, 2), id="tenant"
        ),
        pytest.param("write exclusion on key ‹/Table/106/3/5/0› expected", (None, None, 106, 3), id="marked"),
        pytest.param("(x - missing intent on: /Table/106/4/5/0)", (None, None, 106, 4), id="intent"),
    ],
)
def test_ids_of_a_conflict(text: str, ids: tuple) -> None:
    """Transaction ids come from the transaction strings, table and index from the conflict's key alone."""
    got = found(make("40001", text))
    assert (got.server_txn_id, got.conflict_server_txn_id, got.table_id, got.index_id) == ids


def test_a_row_cannot_speak_for_the_server() -> None:
    """Words of the server inside a row's key change neither the reason nor the ids."""
    key = r'/Table/106/1/"(RETRY_ASYNC_WRITE_FAILURE) on key /Table/9/9/ \"sql txn\" meta={id=deadbeef"/0'
    got = found(
        make("40001", f"{RESTART}WriteTooOldError: write for key {key} at timestamp 1 too old: {OWN}")
    )
    assert (got.retry_reason, got.server_txn_id, got.table_id) == ("WriteTooOld", "07d42834", 106)


def test_anchor_key_is_no_conflict() -> None:
    """The key of the transaction's own record gives no ids, whatever stands in it."""
    own = 'meta={id=07d42834 key=/Table/7/1/"committed value /Table/9/9/"/0}'
    got = found(
        make("40001", f'{RESTART}TransactionRetryError: retry txn (RETRY_SERIALIZABLE): "sql txn" {own}')
    )
    assert (got.server_txn_id, got.table_id, got.index_id) == ("07d42834", None, None)


def test_documentation_names_the_reason() -> None:
    """A known reason leads to its own heading of the documentation."""
    got = found(make("40001", SAMPLE_V26))
    assert got.doc_url.endswith("/transaction-retry-error-reference#retry_serializable")


CONNECT_TEXTS = table("""
id            | code  | class       | retry | text
crdb-password | 28P01 | permission  | no    | ERROR:  password authentication failed for user x
pg-password   | 28P01 | permission  | no    | FATAL:  password authentication failed for user "x"
no-password   | 28P01 | permission  | no    | fe_sendauth: no password supplied
hba           | 28000 | permission  | no    | FATAL:  no pg_hba.conf entry for host "1.2.3.4", user "x"
role          | 28000 | permission  | no    | FATAL:  role "x" does not exist
secure        | 08P01 | permission  | no    | ERROR:  node is running secure mode, SSL connection required
tls           | -     | permission  | no    | server does not support SSL, but SSL was required
crdb-database | 3D000 | schema      | no    | ERROR:  database "x" does not exist
pg-database   | 3D000 | schema      | no    | FATAL:  database "x" does not exist
draining      | 57P01 | unavailable | yes   | ERROR:  server is not accepting clients, try another node
shutdown      | 57P01 | unavailable | yes   | FATAL:  terminating connection due to administrator command
crash         | 57P02 | unavailable | yes   | FATAL:  terminating connection because of crash of another server process
starting      | 57P03 | unavailable | yes   | FATAL:  the database system is starting up
crdb-full     | 53300 | overload    | yes   | ERROR:  sorry, too many clients already
pg-full       | 53300 | overload    | yes   | FATAL:  remaining connection slots are reserved for x
translated    | -     | connection  | yes   | FATAL:  la base de données « x » n'existe pas
refused       | -     | connection  | yes   | Connection refused
unreachable   | -     | connection  | yes   | No route to host
""")


@both_drivers
@pytest.mark.parametrize("row", **cases(CONNECT_TEXTS))
def test_connect_errors_are_known_by_text(row: list[str], driver: str) -> None:
    """A failed connect has no SQLSTATE in either driver; the server's words tell it."""
    _, code, error_class, retry, text = row
    frame = "connection failed: " if driver == "psycopg" else ""
    message = f'{frame}connection to server at "10.0.0.1", port 26257 failed: {text}\n'
    exc = wrapped(make(None, message, driver), driver)
    got = found(exc, phase="connect")
    assert (got.sqlstate, got.error_class, got.retry) == (none_or(code), error_class, retry)
    assert got.reconnect == (retry == "yes")
    assert sqlstate_of(exc) is None


@pytest.mark.parametrize("last", ["Connection refused", "sorry, too many clients already"])
def test_several_hosts_take_the_most_cautious_line(last: str) -> None:
    """Of several hosts' failures the one no retry mends is named."""
    text = (
        'connection to server at "a", port 1 failed: Connection refused\n'
        'connection to server at "b", port 2 failed: FATAL:  password authentication failed for user "x"\n'
        f'connection to server at "c", port 3 failed: {last}\n'
    )
    got = found(make(None, text, "psycopg2"), phase="connect")
    assert (got.sqlstate, got.retry) == ("28P01", "no")


@both_drivers
def test_refused_port_through_the_driver(driver: str) -> None:
    """A port nobody listens on is a connect failure that may be tried again on a new connection."""
    module = DRIVERS[driver][1]
    with pytest.raises(module.OperationalError) as caught:
        module.connect("host=127.0.0.1 port=1 user=x dbname=x connect_timeout=2")
    got = found(caught.value, phase="connect")
    assert (got.sqlstate, got.error_class, got.retry_reason) == (None, "connection", "connect_failed")
    assert (got.retry, got.reconnect) == ("yes", True)
    assert error_type(wrapped(caught.value, driver)) == f"{driver}.OperationalError"


@both_drivers
def test_unknown_host_through_the_driver(driver: str) -> None:
    """A name that does not resolve is a connect failure."""
    module = DRIVERS[driver][1]
    with pytest.raises(module.OperationalError) as caught:
        module.connect("host=no-such-host.invalid user=x connect_timeout=2")
    assert found(caught.value, phase="connect").retry_reason == "connect_failed"


def test_pool_timeout_through_the_pool() -> None:
    """A pool that cannot give a connection in time is overload, and not to be retried at once."""
    with (
        psycopg_pool.ConnectionPool(
            "host=127.0.0.1 port=1 user=x", min_size=0, max_size=1, open=True, reconnect_timeout=0.1
        ) as pool,
        pytest.raises(psycopg_pool.PoolTimeout) as caught,
    ):
        pool.getconn(timeout=0.05)
    got = found(wrapped(caught.value), phase="connect")
    assert (got.error_class, got.retry, got.retry_reason) == ("overload", "no", "pool_exhausted")
    assert error_type(wrapped(caught.value)) == "psycopg_pool.PoolTimeout"


@pytest.mark.parametrize(
    ("cls", "error_class"),
    [
        (psycopg_pool.PoolTimeout, "overload"),
        (psycopg_pool.TooManyRequests, "overload"),
        (psycopg_pool.PoolClosed, "connection"),
    ],
)
def test_pool_errors(cls: type[BaseException], error_class: str) -> None:
    """The pool's own classes are known whatever they say; after a COMMIT they hide that it was lost."""
    exc = wrapped(cls("server closed the connection"))
    assert (found(exc).error_class, found(exc).retry) == (error_class, "no")
    assert found(exc, phase="commit").retry == "if_idempotent"


@both_drivers
def test_closed_connection_through_the_driver_class(driver: str) -> None:
    """A closed connection is a lost link, under whichever class the driver says so."""
    exc = {
        "psycopg": psycopg.OperationalError("the connection is closed"),
        "psycopg2": psycopg2.InterfaceError("connection already closed"),
    }[driver]
    got = found(wrapped(exc, driver), phase="statement")
    assert (got.error_class, got.retry, got.reconnect) == ("connection", "yes", True)


@pytest.mark.parametrize(
    ("exc", "error_class"),
    [
        (psycopg2.IntegrityError("x"), "constraint"),
        (psycopg.DataError("text fields cannot contain NUL (0x00) bytes"), "data"),
        (psycopg2.ProgrammingError("no results to fetch"), "schema"),
        (psycopg.NotSupportedError("x"), "schema"),
        (psycopg.InternalError("x"), "internal"),
        (psycopg2.InterfaceError("cursor already closed"), "other"),
        (
            psycopg2.DatabaseError("error with status PGRES_TUPLES_OK and no message"),
            "connection",
        ),
        (psycopg2.DatabaseError("SSL SYSCALL error: EOF detected"), "connection"),
        (django.db.utils.IntegrityError("x"), "constraint"),
        (django.db.transaction.TransactionManagementError("x"), "aborted_state"),
        (psycopg2.errors.SerializationFailure("by hand, no code"), "retryable"),
        (psycopg2.errors.StatementCompletionUnknown("by hand, no code"), "ambiguous"),
        (psycopg2.OperationalError("restart transaction: x"), "retryable"),
    ],
)
def test_errors_without_a_code(exc: BaseException, error_class: str) -> None:
    """Without a SQLSTATE an error is known by its class and its words."""
    assert found(exc).error_class == error_class


# --- chains ---------------------------------------------------------------------------------------


@both_drivers
def test_django_wrapper_is_seen_through(driver: str) -> None:
    """Django's wrapper hides neither code nor class of the driver's error."""
    original = make("23505", "duplicate key value", driver)
    exc = wrapped(original, driver)
    assert isinstance(exc, django.db.utils.IntegrityError)
    assert driver_error(exc) is original
    assert (sqlstate_of(exc), error_type(exc), found(exc).sqlstate) == ("23505", "23505", "23505")


@pytest.mark.parametrize(
    ("exc", "name"),
    [
        (ValueError("x"), "ValueError"),
        (psycopg.OperationalError("x"), "psycopg.OperationalError"),
        (wrapped(psycopg2.InterfaceError("x"), "psycopg2"), "psycopg2.InterfaceError"),
        (django.db.utils.NotSupportedError("x"), "django.db.utils.NotSupportedError"),
        (
            linked(django.db.transaction.TransactionManagementError("x"), cause=wrapped(make("40001"))),
            "django.db.transaction.TransactionManagementError",
        ),
        (make("XXUUU"), "XXUUU"),
    ],
)
def test_error_type(exc: BaseException, name: str) -> None:
    """`error.type` is the SQLSTATE, else the qualified name of the driver's or the original class."""
    assert error_type(exc) == name


@pytest.mark.parametrize(
    "exc",
    [ValueError("restart transaction: x"), KeyboardInterrupt(), linked(KeyError("x"), cause=OSError("EOF"))],
)
def test_no_database_error_is_none(exc: BaseException) -> None:
    """An exception with no database error behind it has no classification, whatever it says."""
    assert classify(exc) is None
    assert sqlstate_of(exc) is None
    assert driver_error(exc) is exc


def test_application_error_raised_from_a_database_error() -> None:
    """`raise X from error` is a database failure."""
    exc = linked(ValueError("no"), cause=wrapped(make("40001", RESTART)))
    assert (found(exc).sqlstate, found(exc).retry) == ("40001", "yes")


def handle_badly(error: BaseException) -> None:
    """Fail over an error of one's own while dealing with the given one."""
    try:
        raise error
    except psycopg.Error:
        raise ValueError("business")  # noqa: B904 - the implicit context is what is tested


def test_application_error_while_handling_a_database_error() -> None:
    """An application's exception raised in an except block is its own: no retry for an old 40001."""
    with pytest.raises(ValueError, match="business") as caught:
        handle_badly(make("40001"))
    assert isinstance(caught.value.__context__, psycopg.Error)
    assert classify(caught.value) is None


def test_lost_commit_behind_a_connect_error() -> None:
    """A reconnect that fails after a lost COMMIT does not make the transaction safe to run again."""
    lost = wrapped(make(None, "server closed the connection unexpectedly"))
    refused = linked(make(None, "connection failed: Connection refused"), context=lost)
    exc = wrapped(refused)
    assert found(exc).retry == "if_idempotent"
    assert found(exc).retry_reason == "connection_lost"
    assert found(exc, phase="connect").retry == "if_idempotent"
    assert found(exc, phase="commit").retry == "if_idempotent"


@pytest.mark.parametrize("text", ["password authentication failed", 'database "x" does not exist'])
def test_failed_connect_does_not_hide_a_lost_commit(text: str) -> None:
    """A connect that can never succeed leaves an earlier lost COMMIT ambiguous."""
    refused = linked(
        make(None, f"connection failed: {text}"), context=make("40003", "result is ambiguous: x")
    )
    got = found(wrapped(refused))
    assert (got.error_class, got.retry) == ("ambiguous", "if_idempotent")


@pytest.mark.parametrize(
    ("outer", "inner", "winner"),
    [
        ("23505", "40001", "23505"),
        ("40001", "23505", "23505"),
        ("40001", "40003", "40003"),
        ("40003", "40001", "40003"),
        ("40001", "57014", "57014"),
        ("23505", "XXA00", "XXA00"),
        ("XXA00", "23505", "XXA00"),
        ("42P01", "23505", "42P01"),
    ],
)
def test_most_cautious_finding_wins(outer: str, inner: str, winner: str) -> None:
    """Of several database errors the most cautious counts, of equals the one the caller sees."""
    exc = wrapped(linked(make(outer), context=wrapped(make(inner))))
    assert found(exc).sqlstate == winner


@pytest.mark.parametrize(
    "consequence",
    [
        wrapped(make("25P02", "current transaction is aborted, commands ignored …")),
        django.db.transaction.TransactionManagementError("An error occurred in the current transaction."),
        wrapped(make("40001", RESTART + "cannot rollback to savepoint after a transaction restart")),
        wrapped(make("0A000", "unimplemented: cannot rollback to savepoint after error")),
    ],
    ids=["25P02", "TransactionManagementError", "savepoint-40001", "savepoint-0A000"],
)
@pytest.mark.parametrize(
    ("code", "text", "retry"),
    [("40001", SAMPLE_V26, "yes"), ("40003", "", "if_idempotent"), ("23505", "", "no")],
    ids=["40001", "40003", "23505"],
)
def test_consequences_give_way(consequence: BaseException, code: str, text: str, retry: str) -> None:
    """What only says that an earlier error was not dealt with gives way to that error, on either side of it."""
    first = wrapped(make(code, text))
    after = linked(type(consequence)(*consequence.args), cause=consequence.__cause__)
    (after.__cause__ or after).__context__ = first
    for exc in (after, linked(wrapped(make(code, text)), cause=None)):
        got = found(exc)
        assert (got.sqlstate, got.retry) == (code, retry)
    assert found(after).server_txn_id == ("a41090f6" if code == "40001" else None)


def test_transaction_management_error_names_its_cause() -> None:
    """Django's refusal to go on is explained by the error it was raised from."""
    exc = linked(
        django.db.transaction.TransactionManagementError("x"), cause=wrapped(make("40001", SAMPLE_V26))
    )
    assert (found(exc).sqlstate, found(exc).retry_reason) == ("40001", "RETRY_SERIALIZABLE")


@both_drivers
def test_cancellation_by_a_drain(driver: str) -> None:
    """A bare 57014 on a connection that is gone was a drain: the transaction may run again elsewhere."""
    bare = make("57014", "query execution canceled", driver)
    assert found(bare, phase="statement").retry == "no"
    for exc in (
        linked(
            make(None, "server closed the connection unexpectedly", driver), context=wrapped(bare, driver)
        ),
        linked(make("57P01", "server is shutting down", driver), context=wrapped(bare, driver)),
        make("57014", "query execution canceled\nserver is shutting down", driver),
    ):
        got = found(exc, phase="statement")
        assert (got.error_class in {"unavailable", "connection"}, got.retry, got.reconnect) == (
            True,
            "yes",
            True,
        )
        assert found(exc, phase="commit").retry == "if_idempotent"
    assert found(bare, phase="statement", connection_gone=True).error_class == "unavailable"


def test_timeout_on_a_lost_connection_stays_a_timeout() -> None:
    """A statement timeout is no drain, also where the connection is gone."""
    exc = make("57014", "query execution canceled due to statement timeout")
    assert found(exc, phase="statement", connection_gone=True).retry == "no"


def test_walk_stops_at_what_was_handled_before() -> None:
    """An error that was being handled when the work began is none of the work's."""
    old = wrapped(make("40003"))
    new = wrapped(linked(make("40001"), context=old))
    assert found(new).retry == "if_idempotent"
    assert found(new, handled=old).retry == "yes"
    assert classify(old, handled=old) is None


def test_suppressed_context_is_not_followed() -> None:
    """`raise … from None` cuts the chain."""
    exc = linked(make("40001"), context=make("40003"))
    exc.__suppress_context__ = True
    assert found(exc).retry == "yes"


def test_cycle_is_survived() -> None:
    """A chain that bites its tail ends."""
    first, second = make("40001"), make("40P01")
    first.__context__, second.__context__ = second, first
    wrapper, other = django.db.utils.Error("a"), django.db.utils.Error("b")
    wrapper.__cause__, other.__cause__ = other, wrapper
    assert found(first).retry == "yes"
    assert classify(wrapper) is None or found(wrapper)
    assert driver_error(wrapper) in {wrapper, other}


def test_long_chain_is_bounded() -> None:
    """A chain of many thousand links is followed only so far."""
    exc = make("23505")
    for _ in range(20_000):
        exc = linked(make("40001"), context=exc)
    started = time.process_time()
    assert found(exc).sqlstate == "40001"
    assert time.process_time() - started < 1


# --- never raises ---------------------------------------------------------------------------------


def unreadable(self: object) -> str:
    """Raise where an attribute is read."""
    raise RuntimeError("not readable")


Hostile = type(
    "Hostile",
    (psycopg2.OperationalError,),
    {name: property(unreadable) for name in ("sqlstate", "pgcode", "diag")} | {"__str__": unreadable},
)


def test_unreadable_error_is_classified_by_its_class() -> None:
    """Text, code and diagnostics that raise leave the class to go by."""
    got = found(Hostile(), phase="statement")
    assert (got.sqlstate, got.error_class) == (None, "connection")
    assert error_type(Hostile()).endswith("Hostile")


@pytest.mark.parametrize(
    "code",
    ["", "4000", "400011", "4000a", "40 01", "４０００１", b"40001", 40001, None, ["40001"], "40001\n"],
)
def test_only_five_digits_or_capitals_are_a_sqlstate(code: object) -> None:
    """Whatever else stands in the attribute is no code."""
    error = psycopg.OperationalError("x")
    error.sqlstate = code
    assert sqlstate_of(error) is None
    assert sqlstate_of(None) is None


def test_code_from_diagnostics_alone() -> None:
    """The diagnostics' code counts where the error itself shows none."""
    error = psycopg.OperationalError("x")
    error.__dict__["sqlstate"] = None
    with_diag = type(
        "Error", (Exception,), {"diag": SimpleNamespace(sqlstate="40001", message_primary="restart …")}
    )()
    assert sqlstate_of(error) is None
    assert sqlstate_of(with_diag) == "40001"
    assert found(with_diag).retry == "yes"


@given(
    args=st.lists(
        st.one_of(st.text(), st.binary(), st.none(), st.integers(), st.lists(st.text(), max_size=2)),
        max_size=3,
    ),
    code=st.one_of(
        st.none(), st.sampled_from([row[1] for row in ROWS]), st.from_regex(r"[0-9A-Z]{5}", fullmatch=True)
    ),
    phase=st.one_of(st.none(), st.sampled_from(PHASES)),
)
def test_never_raises(args: list, code: str | None, phase: str | None) -> None:
    """Any arguments, any code, any phase: there is an answer from the bounded sets."""
    error = psycopg.OperationalError(*args)
    error.sqlstate = code
    got = found(error, phase=phase)
    assert got.retry in {"yes", "if_idempotent", "no"}
    assert (got.retry_reason is None) == (got.retry_cause is None)
    assert dataclasses.is_dataclass(got)
    assert not hasattr(got, "__dict__")
    assert error_type(error)


@pytest.mark.parametrize(
    "piece",
    [
        "(",
        "meta={",
        "connection ",
        'database "',
        "/Table/1",
        "restart transaction: ",
        "EOF: ",
        'role "x',
        "\n",
    ],
)
def test_huge_messages_cost_little(piece: str) -> None:
    """A message of many megabytes is searched only in its first 16 KiB and in linear time."""
    text = piece * (8_000_000 // len(piece))
    started = time.process_time()
    for code in ("40001", "XXUUU", "57014", None):
        assert classify(make(code, text)) is not None
    assert time.process_time() - started < 2


def test_classification_is_cheap() -> None:
    """A wrapped 40001 with its full text is classified in well under a millisecond."""
    exc = wrapped(make("40001", CONFLICTING))
    started = time.process_time()
    for _ in range(200):
        classify(exc)
    assert (time.process_time() - started) / 200 < 0.001


def test_imports_neither_driver_nor_framework() -> None:
    """The room stays pure: importing it loads no driver, no Django and no OpenTelemetry."""
    code = "import sys, otel_crdb.errors; print(sorted({m.split('.')[0] for m in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not any(f"'{name}'" in loaded for name in ("django", "psycopg", "psycopg2", "opentelemetry"))
