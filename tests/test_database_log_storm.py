# SPDX-License-Identifier: Apache-2.0
"""The database's log under stress: storms, outages, handlers that fail, ends of processes; and the last error."""

import contextlib
import logging
import subprocess
import sys
import threading
import time

import pytest
from django.db import DatabaseError, connection, connections, transaction
from opentelemetry import trace

from otel_crdb import call_log, database_log, errors, facts, retry_telemetry, run_transaction, signals
from otel_crdb.logs.fields import correlate
from otel_crdb.operations import ClientOperation
from otel_crdb.policy import Attempt, Policy
from otel_crdb.runs import Run
from otel_crdb.state import last_error

from .database_lines import database_lines
from .project.models import Account
from .servers import earn, needs_postgresql
from .telemetry import Telemetry

pytestmark = pytest.mark.usefixtures("accounts")

CONFLICT = "DO $$ BEGIN RAISE EXCEPTION 'restart transaction: again' USING ERRCODE = '40001'; END $$"


@pytest.fixture
def telemetry():
    """Instrument with the limit that an application has."""
    with Telemetry(log_limit=5) as recorded:
        yield recorded


@pytest.fixture
def lines():
    """The lines of this test."""
    with database_lines() as lines:
        yield lines


class Clock:
    """A clock that goes when it is told to."""

    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(lines, monkeypatch):
    """The clock of limits and spells."""
    clock = Clock()
    monkeypatch.setattr(database_log.REPEATS, "_clock", clock)
    monkeypatch.setattr(call_log.SPELLS, "_clock", clock)
    return clock


def execute(sql, alias="default"):
    with connections[alias].cursor() as cursor:
        cursor.execute(sql)


def conflict():
    """Meet a real 40001, and return what is raised."""
    needs_postgresql()
    with pytest.raises(DatabaseError) as raised:
        execute(CONFLICT)
    return raised.value


def until(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        threading.Event().wait(0.005)


def call():
    """Return a call to the database as the hooks begin it."""
    return ClientOperation(
        facts.of_connection(connection.connection),
        "UPDATE account",
        {"db.query.text": "UPDATE account SET balance = ?"},
        phase="autocommit",
        histogram=signals.current.instruments.operation_duration,
        attributes={},
        connection=connection.connection,
    )


# --- storms --------------------------------------------------------------------------------------


def test_storm_of_failed_calls_is_a_handful_of_lines_with_the_right_count(telemetry, lines, clock):
    """10,000 failures in a second, by what the hooks call: five lines, and one that says 9,995."""
    error = conflict()
    telemetry.clear()
    database_log.begin_anew()
    lines.records.clear()
    for _ in range(10_000):
        call().finish(None, error)
        clock.now += 0.0001
    assert lines.brief == [("WARNING", "failed", "40001")] * 5
    clock.now += 60
    Account.objects.count()
    assert len(lines.records) == 6
    held = lines.records[-1]
    assert (held.levelname, held.db_event, held.held_back, held.seconds) == (
        "WARNING",
        "held_back",
        9_995,
        60,
    )
    assert (held.error_code, held.db, held.sql) == ("40001", "default", "UPDATE account SET balance = ?")
    assert held.getMessage().startswith(
        "held back 9995 more in 60 s, the last of them: UPDATE account failed"
    )
    assert lines.counted == 10_000


def test_storm_of_retries_is_a_handful_of_lines_with_the_right_count(telemetry, lines, clock):
    """10,000 retries in a second: each is an event, and the log has six lines, which count them all."""
    error = conflict()
    failure = errors.classify(error, phase="statement")
    lines.records.clear()
    telemetry.clear()
    run = Run(earn, (), Policy(name="pay"))
    with run:
        run.begun = 1
        for _ in range(10_000):
            retry_telemetry.retried(run, Attempt(1, "retryable", error, failure, 0.01))
            clock.now += 0.0001
    clock.now += 60
    database_log.REPEATS.tell_overdue()
    assert [record.db_event for record in lines] == ["retried"] * 5 + ["held_back"]
    assert lines.counted == 10_000
    assert len(telemetry.log_records) == 10_000


def test_storm_that_goes_on_is_a_few_lines_a_minute(telemetry, lines, clock):
    """Ten minutes of it: five lines and a count each minute, nothing lost."""
    error = conflict()
    database_log.begin_anew()
    lines.records.clear()
    for _ in range(6_000):
        call().finish(None, error)
        clock.now += 0.1
    database_log.flush()
    said = [record for record in lines if record.db_event != "lasting"]
    assert sum(getattr(record, "held_back", 1) for record in said) == 6_000
    assert len(said) <= 11 * 6


def test_hundreds_of_real_conflicts_are_counted(telemetry, lines):
    """400 real 40001 of four threads: the lines count what the server sent."""
    needs_postgresql()

    def storm():
        for _ in range(100):
            with contextlib.suppress(DatabaseError):
                execute(CONFLICT)
        connection.close()

    threads = [threading.Thread(target=storm) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    database_log.flush()
    assert [record.db_event for record in lines] == ["failed"] * 5 + ["held_back"]
    assert lines.counted == 400
    (counted,) = telemetry.points("cockroachdb.client.errors")
    assert counted.value == 400


def test_count_is_said_although_nothing_more_happens(telemetry, lines, monkeypatch):
    """The count comes when the window is over, by itself."""
    monkeypatch.setattr(database_log.REPEATS, "_window", 0.2)
    for _ in range(8):
        conflict()
    until(lambda: lines.counted == 8)
    assert lines.records[-1].db_event == "held_back"


def test_count_belongs_to_no_trace(telemetry, lines, clock):
    """What is said of many requests is not said in the trace of the one that happens to come along."""
    for _ in range(6):
        conflict()
    clock.now += 60
    with transaction.atomic():
        Account.objects.count()
    held = lines.records[-1]
    assert held.db_event == "held_back"
    assert (held.trace_id, held.span_id, held.txn_id, held.txn_attempt) == ("", "", "", "")
    assert lines.spans[-1] == 0


def test_ambiguous_commits_are_never_held_back(telemetry, lines):
    """Somebody has to look into each of them."""
    fields = database_log.fields_of(database_log.AMBIGUOUS, "default")
    for _ in range(20):
        database_log.tell(database_log.Line(logging.ERROR, "unknown", (), fields))
    assert len(lines.records) == 20


# --- what lasts ----------------------------------------------------------------------------------


def test_outage_is_warnings_and_one_error_and_one_line_when_it_is_over(telemetry, lines, clock):
    """Failed calls without a success for half a minute become one error; the next success says that it is over."""
    error = conflict()
    database_log.begin_anew()
    call_log.SPELLS.begin_anew()
    lines.records.clear()
    for _ in range(90):
        call().finish(None, error)
        clock.now += 1
    said = [record for record in lines if record.levelname == "ERROR"]
    assert [(record.db_event, record.failures, record.seconds, record.db) for record in said] == [
        ("lasting", 31, 30, "default")
    ]
    assert (
        said[0]
        .getMessage()
        .startswith("Nothing has succeeded on default for 30 s: 31 failures of class retryable")
    )
    lines.records.clear()
    for _ in range(3):
        Account.objects.count()
    assert [record.db_event for record in lines if record.db_event == "over"] == []
    for _ in range(3):
        earn()
    over = [record for record in lines if record.db_event == "over"]
    assert [(record.levelname, record.failures, record.error_class) for record in over] == [
        ("INFO", 90, "retryable")
    ]
    assert over[0].otel_crdb_words == "default works again: retryable is over after 90 s, 90 failures."


def test_failures_amid_successes_are_no_outage(telemetry, lines, clock):
    """Conflicts all day, each followed by a success: warnings, no error."""
    for _ in range(50):
        conflict()
        earn()
        clock.now += 10
    assert {record.levelname for record in lines} == {"WARNING"}


# --- handlers ------------------------------------------------------------------------------------


class Broken(logging.Handler):
    """A handler that raises."""

    def handle(self, record):
        raise ValueError("no disk")


class Writing(logging.Handler):
    """A handler that writes to the database that has just failed."""

    calls = 0

    def emit(self, record):
        self.calls += 1
        with contextlib.suppress(DatabaseError):
            execute("INSERT INTO nowhere VALUES (1)")


@contextlib.contextmanager
def handled_by(handler):
    logger = logging.getLogger(database_log.LOGGER)
    logger.addHandler(handler)
    try:
        yield handler
    finally:
        logger.removeHandler(handler)


def test_handler_that_raises_changes_nothing(telemetry, lines):
    """The application has its own error, and the span of its statement is told."""
    with handled_by(Broken()):
        error = conflict()
    assert "again" in str(error)
    assert telemetry.spans[-1].attributes["db.response.status_code"] == "40001"
    assert trace.get_current_span() is trace.INVALID_SPAN


def test_handler_that_writes_to_the_failing_database_makes_no_endless_tale(telemetry, lines):
    """What a line's handler does in the database has no line of its own."""
    with handled_by(Writing()) as handler:
        conflict()
    assert handler.calls == 1
    assert lines.brief == [("WARNING", "failed", "40001")]


# --- the end of a process ------------------------------------------------------------------------

ENDING = """
import logging
logging.basicConfig(format="%(levelname)s %(message)s")
from otel_crdb import database_log as log
for number in range(9):
    log.tell(log.Line(logging.WARNING, "refused %d", (number,), log.fields_of(log.FAILED, "default")))
"""


def test_count_is_said_before_the_process_ends():
    """What is held back when the interpreter ends is said."""
    ended = subprocess.run(
        [sys.executable, "-c", ENDING], capture_output=True, text=True, timeout=60, check=True
    )
    said = ended.stderr.splitlines()
    assert said[:5] == [f"WARNING refused {number} db=default" for number in range(5)]
    assert said[5:] == ["WARNING held back 4 more in 1 s, the last of them: refused 8 db=default"]


# --- the last error ------------------------------------------------------------------------------

REFUSED = ("23505", "constraint", "default")


@pytest.fixture
def forgotten():
    """Begin without a last error, and leave none."""
    token = last_error.set(None)
    yield
    last_error.reset(token)


def refuse():
    with contextlib.suppress(DatabaseError), transaction.atomic():
        Account.objects.create(email="a@example.com")


@pytest.mark.usefixtures("telemetry", "forgotten")
class TestLastError:
    """What a line after a failure finds of it."""

    def test_is_there_after_the_failure(self):
        """Neither ROLLBACK nor a savepoint's end takes it away: they come before the line that tells of it."""
        refuse()
        assert last_error.get()[:3] == REFUSED
        with transaction.atomic():
            refuse()
            assert last_error.get()[:3] == REFUSED

    def test_is_gone_after_a_statement_that_succeeded(self):
        """A later statement on the alias shows that it was dealt with."""
        refuse()
        Account.objects.count()
        assert last_error.get() is None

    def test_is_gone_after_a_commit(self):
        """So does a COMMIT."""
        with transaction.atomic():
            earn()
            refuse()
            assert last_error.get()[:3] == REFUSED
        assert last_error.get() is None

    def test_stays_where_another_alias_succeeds(self):
        """Another database says nothing of it."""
        refuse()
        execute("SELECT 1", "other")
        assert last_error.get()[:3] == REFUSED

    def test_is_the_cause_and_not_its_consequence(self):
        """25P02 only says that something failed before."""
        with contextlib.suppress(DatabaseError), transaction.atomic():
            try:
                with transaction.atomic(savepoint=False):
                    execute("INSERT INTO account (email, balance) VALUES ('a@example.com', 1)")
            except DatabaseError:
                connection.needs_rollback = False
                execute("SELECT 1")
        assert last_error.get()[:3] == REFUSED

    def test_stays_where_commit_was_answered_by_rollback(self):
        """In a transaction that has failed COMMIT's success is none."""
        with transaction.atomic():
            with contextlib.suppress(DatabaseError):
                execute("INSERT INTO account (email, balance) VALUES ('a@example.com', 1)")
        assert last_error.get()[:3] == REFUSED


def test_error_of_a_task_is_not_the_next_ones(telemetry):
    """In another trace than its own, the last error is somebody else's."""
    tracer = telemetry.tracer_provider.get_tracer("tasks")
    record = logging.LogRecord("bank", logging.INFO, __file__, 1, "on the way", None, None)
    with tracer.start_as_current_span("first task"), contextlib.suppress(DatabaseError):
        execute(CONFLICT)
    with tracer.start_as_current_span("second task"):
        correlate(record)
    assert (record.trace_id != "", record.error_code, record.db) == (True, "", "")


def test_error_of_a_block_without_a_request_is_told(telemetry):
    """Within the block, whose span begins a trace, behind its savepoint, after it, and after a run."""
    told = []

    def note():
        told.append(logging.LogRecord("bank", logging.INFO, __file__, 1, "on the way", None, None))
        correlate(told[-1])

    def swallow():
        with contextlib.suppress(DatabaseError), transaction.atomic():
            execute(CONFLICT.replace("40001", "23514"))
        note()

    with transaction.atomic():
        swallow()
    swallow()
    with contextlib.suppress(DatabaseError):
        run_transaction(lambda: execute(CONFLICT.replace("40001", "23514")))
    note()
    assert [(record.error_code, record.db) for record in told] == [("23514", "default")] * 3


def test_what_was_held_back_waits_for_the_connection_too(telemetry, lines, clock):
    """A count that is due as COMMIT ends is said when Django has its connection in order."""
    for _ in range(9):
        conflict()
    lines.records.clear()
    database_log.hold()
    clock.now += 61
    database_log.tell_overdue()
    assert lines.records == []
    database_log.release()
    assert [record.db_event for record in lines] == ["held_back"]
