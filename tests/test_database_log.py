# SPDX-License-Identifier: Apache-2.0
"""The database's log in production: one line a failure, with what a person needs, and no flood."""

import contextlib
import logging
import socket
from collections import Counter

import pytest
from django.db import DatabaseError, IntegrityError, connection, connections, transaction
from django.db.backends.postgresql.psycopg_any import is_psycopg3
from django.test import RequestFactory

from otel_crdb import (
    AmbiguousCommitError,
    RetriesExhaustedError,
    database_log,
    retry_view,
    run_transaction,
)
from otel_crdb.testing.faults import CATALOGUE

from .database_lines import database_lines
from .project.models import Account
from .servers import commit_fails_with, conflicting, cut, earn, led_through_proxy, needs_postgresql
from .telemetry import Telemetry

pytestmark = pytest.mark.usefixtures("accounts", "naps")

SERIALIZATION = CATALOGUE["serialization_failure.RETRY_SERIALIZABLE"]
#: What a record has of Python's own, of its formatters' and of those that correlate it.
NOT_ITS_OWN = {*vars(logging.makeLogRecord({})), "message", "asctime", "service", "trace_flags"}


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


@pytest.fixture
def proxy(crdb):
    """The alias ``other``, through a fault proxy."""
    needs_postgresql()
    with led_through_proxy(crdb) as proxy:
        yield proxy


def execute(sql, params=None, alias="default"):
    with connections[alias].cursor() as cursor:
        cursor.execute(sql, params)


def fail_with(sqlstate, alias="default"):
    """Have the server raise an error of that SQLSTATE."""
    needs_postgresql()
    execute(f"DO $$ BEGIN RAISE EXCEPTION 'refused' USING ERRCODE = '{sqlstate}'; END $$", alias=alias)


def fields(record):
    return {name: value for name, value in vars(record).items() if name not in NOT_ITS_OWN}


# --- a statement that fails ----------------------------------------------------------------------


def test_failed_statement_is_one_line_with_all_that_is_known(telemetry, lines, crdb):
    """SQLSTATE, class, masked text, duration, attempt, transaction and alias; no value; in its statement's span."""
    with pytest.raises(IntegrityError), transaction.atomic():
        execute("INSERT INTO account (email, balance) VALUES (%s, 4711)", ["a@example.com"])
    record, (span,) = lines.only, telemetry.named("INSERT account")
    block = telemetry.one(f"transaction {crdb.database}")
    duration = (span.end_time - span.start_time) / 1e9
    assert fields(record) == {
        "db_event": "failed",
        "otel_crdb_words": record.getMessage().partition(" db=")[0],
        "db": "default",
        "error_code": "23505",
        "error_class": "constraint",
        "txn_id": block.attributes["cockroachdb.txn.id"],
        "txn_attempt": 1,
        "sql": span.attributes["db.query.text"],
        "duration": pytest.approx(duration),
        "trace_id": f"{span.context.trace_id:032x}",
        "span_id": f"{span.context.span_id:016x}",
    }
    assert record.getMessage() == (
        f"INSERT account failed after {duration:.3f} s (constraint): duplicate key value violates unique "
        f'constraint "account_email_key" db=default txn_id={record.txn_id} txn_attempt=1 error_code=23505'
    )
    assert "example.com" not in str(vars(record))
    assert "4711" not in str(vars(record))
    assert record.exc_info is None
    assert lines.spans == [span.context.span_id]


@pytest.mark.parametrize(
    ("sqlstate", "error_class", "level"),
    [
        ("40001", "retryable", "WARNING"),
        ("40003", "ambiguous", "ERROR"),
        ("23514", "constraint", "WARNING"),
        ("22012", "data", "WARNING"),
        ("42P01", "schema", "ERROR"),
        ("42501", "permission", "ERROR"),
        ("XX000", "internal", "ERROR"),
        ("P0003", "other", "ERROR"),
        ("XXC02", "license", "ERROR"),
        ("53200", "overload", "WARNING"),
        ("58C00", "unavailable", "WARNING"),
        ("57014", "cancelled", "WARNING"),
    ],
)
def test_level_says_whether_somebody_has_to_look(telemetry, lines, sqlstate, error_class, level):
    """What passes by itself and what an application reckons with is a warning, the rest an error."""
    with pytest.raises(DatabaseError):
        fail_with(sqlstate)
    assert lines.brief == [(level, "failed", sqlstate)]
    assert lines.only.error_class == error_class


def test_statement_timeout_is_an_error(telemetry, lines):
    """A statement that the server has cut off at its limit is none that passes by itself."""
    with pytest.raises(DatabaseError), transaction.atomic():
        execute("SET LOCAL statement_timeout = 20")
        execute("SELECT pg_sleep(10)")
    assert [(r.levelname, r.error_class) for r in lines] == [("ERROR", "timeout")]
    assert lines.only.duration >= 0.02


def test_error_on_its_way_out_is_told_once(telemetry, lines):
    """What follows from a failure (25P02, a refused savepoint, ROLLBACK, outer blocks) is no line of its own."""
    with pytest.raises(DatabaseError), transaction.atomic(), transaction.atomic(), transaction.atomic():
        try:
            fail_with("40001")
        except DatabaseError:
            Account.objects.count()
    assert lines.brief == [("WARNING", "failed", "40001")]


def test_each_failure_is_told(telemetry, lines):
    """Two failures that have nothing to do with each other are two lines, also in one transaction."""
    with transaction.atomic():
        for code in ("23514", "22012"):
            with contextlib.suppress(DatabaseError), transaction.atomic():
                fail_with(code)
    assert lines.brief == [("WARNING", "failed", "23514"), ("WARNING", "failed", "22012")]


def test_django_debug_log_stays_as_it_is(telemetry, lines, caplog):
    """Django's own log of queries is neither needed nor changed."""
    with caplog.at_level(logging.DEBUG, "django.db.backends"), contextlib.suppress(DatabaseError):
        connection.force_debug_cursor = True
        try:
            fail_with("42P01")
        finally:
            connection.force_debug_cursor = False
    assert [record.name for record in caplog.records] == ["otel_crdb.db", "django.db.backends"]


# --- COMMIT --------------------------------------------------------------------------------------


@pytest.mark.parametrize("sqlstate", ["40003", "terminate"])
def test_ambiguous_commit_is_one_error(telemetry, lines, sqlstate):
    """A COMMIT whose answer is not known is told as that, once, and not as a failed call besides."""
    with commit_fails_with(sqlstate), pytest.raises(DatabaseError), transaction.atomic():
        earn()
    assert [(record.levelname, record.db_event) for record in lines] == [("ERROR", "ambiguous")]
    span = next(span for span in telemetry.spans if "cockroachdb.txn.outcome" in span.attributes)
    assert lines.only.txn_id == span.attributes["cockroachdb.txn.id"]
    assert lines.spans == [span.context.span_id]


def test_refused_commit_is_a_failed_call(telemetry, lines):
    """A COMMIT that was definitely refused is told as COMMIT's failure."""
    with commit_fails_with("23514"), pytest.raises(DatabaseError), transaction.atomic():
        earn()
    assert lines.brief == [("WARNING", "failed", "23514")]
    assert lines.only.getMessage().startswith("COMMIT failed after ")


def test_silent_abort_is_told_beside_the_error_that_was_swallowed(telemetry, lines):
    """The statement's failure when it happens; that nothing was written when the block ends; COMMIT not at all."""
    with transaction.atomic():
        earn()
        with contextlib.suppress(DatabaseError):
            fail_with("23514")
    assert lines.brief == [("WARNING", "failed", "23514"), ("WARNING", "silent_abort", "23514")]
    assert len({record.txn_id for record in lines}) == 1


# --- connections ---------------------------------------------------------------------------------


def refused_wrapper(alias="changed", **settings):
    default = connections["default"]
    return type(default)({**default.settings_dict, **settings}, alias)


def test_refused_connection_is_a_warning(telemetry, lines):
    """A connect that fails is one line with its class and how long it took, without a SQLSTATE made up."""
    with socket.socket() as unheard:
        unheard.bind(("127.0.0.1", 0))
        with pytest.raises(DatabaseError):
            refused_wrapper(PORT=unheard.getsockname()[1]).ensure_connection()
    record = lines.only
    assert (record.levelname, record.db_event, record.error_class) == ("WARNING", "failed", "connection")
    assert (record.db, record.error_code, record.sql, record.txn_id) == ("changed", "", "", "")
    assert record.duration > 0


def test_lost_connection_is_a_warning(telemetry, lines):
    """A session that the server ended is one line; Django's clean-up after it is none."""
    with pytest.raises(DatabaseError), transaction.atomic():
        earn()
        cut(connection)
        earn()
    assert lines.only.levelname == "WARNING"
    assert lines.only.error_class in {"unavailable", "connection"}  # psycopg2 tells no SQLSTATE of it
    assert lines.only.txn_attempt == 1


@pytest.mark.parametrize(
    ("fault", "error_class"),
    [("too_many_clients", "overload"), ("not_accepting_clients", "unavailable")],
)
def test_node_that_takes_no_connection_is_a_warning(telemetry, lines, proxy, fault, error_class):
    """A gateway that is full or drains is told by its class."""
    proxy.inject(CATALOGUE[fault])
    with pytest.raises(DatabaseError):
        connections["other"].ensure_connection()
    assert (lines.only.levelname, lines.only.error_class, lines.only.db) == ("WARNING", error_class, "other")


@pytest.mark.skipif(
    not is_psycopg3 or not hasattr(type(connections["default"]), "pool"), reason="needs Django 5.1's pools"
)
def test_pool_that_has_no_connection_in_time_is_a_warning(telemetry, lines):
    """Waiting in vain for a pool's connection is one line."""
    pool = {"min_size": 1, "max_size": 1, "timeout": 0.05}
    options = {**connections["default"].settings_dict["OPTIONS"], "pool": pool}
    holder, waiting = (refused_wrapper("pooled", OPTIONS=options) for _ in range(2))
    try:
        holder.ensure_connection()
        with pytest.raises(DatabaseError):
            waiting.ensure_connection()
    finally:
        holder.close()
        holder.close_pool()
    assert (lines.only.levelname, lines.only.error_class) == ("WARNING", "overload")
    assert lines.only.getMessage().startswith("pool acquire ")


# --- slow ----------------------------------------------------------------------------------------


def test_slow_statement_is_a_warning(lines):
    """A call that takes longer than ``slow_statement`` is told with its text and how long it took."""
    with Telemetry(slow_statement=0.05):
        execute("SELECT pg_sleep(%s)", [0.06])
        execute("SELECT 1")
    record = lines.only
    assert (record.levelname, record.db_event, record.db) == ("WARNING", "slow", "default")
    assert record.sql.startswith("SELECT pg_sleep(")
    assert record.duration >= 0.06
    assert record.getMessage().startswith("SELECT took 0.0")


def test_slow_commit_and_slow_connect_are_told_too(lines, crdb):
    """Every call to the database is measured, not only statements; each is told once."""
    connection.close()
    with Telemetry(slow_statement=1e-6), transaction.atomic():
        earn()
    started = [record.getMessage().partition(" took ")[0] for record in lines]
    assert started == [f"connect {crdb.database}", "UPDATE account", "COMMIT"]
    assert {record.db for record in lines} == {"default"}
    assert len({record.txn_id for record in lines if record.txn_id}) == 1


def test_slow_failure_is_told_once(lines):
    """What is slow and fails is a failure, with its duration."""
    with Telemetry(slow_statement=1e-6), pytest.raises(DatabaseError):
        fail_with("42P01")
    assert [record.db_event for record in lines if record.db_event != "slow"] == ["failed"]
    assert [r for r in lines if r.db_event == "slow" and r.getMessage().startswith("DO")] == []


def test_nothing_is_slow_where_the_option_is_zero(lines):
    """``slow_statement=0``: no line, also while something is held back and every call is looked at."""
    with Telemetry(slow_statement=0, log_limit=1):
        for _ in range(2):
            with pytest.raises(DatabaseError):
                fail_with("42P01")
        execute("SELECT pg_sleep(0.01)")
        assert [record.db_event for record in lines] == ["failed"]


# --- a transaction that is retried ---------------------------------------------------------------


def test_retried_attempt_is_one_line_that_has_the_statement(telemetry, lines):
    """The run tells of each refused attempt, with the call that failed; the call itself tells nothing."""
    run_transaction(conflicting(2), name="pay")
    assert [(r.levelname, r.db_event, r.txn_attempt) for r in lines] == [
        ("WARNING", "retried", 1),
        ("WARNING", "retried", 2),
        ("INFO", "committed", 3),
    ]
    assert len({record.txn_id for record in lines}) == 1
    retried = lines.records[0]
    assert (retried.error_code, retried.error_class) == ("40001", "retryable")
    assert (retried.db, retried.txn_name) == ("default", "pay")
    assert retried.sql.startswith("UPDATE")
    assert retried.duration > 0
    assert retried.backoff >= 0


def test_exhausted_attempts_are_one_error(telemetry, lines):
    """The last refusal is told as the end, and as an error."""
    with pytest.raises(RetriesExhaustedError):
        run_transaction(conflicting(9), name="pay", max_attempts=2)
    assert lines.brief == [("WARNING", "retried", "40001"), ("ERROR", "exhausted", "40001")]


def test_transaction_that_is_kept_from_retrying_is_one_line(telemetry, lines, proxy):
    """An attempt that would be repeated but must not be is told with why, once."""

    def change():
        execute("CREATE TABLE changed (n integer)", alias="other")
        Account.objects.using("other").count()

    proxy.inject(SERIALIZATION, matching=r"SELECT COUNT\(")
    with pytest.raises(DatabaseError):
        run_transaction(change, using="other")
    assert lines.brief == [("WARNING", "kept_from_retrying", "40001")]
    assert "schema change" in lines.only.getMessage()


def test_view_that_cannot_be_run_again_is_one_error(telemetry, lines):
    """Where the end of the attempts is that there can be no second one, the line says why."""
    pay = conflicting(1)

    @retry_view
    def view(request):
        request.read()
        return pay()

    with pytest.raises(RetriesExhaustedError):
        view(RequestFactory().post("/"))
    assert lines.brief == [("ERROR", "exhausted", "40001")]
    assert "and is not run again: the request's raw stream was read" in lines.only.getMessage()


def test_error_that_no_run_repeats_is_told_by_its_call(telemetry, lines):
    """A constraint within a retried transaction is the statement's to tell, at once."""
    told = []

    def pay():
        try:
            Account.objects.create(email="a@example.com")
        finally:
            told.append(list(lines.brief))

    with pytest.raises(IntegrityError):
        run_transaction(pay)
    assert told == [[("WARNING", "failed", "23505")]]
    assert lines.brief == told[0]


def test_error_that_a_savepoint_mends_is_told_by_its_call(telemetry, lines):
    """What a run would repeat and the function has dealt with is not lost: it is told when that is known."""

    def pay():
        with contextlib.suppress(DatabaseError), transaction.atomic():
            fail_with("40P01")
        told.append(list(lines.brief))
        earn()

    told = []
    run_transaction(pay)
    assert told == [[("WARNING", "failed", "40P01")]]
    assert lines.brief == told[0]


def test_connect_that_fails_within_a_run_is_told_by_the_run(telemetry, lines, proxy):
    """A refused connection that the next attempt gets is one line."""
    connections["other"].close()
    proxy.inject(CATALOGUE["too_many_clients"], on="connect", times=1)
    run_transaction(earn, 1, "other", using="other")
    assert [(r.levelname, r.db_event, r.error_class) for r in lines] == [
        ("WARNING", "retried", "overload"),
        ("INFO", "committed", ""),
    ]


def test_commit_in_doubt_is_one_error_within_a_run(telemetry, lines):
    """Where the run gives up because a COMMIT has no answer, there is one line, the transaction's."""
    with commit_fails_with("40003"), pytest.raises(AmbiguousCommitError):
        run_transaction(earn)
    assert lines.brief == [("ERROR", "ambiguous", "40003")]


def test_commit_in_doubt_that_is_run_again_is_a_warning(telemetry, lines, proxy):
    """Where running it twice does no harm an unknown COMMIT is a retry as any other."""
    proxy.inject(CATALOGUE["ambiguous_commit.propagate"], on="commit", times=1)
    run_transaction(earn, 1, "other", using="other", idempotent=True)
    assert [(record.levelname, record.db_event) for record in lines] == [
        ("WARNING", "retried"),
        ("INFO", "committed"),
    ]


def test_run_that_ends_in_doubt_is_one_error(telemetry, lines):
    """Where no further attempt made it known, the end is an error."""
    with commit_fails_with("40003"), pytest.raises(AmbiguousCommitError):
        run_transaction(earn, idempotent=True, max_attempts=2)
    assert lines.brief == [("WARNING", "retried", "40003"), ("ERROR", "ambiguous", "40003")]
    assert "after 2 of 2 attempts" in lines.records[-1].getMessage()


def test_run_without_instrument_tells_its_own_lines(lines):
    """Without ``instrument()`` there are the lines of runs, with the limits of the defaults, and no others."""
    for _ in range(4):
        run_transaction(conflicting(2), name="pay")
    with pytest.raises(DatabaseError):
        fail_with("42P01")
    database_log.flush()
    kinds = [record.db_event for record in lines]
    assert kinds.count("retried") == 5
    assert "failed" not in kinds
    assert sum(r.held_back for r in lines if r.db_event == "held_back" and r.held_back_of == "retried") == 3


# --- the same over OTLP --------------------------------------------------------------------------


def everything_with_an_event():
    with contextlib.suppress(DatabaseError), transaction.atomic():
        earn()
        fail_with("23514")
    with transaction.atomic():
        with contextlib.suppress(DatabaseError):
            fail_with("23514")
    with commit_fails_with("40003"), contextlib.suppress(DatabaseError), transaction.atomic():
        earn()
    run_transaction(conflicting(1), name="pay")


@pytest.mark.parametrize("signal", ["", "logs", "logs/dup"], ids=["spans", "logs", "both"])
def test_line_whose_words_are_an_event_names_it(monkeypatch, lines, signal):
    """A line names the event that has left over OTLP with its very words, and only where one has."""
    monkeypatch.setenv("OTEL_SEMCONV_EXCEPTION_SIGNAL_OPT_IN", signal)
    with Telemetry() as telemetry:
        everything_with_an_event()
        left = {(r.event_name, r.body, r.severity_text) for r in telemetry.log_records if r.event_name}
    named = {
        (record.otel_crdb_event, record.otel_crdb_words, record.levelname)
        for record in lines
        if hasattr(record, "otel_crdb_event")
    }
    assert named <= left
    assert {record.db_event for record in lines} == {
        "failed",
        "silent_abort",
        "ambiguous",
        "retried",
        "committed",
    }
    unnamed = {record.db_event for record in lines if not hasattr(record, "otel_crdb_event")}
    assert unnamed == ({"committed"} if signal else {"committed", "failed"})


@pytest.mark.parametrize("signal", ["", "logs"], ids=["spans", "logs"])
def test_each_line_leaves_over_otlp_once(monkeypatch, lines, signal):
    """As an event or as a record of Python's logging, never as both."""
    monkeypatch.setenv("OTEL_SEMCONV_EXCEPTION_SIGNAL_OPT_IN", signal)
    with Telemetry(python_logs=True) as telemetry:
        everything_with_an_event()
        left = Counter(record.body for record in telemetry.log_records)
    assert len(lines.records) == 6
    said = Counter(record.otel_crdb_words for record in lines)
    assert {words: left[words] for words in said} == said


# --- what is left untold -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [{"excluded_aliases": ("default",)}, {"excluded_statements": ("^DO",)}],
    ids=["alias", "statement"],
)
def test_what_is_excluded_is_not_logged(lines, options):
    """An excluded alias or statement has no line, failed or slow."""
    with Telemetry(slow_statement=1e-6, **options), pytest.raises(DatabaseError):
        fail_with("42P01")
    assert [record for record in lines if record.db_event != "slow" or "DO" in record.getMessage()] == []


def test_limit_of_zero_holds_nothing_back(lines):
    """``log_limit=0``: every line."""
    with Telemetry(log_limit=0):
        for _ in range(30):
            with pytest.raises(DatabaseError):
                fail_with("42P01")
    assert lines.brief == [("ERROR", "failed", "42P01")] * 30


def test_level_of_the_logger_is_obeyed(telemetry, lines):
    """What nobody would see is neither said nor counted as said."""
    logging.getLogger(database_log.LOGGER).setLevel(logging.ERROR)
    for _ in range(20):
        with pytest.raises(IntegrityError):
            Account.objects.create(email="a@example.com")
    assert (lines.records, database_log.REPEATS.held) == ([], 0)
