# SPDX-License-Identifier: Apache-2.0
"""CockroachTxnFilter: every record gets its fields, none of them is overwritten, what is secret is masked."""

import copy
import logging
import logging.handlers
import os
import queue
import subprocess
import sys

import pytest
from django.db import IntegrityError, connection, transaction
from opentelemetry import context as context_api
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

from otel_crdb import hooks, state
from otel_crdb.logs import CockroachTxnFilter, fields
from otel_crdb.state import LastError, RequestRecord, last_error, late_request

from .project.models import Account
from .telemetry import Telemetry

#: What the documentation tells people to use.
FORMAT = (
    "%(asctime)s [%(levelname)s] %(name)s trace_id=%(trace_id)s txn_id=%(txn_id)s db=%(db)s "
    'query="%(sql)s" params=%(params)s error_code=%(error_code)s %(message)s'
)
ALL = (*fields.TRACE_FIELDS, *fields.STATEMENT_FIELDS)


class Kept(logging.Handler):
    """Keeps the records that it is handed, and the lines that they make."""

    def __init__(self):
        super().__init__()
        self.records, self.lines = [], []
        self.setFormatter(logging.Formatter(FORMAT))
        self.addFilter(CockroachTxnFilter())

    def emit(self, record):
        self.records.append(record)
        self.lines.append(self.format(record))


@pytest.fixture
def kept():
    """What a logger wrote: through a handler with the filter."""
    return Kept()


@pytest.fixture
def log(kept):
    """A logger that writes to it alone."""
    logger = logging.getLogger("bank.transfers")
    logger.handlers, logger.propagate, logger.level = [kept], False, logging.DEBUG
    yield logger
    logger.handlers, logger.propagate, logger.level = [], True, logging.NOTSET


class Unwritable:
    """An argument that cannot be written."""

    def __str__(self):
        raise RuntimeError("no")

    __repr__ = __str__


ODD_RECORDS = [
    {},
    {"name": None, "levelno": None},
    {"msg": "paid %d", "args": ("much",)},
    {"msg": "paid %s %s", "args": ("one",)},
    {"msg": "100%", "args": (1,)},
    {"msg": Unwritable()},
    {"msg": "%s", "args": (Unwritable(),)},
    {"msg": "%(a)s", "args": {"b": 1}},
    {"msg": {"a": 1}, "args": None},
    {"msg": None},
    {"levelno": "high"},
    {"exc_info": True},
    {"exc_info": ValueError("alone")},
    {"exc_info": (ValueError, ValueError("x"), None)},
    {"exc_info": (None, None, None)},
    {"name": "django.db.backends", "sql": None, "params": Unwritable()},
    {"name": "django.db.backends", "sql": b"SELECT 1", "duration": "long"},
    {"name": "django.db.backends.schema", "sql": "SELECT 1", "params": {"a": 1}},
]


@pytest.mark.parametrize("made", ODD_RECORDS, ids=range(len(ODD_RECORDS)))
def test_the_format_works_on_every_record(kept, made):
    """Whatever a record is made of, the documented format writes it, and nothing of ours fails."""
    before = hooks.fault_counts()
    kept.handle(logging.makeLogRecord(made))
    (line,) = kept.lines
    assert "trace_id= txn_id=" in line
    assert {name: getattr(kept.records[0], name) for name in fields.TRACE_FIELDS if name != "error_code"}
    assert hooks.fault_counts() == before


def test_arguments_that_do_not_fit_lose_no_line(log, kept):
    """A line whose arguments do not fit is written, with what they are, in place of an error on stderr."""
    log.info("paid %d", "much")
    assert kept.lines[0].endswith("paid %d [arguments that do not fit: ['much']]")


def test_ids_are_those_of_the_current_span(log, kept):
    """Ids are lower hex of full length; an unsampled span's flags say so; without a span they are empty."""
    for sampler, sampled in ((None, True), (ALWAYS_OFF, False)):
        tracer = TracerProvider(sampler, shutdown_on_exit=False).get_tracer("application")
        with tracer.start_as_current_span("work") as span:
            log.info("inside")
        record, told = kept.records[-1], span.get_span_context()
        ids = (f"{told.trace_id:032x}", f"{told.span_id:016x}", f"{told.trace_flags:02x}")
        assert (record.trace_id, record.span_id, record.trace_flags) == ids
        assert bool(int(record.trace_flags, 16) & 1) is sampled
    log.info("outside")
    assert [getattr(kept.records[-1], name) for name in ALL] == [""] * len(ALL)


def test_what_a_record_has_is_never_overwritten(log, kept):
    """Fields of the application's own stay; beside a foreign trace id stands no span id of another trace."""
    tracer = TracerProvider(shutdown_on_exit=False).get_tracer("application")
    with tracer.start_as_current_span("work"):
        log.warning("own", extra={"trace_id": "mine", "db": "shard-7", "error_code": "E1", "sql": "mine"})
    record = kept.records[0]
    assert (record.trace_id, record.db, record.error_code, record.sql) == ("mine", "shard-7", "E1", "mine")
    assert (record.span_id, record.trace_flags) == ("", "")
    again = copy.copy(record)
    kept.handle(again)
    assert vars(again) == vars(record)


def test_a_request_whose_span_has_ended(log, kept):
    """A line that is logged after the request's span has ended has its ids, unless a span is current."""
    tracer = TracerProvider(shutdown_on_exit=False).get_tracer("application")
    ended = tracer.start_span("GET /")
    token = late_request.set(RequestRecord(None, span_context=ended.get_span_context()))
    try:
        log.warning("Not Found: /x")
        with tracer.start_as_current_span("later") as later:
            log.info("within")
    finally:
        late_request.reset(token)
    assert kept.records[0].span_id == f"{ended.get_span_context().span_id:016x}"
    assert kept.records[1].span_id == f"{later.get_span_context().span_id:016x}"


@pytest.mark.usefixtures("accounts", "telemetry")
def test_a_transaction_is_named(log, kept):
    """Within a transaction a line has its id, its attempt and its alias, and after it none."""
    with transaction.atomic():
        Account.objects.filter(email="a@example.com").update(balance=1)
        log.info("within")
        work = state.open_work.stack[-1]
    log.info("after")
    within, after = kept.records
    assert (within.txn_id, within.txn_attempt, within.db) == (work.id, 1, "default")
    assert (after.txn_id, after.txn_attempt, after.db) == ("", "", "")


@pytest.fixture
def earlier_error():
    """A database error that nothing has succeeded after."""
    token = last_error.set(LastError("23505", "constraint", "other"))
    yield
    last_error.reset(token)


@pytest.mark.usefixtures("accounts")
def test_code_of_the_exception(log, kept, earlier_error):
    """The SQLSTATE is that of the exception's chain before that of an earlier error."""
    try:
        try:
            with connection.cursor() as cursor:
                cursor.execute("SELECT 1/0")
        except Exception as error:
            raise RuntimeError("the view's own") from error
    except RuntimeError:
        log.info("failed", exc_info=True)
    assert (kept.records[0].error_code, kept.records[0].db) == ("22012", "")


def test_code_of_the_last_error(log, kept, earlier_error):
    """Without an exception, or with one of another kind, the code is that of the context's last error."""
    log.warning("swallowed")
    log.error("odd", exc_info=ValueError("x"))
    told = [(each.error_code, each.error_class, each.db) for each in kept.records]
    assert told == [("23505", "constraint", "other")] * 2


@pytest.mark.parametrize(
    ("message", "level", "code", "error_class"),
    [
        ("failed, SQLSTATE 40003", logging.WARNING, "40003", "ambiguous"),
        ("failed (SQLSTATE: 40001)", logging.ERROR, "40001", "retryable"),
        ("error_code=57014", logging.WARNING, "57014", "cancelled"),
        ("pgcode='23505'", logging.WARNING, "23505", "constraint"),
        ("restart transaction: TransactionRetryWithProtoRefreshError", logging.WARNING, "40001", "retryable"),
        ("restart transaction: x", logging.INFO, "", ""),
        ("error code: LOGIN failed", logging.ERROR, "", ""),
        ("order 40001 was paid", logging.ERROR, "", ""),
    ],
)
def test_code_of_the_message(log, kept, message, level, code, error_class):
    """The message is searched for a code at WARNING and above; a bare number is none."""
    log.log(level, message)
    assert (kept.records[0].error_code, kept.records[0].error_class) == (code, error_class)


@pytest.mark.usefixtures("accounts", "telemetry")
def test_one_look_at_the_context(log, kept, monkeypatch):
    """A record costs one look-up of OpenTelemetry's context, within a transaction too."""
    looks, real = [], context_api.get_current
    monkeypatch.setattr(context_api, "get_current", lambda: (looks.append(1), real())[1])
    with transaction.atomic():
        Account.objects.count()
        looks.clear()
        log.info("paid")
        assert len(looks) == 1


def test_the_service_is_that_of_the_resource_in_force(log, kept, monkeypatch):
    """The service's name follows instrument() and uninstrument()."""
    monkeypatch.setenv("OTEL_SERVICE_NAME", "bank")
    log.info("before")
    with Telemetry():
        log.info("within")
    log.info("after")
    assert [record.service for record in kept.records] == ["", "bank", ""]


# --- Django's records of statements -------------------------------------------------------------


@pytest.fixture
def statements(kept):
    """Django's logger of statements, at work."""
    logger = logging.getLogger("django.db.backends")
    level, handlers, propagate = logger.level, logger.handlers, logger.propagate
    logger.level, logger.handlers, logger.propagate = logging.DEBUG, [kept], False
    logger.manager._clear_cache()
    connection.force_debug_cursor = True
    yield logger
    connection.force_debug_cursor = False
    logger.level, logger.handlers, logger.propagate = level, handlers, propagate
    logger.manager._clear_cache()


@pytest.mark.usefixtures("accounts", "telemetry")
def test_statements_are_told_without_their_values(statements, kept):
    """Neither literals nor parameters are in line, fields or arguments; Django's query log keeps its own."""
    before = len(connection.queries_log)
    list(Account.objects.filter(email="ann@example.com", balance__gt=4242))
    record, line = kept.records[-1], kept.lines[-1]
    for text in (line, record.sql, str(record.params), str(record.args), record.getMessage()):
        assert "ann" not in text
        assert "4242" not in text
    assert record.db == record.alias == "default"
    assert record.duration >= 0
    assert 'query="SELECT' in line
    assert line.count("FROM") == 2  # the message tells the statement too
    assert any("4242" in query["sql"] for query in list(connection.queries_log)[before:])


@pytest.mark.usefixtures("accounts")
def test_parameters_where_they_are_asked_for(statements, kept):
    """With query_parameters they are told by their place, save where the statement names a secret column."""
    with Telemetry(query_parameters=True), connection.cursor() as cursor:
        cursor.execute("SELECT %s::int, %s::text", [4242, "ann@example.com"])
        told = kept.records[-1]
        cursor.execute("SELECT 1 AS password WHERE %s = 'x'", ["hunter2"])
    assert told.params == (4242, "…")
    assert "4242" not in told.sql
    assert "hunter2" not in kept.lines[-1]
    assert kept.records[-1].params == "(…)"


@pytest.mark.usefixtures("accounts")
def test_a_statement_that_a_queue_has_written_out(statements, kept):
    """A record whose message was put together before the filter saw it loses its values all the same."""
    statements.handlers = [logging.handlers.QueueHandler(queue.SimpleQueue())]
    list(Account.objects.filter(email="ann@example.com"))
    record = statements.handlers[0].queue.get()
    assert "ann" in record.getMessage()
    kept.handle(record)
    assert "ann" not in kept.lines[-1]


# --- secrets -------------------------------------------------------------------------------------


def test_secrets_in_message_and_arguments(log, kept):
    """A secret is masked in message and arguments, which stay arguments where they can."""
    log.info("password=%s for %d", "hunter2", 7)
    log.info('%s - "%s %s HTTP/%s" %d', "10.0.0.1:5", "GET", "/?token=hunter2", "1.1", 200)
    log.info("user %(user)s %(password)s", {"user": "ann", "password": "hunter2"})
    assert "hunter2" not in "".join(kept.lines)
    whole, parts, named = kept.records
    assert (whole.msg, whole.args) == ("password=… for 7", None)
    assert parts.args[1:3] + parts.args[4:] == ("GET", "/?token=…", 200)
    assert named.getMessage() == "user ann …"


def test_a_record_without_secrets_is_left_as_it_is(log, kept):
    """Message, arguments and exception of a record with nothing to hide are the very objects."""
    args, error = (["a", Account(email="x")],), ValueError("plain")
    log.error("paid %s", *args, exc_info=error)
    record = kept.records[0]
    assert record.msg == "paid %s"
    assert record.args[0] is args[0]
    assert record.exc_info[1] is error


def test_stack_without_rows(accounts, log, kept):
    """The key that the server tells in DETAIL is in no line; the exception itself is untouched."""
    with pytest.raises(IntegrityError, match=r"a@example\.com") as raised:
        Account.objects.create(email="a@example.com", balance=1)
    log.error("failed: %s", raised.value, exc_info=raised.value)
    (line,), (record,) = kept.lines, kept.records
    assert "a@example.com" not in line
    assert "duplicate key value" in line
    assert "test_log_filter.py" in line
    assert record.error_code == "23505"


def test_cached_stack_and_stack_info(kept):
    """What another handler has cached is masked as well."""
    kept.handle(logging.makeLogRecord({"exc_text": "E: password=hunter2", "stack_info": "token=hunter2"}))
    assert "hunter2" not in kept.lines[0]


# --- the filter itself ---------------------------------------------------------------------------


def test_a_defect_of_ours_loses_nothing(log, kept, monkeypatch):
    """Where our own code fails, the record passes with empty fields, and the fault is counted."""
    monkeypatch.setattr(fields.state, "open_work", None)
    monkeypatch.setitem(hooks.faults, "CockroachTxnFilter", 1)
    log.info("paid")
    assert kept.lines[0].endswith("paid")
    assert [getattr(kept.records[0], name) for name in ALL] == [""] * len(ALL)
    assert hooks.faults["CockroachTxnFilter"] == 2


@pytest.mark.parametrize(
    ("of", "passes"), [("", True), ("bank", True), ("bank.transfers", True), ("ban", False), ("shop", False)]
)
def test_the_name_of_the_filter(of, passes):
    """A filter with a name lets the records of that logger and of those below it pass, and no others."""
    record = logging.makeLogRecord({"name": "bank.transfers"})
    assert CockroachTxnFilter(of).filter(record) is passes


def test_a_listener_in_another_thread(log, kept):
    """The ids are those of the thread that logged, when a queue's listener writes the line."""
    waiting = queue.SimpleQueue()
    log.handlers = [logging.handlers.QueueHandler(waiting)]
    log.handlers[0].addFilter(CockroachTxnFilter())
    listener = logging.handlers.QueueListener(waiting, kept)
    listener.start()
    tracer = TracerProvider(shutdown_on_exit=False).get_tracer("application")
    with tracer.start_as_current_span("work") as span:
        log.info("queued")
    listener.stop()
    assert kept.records[0].trace_id == trace.format_trace_id(span.get_span_context().trace_id)


@pytest.mark.parametrize("nonsense", [{}, {"OTEL_SPAN_EVENT_COUNT_LIMIT": "many"}])
def test_settings_may_import_it(nonsense, tmp_path):
    """A LOGGING that names everything here works from the settings, before Django or a provider is there."""
    (tmp_path / "settings.py").write_text(
        "import otel_crdb.logs\n"
        "from otel_crdb.logs import CockroachTxnFilter\n"
        "SECRET_KEY, USE_TZ = 'x', True\n"
        "LOGGING = {'version': 1, 'filters': {'ids': {'()': CockroachTxnFilter}},\n"
        "  'formatters': {'json': {'()': 'otel_crdb.logs.JSONFormatter', 'limit': 4096},\n"
        "                 'plain': {'class': 'otel_crdb.logs.VerboseFormatter'}},\n"
        "  'handlers': {'a': {'class': 'logging.StreamHandler', 'formatter': 'json', 'filters': ['ids']},\n"
        "               'b': {'class': 'logging.StreamHandler', 'formatter': 'plain'},\n"
        "               'c': {'class': 'otel_crdb.logs.OTLPHandler', 'level': 'INFO'}},\n"
        "  'root': {'handlers': ['a', 'b', 'c']}}\n"
    )
    code = "import django; django.setup(); import logging; logging.getLogger('bank').warning('started')"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={**os.environ, "DJANGO_SETTINGS_MODULE": "settings", "PYTHONPATH": str(tmp_path), **nonsense},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    lines = [line for line in done.stderr.splitlines() if "started" in line]
    assert len(lines) == 2
    assert lines[0].startswith("{")
