# SPDX-License-Identifier: Apache-2.0
"""Statements as spans: names, attributes, batches, and no value of theirs anywhere."""

import io

import pytest
from django.db import DatabaseError, ProgrammingError, connection, connections
from django.db.backends.postgresql.base import DatabaseWrapper as PostgresWrapper
from django.db.backends.postgresql.psycopg_any import is_psycopg3
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, Sampler
from opentelemetry.trace import SpanKind, StatusCode

from .project.models import Account
from .servers import cut
from .telemetry import Telemetry

pytestmark = pytest.mark.usefixtures("accounts")

SECRET = "s3cret-value"
on_psycopg3 = pytest.mark.skipif(not is_psycopg3, reason="psycopg 3 has it")
on_psycopg2 = pytest.mark.skipif(is_psycopg3, reason="psycopg2 has it")


def test_statement_carries_the_stable_conventions(telemetry, crdb):
    """A statement is a CLIENT span named by its summary, with the stable attributes and nothing else."""
    list(Account.objects.filter(email="a@example.com").only("balance"))
    span = telemetry.one("SELECT account")
    assert span.kind is SpanKind.CLIENT
    assert span.status.status_code is StatusCode.UNSET
    assert dict(span.attributes) == {
        "db.system.name": "cockroachdb",
        "db.namespace": crdb.database,
        "db.query.summary": "SELECT account",
        "db.query.text": 'SELECT "account"."id", "account"."balance" FROM "account" '
        'WHERE "account"."email" = %s',
        "server.address": crdb.host,
        "server.port": crdb.port,
        "cockroachdb.node.id": 1,
        "cockroachdb.version": "v25.4.0",
    }


def test_data_point_is_the_span_in_seconds(telemetry, crdb):
    """A statement is one data point: its span's duration in seconds, its words, the bounds to use."""
    Account.objects.count()
    span = telemetry.one("SELECT account")
    points = telemetry.points("db.client.operation.duration")
    (point,) = [point for point in points if point.attributes["db.query.summary"] == "SELECT account"]
    assert point.count == 1
    assert point.sum == pytest.approx((span.end_time - span.start_time) / 1e9)
    assert point.explicit_bounds == (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10)
    assert dict(point.attributes) == {
        "db.system.name": "cockroachdb",
        "db.namespace": crdb.database,
        "db.query.summary": "SELECT account",
        "server.address": crdb.host,
        "server.port": crdb.port,
    }


def test_attributes_are_there_when_the_sampler_decides():
    """A sampler sees the statement's attributes: they are given at the span's start."""
    seen = []

    class Watching(Sampler):
        def should_sample(self, parent_context, trace_id, name, kind=None, attributes=None, links=None):
            seen.append(dict(attributes or {}))
            return ALWAYS_ON.should_sample(parent_context, trace_id, name, kind, attributes, links)

        def get_description(self):
            return "watching"

    telemetry = Telemetry()
    telemetry.tracer_provider = TracerProvider(Watching(), shutdown_on_exit=False)
    with telemetry:
        Account.objects.count()
    assert {"db.system.name", "db.query.summary", "db.query.text", "db.namespace"} <= set(seen[-1])


def test_failed_statement_tells_sqlstate_class_and_one_event(telemetry):
    """An error is on its span by SQLSTATE, driver's class and CockroachDB class, and is one event."""
    with pytest.raises(DatabaseError), connection.cursor() as cursor:
        cursor.execute("SELECT 1/0 FROM account")
    span = telemetry.one("SELECT account")
    assert span.status.status_code is StatusCode.ERROR
    assert span.attributes["db.response.status_code"] == "22012"
    assert span.attributes["error.type"] == "22012"
    assert span.attributes["cockroachdb.error.class"] == "data"
    (event,) = span.events
    assert event.name == "db.client.operation.exception"
    driver = "psycopg" if is_psycopg3 else "psycopg2"
    assert event.attributes["exception.type"] == f"{driver}.errors.DivisionByZero"
    assert event.attributes["exception.message"] == "division by zero"
    (point,) = telemetry.points("cockroachdb.client.errors")
    assert (point.value, point.attributes["db.response.status_code"]) == (1, "22012")
    durations = telemetry.points("db.client.operation.duration")
    (failed,) = [point for point in durations if "error.type" in point.attributes]
    assert failed.attributes["error.type"] == "22012"


@pytest.mark.parametrize(("choice", "on_span", "as_record"), [("", 1, 0), ("logs", 0, 1), ("logs/dup", 1, 1)])
def test_exception_goes_where_the_opt_in_says(monkeypatch, choice, on_span, as_record):
    """``OTEL_SEMCONV_EXCEPTION_SIGNAL_OPT_IN`` sends the exception to the span, to the logs, or to both."""
    monkeypatch.setenv("OTEL_SEMCONV_EXCEPTION_SIGNAL_OPT_IN", choice)
    with Telemetry() as telemetry:
        with pytest.raises(DatabaseError), connection.cursor() as cursor:
            cursor.execute("SELECT nothing FROM account")
        span = telemetry.one("SELECT account")
        assert len(span.events) == on_span
        records = [r for r in telemetry.log_records if r.event_name == "db.client.operation.exception"]
        assert len(records) == as_record
        for record in records:
            assert record.span_id == span.context.span_id
            assert record.attributes["db.response.status_code"] == "42703"


def test_no_key_or_row_of_an_error_leaves(telemetry):
    """What PostgreSQL puts into an error's text (the duplicate key, the failing row) is nowhere."""
    Account.objects.create(email=f"{SECRET}@example.com")
    with pytest.raises(DatabaseError):
        Account.objects.create(email=f"{SECRET}@example.com")
    with pytest.raises(DatabaseError), connection.cursor() as cursor:
        cursor.execute("INSERT INTO account (email, balance) VALUES (%s, NULL)", [SECRET])
    with pytest.raises(DatabaseError), connection.cursor() as cursor:
        cursor.execute("SELECT CAST(%s AS integer)", [SECRET])
    assert SECRET not in telemetry.everything()
    assert len(telemetry.points("cockroachdb.client.errors")) == 3


def test_literals_in_the_text_are_masked(telemetry):
    """Values that the application put into the text are masked, and comments go."""
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT id FROM account WHERE email = '{SECRET}' AND balance > 77 -- {SECRET}")
    span = telemetry.one("SELECT account")
    assert span.attributes["db.query.text"] == "SELECT id FROM account WHERE email = ? AND balance > ?"
    assert SECRET not in telemetry.everything()


def test_bytes_and_composables_are_masked(telemetry):
    """Bytes and a driver's ``sql.SQL`` compositions, with values inside, have names and leak nothing."""
    if is_psycopg3:
        from psycopg import sql
    else:
        from psycopg2 import sql
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT id FROM account WHERE email = '{SECRET}'".encode())
        cursor.execute(
            sql.SQL("SELECT id FROM {} WHERE email = {}").format(
                sql.Identifier("account"), sql.Literal(SECRET)
            )
        )
        cursor.execute(sql.SQL("SELECT id FROM account"))
    texts = [span.attributes["db.query.text"] for span in telemetry.named("SELECT account")]
    assert texts == [
        "SELECT id FROM account WHERE email = ?",
        'SELECT id FROM "account" WHERE email = ?',
        "SELECT id FROM account",
    ]
    assert SECRET not in telemetry.everything()


@on_psycopg2
def test_execute_values_leaks_nothing(telemetry):
    """psycopg2's ``execute_values`` and ``execute_batch`` put values into the text: they are masked."""
    from psycopg2.extras import execute_batch, execute_values

    with connection.cursor() as cursor:
        rows = [(f"{SECRET}-{n}@example.com", n) for n in range(5)]
        execute_values(cursor, "INSERT INTO account (email, balance) VALUES %s", rows)
        execute_batch(cursor, "UPDATE account SET balance = %s WHERE email = %s", [(1, SECRET)] * 3)
    span = telemetry.one("INSERT account")
    assert span.attributes["db.query.text"] == "INSERT INTO account (email, balance) VALUES (?,?)"
    assert SECRET not in telemetry.everything()
    assert Account.objects.filter(email__startswith=SECRET).count() == 5


def test_executemany_is_a_batch(telemetry):
    """``executemany`` is one span ``BATCH …`` with its size; of one, it is a plain statement."""
    sql = "UPDATE account SET balance = %s WHERE email = %s"
    with connection.cursor() as cursor:
        cursor.executemany(sql, [(1, "a"), (2, "b"), (3, "c")])
        cursor.executemany(sql, [(1, "a")])
        cursor.executemany(sql, [])
        cursor.executemany(sql, ((n, "a") for n in range(2)))
    spans = telemetry.spans[-4:]
    assert [(span.name, span.attributes.get("db.operation.batch.size")) for span in spans] == [
        ("BATCH UPDATE account", 3),
        ("UPDATE account", None),
        ("BATCH UPDATE account", 0),
        ("BATCH UPDATE account", None),
    ]


def test_stored_procedure_has_its_name(telemetry):
    """``callproc`` is named after the procedure."""
    with connection.cursor() as cursor:
        cursor.callproc("abs", [-5])
        assert cursor.fetchone() == (5,)
    assert telemetry.one("CALL abs").attributes["db.stored_procedure.name"] == "abs"


@on_psycopg3
def test_copy_lasts_as_long_as_its_block(telemetry):
    """Psycopg 3's COPY is one span from the block's begin to its end, also where it fails."""
    with connection.cursor() as cursor:
        with cursor.copy("COPY account (email, balance) FROM STDIN") as copying:
            copying.write_row(("c@example.com", 5))
        with pytest.raises(Exception, match="relation"), cursor.copy("COPY nothing TO STDOUT") as copying:
            copying.read()
    assert Account.objects.count() == 3
    assert telemetry.one("COPY account").status.status_code is StatusCode.UNSET
    assert telemetry.one("COPY nothing").attributes["error.type"] == "42P01"


@on_psycopg3
def test_copy_on_a_debug_cursor(telemetry, settings_debug):
    """With Django logging its queries, COPY is seen as well."""
    with connection.cursor() as cursor, cursor.copy("COPY account TO STDOUT") as copying:
        assert list(copying)
    assert telemetry.names().count("COPY account") == 1


@on_psycopg2
@pytest.mark.parametrize("debug", [False, True])
def test_copy_of_psycopg2(telemetry, debug, request):
    """psycopg2's COPY functions are spans, on plain and on debug cursors."""
    if debug:
        request.getfixturevalue("settings_debug")
    with connection.cursor() as cursor:
        cursor.copy_expert("COPY account (email, balance) FROM STDIN", io.StringIO("c@example.com\t5\n"))
        cursor.copy_to(io.StringIO(), "account")
        cursor.copy_from(io.StringIO("d@example.com\t5\n"), "account", columns=("email", "balance"))
    assert Account.objects.count() == 4
    assert telemetry.names().count("COPY account") == 3


@pytest.fixture
def settings_debug():
    """Have Django log its queries."""
    connection.force_debug_cursor = True
    yield
    connection.force_debug_cursor = False


def test_debug_cursor_is_traced_once_and_still_logs(telemetry, settings_debug):
    """With query logging on there is one span a statement, and Django's log has it."""
    connection.queries_log.clear()
    Account.objects.count()
    assert telemetry.names().count("SELECT account") == 1
    assert len([query for query in connection.queries if "account" in query["sql"]]) == 1


def test_connection_opened_before_instrument_is_seen(accounts):
    """Connections and cursors that were there first are traced from ``instrument()`` on."""
    connection.ensure_connection()
    driver_connection = connection.connection
    with Telemetry() as telemetry:
        Account.objects.count()
        assert connection.connection is driver_connection
        assert telemetry.names() == ["SELECT account"]


def test_iterator_on_this_backend_is_a_plain_cursor_and_is_seen(telemetry):
    """``QuerySet.iterator()`` goes through ``chunked_cursor``, which is a plain traced cursor here."""
    assert len(list(Account.objects.iterator())) == 2
    assert telemetry.names().count("SELECT account") == 1


def test_backends_own_start_up_query_leaves_no_stray_span(accounts, monkeypatch):
    """django-cockroachdb counts itself on the raw driver cursor: no span of ours, and it goes through."""
    import django_cockroachdb.base as backend

    connection.close()
    monkeypatch.setattr(backend, "RAN_TELEMETRY_QUERY", False)
    with Telemetry() as telemetry:
        Account.objects.count()
        assert backend.RAN_TELEMETRY_QUERY
        assert [name for name in telemetry.names() if "increment" in name] == []


def test_execute_wrappers_stay_the_applications(telemetry):
    """Nothing of ours is in ``execute_wrappers``, and what an application puts there works as before."""
    seen = []

    def wrapper(execute, sql, params, many, context):
        seen.append(sql)
        return execute(f"{sql} /* wrapped */", params, many, context)

    assert connection.execute_wrappers == []
    with connection.execute_wrapper(wrapper):
        Account.objects.count()
    assert len(seen) == 1
    assert "wrapped" not in telemetry.one("SELECT account").attributes["db.query.text"]


def test_driver_functions_that_insist_on_their_own_objects(telemetry):
    """Connections and cursors stay the driver's own: no proxy that its C functions would refuse."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
        if is_psycopg3:
            from psycopg.types.json import set_json_dumps

            set_json_dumps(None, cursor.cursor)
            assert type(connection.connection).__module__.startswith("psycopg")
        else:
            import psycopg2.extensions
            import psycopg2.extras

            psycopg2.extensions.register_type(psycopg2.extensions.UNICODE, connection.connection)
            psycopg2.extensions.register_type(psycopg2.extensions.UNICODE, cursor.cursor)
            psycopg2.extras.register_uuid(conn_or_curs=connection.connection)
            assert psycopg2.extensions.quote_ident("a", cursor.cursor) == '"a"'


def test_backend_is_known_by_its_class_not_its_vendor(telemetry):
    """A subclass of django-cockroachdb's wrapper under any vendor name is traced."""
    from django_cockroachdb.base import DatabaseWrapper

    class Renamed(DatabaseWrapper):
        vendor = "ours"

    assert isinstance(connections["default"], PostgresWrapper)
    assert connection.vendor == "cockroachdb"
    wrapper = Renamed(connection.settings_dict, "renamed")
    try:
        with wrapper.cursor() as cursor:
            cursor.execute("SELECT id FROM account")
    finally:
        wrapper.close()
    assert telemetry.names().count("SELECT account") == 1


def test_other_backends_of_a_mixed_project_are_left_alone(telemetry):
    """Statements on an alias of another backend make no span."""
    with connections["sqlite"].cursor() as cursor:
        cursor.execute("SELECT 1")
        assert cursor.fetchone() == (1,)
    assert telemetry.names() == []


def test_suppressed_statements_leave_no_span(telemetry):
    """``suppress_instrumentation()`` silences statements, and the transaction's record goes on."""
    with suppress_instrumentation():
        Account.objects.count()
    assert "SELECT account" not in telemetry.names()


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_interrupt_within_a_statement_is_not_a_success(telemetry, error, monkeypatch):
    """An exception that is no ``Exception`` ends the span and its data point as the failure it is."""
    with connection.cursor() as cursor:

        class Interrupted:
            def __getattr__(self, name):
                return getattr(cursor.cursor, name)

            def execute(self, *args):
                raise error

        driver_cursor, cursor.cursor = cursor.cursor, Interrupted()
        with pytest.raises(error):
            cursor.execute("SELECT id FROM account")
        cursor.cursor = driver_cursor
    span = telemetry.one("SELECT account")
    assert span.attributes["error.type"] == error.__name__
    assert span.status.status_code is StatusCode.ERROR
    points = telemetry.points("db.client.operation.duration")
    assert [p.attributes["error.type"] for p in points if "error.type" in p.attributes] == [error.__name__]


def test_killed_session_is_told_by_class(telemetry):
    """A session that the server ended is known by class, whatever SQLSTATE the driver has."""
    connection.ensure_connection()
    cut(connection)
    with pytest.raises(DatabaseError):
        Account.objects.count()
    span = telemetry.one("SELECT account")
    assert span.attributes["cockroachdb.error.class"] in {"unavailable", "connection"}


def test_summary_is_capped_on_metrics(telemetry, monkeypatch):
    """Beyond the cap on distinct summaries, data points tell the operation alone."""
    from otel_crdb import metrics

    monkeypatch.setattr(metrics, "SUMMARY_LIMIT", 2)
    with connection.cursor() as cursor:
        for number in range(5):
            with pytest.raises(ProgrammingError):
                cursor.execute(f"SELECT 1 FROM t{number}")
    points = telemetry.points("db.client.operation.duration")
    summaries = {point.attributes["db.query.summary"] for point in points}
    assert len([summary for summary in summaries if summary.startswith("SELECT t")]) <= 2
    assert "SELECT" in summaries


def test_statement_after_an_old_error_is_judged_by_itself(telemetry):
    """An error met while the application deals with an older one is told by its own SQLSTATE."""
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1/0 FROM account")
    except DatabaseError:
        with pytest.raises(DatabaseError), connection.cursor() as cursor:
            cursor.execute("SELECT nothing FROM account")
    codes = [span.attributes["error.type"] for span in telemetry.named("SELECT account")]
    assert codes == ["22012", "42703"]


def test_object_that_cannot_be_rendered_is_the_applications_error(telemetry):
    """A composition that cannot be rendered fails as before, and is no fault of ours."""
    from otel_crdb import hooks

    if is_psycopg3:
        from psycopg import sql
    else:
        from psycopg2 import sql
    faults = dict(hooks.faults)
    with pytest.raises(Exception, match="adapt"), connection.cursor() as cursor:
        cursor.execute(sql.SQL("SELECT {}").format(sql.Literal(object())))
    assert dict(hooks.faults) == faults


@on_psycopg3
def test_copy_that_fails_within_its_block_is_an_error(telemetry):
    """An error after COPY has begun is on its span."""
    with pytest.raises(DatabaseError), connection.cursor() as cursor:
        with connection.wrap_database_errors, cursor.copy("COPY account (balance) FROM STDIN") as copying:
            copying.write(b"not a number\n")
    assert telemetry.one("COPY account").attributes["db.response.status_code"] == "22P02"


def test_text_is_cut_to_the_limit():
    """``query_text_limit`` cuts at a word and says so."""
    with Telemetry(query_text_limit=20) as telemetry:
        with connection.cursor() as cursor:
            cursor.execute("SELECT id, email FROM account WHERE balance > 5")
        assert telemetry.one("SELECT account").attributes["db.query.text"] == "SELECT id, email …"
