# SPDX-License-Identifier: Apache-2.0
"""What options leave untold, add, or switch off: as it is seen, not as it is configured."""

import logging
import urllib.request

import pytest
from django.db import DatabaseError, connection, connections, transaction
from django.test import Client
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.trace import SpanKind

from otel_crdb import hooks, run_transaction

from .http_servers import asgi_server, wsgi_server
from .project.models import Account
from .servers import conflicting
from .telemetry import Telemetry

pytestmark = pytest.mark.usefixtures("accounts")

REQUEST_METRICS = ("http.server.request.duration", "http.server.active_requests")


@pytest.fixture(autouse=True)
def _stable_names(monkeypatch):
    monkeypatch.setenv("OTEL_SEMCONV_STABILITY_OPT_IN", "http")


def servers_of(telemetry):
    return [span for span in telemetry.spans if span.kind is SpanKind.SERVER]


# --- requests --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("serve", "path"),
    [
        (wsgi_server, "/stream/"),
        (wsgi_server, "/async/"),
        (wsgi_server, "/read/"),
        (asgi_server, "/async-stream/"),
        (asgi_server, "/async/"),
        (asgi_server, "/read/"),
    ],
)
def test_excluded_request_is_left_untold_with_all_it_does(serve, path):
    """Neither a span nor a data point comes of an excluded request, its statements and its streamed body."""
    with Telemetry(excluded_urls=[f"^{path}"]) as telemetry, serve() as port:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}") as answer:
            assert answer.status == 200
            assert answer.read()
        assert telemetry.names() == []
        assert not any(
            telemetry.points(metric) for metric in (*REQUEST_METRICS, "db.client.operation.duration")
        )
        urllib.request.urlopen(f"http://127.0.0.1:{port}/nothing/").close()
        assert len(servers_of(telemetry)) == 1


def test_request_after_an_excluded_one_is_told():
    """What an excluded request suppresses ends with it, also where its view fails."""
    with Telemetry(excluded_urls="broken") as telemetry:
        with pytest.raises(ValueError, match="broken"):
            Client().get("/broken/")
        Account.objects.count()
        Client().get("/read/")
        assert telemetry.names().count("SELECT account") == 2
        assert len(servers_of(telemetry)) == 1


@pytest.mark.parametrize(
    "path",
    [
        "/healthz",
        "/health/",
        "/health/live",
        "/health/ready/",
        "/_health/",
        "/health-check/",
        "/healthcheck",
        "/livez",
        "/readyz/",
        "/startupz",
        "/ht/",
        "/up",
        "/ping",
        "/-/healthy",
        "/-/ready",
        "/__heartbeat__",
        "/__lbheartbeat__",
    ],
)
def test_health_checks_are_left_untold(path, quiet_requests):
    """The usual paths of health checks are left untold, unless an option says otherwise."""
    with Telemetry() as telemetry:
        Client().get(path)
        assert telemetry.names() == []
    with Telemetry(exclude_health_checks=False) as telemetry:
        Client().get(path)
        assert len(telemetry.names()) == 1


@pytest.mark.parametrize(
    "path", ["/", "/healthy-food/", "/shop/health/", "/pingpong/", "/upload/", "/alive/"]
)
def test_other_paths_are_no_health_checks(path, quiet_requests):
    """A path that only begins or ends like a health check's is told."""
    with Telemetry() as telemetry:
        Client().get(path)
        assert len(telemetry.names()) == 1


def test_what_contribs_variable_excludes_is_left_untold(monkeypatch):
    """A request that ``OTEL_PYTHON_DJANGO_EXCLUDED_URLS`` excludes leaves no statements without a request."""
    from opentelemetry.instrumentation.django.middleware.otel_middleware import _DjangoMiddleware
    from opentelemetry.util.http import parse_excluded_urls

    with Telemetry() as telemetry:
        # contrib reads the variable when it is imported
        monkeypatch.setattr(_DjangoMiddleware, "_excluded_urls", parse_excluded_urls("read/,stream"))
        Client().get("/read/")
        assert b"".join(Client().get("/stream/"))
        assert telemetry.names() == []
        Client().get("/nothing/")
        assert len(servers_of(telemetry)) == 1


def test_suppressed_request_is_left_untold():
    """Within ``suppress_instrumentation()`` a request is answered and nothing is told of it."""
    with Telemetry() as telemetry:
        with suppress_instrumentation():
            assert Client().get("/read/").status_code == 200
        assert telemetry.names() == []


# --- statements and aliases ------------------------------------------------------------------------------


def test_excluded_statement_has_neither_span_nor_data_point():
    """An excluded statement is not told; its transaction is, and counts it."""
    with Telemetry(excluded_statements=[r"^SELECT .* FROM \Waccount"]) as telemetry:
        with transaction.atomic():
            Account.objects.count()
            Account.objects.update(balance=1)
        assert telemetry.names()[-3:] == [
            f"transaction {connection.settings_dict['NAME']}",
            "UPDATE account",
            "COMMIT",
        ]
        block = telemetry.one(f"transaction {connection.settings_dict['NAME']}")
        assert block.attributes["cockroachdb.txn.statements"] == 2
        summaries = {
            point.attributes.get("db.query.summary")
            for point in telemetry.points("db.client.operation.duration")
        }
        assert "UPDATE account" in summaries
        assert "SELECT account" not in summaries


def test_excluded_statement_that_fails_fails_its_transaction():
    """The outcome of a transaction is true also where the statement that failed is not told."""
    with Telemetry(excluded_statements=["^INSERT"]) as telemetry:
        with pytest.raises(DatabaseError), transaction.atomic():
            Account.objects.create(email="a@example.com")
        block = telemetry.one(f"transaction {connection.settings_dict['NAME']}")
        assert block.attributes["cockroachdb.txn.outcome"] == "failed"
        assert block.attributes["db.response.status_code"] == "23505"
        assert "INSERT account" not in telemetry.names()


def test_excluded_alias_is_left_untold_and_still_retried():
    """Nothing of an excluded alias is told, and what may be retried on it is retried all the same."""
    with Telemetry(excluded_aliases=["default"]) as telemetry:
        connection.close()
        run_transaction(conflicting(1), backoff_base=0)
        assert telemetry.names() == []
        assert not telemetry.points("cockroachdb.client.txn.retries")
        assert not telemetry.points("cockroachdb.client.txn.duration")
        connections["other"].ensure_connection()
        assert telemetry.names()[0].startswith("connect ")
        connections["other"].close()


# --- what an application adds ----------------------------------------------------------------------------


def test_functions_of_the_application_add_attributes():
    """Each hook is called with its span and what it is about, and what it sets is there."""
    hooked = {
        "request_hook": lambda span, request: span.set_attribute("bank.path", request.path),
        "response_hook": lambda span, request, response: span.set_attribute(
            "bank.size", len(response.content)
        ),
        "transaction_hook": lambda span, wrapper: span.set_attribute("bank.alias", wrapper.alias),
        "statement_hook": lambda span, wrapper, sql: span.set_attribute(
            "bank.sql", f"{wrapper.alias} {sql[:6]}"
        ),
    }
    with Telemetry(**hooked) as telemetry:
        Client().get("/transfer/1/")
        (request,) = servers_of(telemetry)
        assert request.attributes["bank.path"] == "/transfer/1/"
        assert request.attributes["bank.size"] == len("paid")
        assert (
            telemetry.one(f"transaction {connection.settings_dict['NAME']}").attributes["bank.alias"]
            == "default"
        )
        assert {span.attributes["bank.sql"] for span in telemetry.named("UPDATE account")} == {
            "default UPDATE"
        }


def test_function_of_the_application_that_fails_breaks_nothing(caplog):
    """A hook that raises is told of once, and the request is answered and told as if there were none."""

    def fail(*_):
        raise RuntimeError("a tenant that nobody knows")

    names = ("request_hook", "response_hook", "transaction_hook", "statement_hook")
    hooks.faults.clear()
    with Telemetry(**dict.fromkeys(names, fail)) as telemetry, caplog.at_level(logging.ERROR, "otel_crdb"):
        assert Client().get("/transfer/1/").content == b"paid"
        assert Client().get("/transfer/1/").content == b"paid"
        assert telemetry.names().count("UPDATE account") == 4
    for name in names:
        assert hooks.faults.pop(name) >= 2
        assert sum(f"hook {name} failed" in record.getMessage() for record in caplog.records) == 1


# --- switches --------------------------------------------------------------------------------------------


def test_each_signal_has_a_switch(monkeypatch):
    """A signal that is switched off is not told, requests included, and the others are as before."""
    monkeypatch.setenv("OTEL_SEMCONV_EXCEPTION_SIGNAL_OPT_IN", "logs")

    def told(**switches):
        with Telemetry(**switches) as telemetry:
            Client().get("/read/")
            with pytest.raises(DatabaseError), transaction.atomic():
                Account.objects.create(email="a@example.com")
            points = [
                *telemetry.points("db.client.operation.duration"),
                *telemetry.points(REQUEST_METRICS[0]),
            ]
            kinds = {span.kind for span in telemetry.spans}
            return (
                len(kinds),
                len({str(sorted(point.attributes)) for point in points}) > 1,
                bool(telemetry.log_records),
            )

    assert told() == (3, True, True)
    assert told(traces=False) == (0, True, True)
    assert told(metrics=False) == (3, False, True)
    assert told(logs=False) == (3, True, False)


def test_query_text_is_told_by_its_limit():
    """``query_text_limit`` cuts the statement's text; with 0 there is none, and the name stays."""
    with Telemetry(query_text_limit=0) as telemetry:
        Account.objects.count()
        assert "db.query.text" not in telemetry.one("SELECT account").attributes


@pytest.mark.parametrize("name", ["otel_crdb", "*", "flask, otel_crdb"])
def test_disabled_instrumentations_are_honoured(monkeypatch, name):
    """``OTEL_PYTHON_DISABLED_INSTRUMENTATIONS`` that names this package switches all of it off."""
    monkeypatch.setenv("OTEL_PYTHON_DISABLED_INSTRUMENTATIONS", name)
    with Telemetry() as telemetry:
        Client().get("/read/")
        assert telemetry.names() == []


def test_requests_are_left_alone_where_contribs_django_is_disabled(monkeypatch):
    """Where the variable names ``django`` there are no spans of requests, and those of statements stay."""
    monkeypatch.setenv("OTEL_PYTHON_DISABLED_INSTRUMENTATIONS", "django")
    with Telemetry() as telemetry:
        Client().get("/read/")
        assert servers_of(telemetry) == []
        assert "SELECT account" in telemetry.names()


# --- the connection's name -------------------------------------------------------------------------------


def application_name(**options):
    """Give what the server calls a new connection."""
    with Telemetry(**options):
        connection.close()
        with connection.cursor() as cursor:
            cursor.execute("SHOW application_name")
            return cursor.fetchone()[0]


@pytest.fixture
def service(monkeypatch):
    """A process whose service has a name; its connections are opened anew, before and after."""
    monkeypatch.setenv("OTEL_SERVICE_NAME", "bank")
    monkeypatch.delenv("PGAPPNAME", raising=False)
    yield monkeypatch
    connection.close()


def test_connection_is_called_by_the_services_name(service):
    """The server knows a connection by the service's name, or by what the option says; empty, by none."""
    assert application_name() == "bank"
    assert application_name(application_name="till") == "till"
    assert application_name(application_name="") == ""


def test_name_that_was_given_elsewhere_stays(service):
    """The name in ``OPTIONS``, and the one in ``PGAPPNAME``, go before ours."""
    service.setenv("PGAPPNAME", "from the shell")
    assert application_name() == "from the shell"
    service.setitem(connection.settings_dict["OPTIONS"], "application_name", "from the settings")
    assert application_name() == "from the settings"


def test_name_that_is_no_text_breaks_no_connection(service):
    """A service's name with bytes that are no text, which a variable may hold, is told as far as it is one."""
    assert application_name(application_name="caf\udcff\0") == "caf?"


def test_contribs_own_switch_is_honoured(monkeypatch, caplog):
    """``OTEL_PYTHON_DJANGO_INSTRUMENT=False`` leaves requests alone, and the log says why."""
    monkeypatch.setenv("OTEL_PYTHON_DJANGO_INSTRUMENT", "False")
    with caplog.at_level(logging.INFO, "otel_crdb"), Telemetry() as telemetry:
        Client().get("/read/")
        assert servers_of(telemetry) == []
        assert "SELECT account" in telemetry.names()
    assert "OTEL_PYTHON_DJANGO_INSTRUMENT is False: requests have no spans" in caplog.text


def test_function_that_queries_calls_no_function():
    """A statement that a hook of the application's sends is told, and does not call the hook again."""
    calls = []

    def query(span, wrapper, sql):
        calls.append(sql)
        with wrapper.cursor() as cursor:
            cursor.execute("SELECT 1")

    hooks.faults.clear()
    with Telemetry(statement_hook=query) as telemetry:
        Account.objects.count()
        connection.close()
        assert len(calls) == len([name for name in telemetry.names() if name == "SELECT"])
        assert len([call for call in calls if "account" in call]) == 1
    assert not hooks.faults
