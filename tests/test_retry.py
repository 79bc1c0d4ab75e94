# SPDX-License-Identifier: Apache-2.0
"""``run_transaction``: run again where that is safe, never twice where it is not."""

import asyncio
import functools
import importlib
import itertools
import logging
import threading
import unittest

import django
import pytest
from asgiref.sync import sync_to_async
from django.db import (
    DatabaseError,
    IntegrityError,
    InternalError,
    OperationalError,
    connection,
    connections,
    transaction,
)
from django.db.backends.postgresql.psycopg_any import is_psycopg3
from django.test import TestCase
from opentelemetry.trace import StatusCode

import otel_crdb
from otel_crdb import (
    AmbiguousCommitError,
    RetriesExhaustedError,
    arun_transaction,
    retry,
    retry_transaction,
    run_transaction,
    runs,
)

from .project.models import Account
from .servers import (
    commit_fails_with,
    conflicting,
    cut,
    driver_connect,
    earn,
    led_through_proxy,
    needs_postgresql,
)

pytestmark = pytest.mark.usefixtures("accounts", "naps")


def balance(name="a"):
    return Account.objects.get(email=f"{name}@example.com").balance


def tries_of(telemetry, logical):
    """Return the spans of a logical transaction's attempts."""
    return [span for span in telemetry.children(logical) if span.name.startswith("transaction ")]


def test_returns_what_the_function_returned(telemetry):
    """A transaction that goes well runs once and hands over what its function returned."""
    assert run_transaction(lambda a, b: (earn(), a + b)[1], 1, 2) == 3
    assert balance() == 101


def test_refused_commit_is_run_again(telemetry, naps):
    """A transaction that the database refuses with a real 40001 is run again, and paid once."""
    assert run_transaction(conflicting(2)) == "paid"
    assert balance() == 101
    assert len(naps) == 2


def test_works_without_instrument(naps):
    """Retries need no telemetry: they record what they need by themselves."""
    try:
        assert run_transaction(conflicting(1)) == "paid"
        assert balance() == 101
        assert len(naps) == 1
    finally:
        from otel_crdb import recording, signals

        recording.stop()
        signals.stop()


def test_one_id_over_all_attempts_and_one_story_in_all_signals(telemetry, crdb, caplog):
    """Spans, events, log lines and counts of a retried transaction tell the same in the same words."""
    with caplog.at_level(logging.INFO, "otel_crdb"):
        run_transaction(conflicting(2), name="pay")
    logical = telemetry.one("run_transaction pay")
    tries = tries_of(telemetry, logical)
    assert [span.name for span in tries] == [f"transaction {crdb.database}"] * 3
    assert [span.attributes["cockroachdb.txn.attempt"] for span in tries] == [1, 2, 3]
    assert [span.attributes["cockroachdb.txn.outcome"] for span in tries] == [
        "retryable",
        "retryable",
        "committed",
    ]
    assert {span.attributes["cockroachdb.txn.id"] for span in [logical, *tries]} == {
        logical.attributes["cockroachdb.txn.id"]
    }
    assert logical.attributes["cockroachdb.txn.attempts"] == 3
    assert logical.attributes["cockroachdb.txn.outcome"] == "committed"
    assert logical.status.status_code is StatusCode.UNSET
    assert [event.name for event in logical.events] == ["cockroachdb.txn.retry"] * 2
    told = [dict(event.attributes) for event in logical.events]
    assert [event["cockroachdb.txn.attempt"] for event in told] == [1, 2]
    assert {event["db.response.status_code"] for event in told} == {"40001"}
    assert {event["cockroachdb.error.class"] for event in told} == {"retryable"}
    assert all(0 <= event["cockroachdb.retry.backoff"] <= 0.04 for event in told)
    records = [record for record in telemetry.log_records if record.event_name == "cockroachdb.txn.retry"]
    assert [dict(record.attributes) for record in records] == told
    (counted,) = telemetry.points("cockroachdb.client.txn.retries")
    assert counted.value == 2
    assert counted.attributes["cockroachdb.retry.reason"] == told[0]["cockroachdb.retry.reason"]
    assert counted.attributes["cockroachdb.txn.name"] == "pay"
    durations = telemetry.points("cockroachdb.client.txn.duration")
    assert {point.attributes["cockroachdb.txn.name"] for point in durations} == {"pay"}
    (spread,) = telemetry.points("cockroachdb.client.txn.attempts")
    assert (spread.count, spread.sum) == (1, 3)
    assert spread.explicit_bounds == (1, 2, 3, 5, 8, 13, 21)
    lines = [(record.levelname, record.name) for record in caplog.records if record.name == "otel_crdb.db"]
    assert lines == [("WARNING", "otel_crdb.db")] * 2 + [("INFO", "otel_crdb.db")]


def test_transaction_of_one_attempt_is_counted_too(telemetry):
    """The share of retried transactions can be told: those of one attempt are in the histogram."""
    run_transaction(earn)
    (spread,) = telemetry.points("cockroachdb.client.txn.attempts")
    assert (spread.count, spread.sum) == (1, 1)


def test_exhausted_attempts(telemetry, caplog):
    """After the last attempt the error has every attempt, is Django's OperationalError, and is one error line."""
    with pytest.raises(RetriesExhaustedError) as raised:
        run_transaction(conflicting(9), max_attempts=3, name="pay")
    error = raised.value
    assert isinstance(error, OperationalError)
    assert [attempt.number for attempt in error.attempts] == [1, 2, 3]
    assert {attempt.failure.sqlstate for attempt in error.attempts} == {"40001"}
    assert error.attempts[-1].backoff is None
    assert type(error.__cause__).__name__ == "SerializationFailure"
    assert balance() == 100
    logical = telemetry.one("run_transaction pay")
    assert logical.attributes["cockroachdb.txn.outcome"] == "failed"
    assert logical.status.status_code is StatusCode.ERROR
    assert [record.levelname for record in caplog.records if record.name == "otel_crdb.db"].count(
        "ERROR"
    ) == 1


@pytest.mark.parametrize("retried", [0, 1])
def test_error_that_ends_the_attempts_is_on_the_span_around_them(telemetry, naps, retried):
    """The span around all attempts has the words of the error that ended them, not of one that was retried."""
    codes = ["40001"] * retried + ["XXC02"]

    def pay():
        with connection.cursor() as cursor:
            cursor.execute(f"DO $$ BEGIN RAISE EXCEPTION 'x' USING ERRCODE = '{codes.pop(0)}'; END $$")

    needs_postgresql()
    with pytest.raises(DatabaseError):
        run_transaction(pay, name="pay")
    told = telemetry.one("run_transaction pay").attributes
    assert (told["cockroachdb.txn.attempts"], told["cockroachdb.txn.outcome"]) == (retried + 1, "failed")
    assert {told["error.type"], told["db.response.status_code"]} == {"XXC02"}
    assert told["cockroachdb.error.class"] == "license"


def test_backs_off_with_full_jitter_and_never_past_the_deadline(telemetry, naps, monkeypatch):
    """Back-off is random below a bound that doubles up to the cap; none is begun that the deadline cuts."""
    now = [0.0]
    bounds = []
    monkeypatch.setattr(runs, "clock", lambda: now[0])
    monkeypatch.setattr(runs.random, "uniform", lambda low, high: bounds.append((low, high)) or high)
    monkeypatch.setattr(retry, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    with pytest.raises(RetriesExhaustedError) as raised:
        run_transaction(conflicting(99), max_attempts=99, deadline=1.0, backoff_base=0.1, backoff_cap=0.3)
    assert bounds == [(0, 0.1), (0, 0.2), (0, 0.3), (0, 0.3), (0, 0.3)]
    assert now[0] == pytest.approx(0.9)
    assert len(raised.value.attempts) == 5


def test_sleeps_after_rollback_with_nothing_locked(telemetry, monkeypatch):
    """While it waits, the transaction holds no lock: another session takes the row at once."""

    def nap(_):
        other = driver_connect(connection)
        other.cursor().execute("SELECT id FROM account WHERE email = 'a@example.com' FOR UPDATE NOWAIT")
        other.rollback()
        other.close()

    def locking():
        list(Account.objects.select_for_update().filter(email="a@example.com"))
        return pay()

    monkeypatch.setattr(retry, "sleep", nap)
    pay = conflicting(1)
    assert run_transaction(locking) == "paid"


@pytest.mark.parametrize("error", [IntegrityError, ValueError])
def test_other_errors_pass_straight_through(telemetry, naps, error):
    """Constraint violations and the application's own exceptions roll back and are not run again."""
    calls = []

    def pay():
        calls.append(1)
        earn()
        if error is ValueError:
            raise ValueError("mine")
        Account.objects.create(email="b@example.com")

    with pytest.raises(error):
        run_transaction(pay)
    assert (len(calls), naps, balance()) == (1, [], 100)


def test_old_error_of_the_caller_is_no_reason_to_run_again(telemetry, naps):
    """A ValueError in a block that runs while an old 40001 is being handled is not retried."""
    calls = []

    def pay():
        calls.append(1)
        earn()
        raise ValueError("mine")

    try:
        with transaction.atomic():
            conflicting(1)()
    except OperationalError:
        with pytest.raises(ValueError, match="mine"):
            run_transaction(pay)
    assert (len(calls), naps) == (1, [])


def test_commit_hook_that_raises_a_40001_of_its_own_pays_once(telemetry, naps):
    """What comes after an acknowledged COMMIT is never retried: paid once, and told so."""

    def pay():
        earn()
        transaction.on_commit(fail)

    def fail():
        with transaction.atomic():
            conflicting(1)()

    with pytest.raises(OperationalError):
        run_transaction(pay, name="pay")
    assert (balance(), naps) == (101, [])
    assert telemetry.one("run_transaction pay").attributes["cockroachdb.txn.outcome"] == "committed"


def test_commit_hooks_run_once(telemetry):
    """Hooks that a refused attempt has registered are gone with it."""
    ran = []
    pay = conflicting(2)
    run_transaction(lambda: (transaction.on_commit(lambda: ran.append(1)), pay()))
    assert ran == [1]


def test_swallowed_error_is_seen_and_run_again(telemetry, naps):
    """A block that swallowed a 40001 and ended well is a silent abort: run again, money right."""
    first = itertools.count()

    def pay():
        list(Account.objects.all())
        if next(first) == 0:
            interfere_with_the_row()
        try:
            earn()
        except OperationalError:
            pass
        return "paid"

    assert run_transaction(pay) == "paid"
    assert (balance(), len(naps)) == (102, 1)
    assert [point.value for point in telemetry.points("cockroachdb.client.txn.silent_aborts")] == [1]


def interfere_with_the_row():
    """Write the row that the block is about to write, in another session."""
    other = driver_connect(connection)
    other.cursor().execute("UPDATE account SET balance = balance + 1 WHERE email = 'a@example.com'")
    other.commit()
    other.close()


def test_swallowed_error_that_no_retry_mends_is_raised(telemetry, naps):
    """A block that swallowed a constraint violation did not happen, and its caller is told so."""

    def pay():
        earn()
        try:
            with connection.cursor() as cursor:
                cursor.execute("INSERT INTO account (email, balance) VALUES ('b@example.com', 1)")
        except IntegrityError:
            pass

    with pytest.raises(IntegrityError):
        run_transaction(pay)
    assert (balance(), naps) == (100, [])


def test_lost_connection_before_commit_is_run_again_on_a_fresh_one(telemetry, naps):
    """A link that breaks at a statement leaves nothing in doubt: again, on a new connection."""
    first = itertools.count()

    def pay():
        earn()
        if next(first) == 0:
            cut(connection)
        earn()

    run_transaction(pay)
    assert (balance(), len(naps)) == (102, 1)


def test_connection_killed_while_idle(telemetry, naps):
    """A pooled connection that the server closed while idle costs one attempt."""
    connection.ensure_connection()
    cut(connection)
    run_transaction(earn)
    assert (balance(), len(naps)) == (101, 1)


@pytest.fixture
def proxy(crdb):
    """Lead the alias ``other`` through a fault proxy."""
    with led_through_proxy(crdb) as proxy:
        yield proxy


def commits(proxy):
    """Count the COMMITs that were sent."""
    return proxy.wire_log().texts("statement").count("COMMIT")


@pytest.mark.parametrize("refuse", [False, True], ids=["reconnects", "refused"])
@pytest.mark.parametrize("lost", ["lost_commit.applied", "lost_commit"])
def test_link_cut_at_commit_is_ambiguous_and_never_paid_twice(telemetry, proxy, naps, lost, refuse):
    """COMMIT without an answer raises AmbiguousCommitError, whatever became of it and of the reconnect."""
    connections["other"].ensure_connection()
    proxy.inject(lost)
    if refuse:
        proxy.inject("server_closed", on="connect", times=None)
    with pytest.raises(AmbiguousCommitError) as raised:
        run_transaction(earn, 1, "other", using="other", name="pay")
    assert commits(proxy) == 1
    assert balance() == (101 if lost == "lost_commit.applied" else 100)
    assert naps == []
    assert isinstance(raised.value, OperationalError)
    assert type(raised.value.__cause__).__module__.startswith("psycopg")
    logical = telemetry.one("run_transaction pay")
    assert logical.attributes["cockroachdb.txn.outcome"] == "ambiguous"
    (tried,) = tries_of(telemetry, logical)
    assert [event.name for event in tried.events] == ["cockroachdb.txn.ambiguous"]


@pytest.mark.parametrize("cuts", [1, 3])
@pytest.mark.parametrize("lost", ["lost_commit.applied", "lost_commit"])
def test_idempotent_transaction_reaches_exactly_one(telemetry, proxy, naps, lost, cuts):
    """With ``idempotent=True`` an unknown COMMIT is run again, until it is known to be there."""

    def set_balance():
        Account.objects.using("other").filter(email="a@example.com").update(balance=7)

    proxy.inject(lost, times=cuts)
    run_transaction(set_balance, using="other", idempotent=True)
    assert commits(proxy) == cuts + 1
    assert (balance(), len(naps)) == (7, cuts)


def test_idempotent_transaction_that_never_gets_an_answer_stays_ambiguous(telemetry, proxy):
    """When all attempts may have been applied, the end of the retries is ambiguous, not refused."""
    proxy.inject("lost_commit.applied", times=None)
    with pytest.raises(AmbiguousCommitError) as raised:
        run_transaction(earn, 1, "other", using="other", idempotent=True, max_attempts=3)
    assert len(raised.value.attempts) == 3


def test_commit_answered_by_40003_is_ambiguous(telemetry):
    """The server's own word for an unknown COMMIT raises AmbiguousCommitError."""
    with commit_fails_with("40003"), pytest.raises(AmbiguousCommitError):
        run_transaction(earn)


def test_commit_answered_by_40001_is_run_again(telemetry, naps):
    """A COMMIT that is refused for a serialization failure is repeated until the attempts are over."""
    with commit_fails_with("40001"), pytest.raises(RetriesExhaustedError):
        run_transaction(earn)
    assert (balance(), len(naps)) == (100, 4)


def test_committed_with_a_failed_schema_change_is_never_run_again(telemetry, naps):
    """XXA00 says that the data are committed: not run again, and told as committed."""
    with commit_fails_with("XXA00"), pytest.raises(InternalError):
        run_transaction(earn, name="pay")
    assert naps == []
    assert telemetry.one("run_transaction pay").attributes["cockroachdb.txn.outcome"] == "committed"


def test_memory_is_tried_twice_at_the_most(telemetry, naps):
    """Out of memory (53200) is likely to be met again: two attempts."""

    def hungry():
        with connection.cursor() as cursor:
            cursor.execute(
                "DO $$ BEGIN RAISE EXCEPTION 'memory budget exceeded' USING ERRCODE = '53200'; END $$"
            )

    with pytest.raises(RetriesExhaustedError) as raised:
        run_transaction(hungry)
    assert len(raised.value.attempts) == 2


def test_refused_within_a_block(telemetry):
    """Within an atomic block only the whole could be run again: refused, with what to do instead."""
    with transaction.atomic(), pytest.raises(RuntimeError, match="call it outside"):
        run_transaction(earn)
    transaction.set_autocommit(False)
    try:
        with pytest.raises(RuntimeError, match="autocommit off"):
            run_transaction(earn)
    finally:
        transaction.rollback()
        transaction.set_autocommit(True)


def test_let_through_in_a_test_case_for_one_attempt(telemetry, naps):
    """Django's TestCase wraps everything in blocks of its own: there it runs, once."""

    class Case(TestCase):
        def test_pay(self):
            assert run_transaction(earn) == 1
            assert balance() == 101
            with pytest.raises(RetriesExhaustedError):
                run_transaction(conflicting(1))

    result = unittest.TestResult()
    unittest.TestSuite([Case("test_pay")]).run(result)
    assert result.wasSuccessful(), result.errors + result.failures
    assert naps == []


def test_decorator_with_and_without_options(telemetry):
    """The decorator takes options or none, keeps the function's name, and hands arguments through."""

    @retry_transaction
    def plain(amount, *, twice=False):
        """Pay."""
        return earn(amount * (1 + twice))

    @retry_transaction(max_attempts=2, name="named")
    def named():
        return earn()

    assert plain(1, twice=True) == 1
    assert named() == 1
    assert (plain.__name__, plain.__doc__, balance()) == ("plain", "Pay.", 103)
    names = [name for name in telemetry.names() if name.startswith("run_transaction")]
    assert names[0].endswith("test_decorator_with_and_without_options.<locals>.plain")
    assert names[1] == "run_transaction named"


def test_refused_as_a_context_manager():
    """The body of a with block cannot be run twice, and the message says what to do."""
    with pytest.raises(TypeError, match="Put it into a function"), retry_transaction():
        pass


async def coroutine():
    return 1


def generator():
    yield 1


@pytest.mark.parametrize(
    ("fn", "message"),
    [(coroutine, "arun_transaction"), (generator, "generator function"), (5, "takes a function, not int")],
)
def test_what_cannot_be_run_twice_is_refused(fn, message):
    """Coroutine functions, generator functions and what is no function are refused, with what to do."""
    with pytest.raises(TypeError, match=message):
        run_transaction(fn)
    with pytest.raises(TypeError, match=message):
        asyncio.run(arun_transaction(fn))


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"max_attempts": 0}, ValueError),
        ({"deadline": -1}, ValueError),
        ({"retry_priority": "x"}, ValueError),
        ({"retries": 3}, TypeError),
    ],
)
def test_options_that_cannot_be_meant(options, error):
    """A wrong option is refused before anything runs."""
    with pytest.raises(error):
        run_transaction(earn, **options)
    with pytest.raises(error):
        retry_transaction(**options)


def test_hook_before_each_retry(telemetry):
    """``before_retry`` sees the attempt that failed, after its rollback and before the next one."""
    seen = []

    def reset(attempt):
        assert not connection.in_atomic_block
        seen.append((attempt.number, attempt.failure.sqlstate))

    run_transaction(conflicting(2), before_retry=reset)
    assert seen == [(1, "40001"), (2, "40001")]


def test_priority_is_raised_on_retries(telemetry, crdb):
    """``retry_priority`` is the first statement of the second attempt, and of no first one."""
    run_transaction(conflicting(1), retry_priority="high")
    (logical,) = [span for span in telemetry.spans if span.name.startswith("run_transaction ")]
    first, second = tries_of(telemetry, logical)
    assert next(iter(telemetry.children(first))).name == "SELECT account"
    raising = next(iter(telemetry.children(second)))
    assert raising.attributes["db.query.text"] == "SET TRANSACTION PRIORITY HIGH"


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_interrupt_in_an_attempt(telemetry, naps, error):
    """What ends the process is never retried: rolled back, spans ended, connection clean."""

    def pay():
        earn()
        raise error

    with pytest.raises(error):
        run_transaction(pay, name="pay")
    assert (balance(), naps) == (100, [])
    logical = telemetry.one("run_transaction pay")
    assert logical.attributes["cockroachdb.txn.outcome"] == "rolled_back"
    assert connection.get_autocommit()


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_interrupt_in_a_back_off(telemetry, monkeypatch, error):
    """An interrupt while it waits ends it there: the span is ended, nothing is run again."""

    def nap(_):
        raise error

    monkeypatch.setattr(retry, "sleep", nap)
    with pytest.raises(error):
        run_transaction(conflicting(1), name="pay")
    logical = telemetry.one("run_transaction pay")
    assert logical.attributes["cockroachdb.txn.attempts"] == 1
    assert balance() == 100


def test_request_counts_its_retries(telemetry, monkeypatch):
    """The retries of a request's transactions are among its totals."""
    from django.test import Client

    from .project import views

    monkeypatch.setattr(views, "interfere", functools.partial(run_transaction, conflicting(2)))
    assert Client().get("/retried/").status_code == 200
    request = telemetry.one("GET retried/")
    assert request.attributes["cockroachdb.request.retries"] == 2
    assert request.attributes["cockroachdb.request.transactions"] == 3
    assert request.status.status_code is StatusCode.UNSET


def test_asynchronous_caller(telemetry, naps):
    """``arun_transaction`` retries from asynchronous code, below the caller's span."""

    async def call():
        return await arun_transaction(conflicting(2), name="pay")

    assert asyncio.run(call()) == "paid"
    assert (balance(), len(naps)) == (101, 2)
    logical = telemetry.one("run_transaction pay")
    assert len(tries_of(telemetry, logical)) == 3


def test_error_of_an_earlier_transaction_is_not_this_ones(telemetry, crdb, naps):
    """Django keeps the error that broke a transaction in a save(), and names it as the cause of later ones."""
    calls = []

    def queries_although_marked():
        calls.append(1)
        Account.objects.using("other").count()
        transaction.set_rollback(True, using="other")
        Account.objects.using("other").count()

    with led_through_proxy(crdb) as proxy:
        proxy.inject("serialization_failure.RETRY_SERIALIZABLE", matching="INSERT")
        with pytest.raises(OperationalError), transaction.atomic(using="other"):
            Account(email="c@example.com").save(using="other")
        with pytest.raises(transaction.TransactionManagementError) as raised:
            run_transaction(queries_although_marked, using="other")
    assert raised.value.__cause__ is None
    assert calls == [1]
    assert naps == []


def test_rollback_to_a_savepoint_is_none_of_the_whole(telemetry):
    """set_rollback(True) in a block with a savepoint gives up that block; what is lost later is not asked for."""

    def pay():
        with transaction.atomic():
            Account.objects.filter(email="b@example.com").update(balance=0)
            transaction.set_rollback(True)
        earn()
        try:
            with transaction.atomic(savepoint=False):
                raise ValueError
        except ValueError:
            return "paid"

    with pytest.raises(transaction.TransactionManagementError, match="its transaction is lost"):
        run_transaction(pay)
    assert (balance("a"), balance("b")) == (100, 100)


def test_cancelled_caller_waits_for_the_running_attempt(telemetry, naps):
    """A cancelled caller's running attempt ends, its true outcome is told, and no further one starts."""
    begun, go_on = threading.Event(), threading.Event()
    calls = []

    def pay():
        calls.append(1)
        begun.set()
        go_on.wait(10)
        return earn()

    async def call():
        task = asyncio.ensure_future(arun_transaction(pay, name="pay"))
        await asyncio.to_thread(begun.wait, 10)
        task.cancel()
        asyncio.get_running_loop().call_soon(go_on.set)
        with pytest.raises(asyncio.CancelledError):
            await task
        return await sync_to_async(balance)()

    assert asyncio.run(call()) == 101
    assert calls == [1]
    assert telemetry.one("run_transaction pay").attributes["cockroachdb.txn.outcome"] == "committed"


def test_cancelled_caller_starts_no_further_attempt(telemetry, naps):
    """A caller cancelled during an attempt that is refused does not try again."""
    begun, go_on = threading.Event(), threading.Event()
    calls = []
    inner = conflicting(9)

    def pay():
        calls.append(1)
        begun.set()
        go_on.wait(10)
        return inner()

    async def call():
        task = asyncio.ensure_future(arun_transaction(pay, name="pay"))
        await asyncio.to_thread(begun.wait, 10)
        task.cancel()
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(call())
    assert calls == [1]
    assert telemetry.one("run_transaction pay").attributes["cockroachdb.txn.outcome"] == "retryable"


def test_cancelled_caller_takes_a_waiting_attempt_back(telemetry, naps):
    """An attempt that waits for a busy thread is not begun once its caller was told that it is cancelled."""
    busy, free = threading.Event(), threading.Event()

    def work():
        busy.set()
        free.wait(10)

    async def call():
        working = asyncio.ensure_future(sync_to_async(work)())
        await asyncio.to_thread(busy.wait, 10)
        task = asyncio.ensure_future(arun_transaction(earn, name="pay"))
        await asyncio.to_thread(bool)  # the task runs until it waits for its thread
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        free.set()
        await working
        return await sync_to_async(balance)()

    assert asyncio.run(call()) == 100
    assert telemetry.one("run_transaction pay").attributes["cockroachdb.txn.attempts"] == 0


def test_errors_are_what_django_code_catches():
    """Both errors of the retries are caught by ``except OperationalError`` and ``except DatabaseError``."""
    assert issubclass(AmbiguousCommitError, DatabaseError)
    assert issubclass(RetriesExhaustedError, DatabaseError)
    assert otel_crdb.run_transaction is run_transaction


@pytest.mark.parametrize("blind", ["_commit overridden", "COMMIT hook failing", "autocommit hook failing"])
def test_commit_that_no_record_saw_is_never_repeated(telemetry, naps, monkeypatch, blind):
    """Where the hooks did not see COMMIT, a link lost after the function returned is ambiguous."""
    from otel_crdb import endings, transactions

    wrapper = connections["other"]
    wrapper.ensure_connection()

    def committing_and_lost():
        wrapper.connection.commit()
        wrapper.connection.close()
        raise OperationalError(
            "server closed the connection unexpectedly"
        ) from wrapper.Database.OperationalError("server closed the connection unexpectedly")

    def fail(*_args, **_kwargs):
        raise RuntimeError("a defect of ours")

    if blind == "COMMIT hook failing":
        monkeypatch.setattr(endings.COMMIT, "begin", fail)
    if blind == "autocommit hook failing":
        monkeypatch.setattr(transactions.SET_AUTOCOMMIT, "begin", fail)
    monkeypatch.setattr(wrapper, "_commit", committing_and_lost)
    with pytest.raises(AmbiguousCommitError):
        run_transaction(earn, 1, "other", using="other")
    wrapper.close()
    assert (balance(), naps) == (101, [])


def test_function_that_commits_by_itself_is_never_repeated(telemetry, naps):
    """A COMMIT sent as text within the function is a commit: what fails after it is not run again."""
    inner = conflicting(1)

    def pay():
        earn()
        with connection.cursor() as cursor:
            cursor.execute("COMMIT")
            cursor.execute(
                "DO $$ BEGIN RAISE EXCEPTION 'restart transaction' USING ERRCODE = '40001'; END $$"
            )
        return inner()

    with pytest.raises(DatabaseError):
        run_transaction(pay)
    assert (balance(), naps) == (101, [])


def lose_link_in_a_swallowed_block():
    try:
        with transaction.atomic():
            cut(connection)
            earn(10)
    except OperationalError:
        pass


def close_the_connection():
    connection.close()


def swallow_in_a_block_without_savepoint():
    try:
        with transaction.atomic(savepoint=False):
            raise ValueError("swallowed")
    except ValueError:
        pass


def roll_back_as_text():
    with connection.cursor() as cursor:
        cursor.execute("ROLLBACK")


def fail_and_commit_as_text():
    with connection.cursor() as cursor:
        try:
            cursor.execute("SELECT 1/0")
        except DatabaseError:
            pass
        cursor.execute("COMMIT")


def swallow_on_the_drivers_own_cursor():
    try:
        connection.connection.cursor().execute("SELECT 1/0")
    except connection.Database.Error:
        pass


@pytest.mark.parametrize(
    "lose",
    [
        close_the_connection,
        swallow_in_a_block_without_savepoint,
        roll_back_as_text,
        fail_and_commit_as_text,
        swallow_on_the_drivers_own_cursor,
    ],
)
def test_success_is_never_reported_of_a_transaction_that_was_lost(telemetry, naps, lose):
    """A function that returns well while its transaction was lost raises, and its hooks do not run."""
    ran = []

    def pay():
        transaction.on_commit(lambda: ran.append(1))
        earn()
        lose()
        return "paid"

    with pytest.raises(DatabaseError):
        run_transaction(pay, name="pay")
    assert (balance(), naps, ran) == (100, [], [])
    assert telemetry.one("run_transaction pay").attributes["cockroachdb.txn.outcome"] != "committed"


def test_link_lost_in_a_swallowed_inner_block_is_run_again(telemetry, naps):
    """A lost link whose error an inner block swallowed is the recorded error: again, paid once."""
    first = itertools.count()

    def pay():
        earn()
        if next(first) == 0:
            lose_link_in_a_swallowed_block()
        return "paid"

    assert run_transaction(pay) == "paid"
    assert (balance(), len(naps)) == (101, 1)


def test_hooks_of_a_swallowed_attempt_do_not_run(telemetry, naps):
    """An attempt whose error was swallowed runs none of its ``on_commit`` functions."""
    ran, first = [], itertools.count()

    def pay():
        transaction.on_commit(lambda: ran.append(1))
        list(Account.objects.all())
        if next(first) == 0:
            interfere_with_the_row()
        try:
            earn()
        except OperationalError:
            pass

    run_transaction(pay)
    assert ran == [1]


@pytest.mark.parametrize("inner", [lambda: run_transaction(earn, 1, "other", using="other"), None])
def test_unknown_commit_of_another_alias_is_not_run_again(telemetry, proxy, naps, inner):
    """What became of a COMMIT on another alias is not known: the whole is not run again for it."""

    def pay():
        if inner is not None:
            inner()
            return
        with transaction.atomic(using="other"):
            earn(1, "other")

    proxy.inject("lost_commit.applied")
    with pytest.raises(OperationalError):
        run_transaction(pay)
    assert commits(proxy) == 1
    assert (balance(), naps) == (101, [])


def test_exhausted_retries_within_are_the_end(telemetry, naps):
    """A retried transaction within another one that gave up is not multiplied by the outer one."""
    calls = []

    def inner():
        calls.append(1)
        with connections["other"].cursor() as cursor:
            cursor.execute(
                "DO $$ BEGIN RAISE EXCEPTION 'restart transaction' USING ERRCODE = '40001'; END $$"
            )

    with pytest.raises(RetriesExhaustedError):
        run_transaction(lambda: run_transaction(inner, using="other", max_attempts=2))
    connections["other"].close()
    assert len(calls) == 2


def driver_errors():
    """Return the module of the driver's errors."""
    return importlib.import_module(f"{connection.Database.__name__}.errors")


class Stopping:
    """A driver's connection whose COMMIT is interrupted by an exception from elsewhere."""

    def __init__(self, driver_connection, error):
        self._connection, self._error = driver_connection, error

    def __getattr__(self, name):
        return getattr(self._connection, name)

    def __setattr__(self, name, value):
        if name.startswith("_"):
            super().__setattr__(name, value)
        else:
            setattr(self._connection, name, value)

    def commit(self):
        self._connection.commit()
        raise self._error


def test_exception_from_elsewhere_while_commit_waits_is_ambiguous(telemetry, naps):
    """A time limit that strikes while COMMIT waits leaves it unknown, in a later attempt too."""
    inner, wrapper = conflicting(1), connections["default"]
    first = itertools.count()

    def pay():
        number = next(first)
        inner()
        if number == 1:
            wrapper.connection = Stopping(wrapper.connection, TimeoutError("soft time limit"))

    with pytest.raises(AmbiguousCommitError):
        run_transaction(pay, name="pay")
    assert (balance(), len(naps)) == (101, 1)
    assert telemetry.one("run_transaction pay").attributes["cockroachdb.txn.outcome"] == "ambiguous"
    assert run_transaction(earn) == 1


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_what_the_function_raised_counts_where_the_reconnect_is_refused(telemetry, naps, monkeypatch, error):
    """A failed reconnect in Django's clean-up does not stand in for an interrupt or the application's own."""
    wrapper = connections["other"]
    calls = []

    def pay():
        calls.append(1)
        earn(1, "other")
        wrapper.connection.close()
        monkeypatch.setitem(wrapper.settings_dict, "PORT", 1)
        raise error

    with pytest.raises(KeyboardInterrupt if error is KeyboardInterrupt else Exception):
        run_transaction(pay, using="other")
    wrapper.close()
    assert (len(calls), naps) == (1, [])


def test_hook_of_a_transaction_that_sent_nothing_runs_once(telemetry, naps):
    """A block is over when its hooks run, whether it sent anything or not: a hook's 40001 is not its own."""
    ran = []

    def hook():
        ran.append(1)
        with transaction.atomic():
            conflicting(1)()

    with pytest.raises(OperationalError):
        run_transaction(lambda: transaction.on_commit(hook))
    assert (ran, naps) == ([1], [])


@pytest.mark.parametrize("way", ["text", "two statements", "driver"])
def test_commit_behind_djangos_back_is_never_repeated(telemetry, naps, way):
    """Once something was committed within the function, a later refusal is not run again."""

    def pay():
        earn()
        with connection.cursor() as cursor:
            if way == "driver":
                connection.connection.commit()
            else:
                cursor.execute({"text": "COMMIT", "two statements": "SELECT 1; COMMIT"}[way])
        earn(10)
        raise OperationalError("restart transaction") from driver_errors().lookup("40001")("again")

    with pytest.raises(OperationalError):
        run_transaction(pay)
    assert naps == []
    connection.close()
    assert balance() in (101, 111)


def test_doubt_of_an_earlier_attempt_outlives_later_errors(telemetry, proxy, naps):
    """With ``idempotent=True``, whatever ends the run after an unknown COMMIT leaves it in doubt."""

    def create():
        Account.objects.using("other").create(email="c@example.com")

    proxy.inject("lost_commit.applied")
    with pytest.raises(AmbiguousCommitError) as raised:
        run_transaction(create, using="other", idempotent=True, name="create")
    assert "UniqueViolation" in type(raised.value.__cause__).__name__
    logical = telemetry.one("run_transaction create")
    assert logical.attributes["cockroachdb.txn.outcome"] == "ambiguous"


def test_asked_for_rollback_returns_and_is_told_as_that(telemetry):
    """``set_rollback(True)`` rolls back, returns what the function returned, and is no commit."""
    ran = []

    def pay():
        earn()
        transaction.on_commit(lambda: ran.append(1))
        transaction.set_rollback(True)
        return "tried"

    assert run_transaction(pay, name="pay") == "tried"
    assert (balance(), ran) == (100, [])
    assert telemetry.one("run_transaction pay").attributes["cockroachdb.txn.outcome"] == "rolled_back"


@pytest.mark.parametrize("fn", [lambda: coroutine(), lambda: generator()])
def test_unfinished_results_are_refused(telemetry, fn):
    """A function that returns a coroutine or a generator has not done its work yet: refused, rolled back."""
    with pytest.raises(TypeError, match="when the transaction is over"):
        run_transaction(fn)


def test_loop_that_shuts_down_waits_for_the_running_attempt(telemetry, naps):
    """An event loop that ends while an attempt is under way waits for it, and its outcome is the true one."""
    begun, go_on = threading.Event(), threading.Event()

    def pay():
        begun.set()
        go_on.wait(10)
        return earn()

    async def main():
        task = asyncio.ensure_future(arun_transaction(pay, name="pay"))
        await asyncio.to_thread(begun.wait, 10)
        assert not task.done()
        threading.Timer(0.05, go_on.set).start()

    asyncio.run(main())
    assert telemetry.one("run_transaction pay").attributes["cockroachdb.txn.outcome"] == "committed"
    assert balance() == 101


def test_error_that_a_savepoint_mended_is_no_reason(telemetry, naps):
    """An application's exception raised from an error that a savepoint had dealt with is its own."""
    calls = []

    def pay():
        calls.append(1)
        earn()
        try:
            with transaction.atomic(), connection.cursor() as cursor:
                cursor.execute("DO $$ BEGIN RAISE EXCEPTION 'lock timeout' USING ERRCODE = '55P03'; END $$")
        except OperationalError as error:
            raise ValueError("mine") from error

    with pytest.raises(ValueError, match="mine"):
        run_transaction(pay)
    assert (len(calls), naps) == (1, [])


@pytest.mark.skipif(not is_psycopg3 or django.VERSION < (5, 1), reason="Django 5.1 on psycopg 3 has pools")
def test_pool_gives_a_fresh_connection_and_gets_all_back(telemetry, naps, monkeypatch):
    """A lost connection of a pool is repeated on another one, and the pool has all of its own again."""
    wrapper = connections["other"]
    wrapper.close()
    options = {**wrapper.settings_dict["OPTIONS"], "pool": {"min_size": 1, "max_size": 2}}
    monkeypatch.setitem(wrapper.settings_dict, "OPTIONS", options)
    backends = []

    def pay():
        backends.append(wrapper.connection.info.backend_pid)
        earn(1, "other")
        if len(backends) == 1:
            cut(wrapper)
            earn(1, "other")

    try:
        run_transaction(pay, using="other")
        wrapper.close()
        # Both can be had at once: none is missing. (Its figures are not asked: it refills in a thread.)
        with wrapper.pool.connection(timeout=30), wrapper.pool.connection(timeout=30):
            pass
    finally:
        wrapper.close()
        wrapper.close_pool()
    assert (balance(), len(set(backends)), len(naps)) == (101, 2, 1)
