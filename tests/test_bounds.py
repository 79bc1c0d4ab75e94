# SPDX-License-Identifier: Apache-2.0
"""Memory stays flat and series stay few, however many texts, names, errors, paths and threads there are.

``OTEL_CRDB_TEST_BOUNDS=long`` is 100,000 statement texts and an hour's worth of requests; without it, a part of them.
"""

import gc
import logging
import threading
import tracemalloc
import weakref

import pytest
from django.conf import settings
from django.core.handlers.wsgi import WSGIHandler
from django.db import DatabaseError, connection, connections, transaction
from django.http import HttpResponse
from django.test import Client, RequestFactory
from django.urls import clear_url_caches, path
from opentelemetry.sdk.trace import TracerProvider

import otel_crdb
from otel_crdb import statements
from otel_crdb.requests import RequestMiddleware
from otel_crdb.statements import CACHE_BYTES, cache_info, describe

from .hostile import LONG
from .project import urls, views
from .project.models import Account
from .servers import needs_postgresql
from .telemetry import Telemetry

pytestmark = pytest.mark.usefixtures("accounts", "quiet_requests")

TEXTS = 100_000 if LONG else 20_000
NAMES = 10_000 if LONG else 450
REQUESTS = 36_000 if LONG else 1_200
TIMES = 2_000 if LONG else 60
#: Data points of one metric in one process, whatever one thing is made up without end.
POINTS_LIMIT = 300
#: With texts that are all new, what of them the cache may take meanwhile.
CACHED = CACHE_BYTES if LONG else 512 * 1024
#: What may come and go: pools of Python's own, dictionaries that grow by doubling.
SLACK = 128 * 1024


@pytest.fixture
def unkept(monkeypatch):
    """Instrumented, with spans that are made and not kept; metrics are."""
    monkeypatch.setenv("OTEL_SEMCONV_STABILITY_OPT_IN", "http")
    telemetry = Telemetry(log_limit=5)
    telemetry.tracer_provider = TracerProvider(shutdown_on_exit=False)
    database_log = logging.getLogger("otel_crdb.db")
    monkeypatch.setattr(database_log, "filters", [lambda record: False])  # pytest keeps each line
    with telemetry:
        yield telemetry


def grown(work, count, warm=0):
    """Do ``work(n)`` again and again; return by how many bytes memory grew over the second half of ``count``.

    Memory is watched from the beginning on: what the second half leaves in place of what the first had left is
    no growth. ``warm`` makes the first half longer.
    """
    half = max(count // 2, warm)
    tracemalloc.start()
    try:
        for number in range(half):
            work(number)
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        for number in range(half, half + count // 2):
            work(number)
        gc.collect()
        return tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()


def series(telemetry):
    """Return the number of data points of each metric, contrib's too."""
    data = telemetry.metric_reader.get_metrics_data()
    return {
        metric.name: len(metric.data.data_points)
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
    }


def assert_few(telemetry):
    """No metric has more data points than the limit."""
    counts = series(telemetry)
    assert counts
    assert max(counts.values()) <= POINTS_LIMIT, counts


# Statements


@pytest.fixture
def _empty_cache():
    statements.cache_clear()
    yield
    statements.cache_clear()


@pytest.mark.usefixtures("_empty_cache")
def test_distinct_texts_fill_the_cache_and_nothing_else():
    """100,000 texts, one after another, leave no more in the cache than it is allowed, and the last ones."""
    for number in range(TEXTS):
        describe(f"SELECT a{number}, b FROM t WHERE c = 'x' ORDER BY d{number}")
    full = cache_info()
    assert CACHE_BYTES * 0.9 < full.size <= CACHE_BYTES
    assert full.entries < TEXTS / 2
    # Full, it grows no more: what comes in goes out.
    growth = grown(
        lambda n: describe(f"SELECT a{n}, b FROM u WHERE c = 'x' ORDER BY e{n}"), 6_000, warm=full.entries
    )
    assert growth < SLACK, growth


@pytest.mark.usefixtures("_empty_cache")
def test_what_the_cache_says_it_holds_is_what_it_holds():
    """The cache's own count of its bytes is not below what it takes, for texts of all kinds."""
    kinds = [
        "SELECT a{0}, b FROM t",
        "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE, PRIORITY HIGH; SELECT {0}",
        "SELECT é{0} FROM t AS OF SYSTEM TIME '-{0}s'",
        "CREATE TABLE t{0} (a INT)",
        "{0}",
        "\U0001f4a3{0}",
    ]
    for kind in kinds:
        statements.cache_clear()
        gc.collect()
        tracemalloc.start()
        for number in range(500):
            describe(kind.format(number))
        taken = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        assert taken <= cache_info().size * 1.25 + 64 * 1024, kind


def test_distinct_tables_are_few_series(unkept):
    """10,000 names of tables that were made up are a bounded number of series, whatever their verb's case."""
    verbs = [
        "SELECT 1 FROM",
        "select 1 from",
        "SeLeCt 1 FROM",
        "DELETE FROM",
        "Drop Table",
        "EXPLAIN SELECT 1 FROM",
    ]

    def ask(number):
        with connection.cursor() as cursor, pytest.raises(DatabaseError):
            cursor.execute(f"{verbs[number % len(verbs)]} made_up_{number}")

    assert grown(ask, NAMES) < CACHED
    assert_few(unkept)


def test_verbs_in_any_case_are_few_series(unkept):
    """A verb that is written in 1,000 ways makes no 1,000 series once there are too many summaries."""

    def ask(number):
        verb = "".join(c.upper() if number >> bit & 1 else c for bit, c in enumerate("deallocate"))
        with connection.cursor() as cursor, pytest.raises(DatabaseError):
            cursor.execute(f"{verb} nothing; SELECT 1 FROM made_up_{number}")

    for number in range(1024):
        ask(number)
    assert series(unkept)["db.client.operation.duration"] <= 300


# Errors


def test_distinct_error_messages_and_codes_are_few_series(unkept):
    """Errors whose texts and SQLSTATEs the application makes up are a bounded number of series, and are let go."""
    needs_postgresql()

    def ask(number):
        code = f"Z{number:04d}"
        with connection.cursor() as cursor, pytest.raises(DatabaseError):
            cursor.execute(f"DO $$ BEGIN RAISE EXCEPTION 'message {number}' USING ERRCODE = '{code}'; END $$")

    assert grown(ask, NAMES - 1) < CACHED
    assert_few(unkept)


def test_distinct_classes_of_exceptions_are_few_series(unkept, monkeypatch):
    """Exceptions of the application's, of a class each, are a bounded number of series."""
    failing = None

    def adapt(*_):
        raise failing

    monkeypatch.setattr("django.db.backends.utils.CursorWrapper._execute", adapt)
    for number in range(NAMES):
        failing = type(f"Made{number}", (Exception,), {})("text")
        with pytest.raises(type(failing)), connection.cursor() as cursor:
            cursor.execute("SELECT 1")
    assert_few(unkept)


class KeptError(Exception):
    """An exception that can be watched."""


def test_no_exception_is_kept(unkept):
    """What a view or a block raised, with all that its frames hold, is let go with the request."""
    watched = []

    def fail(request=None):
        error = KeptError("text")
        watched.append(weakref.ref(error))
        with transaction.atomic():
            Account.objects.count()
            raise error

    def fail_in_database(request=None):
        try:
            with transaction.atomic():
                Account.objects.create(email="a@example.com")
        except DatabaseError as error:
            watched.append(weakref.ref(error))
            raise

    client = Client(raise_request_exception=False)
    for view in (fail, fail_in_database):
        views.interfere = view
        assert client.get("/retried/").status_code == 500
        with pytest.raises((KeptError, DatabaseError)):
            view()
    views.interfere = None
    connection.rollback_exc = None  # Django's own: it keeps the last one until the next
    gc.collect()
    assert len(watched) == 4
    assert [reference() for reference in watched] == [None] * 4


# Transactions and connections


def test_distinct_names_of_transactions_are_few_series(unkept):
    """Transactions that are named by made-up functions are a bounded number of series."""

    def pay(number):
        def named():
            return Account.objects.count()

        named.__qualname__ = named.__name__ = f"pay_{number}"
        otel_crdb.run_transaction(named)

    assert grown(pay, NAMES) < SLACK
    assert_few(unkept)


def test_threads_leave_nothing_behind(unkept):
    """Threads that come, query, and go leave no memory, and no series of their own."""

    def live(number):
        def work():
            with transaction.atomic():
                Account.objects.count()
            connections.close_all()

        thread = threading.Thread(target=work, name=f"worker-{number}")
        thread.start()
        thread.join()

    assert grown(live, TIMES) < SLACK
    assert_few(unkept)


def test_reconnects_leave_nothing_behind(unkept):
    """Connections that are opened and closed on one wrapper leave no memory, and no series of their own."""

    def reconnect(_):
        connection.close()
        Account.objects.count()

    assert grown(reconnect, TIMES) < SLACK
    assert_few(unkept)


def test_instrumenting_again_leaves_nothing_behind():
    """``instrument()`` and ``uninstrument()``, again and again, leave no memory."""
    telemetry = Telemetry()  # of a provider of its own the SDK keeps something until the process ends
    telemetry.tracer_provider = TracerProvider(shutdown_on_exit=False)

    def again(_):
        with telemetry:
            Account.objects.count()

    assert grown(again, TIMES) < SLACK


# Requests


def answer(request, **_):
    """Answer after one statement."""
    return HttpResponse(str(Account.objects.count()))


@pytest.fixture
def many_routes(monkeypatch):
    """The project's routes, and a view behind one that takes any word."""
    monkeypatch.setattr(urls, "urlpatterns", [*urls.urlpatterns, path("any/<str:word>/", answer)])
    clear_url_caches()
    yield
    clear_url_caches()


class Handler:
    """Asks a WSGI handler as a server does; Django's test client keeps something of each request."""

    def __init__(self):
        self._handler, self._factory = WSGIHandler(), RequestFactory()

    def get(self, path, **options):
        """Ask by GET."""
        return self.generic("GET", path, **options)

    def generic(self, method, path, **options):
        """Ask, read the body, and close it."""
        answer = self._handler(self._factory.generic(method, path, **options).environ, lambda *_: None)
        b"".join(answer)
        answer.close()
        return answer.status_code


def asked(client, number):
    """Ask for something that nobody has asked for before."""
    kind = number % 6
    if kind == 0:
        return client.get(f"/any/{number}/?page={number}")
    if kind == 1:
        return client.get(f"/missing/{number}/")
    if kind == 2:
        return client.generic(f"BREW{number}", f"/any/{number}/")
    if kind == 3:
        return client.get(
            f"/any/{number}/", headers={"host": f"host-{number}.example.com:{number % 60_000 + 1}"}
        )
    if kind == 4:
        return client.get("/broken/", headers={"user-agent": f"agent {number}", "baggage": f"k{number}=v"})
    return client.get(
        f"/any/{number}/",
        headers={"traceparent": f"00-{number + 1:032x}-{number + 1:016x}-0{number // 6 % 2}"},
    )


@pytest.mark.usefixtures("many_routes", "_any_host", "_kept_connections")
def test_an_hours_requests_leave_memory_flat_and_series_few(unkept):
    """Thousands of requests, each to another path, host, method, trace: memory is flat, and the series are few."""
    client = Handler()
    growth = grown(lambda number: asked(client, number), REQUESTS)
    assert growth < SLACK, growth
    assert [asked(client, number) for number in range(6)] == [200, 404, 200, 200, 500, 200]
    counts = series(unkept)
    assert counts["http.server.request.duration"] <= 20, counts
    assert counts["http.server.active_requests"] <= 4, counts
    assert_few(unkept)


def test_abandoned_requests_of_any_error_are_few_series(unkept):
    """Requests that end by an exception of a made-up class are a bounded number of series."""

    def fail(request):
        raise failing

    middleware = RequestMiddleware(fail)
    for number in range(NAMES):
        failing = type(f"Left{number}", (BaseException,), {})()
        with pytest.raises(type(failing)):
            middleware(RequestFactory().get("/nothing/"))
    assert_few(unkept)


@pytest.fixture
def _any_host(monkeypatch):
    monkeypatch.setattr(settings, "ALLOWED_HOSTS", ["*"])


@pytest.fixture
def _kept_connections(monkeypatch):
    connection.ensure_connection()
    monkeypatch.setitem(connection.settings_dict, "CONN_MAX_AGE", None)
    monkeypatch.setattr(connection, "close_at", None)
