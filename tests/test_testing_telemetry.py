# SPDX-License-Identifier: Apache-2.0
"""What a test sees of the telemetry: everything, at once, whoever has instrumented the application."""

import subprocess
import sys
import textwrap
from collections import Counter

import pytest
from django.db import DatabaseError, IntegrityError, connection, transaction
from django.test import Client
from opentelemetry.sdk.trace import TracerProvider

import otel_crdb
from otel_crdb import hooks, run_transaction, signals
from otel_crdb.testing.recorder import record_telemetry

from .project.models import Account
from .servers import conflicting, earn
from .telemetry import Telemetry as OwnProviders

pytestmark = pytest.mark.usefixtures("accounts")


@pytest.fixture
def telemetry():
    """The telemetry of one test, by the public helper."""
    with record_telemetry() as recorded:
        yield recorded


def test_a_retried_transaction_is_one_transaction(telemetry):
    """Its outcome, its attempts, why it was run again and what it cost are plain values."""
    run_transaction(conflicting(1), name="pay")
    pay = telemetry.transaction("pay")
    assert pay.outcome == telemetry.outcome == "committed"
    assert pay.attempts == ("retryable", "committed")
    assert telemetry.retries == list(pay.retries) == ["unknown"]
    assert telemetry.errors == ["40001"]
    assert telemetry.outcomes == ["committed"]
    assert pay.span.name == "run_transaction pay"
    assert telemetry.event("cockroachdb.txn.retry")["cockroachdb.txn.attempt"] == 1


def test_a_plain_block_is_a_transaction_without_a_name(telemetry):
    """`atomic()` has one attempt; several transactions are told apart by their order."""
    with transaction.atomic():
        earn()
    with pytest.raises(ValueError, match="no"), transaction.atomic():
        earn()
        raise ValueError("no")
    assert telemetry.outcomes == ["committed", "rolled_back"]
    assert [one.name for one in telemetry.transactions] == ["", ""]
    assert [one.attempts for one in telemetry.transactions] == [("committed",), ("rolled_back",)]
    assert telemetry.errors == telemetry.retries == []


def test_metrics_count_from_the_start_or_from_clear(telemetry):
    """A counter's value and a histogram's count, of all points that fit; `clear` begins anew."""
    run_transaction(conflicting(2))
    retries = "cockroachdb.client.txn.retries"
    assert telemetry.metric(retries) == 2
    assert telemetry.metric(retries, {"cockroachdb.error.class": "retryable"}) == 2
    assert telemetry.metric(retries, {"cockroachdb.error.class": "overload"}) == 0
    assert telemetry.metric("cockroachdb.client.txn.duration", {"cockroachdb.txn.outcome": "retryable"}) == 2
    telemetry.clear()
    assert (telemetry.spans, telemetry.logs, telemetry.points) == ([], [], [])
    run_transaction(conflicting(1))
    assert telemetry.metric(retries) == 1
    (point,) = [point for point in telemetry.points if point.metric == "cockroachdb.client.txn.attempts"]
    assert (point.value, point.total) == (1, 2.0)


def test_counts_of_the_whole_process_begin_with_the_test(monkeypatch):
    """What is counted since the process began, as the faults of our own hooks, counts from the start too."""
    monkeypatch.setattr(hooks, "faults", Counter(earlier=5))
    with record_telemetry() as telemetry:
        assert telemetry.metric("otel_crdb.hook.faults") == 0
        hooks.faults["earlier"] += 1
        assert telemetry.metric("otel_crdb.hook.faults") == 1


def test_log_records_have_text_severity_and_span(telemetry):
    """A log record is found by its event name or its words, and belongs to a span."""
    run_transaction(conflicting(1), name="pay")
    record = telemetry.log("cockroachdb.txn.retry")
    assert record is telemetry.log("is run again")
    assert record.body.startswith("pay: attempt 1 of 5 was refused (retryable, ")
    assert record.severity == "WARNING"
    assert record.span_id == telemetry.transaction("pay").span.span_id
    assert record["db.response.status_code"] == "40001"


def test_what_is_not_there_once_is_said_with_what_is(telemetry):
    """The message shows the tree, with outcomes, errors and events; an attribute's shows the others' names."""
    Client().get("/read/")
    run_transaction(conflicting(1), name="pay")
    with pytest.raises(AssertionError) as raised:
        telemetry.span("SELECT account")
    said = str(raised.value)
    assert said.startswith(
        "one span 'SELECT account' was expected, and there is 3 of them. Seen:\nGET read/  SERVER"
    )
    for line in (
        "└─ SELECT account  CLIENT",
        "run_transaction pay  INTERNAL  attempts=2  outcome=committed",
        "│  • cockroachdb.txn.retry  status_code=40001",
        "├─ transaction postgres  INTERNAL  ERROR  outcome=retryable  status_code=40001",
        "│  └─ ROLLBACK  CLIENT",
        "   └─ COMMIT  CLIENT\n",
        "log: 'cockroachdb.txn.retry'  status_code=40001",
    ):
        assert line in said.replace(connection.settings_dict["NAME"], "postgres")
    assert telemetry.span("UPDATE account", {"db.response.status_code": "40001"}).status == "ERROR"
    with pytest.raises(AssertionError, match="one transaction 'transfer' was expected, and there is none"):
        telemetry.transaction("transfer")
    with pytest.raises(AssertionError, match=r"event 'none' with \{'a': 1\}"):
        telemetry.event("none", {"a": 1})
    with pytest.raises(AssertionError, match="one log record 'none' was expected"):
        telemetry.log("none")
    with pytest.raises(KeyError, match=r"http.route2; there are .*http.route"):
        telemetry.span("GET read/")["http.route2"]
    assert repr(telemetry).startswith("<Telemetry: ")
    assert repr(telemetry).endswith("transactions: committed>")


def test_nothing_is_said_to_be_nothing(telemetry):
    """Where nothing was told, the message says so."""
    with pytest.raises(AssertionError, match=r"Seen:\n\(nothing\)"):
        telemetry.outcome  # noqa: B018


def test_what_is_seen_has_been_scrubbed():
    """Keys and rows of an error are not on the application's own spans and log lines either."""
    taken = Account.objects.first()  # no literal: a stack shows the lines of the code
    with OwnProviders() as theirs, record_telemetry() as telemetry:
        tracer = theirs.tracer_provider.get_tracer("bank")
        with pytest.raises(IntegrityError) as raised, tracer.start_as_current_span("book"):
            Account.objects.create(email=taken.email)
        theirs.logger_provider.get_logger("bank").emit(body=f"not booked: {raised.value}")
    assert "a@example.com" in str(raised.value)
    assert telemetry.errors == ["23505"]
    assert telemetry.span("book").events[0].name == "exception"
    assert telemetry.log("not booked: duplicate key")
    assert "a@example.com" not in telemetry.tree() + repr(telemetry.spans) + repr(telemetry.logs)


def test_an_instrumented_application_is_taken_over_and_given_back(monkeypatch):
    """Its options are kept, its providers hear nothing of the test, and afterwards all again."""
    monkeypatch.setenv("OTEL_SEMCONV_STABILITY_OPT_IN", "http")
    with OwnProviders(query_text_limit=11) as theirs:
        before = signals.current.config
        with record_telemetry() as telemetry:
            Client().get("/read/")
            Account.objects.count()
        assert theirs.names() == []
        assert theirs.points("db.client.operation.duration") == []
        assert {"GET read/", "SELECT account"} == {span.name for span in telemetry.spans}
        assert len(telemetry.spans_named("SELECT account")[0]["db.query.text"]) <= 11
        assert signals.current.config == before
        telemetry.clear()
        Client().get("/read/")
        assert theirs.names() == ["GET read/", "SELECT account"]
    assert telemetry.spans == []
    assert signals.current is None


def test_spans_of_the_applications_own_are_seen_where_it_has_a_provider():
    """They stand in the tree where they belong; afterwards the provider is left alone."""
    with OwnProviders() as theirs:
        tracer = theirs.tracer_provider.get_tracer("bank")
        logger = theirs.logger_provider.get_logger("bank")
        counter = theirs.meter_provider.get_meter("bank").create_counter("bank.transfers")
        counter.add(5)
        for _ in range(2):
            with record_telemetry() as telemetry:
                with tracer.start_as_current_span("book"), transaction.atomic():
                    earn()
                    logger.emit(body="booked")
                counter.add(1)
                assert telemetry.transaction().span.parent_id == telemetry.span("book").span_id
                assert telemetry.log("booked").span_id == telemetry.transaction().span.span_id
                assert telemetry.metric("bank.transfers") == 1
        with tracer.start_as_current_span("later"):
            logger.emit(body="later")
        assert telemetry.spans_named("later") == []
        assert len(telemetry.logs) == 1
        assert len(theirs.tracer_provider._active_span_processor._span_processors) == 2


def test_an_inner_recording_takes_over_from_the_outer(telemetry):
    """Each sees its own time; when the inner one has ended the outer one goes on."""
    with record_telemetry() as inner:
        earn()
    earn()
    assert len(inner.spans_named("UPDATE account")) == len(telemetry.spans_named("UPDATE account")) == 1


@pytest.mark.parametrize("instrumented", [False, True])
def test_a_disabled_sdk_is_switched_on_for_the_test(monkeypatch, instrumented):
    """`OTEL_SDK_DISABLED` and a sampler that drops everything do not blind a test."""
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    if instrumented:
        otel_crdb.instrument()
    try:
        with record_telemetry() as telemetry:
            with transaction.atomic():
                earn()
            assert telemetry.outcome == "committed"
            assert telemetry.metric("cockroachdb.client.txn.duration") == 1
        assert TracerProvider()._disabled
        assert signals.current is None
        assert otel_crdb.CockroachDBInstrumentor().is_instrumented_by_opentelemetry is instrumented
    finally:
        otel_crdb.uninstrument()


def test_a_test_may_instrument_and_uninstrument_itself():
    """What the test has done to the instrumentation does not outlive it."""
    with record_telemetry():
        otel_crdb.uninstrument()
    with record_telemetry() as telemetry:
        otel_crdb.instrument()
        earn()
        assert len(telemetry.spans_named("UPDATE account")) == 1
    assert signals.current is None


def test_options_are_those_of_instrument(accounts):
    """They go to `instrument()`, and a wrong one leaves nothing behind."""
    with pytest.raises(TypeError, match="has no option 'nodes'"), record_telemetry(nodes=1):
        pass
    assert signals.current is None
    with record_telemetry(node_id=False) as telemetry:
        earn()
    assert "cockroachdb.node.id" not in telemetry.span("UPDATE account").attributes


GLOBAL_PROVIDERS = """
import os, sys
if os.environ.get("OTEL_CRDB_TEST_DRIVER") == "psycopg2":
    sys.modules["psycopg"] = None
import otel_crdb
otel_crdb.instrument()  # sets providers of the process, whose exporters reach nobody
import django
django.setup()
from opentelemetry import trace
from otel_crdb.testing.recorder import record_telemetry
from tests.project.models import Account
for _ in range(2):
    with record_telemetry() as telemetry, trace.get_tracer("bank").start_as_current_span("page"):
        Account.objects.count()
    assert telemetry.span("SELECT account").parent_id == telemetry.span("page").span_id
assert otel_crdb.signals.current.config.tracer_provider is None
Account.objects.count()
assert len(telemetry.spans) == 2, telemetry.tree()
os._exit(0)  # past the exporters, which would wait for a collector
"""


def test_an_application_with_the_global_providers_is_seen():
    """Where wsgi.py or a conftest called `instrument()` with no options, nothing waits for a collector."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(GLOBAL_PROVIDERS)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_a_block_that_failed_is_told_by_class_where_there_is_no_sqlstate(telemetry, monkeypatch):
    """A connection that cannot be had is an error with the exception's class for a name."""
    connection.close()
    monkeypatch.setitem(connection.settings_dict, "PORT", 1)
    with pytest.raises(DatabaseError):
        Account.objects.count()
    assert telemetry.errors == [f"{connection.Database.__name__}.OperationalError"]
