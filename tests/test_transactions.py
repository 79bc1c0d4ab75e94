# SPDX-License-Identifier: Apache-2.0
"""Transactions as spans: every form of ``atomic()``, manual autocommit, and one outcome each."""

import threading
import unittest

import pytest
from django.db import (
    DatabaseError,
    IntegrityError,
    OperationalError,
    connection,
    connections,
    transaction,
)
from django.db.transaction import TransactionManagementError
from django.test import Client, TestCase
from opentelemetry import baggage, context
from opentelemetry.trace import StatusCode

from .project.models import Account
from .servers import commit_fails_with, cut, interfere, serialization_conflict

pytestmark = pytest.mark.usefixtures("accounts")

OUTCOME = "cockroachdb.txn.outcome"
TXN_ID = "cockroachdb.txn.id"


def pay():
    """Write once."""
    return Account.objects.filter(email="a@example.com").update(balance=1)


def transactions_of(telemetry):
    """Return name, outcome and children of each transaction span."""
    return [
        (span.attributes[OUTCOME], [child.name for child in telemetry.children(span)])
        for span in telemetry.spans
        if span.name.startswith("transaction ")
    ]


def test_block_is_a_span_around_its_statements_and_its_commit(telemetry, crdb):
    """A block that wrote is one INTERNAL span with its statements and COMMIT below, committed."""
    with transaction.atomic():
        pay()
    span = telemetry.one(f"transaction {crdb.database}")
    assert transactions_of(telemetry) == [("committed", ["UPDATE account", "COMMIT"])]
    assert span.status.status_code is StatusCode.UNSET
    assert span.attributes["cockroachdb.txn.statements"] == 1
    assert span.attributes["cockroachdb.txn.attempt"] == 1
    assert len(span.attributes[TXN_ID]) == 32
    assert {child.attributes[TXN_ID] for child in telemetry.children(span)} == {span.attributes[TXN_ID]}


def test_block_that_sent_nothing_leaves_nothing(telemetry):
    """BEGIN rides with the first statement, so an empty block is no transaction: no span, no data point."""
    connection.ensure_connection()
    telemetry.clear()
    with transaction.atomic():
        pass
    assert telemetry.names() == []
    assert telemetry.points("cockroachdb.client.txn.duration") == []


def test_begins_with_the_block_not_with_its_first_statement(telemetry):
    """The transaction span starts where the block starts, although nothing is open on the server until later."""
    with transaction.atomic():
        began = threading.Event()
        began.wait(0.02)
        pay()
    span = next(span for span in telemetry.spans if span.name.startswith("transaction "))
    statement = telemetry.one("UPDATE account")
    assert statement.start_time - span.start_time > 10_000_000


def test_nested_block_is_a_savepoint_of_the_one_transaction(telemetry):
    """A nested block adds SAVEPOINT and RELEASE to the one transaction span and no span of its own."""
    with transaction.atomic(), transaction.atomic():
        pay()
    assert transactions_of(telemetry) == [
        ("committed", ["SAVEPOINT", "UPDATE account", "RELEASE SAVEPOINT", "COMMIT"])
    ]
    span = telemetry.spans[0]
    assert [
        s.attributes["cockroachdb.txn.savepoints"] for s in telemetry.spans if OUTCOME in s.attributes
    ] == [1]
    assert span is not None


def test_nested_block_without_savepoint_and_durable_block(telemetry):
    """``savepoint=False`` sends nothing of its own, ``durable=True`` is a block like another."""
    with transaction.atomic(durable=True), transaction.atomic(savepoint=False):
        pay()
    assert transactions_of(telemetry) == [("committed", ["UPDATE account", "COMMIT"])]


def test_durable_block_in_a_block_is_refused_as_before(telemetry):
    """Django's refusal of a nested durable block passes through, and the outer block is rolled back."""
    with pytest.raises(RuntimeError, match="durable"), transaction.atomic():
        pay()
        with transaction.atomic(durable=True):
            pass
    assert transactions_of(telemetry) == [("rolled_back", ["UPDATE account", "ROLLBACK"])]


def test_one_decorator_object_shared_by_threads(telemetry):
    """Threads inside one decorated function at once each have their own transaction, whole."""
    meet = threading.Barrier(4)

    @transaction.atomic
    def work():
        list(Account.objects.filter(email="a@example.com"))
        meet.wait()
        list(Account.objects.filter(email="b@example.com"))
        meet.wait()

    def run():
        try:
            work()
        finally:
            connection.close()

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert transactions_of(telemetry) == [("committed", ["SELECT account", "SELECT account", "COMMIT"])] * 4
    ids = {span.attributes[TXN_ID] for span in telemetry.spans if OUTCOME in span.attributes}
    assert len(ids) == 4


def test_decorator_that_calls_itself(telemetry):
    """A decorated function that recurses is one transaction with savepoints."""

    @transaction.atomic
    def work(depth):
        pay()
        if depth:
            work(depth - 1)

    work(2)
    assert [outcome for outcome, _ in transactions_of(telemetry)] == ["committed"]


def test_application_exception_rolls_back(telemetry):
    """An exception of the application's own ends the transaction rolled back, and is no error of ours."""
    with pytest.raises(ValueError, match="mine"), transaction.atomic():
        pay()
        raise ValueError("mine")
    assert transactions_of(telemetry) == [("rolled_back", ["UPDATE account", "ROLLBACK"])]
    assert all(span.status.status_code is StatusCode.UNSET for span in telemetry.spans)


def test_asked_for_rollback(telemetry):
    """``set_rollback(True)`` is a rollback that was asked for."""
    with transaction.atomic():
        pay()
        transaction.set_rollback(True)
    assert transactions_of(telemetry) == [("rolled_back", ["UPDATE account", "ROLLBACK"])]
    assert telemetry.points("cockroachdb.client.txn.silent_aborts") == []


def test_database_error_that_leaves_the_block(telemetry):
    """A constraint violation that leaves the block ends it failed, with the SQLSTATE on the transaction."""
    with pytest.raises(IntegrityError), transaction.atomic():
        Account.objects.create(email="a@example.com")
    assert [outcome for outcome, _ in transactions_of(telemetry)] == ["failed"]
    span = next(span for span in telemetry.spans if OUTCOME in span.attributes)
    assert span.status.status_code is StatusCode.ERROR
    assert span.attributes["db.response.status_code"] == "23505"
    assert span.attributes["cockroachdb.error.class"] == "constraint"


def test_error_caught_in_a_savepoint_is_forgotten_by_the_transaction(telemetry):
    """After ROLLBACK TO SAVEPOINT the transaction goes on and is committed, as if nothing had failed."""
    with transaction.atomic():
        with pytest.raises(IntegrityError), transaction.atomic():
            Account.objects.create(email="a@example.com")
        pay()
    assert transactions_of(telemetry) == [
        (
            "committed",
            [
                "SAVEPOINT",
                "INSERT account",
                "ROLLBACK TO SAVEPOINT",
                "RELEASE SAVEPOINT",
                "UPDATE account",
                "COMMIT",
            ],
        )
    ]


def test_swallowed_statement_error_is_a_silent_abort(telemetry, caplog):
    """A block left normally after a swallowed error is rolled back by the server: event, warning, count."""
    with transaction.atomic(), connection.cursor() as cursor:
        pay()
        try:
            cursor.execute("INSERT INTO account (email, balance) VALUES ('a@example.com', 1)")
        except DatabaseError:
            pass
    span = next(span for span in telemetry.spans if OUTCOME in span.attributes)
    assert Account.objects.get(email="a@example.com").balance == 100
    assert span.attributes[OUTCOME] == "rolled_back"
    assert span.status.status_code is StatusCode.ERROR
    (event,) = span.events
    assert event.name == "cockroachdb.txn.silent_abort"
    assert event.attributes["db.response.status_code"] == "23505"
    assert [point.value for point in telemetry.points("cockroachdb.client.txn.silent_aborts")] == [1]
    assert "cockroachdb.txn.silent_abort" in [record.event_name for record in telemetry.log_records]
    assert span.attributes[TXN_ID] in caplog.text


def test_block_marked_for_rollback_and_left_normally_is_a_silent_abort(telemetry):
    """Django's own quiet rollback of a block that was left as if all were well is seen too."""
    with transaction.atomic():
        pay()
        try:
            with transaction.atomic(savepoint=False):
                Account.objects.create(email="a@example.com")
        except IntegrityError:
            pass
    span = next(span for span in telemetry.spans if OUTCOME in span.attributes)
    assert span.attributes[OUTCOME] == "rolled_back"
    assert [event.name for event in span.events] == ["cockroachdb.txn.silent_abort"]


def test_statement_in_a_broken_block_sends_nothing_and_is_no_error(telemetry):
    """``TransactionManagementError`` has no CLIENT span and is not counted: nothing went on the wire."""
    with pytest.raises(TransactionManagementError), transaction.atomic():
        try:
            with transaction.atomic(savepoint=False):
                Account.objects.create(email="a@example.com")
        except IntegrityError:
            pass
        pay()
    assert [outcome for outcome, _ in transactions_of(telemetry)] == ["failed"]
    assert telemetry.named("UPDATE account") == []
    assert sum(point.value for point in telemetry.points("cockroachdb.client.errors")) == 1


def test_commit_hooks_run_outside_the_transaction(telemetry):
    """What an ``on_commit`` hook does is not the transaction's: its span is closed by then."""
    with transaction.atomic():
        pay()
        transaction.on_commit(lambda: Account.objects.count())
    assert transactions_of(telemetry) == [("committed", ["UPDATE account", "COMMIT"])]
    assert telemetry.one("SELECT account").parent is None
    assert TXN_ID not in telemetry.one("SELECT account").attributes


def test_failing_commit_hook_leaves_the_outcome_committed(telemetry):
    """An exception of an ``on_commit`` hook comes after COMMIT was acknowledged and changes nothing."""
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        pay()
        transaction.on_commit(lambda: 1 / 0)
    assert [outcome for outcome, _ in transactions_of(telemetry)] == ["committed"]


def test_commit_refused_by_a_serialization_conflict_is_retryable(telemetry):
    """A real 40001 ends the transaction retryable, whether a statement or COMMIT met it."""
    with pytest.raises(OperationalError), serialization_conflict():
        pass
    outcomes = [outcome for outcome, _ in transactions_of(telemetry)]
    assert outcomes.count("retryable") == 1
    span = next(span for span in telemetry.spans if span.attributes.get(OUTCOME) == "retryable")
    assert span.attributes["db.response.status_code"] == "40001"
    assert span.attributes["cockroachdb.error.class"] == "retryable"


@pytest.mark.parametrize(
    ("sqlstate", "outcome"),
    [
        ("40001", "retryable"),
        ("40003", "ambiguous"),
        ("XXA00", "committed"),
        ("23505", "failed"),
        ("23514", "failed"),
        ("55P03", "retryable"),
        ("XX000", "ambiguous"),
    ],
)
def test_refused_commit_has_the_outcome_that_its_sqlstate_tells(telemetry, sqlstate, outcome):
    """COMMIT answered by an error ends in one outcome, known from the SQLSTATE; the span ends after it."""
    with pytest.raises(DatabaseError), commit_fails_with(sqlstate), transaction.atomic():
        pay()
    ((found, children),) = transactions_of(telemetry)
    assert found == outcome
    assert children == ["UPDATE account", "COMMIT"]
    commit = telemetry.one("COMMIT")
    assert commit.attributes["db.response.status_code"] == sqlstate
    assert commit.attributes["error.type"] == sqlstate
    assert commit.status.status_code is StatusCode.ERROR
    span = next(span for span in telemetry.spans if OUTCOME in span.attributes)
    assert (span.status.status_code is StatusCode.ERROR) is (outcome != "committed")


def test_link_lost_at_commit_is_ambiguous(telemetry):
    """COMMIT that gets no answer is ambiguous: an event and a log record say so."""
    with pytest.raises(DatabaseError), commit_fails_with("terminate"), transaction.atomic():
        pay()
    span = next(span for span in telemetry.spans if OUTCOME in span.attributes)
    assert span.attributes[OUTCOME] == "ambiguous"
    assert [event.name for event in span.events] == ["cockroachdb.txn.ambiguous"]
    assert "cockroachdb.txn.ambiguous" in [record.event_name for record in telemetry.log_records]


def test_link_lost_before_commit_is_not_ambiguous(telemetry):
    """A link that breaks at a statement leaves nothing in doubt: the transaction is retryable."""
    with pytest.raises(DatabaseError), transaction.atomic():
        pay()
        cut(connection)
        pay()
    assert [outcome for outcome, _ in transactions_of(telemetry)] == ["retryable"]


def test_connection_closed_within_a_block(telemetry):
    """A block whose connection the application closes ends rolled back, and the context is put back."""
    with transaction.atomic():
        pay()
        connection.close()
    assert [outcome for outcome, _ in transactions_of(telemetry)] == ["rolled_back"]
    Account.objects.count()
    assert telemetry.one("SELECT account").parent is None


def test_manual_transactions_end_at_each_commit_and_rollback(telemetry):
    """With autocommit off each commit or rollback ends a transaction and the next statement opens one."""
    transaction.set_autocommit(False)
    try:
        pay()
        transaction.commit()
        pay()
        pay()
        transaction.rollback()
        transaction.commit()
    finally:
        transaction.rollback()
        transaction.set_autocommit(True)
    assert transactions_of(telemetry) == [
        ("committed", ["UPDATE account", "COMMIT"]),
        ("rolled_back", ["UPDATE account", "UPDATE account", "ROLLBACK"]),
    ]
    pay()
    assert TXN_ID not in telemetry.named("UPDATE account")[-1].attributes


def test_block_within_a_manual_transaction_is_a_savepoint(telemetry):
    """``atomic()`` with autocommit off only marks a place in the manual transaction."""
    transaction.set_autocommit(False)
    try:
        with transaction.atomic():
            pay()
        transaction.commit()
    finally:
        transaction.set_autocommit(True)
    assert transactions_of(telemetry) == [
        ("committed", ["SAVEPOINT", "UPDATE account", "RELEASE SAVEPOINT", "COMMIT"])
    ]


def test_manual_transaction_never_becomes_the_current_span(telemetry):
    """There is no frame to take it back in, so a manual transaction is only its statements' parent."""
    from opentelemetry import trace

    transaction.set_autocommit(False)
    try:
        pay()
        assert trace.get_current_span() is trace.INVALID_SPAN
    finally:
        transaction.rollback()
        transaction.set_autocommit(True)


def test_spans_of_the_application_within_a_block_lie_below_its_transaction(telemetry):
    """A span that the application opens in a block is the transaction's child, its statements its own."""
    tracer = telemetry.tracer_provider.get_tracer("application")
    with transaction.atomic():
        pay()
        with tracer.start_as_current_span("work"):
            pay()
        pay()
    span = next(span for span in telemetry.spans if OUTCOME in span.attributes)
    assert [child.name for child in telemetry.children(span)] == [
        "UPDATE account",
        "work",
        "UPDATE account",
        "COMMIT",
    ]
    assert [child.name for child in telemetry.children(telemetry.one("work"))] == ["UPDATE account"]


def test_what_the_application_put_into_the_context_stays(telemetry):
    """Leaving a block puts back the span that was current and leaves the application's baggage alone."""
    before = context.get_current()
    with transaction.atomic():
        pay()
        context.attach(baggage.set_baggage("tenant", "seven"))
    try:
        assert baggage.get_baggage("tenant") == "seven"
        pay()
        assert telemetry.named("UPDATE account")[-1].parent is None
    finally:
        context.attach(before)


def test_forbidden_change_of_autocommit_within_a_block(telemetry):
    """``set_autocommit`` within a block is refused by Django, and the block's transaction goes on."""
    with transaction.atomic():
        pay()
        with pytest.raises(TransactionManagementError):
            transaction.set_autocommit(True)
        pay()
    assert transactions_of(telemetry) == [("committed", ["UPDATE account", "UPDATE account", "COMMIT"])]


def test_atomic_requests(telemetry, monkeypatch):
    """With ``ATOMIC_REQUESTS`` a view's statements are one transaction below its request, where not exempt."""
    monkeypatch.setitem(connections["default"].settings_dict, "ATOMIC_REQUESTS", True)
    client = Client()
    assert client.get("/read/").content == b"2"
    assert client.get("/read-freely/").content == b"2"
    assert client.get("/nothing/").content == b"nothing"
    assert transactions_of(telemetry) == [("committed", ["SELECT account", "COMMIT"])]
    (span,) = [span for span in telemetry.spans if OUTCOME in span.attributes]
    (point,) = telemetry.points("cockroachdb.client.txn.duration")
    assert point.attributes["cockroachdb.txn.name"] == "read/"
    request = telemetry.one("GET read/")
    assert span.parent.span_id == request.context.span_id
    assert (
        telemetry.named("SELECT account")[1].parent.span_id
        == telemetry.one("GET read-freely/").context.span_id
    )


def test_transaction_of_a_request_is_over_when_the_next_begins(telemetry):
    """Requests served by one thread one after the other leave nothing current behind them."""
    client = Client(raise_request_exception=False)
    for path in ("/transfer/1/", "/leak/", "/read/"):
        client.get(path)
    roots = [span.name for span in telemetry.spans if span.parent is None]
    assert [name for name in roots if not name.startswith("connect ")] == [
        "GET transfer/<int:amount>/",
        "GET leak/",
        "GET read/",
    ]


def test_several_aliases_have_their_own_transactions(telemetry):
    """Blocks on two aliases at once are two transactions with two ids."""
    with transaction.atomic(), transaction.atomic(using="other"):
        pay()
        with connections["other"].cursor() as cursor:
            cursor.execute("SELECT 1")
    ids = [span.attributes[TXN_ID] for span in telemetry.spans if OUTCOME in span.attributes]
    assert len(set(ids)) == 2
    assert sorted(transactions_of(telemetry)) == [
        ("committed", ["SELECT", "COMMIT"]),
        ("committed", ["UPDATE account", "COMMIT"]),
    ]


def test_blocks_of_the_test_case_are_not_the_applications(telemetry):
    """In Django's TestCase the test's own transaction has no span; statements lie below the current span."""

    class Case(TestCase):
        databases = {"default"}

        def test_pay(self):
            with transaction.atomic():
                pay()

    result = unittest.TestResult()
    unittest.TestSuite([Case("test_pay")]).run(result)
    assert result.wasSuccessful(), result.errors
    assert transactions_of(telemetry) == []
    assert telemetry.names().count("UPDATE account") == 1


def test_duration_of_the_transaction_is_its_spans(telemetry, crdb):
    """The transaction's data point and its span say the same duration and the same words."""
    with transaction.atomic():
        pay()
    span = next(span for span in telemetry.spans if OUTCOME in span.attributes)
    (point,) = telemetry.points("cockroachdb.client.txn.duration")
    assert point.count == 1
    assert point.sum == pytest.approx((span.end_time - span.start_time) / 1e9)
    assert point.attributes[OUTCOME] == "committed"
    assert point.attributes["db.namespace"] == crdb.database


def test_error_that_was_dealt_with_is_not_the_reason_of_a_later_rollback(telemetry):
    """After a savepoint mended an error, the application's own exception is what rolls back."""
    with pytest.raises(ValueError, match="mine"), transaction.atomic():
        with pytest.raises(IntegrityError), transaction.atomic():
            Account.objects.create(email="a@example.com")
        pay()
        raise ValueError("mine")
    (span,) = [span for span in telemetry.spans if OUTCOME in span.attributes]
    assert span.attributes[OUTCOME] == "rolled_back"
    assert span.status.status_code is StatusCode.UNSET


def test_error_that_leaves_through_a_savepoint_is_the_transactions(telemetry):
    """An error on its way out of a nested block fails the whole, though the savepoint was rolled back to."""
    with pytest.raises(IntegrityError), transaction.atomic():
        pay()
        with transaction.atomic():
            Account.objects.create(email="a@example.com")
    (span,) = [span for span in telemetry.spans if OUTCOME in span.attributes]
    assert span.attributes[OUTCOME] == "failed"
    assert span.attributes["db.response.status_code"] == "23505"


def test_first_error_is_the_transactions_and_its_consequences_are_not_counted(telemetry):
    """What a failed transaction answers to further statements (25P02) is no new error."""
    with pytest.raises(DatabaseError), transaction.atomic(), connection.cursor() as cursor:
        pay()
        with pytest.raises(IntegrityError):
            cursor.execute("INSERT INTO account (email, balance) VALUES ('a@example.com', 1)")
        cursor.execute("SELECT id FROM account")
    (span,) = [span for span in telemetry.spans if OUTCOME in span.attributes]
    assert span.attributes["db.response.status_code"] == "23505"
    assert telemetry.one("SELECT account").attributes["db.response.status_code"] == "25P02"
    assert telemetry.one("SELECT account").events == ()
    assert [point.value for point in telemetry.points("cockroachdb.client.errors")] == [1]


def test_error_met_while_another_is_handled_is_judged_by_itself(telemetry):
    """A conflict met while a duplicate key is being dealt with (``get_or_create``) is still retryable."""
    with pytest.raises(OperationalError), transaction.atomic():
        sum(account.balance for account in Account.objects.all())
        interfere()
        try:
            with transaction.atomic():
                Account.objects.create(email="a@example.com")
        except IntegrityError:
            Account.objects.filter(email="a@example.com").update(balance=1)
            Account.objects.filter(email="b@example.com").update(balance=1)
    assert [outcome for outcome, _ in transactions_of(telemetry)] == ["retryable"]


def test_rollback_that_was_asked_for_after_an_error_is_no_silent_abort(telemetry):
    """An error that the application answers by ``set_rollback(True)`` is dealt with, not swallowed."""
    with transaction.atomic():
        pay()
        try:
            with connection.cursor() as cursor:
                cursor.execute("INSERT INTO account (email, balance) VALUES ('a@example.com', 1)")
        except IntegrityError:
            transaction.set_rollback(True)
    assert telemetry.points("cockroachdb.client.txn.silent_aborts") == []
    (span,) = [span for span in telemetry.spans if OUTCOME in span.attributes]
    assert span.events == ()


def test_commit_sent_as_text_is_a_commit(telemetry):
    """A COMMIT that the application sends by itself counts as what it is."""
    with transaction.atomic(), connection.cursor() as cursor:
        pay()
        cursor.execute("COMMIT")
    assert Account.objects.get(email="a@example.com").balance == 1
    assert [outcome for outcome, _ in transactions_of(telemetry)] == ["committed"]


def test_interrupt_while_commit_waits_is_ambiguous(telemetry):
    """A process that is told to stop while COMMIT waits for its answer does not know what became of it."""

    class Interrupted:
        def __init__(self, driver_connection):
            self._connection = driver_connection

        def __getattr__(self, name):
            return getattr(self._connection, name)

        def commit(self):
            raise KeyboardInterrupt

    wrapper = connections["default"]
    driver_connection = None
    with pytest.raises(KeyboardInterrupt):
        try:
            with transaction.atomic():
                pay()
                driver_connection = wrapper.connection
                wrapper.connection = Interrupted(driver_connection)
        finally:
            wrapper.connection = driver_connection
    assert [outcome for outcome, _ in transactions_of(telemetry)] == ["ambiguous"]
    wrapper.close()
    wrapper.in_atomic_block = False


def test_span_of_the_application_around_the_first_statement_keeps_its_place(telemetry):
    """A span that the application opened before the block's first statement keeps what is inside it."""
    tracer = telemetry.tracer_provider.get_tracer("application")
    with transaction.atomic():
        with tracer.start_as_current_span("first"):
            pay()
            with tracer.start_as_current_span("inner"):
                pass
        pay()
        with tracer.start_as_current_span("second"):
            pass
    block = next(span for span in telemetry.spans if OUTCOME in span.attributes)
    assert telemetry.one("inner").parent.span_id == telemetry.one("first").context.span_id
    assert telemetry.one("second").parent.span_id == block.context.span_id


def test_block_whose_statements_run_in_another_thread_leaves_nothing_current_there(telemetry):
    """A connection shared with another thread makes no span current in that thread."""
    from opentelemetry import trace

    wrapper, current = connections["default"], []
    wrapper.inc_thread_sharing()

    def run():
        with wrapper.cursor() as cursor:
            cursor.execute("SELECT id FROM account")
        current.append(trace.get_current_span())

    try:
        with transaction.atomic():
            thread = threading.Thread(target=run)
            thread.start()
            thread.join()
    finally:
        wrapper.dec_thread_sharing()
    assert current == [trace.INVALID_SPAN]
    assert [outcome for outcome, _ in transactions_of(telemetry)] == ["committed"]


@pytest.mark.parametrize(
    "part",
    [
        "otel_crdb.operations.events.words_of",
        "otel_crdb.operations.errors.classify",
        "otel_crdb.outcomes.outcome_of",
        "otel_crdb.transactions.events.words_of",
        "otel_crdb.facts.transaction_status",
    ],
)
def test_every_span_ends_where_a_part_of_telemetry_fails(telemetry, monkeypatch, part):
    """Whatever fails within a hook, every span that was begun is ended, and nothing is left current."""
    monkeypatch.setattr(part, boom)
    with transaction.atomic():
        pay()
    with pytest.raises(IntegrityError), transaction.atomic():
        Account.objects.create(email="a@example.com")
    names = telemetry.names()
    assert [names.count(name) for name in ("UPDATE account", "COMMIT", "INSERT account", "ROLLBACK")] == [
        1
    ] * 4
    assert len([name for name in names if name.startswith("transaction ")]) == 2


def boom(*_args, **_kwargs):
    raise RuntimeError("a defect of ours")


def test_commit_is_known_as_committed_where_its_span_cannot_be_made(telemetry, monkeypatch):
    """A span processor that fails on COMMIT's span does not make a committed transaction ambiguous."""
    from opentelemetry.sdk.trace import SpanProcessor

    class Failing(SpanProcessor):
        def on_start(self, span, parent_context=None):
            if span.name == "COMMIT":
                raise RuntimeError

    telemetry.tracer_provider.add_span_processor(Failing())
    with transaction.atomic():
        pay()
    (span,) = [span for span in telemetry.spans if OUTCOME in span.attributes]
    assert span.attributes[OUTCOME] == "committed"
