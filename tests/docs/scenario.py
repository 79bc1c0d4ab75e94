# SPDX-License-Identifier: Apache-2.0
"""A day of an application in which all that is told is told once, for docs/attributes.md."""

import asyncio
import contextlib
import http.client
import io
import socket
import threading

import django
import pytest
from django.db import DatabaseError, connection, connections, transaction
from django.db.backends.postgresql.base import DatabaseWrapper
from django.db.backends.postgresql.psycopg_any import is_psycopg3
from django.db.utils import ConnectionHandler
from django.http import HttpResponse
from django.test import override_settings
from django.urls import path

import otel_crdb
from otel_crdb import pipeline
from tests.http_servers import asgi_server, wsgi_server
from tests.project import urls, views
from tests.project.models import Account
from tests.retried_views import SERIALIZATION, Urls
from tests.servers import conflicting, earn, led_through_proxy

HAS_POOLS = is_psycopg3 and hasattr(DatabaseWrapper, "pool")  # Django 5.1 and later
#: It names both transactions that met, and the index in which they did.
CONFLICT = "serialization_failure.RETRY_SERIALIZABLE.conflicting_locks"


def failing_hook(span, request):
    """Fail, as a hook of an application may."""
    raise RuntimeError("a hook of the application's")


def play(crdb, telemetry):
    """Do all of it."""
    connection.close()
    _requests()
    _asynchronous_requests(telemetry)
    _statements()
    _transactions()
    with led_through_proxy(crdb) as proxy:
        _failures(proxy)
    _connections()


# --- requests ------------------------------------------------------------------------------------------------


@otel_crdb.retry_view
def retried_view(request):
    """Pay, in a view that is run again."""
    return HttpResponse(conflict_of_the_view())


#: The payment of :func:`retried_view`, which meets a conflict in its first attempt.
conflict_of_the_view = conflicting(times=1)


def _requests():
    patterns = [*urls.urlpatterns, path("view/", retried_view)]
    with override_settings(ROOT_URLCONF=Urls(*patterns)), wsgi_server() as port:
        _ask(port, "/read/?since=yesterday", agent="Googlebot/2.1 (+http://www.google.com/bot.html)")
        _ask(port, "/read/", method="BREW")
        _ask(port, "/transfer/5/")
        _ask(port, "/view/")
        _ask(port, "/broken/")
        _ask(port, "/leak/")
        _ask(port, "/nowhere/")


def _ask(port, target, method="GET", agent="tests"):
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    with contextlib.closing(client):
        client.request(method, target, headers={"User-Agent": agent})
        client.getresponse().read()


def _asynchronous_requests(telemetry):
    with asgi_server() as port:
        _ask(port, "/async/")
        if django.VERSION >= (5, 0):  # which cancels a view whose client has gone
            _go_away(port, telemetry)


def _go_away(port, telemetry):
    views.waiting = threading.Event()
    with contextlib.closing(socket.create_connection(("127.0.0.1", port))) as client:
        client.sendall(b"GET /wait/ HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert views.waiting.wait(30)
    ended = threading.Event()
    for _ in range(3000):
        if telemetry.named("GET wait/"):
            return
        ended.wait(0.01)
    raise AssertionError("the span of the cancelled request has not ended")


# --- statements ------------------------------------------------------------------------------------------------


def _statements():
    with connection.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO account (email, balance) VALUES (%s, 5)", [("c@example.com",), ("d@example.com",)]
        )
        cursor.callproc("abs", [-5])
        if is_psycopg3:
            with cursor.copy("COPY account TO STDOUT") as copying:
                assert list(copying)
        else:
            cursor.copy_expert("COPY account TO STDOUT", io.StringIO())
    with pytest.raises(DatabaseError):
        Account.objects.create(email="a@example.com")


# --- transactions ----------------------------------------------------------------------------------------------


def _transactions():
    with transaction.atomic():
        _run("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE READ WRITE")
        with transaction.atomic():  # a savepoint
            earn()
    with pytest.raises(KeyError), transaction.atomic():
        earn()
        raise KeyError
    with contextlib.suppress(DatabaseError), transaction.atomic():  # PostgreSQL does not know it
        _run("SELECT id FROM account AS OF SYSTEM TIME '-5s'")
    with transaction.atomic():  # a silent abort
        earn()
        with contextlib.suppress(DatabaseError):
            _run("INSERT INTO account (email, balance) VALUES ('a@example.com', 1)")


def _run(sql, alias="default"):
    with connections[alias].cursor() as cursor:
        cursor.execute(sql)


# --- failures --------------------------------------------------------------------------------------------------


def _failures(proxy):
    with proxy.inject(SERIALIZATION, on="commit", times=2):
        otel_crdb.run_transaction(earn, 1, "other", using="other", retry_priority="high")
    with proxy.inject(CONFLICT, matching="UPDATE"):
        otel_crdb.run_transaction(earn, 1, "other", using="other")
    with proxy.inject(CONFLICT, matching="UPDATE"), pytest.raises(DatabaseError), transaction.atomic("other"):
        earn(using="other")
    with proxy.inject(CONFLICT, matching="UPDATE"), transaction.atomic("other"):  # a silent abort
        with contextlib.suppress(DatabaseError):
            earn(using="other")
    for fault in ("lost_commit", "ambiguous_commit.exhausted"):
        with proxy.inject(fault), pytest.raises(otel_crdb.AmbiguousCommitError):
            otel_crdb.run_transaction(earn, 1, "other", using="other")
    with proxy.inject(SERIALIZATION, times=None), pytest.raises(otel_crdb.RetriesExhaustedError):
        asyncio.run(otel_crdb.arun_transaction(earn, 1, "other", using="other", max_attempts=2))


def _connections():
    wrapper = _wrapper(PASSWORD="wrong", USER="nobody", PORT=1)
    with pytest.raises(DatabaseError):
        wrapper.ensure_connection()
    if HAS_POOLS:
        options = {**connection.settings_dict["OPTIONS"], "pool": {"min_size": 1, "max_size": 1}}
        wrapper = _wrapper(OPTIONS=options)
        try:
            wrapper.ensure_connection()
        finally:
            wrapper.close()
            wrapper.close_pool()


def _wrapper(**settings):
    return ConnectionHandler({"default": {**connection.settings_dict, **settings}})["default"]


# --- what belongs to the process -------------------------------------------------------------------------------


def resource():
    """Return what names this process, where the variables say nothing."""
    return pipeline.resource_of_process()
