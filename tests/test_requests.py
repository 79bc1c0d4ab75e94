# SPDX-License-Identifier: Apache-2.0
"""Requests as spans, over real HTTP: WSGI and ASGI, streamed, refused, cancelled."""

import asyncio
import contextlib
import http.client
import json
import socket
import threading

import django
import pytest
from django.db.models import Value
from django.db.models.functions import Concat
from django.test import Client, RequestFactory
from opentelemetry import trace
from opentelemetry.trace import SpanKind, StatusCode

from otel_crdb.requests import RequestMiddleware

from .project import views
from .project.models import Account
from .telemetry import Telemetry

pytestmark = [
    pytest.mark.usefixtures("accounts"),
    # Django leaves the connections of an ASGI server's threads to the collector, and psycopg says so.
    pytest.mark.filterwarnings("ignore:.*was deleted while still open:ResourceWarning"),
]

SECRET = "s3cret-value"


@pytest.fixture(params=["wsgi", "asgi"])
def port(request):
    """The port of a server of either kind."""
    return request.getfixturevalue(request.param)


def get(port, path, **headers):
    """Ask, and return status and body."""
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=10)) as client:
        client.request("GET", path, headers=headers)
        response = client.getresponse()
        return response.status, response.read()


def server_span(telemetry):
    """Return the request's span."""
    (span,) = [span for span in telemetry.spans if span.kind is SpanKind.SERVER]
    return span


def below(telemetry, span):
    """Return the names directly below a span, without connects."""
    return [child.name for child in telemetry.children(span) if not child.name.startswith("connect ")]


def test_request_is_a_span_with_stable_names_and_totals(port, telemetry, crdb):
    """A request is a SERVER span by route, with stable HTTP names and the totals of its database work."""
    assert get(port, "/transfer/5/?token=x&page=2") == (200, b"paid")
    span = server_span(telemetry)
    assert span.name == "GET transfer/<int:amount>/"
    attributes = dict(span.attributes)
    assert attributes["http.request.method"] == "GET"
    assert attributes["http.response.status_code"] == 200
    assert attributes["http.route"] == "transfer/<int:amount>/"
    assert attributes["url.path"] == "/transfer/5/"
    assert attributes["url.scheme"] == "http"
    assert attributes["server.address"] == "127.0.0.1"
    assert attributes["server.port"] == port
    assert "http.method" not in attributes
    assert "page=2" in attributes["url.query"]
    assert "token=x" not in attributes["url.query"]
    assert attributes["cockroachdb.request.transactions"] == 1
    assert attributes["cockroachdb.request.statements"] == 2
    assert attributes["cockroachdb.request.retries"] == 0
    inside = [
        child
        for child in telemetry.spans
        if child.kind is SpanKind.CLIENT and "transaction" not in child.name
    ]
    counted = sum(s.end_time - s.start_time for s in inside)
    assert attributes["cockroachdb.request.db_time"] == pytest.approx(counted / 1e9)
    assert below(telemetry, span) == [f"transaction {crdb.database}"]
    assert telemetry.points("http.server.request.duration") != []


def test_request_without_the_database_has_totals_of_nothing(port, telemetry):
    """A request that asked the database nothing says so."""
    get(port, "/nothing/")
    span = server_span(telemetry)
    assert span.attributes["cockroachdb.request.statements"] == 0
    assert span.attributes["cockroachdb.request.db_time"] == 0


def test_trace_of_the_caller_goes_on(port, telemetry):
    """A ``traceparent`` of the caller's is the request's parent."""
    trace_id = "0af7651916cd43dd8448eb211c80319c"
    get(port, "/transfer/5/", traceparent=f"00-{trace_id}-b7ad6b7169203331-01")
    assert {f"{span.context.trace_id:032x}" for span in telemetry.spans} == {trace_id}


@pytest.mark.filterwarnings("ignore:StreamingHttpResponse must consume synchronous iterators")
def test_statements_of_a_streamed_body_keep_the_requests_trace(port, telemetry):
    """What a streamed body asks the database, after the request's span has ended, stays in its trace."""
    status, body = get(port, "/stream/")
    assert (status, body.split()) == (200, [b"a@example.com", b"b@example.com", b"2"])
    span = server_span(telemetry)
    statements = telemetry.named("SELECT account")
    assert len(statements) == 2
    assert {statement.parent.span_id for statement in statements} == {span.context.span_id}


def test_statements_of_an_asynchronous_stream_keep_the_requests_trace(asgi, telemetry):
    """An asynchronous body asks the database in its request's trace too."""
    assert get(asgi, "/async-stream/")[1].split() == [b"a@example.com", b"b@example.com"]
    assert telemetry.one("SELECT account").parent.span_id == server_span(telemetry).context.span_id


def test_asynchronous_view_keeps_its_trace_through_threads(port, telemetry, crdb):
    """The asynchronous ORM and ``sync_to_async`` run in threads, and stay below the request."""
    assert get(port, "/async/") == (200, b"a@example.com")
    span = server_span(telemetry)
    assert below(telemetry, span) == ["SELECT account", f"transaction {crdb.database}"]
    assert span.attributes["cockroachdb.request.statements"] == 2
    assert span.attributes["cockroachdb.request.transactions"] == 1


def test_refused_host_is_a_span_and_still_a_400(port, telemetry):
    """A request whose host Django refuses is answered as before, and is seen."""
    status, _ = get(port, "/transfer/5/", Host="evil.example.com")
    assert status == 400
    span = server_span(telemetry)
    assert span.attributes["http.response.status_code"] == 400
    assert span.attributes["url.path"] == "/transfer/5/"


def test_exception_of_a_view_is_on_the_span_once(port, telemetry):
    """An exception that becomes a 500 is one event on the request's span, with its stack."""
    assert get(port, "/broken/")[0] == 500
    span = server_span(telemetry)
    assert span.status.status_code is StatusCode.ERROR
    (event,) = [event for event in span.events if event.name == "exception"]
    assert event.attributes["exception.type"] == "builtins.ValueError"
    assert event.attributes["exception.message"] == "broken"
    assert "in broken" in event.attributes["exception.stacktrace"]


def test_database_error_of_a_view_takes_no_row_out(port, telemetry):
    """A database error that becomes a 500 is on the request's span without the key that it names."""
    Account.objects.update(email=Concat(Value(SECRET), "email"))
    assert get(port, "/leak/")[0] == 500
    assert SECRET not in telemetry.everything()
    (event,) = [event for event in server_span(telemetry).events if event.name == "exception"]
    assert "in leak" in event.attributes["exception.stacktrace"]
    assert event.attributes["exception.type"] == "django.db.utils.IntegrityError"


@pytest.mark.skipif(
    django.VERSION < (5, 0), reason="Django 5.0 and later cancel a view whose client has gone"
)
def test_cancelled_request_ends_its_span(asgi, telemetry, caplog):
    """A client that goes away cancels the view: its span ends, as an error, and no context is left over."""
    views.waiting = threading.Event()
    with contextlib.closing(socket.create_connection(("127.0.0.1", asgi))) as client:
        client.sendall(b"GET /wait/ HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert views.waiting.wait(10)
    ended = threading.Event()
    exporter = telemetry.span_exporter
    for _ in range(1000):
        if any(span.kind is SpanKind.SERVER for span in exporter.get_finished_spans()):
            break
        ended.wait(0.01)
    span = server_span(telemetry)
    assert span.attributes["error.type"].endswith("CancelledError")
    assert span.status.status_code is StatusCode.ERROR
    assert "Failed to detach" not in caplog.text
    active = telemetry.points("http.server.active_requests")
    assert [point.value for point in active] == [0]


def test_asynchronous_requests_do_not_hop_threads(asgi, telemetry):
    """The middleware runs in the event loop's thread: an asynchronous chain stays asynchronous."""
    from asgiref.sync import iscoroutinefunction

    async def answer(request):
        return None

    assert iscoroutinefunction(RequestMiddleware(answer))
    assert not iscoroutinefunction(RequestMiddleware(lambda request: None))


def test_requests_side_by_side_keep_their_own_traces(asgi, telemetry, crdb):
    """Requests that run at once in one event loop each have their own trace and their own totals."""

    async def ask_all():
        return await asyncio.gather(*(asyncio.to_thread(get, asgi, "/async/") for _ in range(8)))

    assert [status for status, _ in asyncio.run(ask_all())] == [200] * 8
    spans = [span for span in telemetry.spans if span.kind is SpanKind.SERVER]
    assert len({span.context.trace_id for span in spans}) == 8
    for span in spans:
        assert span.attributes["cockroachdb.request.statements"] == 2
        assert sorted(below(telemetry, span)) == ["SELECT account", f"transaction {crdb.database}"]


def test_totals_survive_a_json_trip(wsgi, telemetry):
    """Totals are plain numbers of the units that the reference names."""
    get(wsgi, "/transfer/5/")
    exported = json.loads(server_span(telemetry).to_json())["attributes"]
    assert isinstance(exported["cockroachdb.request.db_time"], float)
    assert isinstance(exported["cockroachdb.request.transactions"], int)


def test_secrets_of_the_url_are_masked_under_the_old_names_too(telemetry, monkeypatch):
    """With ``http/dup`` contrib tells the URL under its old names as well: masked there as here."""
    from opentelemetry.instrumentation._semconv import _StabilityMode
    from opentelemetry.instrumentation.django.middleware.otel_middleware import _DjangoMiddleware

    monkeypatch.setattr(_DjangoMiddleware, "_sem_conv_opt_in_mode", _StabilityMode.HTTP_DUP)
    Client().get(f"/nothing/?token={SECRET}&page=2")
    assert "page=2" in server_span(telemetry).attributes["http.url"]
    assert SECRET not in telemetry.everything()


def test_middleware_that_stands_twice_makes_one_span(telemetry, settings_middleware):
    """Our middleware listed twice, by hand or by an earlier time, tells a request once."""
    settings_middleware(["otel_crdb.requests.RequestMiddleware"] * 2)
    Client().get("/transfer/1/")
    assert len([span for span in telemetry.spans if span.kind is SpanKind.SERVER]) == 1
    assert server_span(telemetry).attributes["cockroachdb.request.statements"] == 2


@pytest.fixture
def settings_middleware(monkeypatch):
    """Return what changes the settings' middleware for a test."""
    from django.conf import settings

    return lambda names: monkeypatch.setattr(settings, "MIDDLEWARE", names)


def test_file_is_sent_as_it_is(telemetry):
    """A file's response keeps its file, so that servers can send it by themselves."""
    response = RequestMiddleware(views.file)(RequestFactory().get("/file/"))
    assert response.file_to_stream is not None
    assert b"".join(response.streaming_content).startswith(b"# SPDX")
    response.close()


def test_stream_that_fails_or_is_left_half_way(telemetry):
    """A body that raises, or is closed early, leaves nothing current, and its statements in the trace."""
    response = RequestMiddleware(views.stream)(RequestFactory().get("/stream/"))
    assert next(iter(response.streaming_content)) == b"a@example.com\n"
    assert trace.get_current_span() is trace.INVALID_SPAN
    response.close()
    assert telemetry.one("SELECT account").parent.span_id == server_span(telemetry).context.span_id


def test_request_that_the_process_leaves_ends_its_span(telemetry):
    """A SystemExit in a view (a worker that is told to stop) ends the span and its data point as an error."""

    def leave(request):
        raise SystemExit

    middleware = RequestMiddleware(leave)
    with pytest.raises(SystemExit):
        middleware(RequestFactory().get("/nothing/", headers={"traceparent": f"00-{'a' * 32}-{'b' * 16}-01"}))
    span = server_span(telemetry)
    assert span.attributes["error.type"] == "SystemExit"
    assert span.status.status_code is StatusCode.ERROR
    (point,) = telemetry.points("http.server.request.duration")
    assert point.attributes["error.type"] == "SystemExit"


@pytest.mark.parametrize(("choice", "on_span", "as_record"), [("logs", 0, 1), ("logs/dup", 1, 1)])
def test_exception_of_a_request_goes_where_the_opt_in_says(monkeypatch, choice, on_span, as_record):
    """``OTEL_SEMCONV_EXCEPTION_SIGNAL_OPT_IN`` holds for the request's exception too."""
    monkeypatch.setenv("OTEL_SEMCONV_EXCEPTION_SIGNAL_OPT_IN", choice)
    with Telemetry() as telemetry:
        Client(raise_request_exception=False).get("/broken/")
        assert len(server_span(telemetry).events) == on_span
        records = [r for r in telemetry.log_records if r.event_name == "http.server.request.exception"]
        assert len(records) == as_record
        assert records[0].attributes["exception.type"] == "builtins.ValueError"


def test_excluded_urls_have_no_span(telemetry, monkeypatch):
    """Contrib's list of excluded URLs holds."""
    from opentelemetry.instrumentation.django.middleware.otel_middleware import _DjangoMiddleware
    from opentelemetry.util.http import parse_excluded_urls

    monkeypatch.setattr(_DjangoMiddleware, "_excluded_urls", parse_excluded_urls("nothing"))
    assert Client().get("/nothing/").content == b"nothing"
    assert telemetry.names() == []
