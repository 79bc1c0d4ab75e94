# SPDX-License-Identifier: Apache-2.0
"""Telemetry never breaks the call: every hook there is, made to fail, changes no result."""

import asyncio
import contextlib
import io
import logging
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.base import BaseHandler
from django.db import DatabaseError, connection, transaction
from django.db.backends.postgresql.psycopg_any import is_psycopg3
from django.test import Client, RequestFactory
from django_cockroachdb.base import DatabaseWrapper
from opentelemetry import context, trace

import otel_crdb
from otel_crdb import cursors, hooks, recording, retry_view, run_transaction, view_answers
from otel_crdb.logs import CockroachTxnFilter, JSONFormatter, VerboseFormatter

from .project.models import Account
from .retried_views import atomic_requests
from .servers import conflicting, earn
from .telemetry import Telemetry

pytestmark = pytest.mark.usefixtures("accounts")


class BoomError(Exception):
    """A defect of ours."""


def boom(*_args, **_kwargs):
    raise BoomError


class Failing:
    """An operation that fails when it ends."""

    finish = staticmethod(boom)


#: What an application may have called: without it their hooks would have nothing to fail at.
CALL_BACKS = {
    name: lambda *_: None for name in ("request_hook", "response_hook", "transaction_hook", "statement_hook")
}


def outcome(call):
    """Return what a call returned, or what it raised."""
    try:
        return call()
    except DatabaseError as error:
        return type(error)


def copy():
    with connection.cursor() as cursor:
        if is_psycopg3:
            with cursor.copy("COPY account (email, balance) TO STDOUT") as copying:
                return sorted(bytes(row) for row in copying)
        out, back = io.StringIO(), io.StringIO("c@example.com\t5\n")
        cursor.copy_expert("COPY account (email, balance) TO STDOUT", out)
        cursor.copy_to(io.StringIO(), "account")
        cursor.copy_from(back, "account", columns=("email", "balance"))
        return sorted(out.getvalue().splitlines())


def call_procedure():
    with connection.cursor() as cursor:
        cursor.callproc("abs", [-1])
        return cursor.fetchall()


def execute_many():
    with connection.cursor() as cursor:
        cursor.executemany("UPDATE account SET balance = %s WHERE email = %s", [(1, "a"), (2, "b")])


def pay_in_a_block():
    with transaction.atomic():
        with transaction.atomic():
            Account.objects.filter(email="a@example.com").update(balance=1)
    return Account.objects.get(email="a@example.com").balance


def fail_in_a_block():
    with transaction.atomic():
        Account.objects.create(email="a@example.com")


def ask_for_rollback():
    with transaction.atomic():
        Account.objects.update(balance=0)
        transaction.set_rollback(True)


def close_in_a_block():
    with transaction.atomic():
        Account.objects.update(balance=0)
        connection.close()


def retry():
    return run_transaction(conflicting(1), backoff_base=0)


def exhaust():
    return run_transaction(conflicting(9), backoff_base=0, max_attempts=2)


def fail_after_commit():
    return run_transaction(lambda: (earn(), transaction.on_commit(fail_in_a_block)))


def refuse_view():
    @retry_view(backoff_base=0)
    def view(request):
        request.read()
        return pay()

    pay = conflicting(1)
    return view(RequestFactory().post("/"))


def ask_for_atomic_view():
    with atomic_requests("default"):
        return ask("/read/")


def debug_query():
    connection.force_debug_cursor = True
    try:
        return Account.objects.count()
    finally:
        connection.force_debug_cursor = False


def log_a_line(formatter=None):
    """Log through the filter, as a handler of the application's has it."""
    out = io.StringIO()
    handler = logging.StreamHandler(out)
    handler.addFilter(CockroachTxnFilter())
    handler.setFormatter(formatter)
    logger = logging.getLogger("bank")
    logger.addHandler(handler)
    try:
        logger.warning("paid %d", 3)
    finally:
        logger.removeHandler(handler)
    return "paid 3" in out.getvalue() or "could not write this record" in out.getvalue()


def work_in_threads():
    """Have something done by a thread and by an executor, within a span."""
    results = []
    with trace.use_span(trace.NonRecordingSpan(trace.SpanContext(1, 1, is_remote=False))):
        thread = threading.Thread(target=results.append, args=(1,))
        thread.start()
        thread.join()
        with ThreadPoolExecutor(1) as executor:
            results.append(executor.submit(sum, [1, 2]).result())
    return results


def ask_by_asgi():
    """Ask Django's ASGI handler itself: its test client goes past what answers."""
    sent = []

    async def talk():
        requests = [{"type": "http.request", "body": b""}]

        async def receive():
            return requests.pop() if requests else await asyncio.Event().wait()

        async def send(message):
            sent.append(message)

        scope = {"type": "http", "method": "GET", "path": "/async/", "headers": [(b"host", b"testserver")]}
        await ASGIHandler()(scope, receive, send)

    asyncio.run(talk())
    return [message["status"] for message in sent if "status" in message]


def ask(path, **headers):
    client = Client(raise_request_exception=False)
    response = client.get(path, **headers)
    body = b"".join(response.streaming_content) if response.streaming else response.content
    return response.status_code, body if response.status_code == 200 else b""


def day():
    """Do one of everything that is observed, and return every result."""
    connection.close()
    return [
        outcome(Account.objects.count),
        outcome(pay_in_a_block),
        outcome(fail_in_a_block),
        outcome(ask_for_rollback),
        outcome(close_in_a_block),
        outcome(retry),
        outcome(exhaust),
        outcome(fail_after_commit),
        outcome(refuse_view),
        outcome(ask_for_atomic_view),
        outcome(execute_many),
        outcome(call_procedure),
        outcome(copy),
        outcome(debug_query),
        [log_a_line(formatter) for formatter in (None, VerboseFormatter(), JSONFormatter())],
        work_in_threads(),
        ask_by_asgi(),
        ask("/transfer/3/"),
        ask("/stream/"),
        ask("/broken/"),
        ask("/nothing/", HTTP_HOST="evil.example.com"),
        sorted(Account.objects.filter(email__in=["a@example.com", "b@example.com"]).values_list("balance")),
    ]


@pytest.fixture
def expected(accounts):
    """What the day brings without us."""
    logging.getLogger("django.request").setLevel(logging.CRITICAL)
    logging.getLogger("django.security.DisallowedHost").setLevel(logging.CRITICAL)
    yield day()
    logging.getLogger("django.request").setLevel(logging.NOTSET)
    logging.getLogger("django.security.DisallowedHost").setLevel(logging.NOTSET)


@pytest.fixture
def own_context():
    """Put the context back: a hook that fails as a block is closed may leave that block's span current."""
    before = context.get_current()
    yield
    context.attach(before)


#: What only one driver's cursors have.
OF_PSYCOPG2 = {"CursorWrapper.copy_expert", "CursorWrapper.copy_from", "CursorWrapper.copy_to"}
OF_PSYCOPG3 = {"CursorWrapper.copy"}
NOT_HERE = OF_PSYCOPG2 if is_psycopg3 else OF_PSYCOPG3


@pytest.mark.parametrize("moment", ["begin", "finish"])
@pytest.mark.parametrize("name", sorted(hooks.REGISTRY))
def test_hook_that_fails_changes_no_result(expected, own_context, monkeypatch, caplog, name, moment):
    """A hook that raises, as it begins or as it ends, changes nothing; its fault is counted, logged once."""
    hook = hooks.REGISTRY[name]
    begin, operations = hook.begin, []
    monkeypatch.setattr(hooks, "faults", type(hooks.faults)())
    if moment == "begin":
        monkeypatch.setattr(hook, "begin", boom)
    else:

        def begin_and_fail_later(*args, **kwargs):
            operation = begin(*args, **kwargs)
            if not hasattr(operation, "finish"):
                return operation
            operations.append(operation)
            return FailingAtTheEnd(operation)

        monkeypatch.setattr(hook, "begin", begin_and_fail_later)
    Account.objects.filter(email="c@example.com").delete()
    Account.objects.update(balance=100)
    options = {"python_logs": True, "sql_comments": True, "query_parameters": True}
    instrumented = Telemetry(retry_atomic_requests=True, **options, **CALL_BACKS)
    with instrumented as telemetry, caplog.at_level(logging.ERROR, "otel_crdb"):
        assert day() == expected
        if name in NOT_HERE or (moment == "finish" and not operations):
            return  # another driver's, or a hook that has no end of its own
        assert hooks.faults[name] > 0
        points = telemetry.points("otel_crdb.hook.faults")
        assert {p.attributes["otel_crdb.hook.name"]: p.value for p in points}[name] == hooks.faults[name]
        said = [record.getMessage() for record in caplog.records if record.name == "otel_crdb.hooks"]
        assert len([message for message in said if name in message]) == 1


class FailingAtTheEnd:
    """An operation that does what it should and then fails."""

    def __init__(self, operation):
        self.operation = operation

    def __getattr__(self, name):
        return getattr(self.operation, name)

    def finish(self, result, error):
        with contextlib.suppress(BoomError):
            self.operation.finish(result, error)
        raise BoomError


def test_everything_that_instrument_changes_is_a_guarded_hook(accounts):
    """Each method that ``instrument()`` puts in on Django's classes goes through a hook of the registry."""
    classes = (DatabaseWrapper, BaseHandler)
    view_answers.ensure()  # for good, wherever views are retried: no telemetry, but what they answer
    before = {cls: dict(vars(cls)) for cls in classes}
    with Telemetry(retry_atomic_requests=True, **CALL_BACKS):
        changed = {
            name: value
            for cls in classes
            for name, value in vars(cls).items()
            if before[cls].get(name) is not value
        }
    assert set(changed) == {*recording.WRAPPER_HOOKS, "make_view_atomic"}
    for value in changed.values():
        assert hooks.REGISTRY[value.hook.name] is value.hook


def test_every_method_of_the_traced_cursor_is_a_guarded_hook():
    """No method of the traced cursor runs code of ours outside a hook."""
    methods = {name: value for name, value in vars(cursors.TracedCursor).items() if callable(value)}
    methods.pop("__getattr__")
    for value in methods.values():
        assert hooks.REGISTRY[value.hook.name] is value.hook


def test_databases_error_does_not_hide_in_a_fault(accounts, monkeypatch, caplog):
    """The log line of a fault does not take the database's error, with its row, along."""

    def fail(*_args, **_kwargs):
        raise BoomError

    monkeypatch.setattr(hooks, "faults", type(hooks.faults)())
    monkeypatch.setattr("otel_crdb.operations.events.database_error", fail)
    with Telemetry(), pytest.raises(DatabaseError):
        Account.objects.create(email="a@example.com")
    assert hooks.faults["CursorWrapper._execute"] == 1
    assert "BoomError" in caplog.text
    assert "a@example.com" not in caplog.text


def test_span_ends_and_context_is_put_back_where_a_hook_fails(accounts, monkeypatch):
    """A fault while an error is told leaves no span current behind it."""
    monkeypatch.setattr("otel_crdb.operations.events.database_error", boom)
    with Telemetry(), pytest.raises(DatabaseError), transaction.atomic():
        Account.objects.create(email="a@example.com")
    assert trace.get_current_span() is trace.INVALID_SPAN
    assert otel_crdb.flush()
