# SPDX-License-Identifier: Apache-2.0
"""Lines and their requests: in each place where a line is logged, its ids are those of the request.

Only ``instrument()`` is called: no logging is configured. Real HTTP servers answer, in this process.
"""

import contextlib
import gc
import http.client
import logging
import weakref
from typing import NamedTuple

import pytest
from django.core.signals import request_finished
from django.test import Client, RequestFactory, override_settings
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased
from opentelemetry.trace import SpanKind

from otel_crdb import state

from .correlation import views
from .http_servers import asgi_server, wsgi_server
from .processes import until
from .telemetry import Telemetry

pytestmark = [
    pytest.mark.usefixtures("accounts", "site"),
    pytest.mark.filterwarnings("ignore:.*was deleted while still open:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:StreamingHttpResponse must consume"),
]

BOTH = ("wsgi", "asgi")


class Place(NamedTuple):
    """A place where lines are logged."""

    #: A view's name, or that of none.
    path: str
    logger: str = "bank"
    message: str = views.SAID
    #: How often it is logged.
    times: int = 1
    status: int = 200
    #: Headers of the request.
    headers: tuple = ()


PLACES = [
    Place("plain"),
    Place("nowhere", "django.request", "Not Found: /nowhere/", status=404),
    Place("fails", "django.request", "Internal Server Error: /fails/", status=500),
    Place("refuses", "django.request", "Service Unavailable: /refuses/", status=503),
    Place("declined", "django.request", "Conflict: /declined/", status=409),
    Place(
        "plain",
        "django.security.DisallowedHost",
        "Invalid HTTP_HOST header",
        status=400,
        headers=(("Host", "evil.example.com"),),
    ),
    Place("in_thread"),
    Place("in_own_thread"),
    Place("in_timer"),
    Place("in_submitted_call"),
    Place("in_mapped_calls", times=4),
    Place("in_loops_executor", times=2),
    Place("on_commit"),
    Place("on_commit", message="committed"),
    Place("on_the_connection"),
    Place("retried", times=2),
    Place("streamed", times=2),
    Place("streamed_async", times=2),
    Place("streamed_by_thread"),
    Place("in_tasks", times=4),
    Place("swallowed"),
    Place("nested", status=410),
    Place("nested", "django.request", "Not Found: /nowhere-within/", status=410),
    Place("nested", "django.request", "Gone: /nested/", status=410),
    Place("nested_async", "django.request", "Gone: /nested_async/", status=410),
]


class Lines(logging.Handler):
    """Keeps records, and by their logger and text finds them again."""

    def __init__(self):
        super().__init__()
        self.records = []

    def emit(self, record):
        """Keep it."""
        self.records.append(record)

    def of(self, logger, message):
        """Return the records of a logger whose text begins so."""
        return [
            record
            for record in self.records
            if record.name == logger and record.getMessage().startswith(message)
        ]

    def all_of(self, logger, message, times):
        """Wait for that many of them, and return them: a server may log when the client has its answer."""
        until(
            lambda: len(self.of(logger, message)) >= times, f"{logger}: {message} ({times} times)", self.told
        )
        found = self.of(logger, message)
        assert len(found) == times
        return found

    def told(self):
        """Return all lines."""
        return "\n".join(f"{record.name}: {record.getMessage()}" for record in self.records)


@pytest.fixture
def site():
    """The site of `correlation`, in place of the tests' own."""
    with override_settings(
        ROOT_URLCONF="tests.correlation.urls", ALLOWED_HOSTS=["localhost", "127.0.0.1", "testserver"]
    ):
        yield


@pytest.fixture
def lines():
    """What is logged, by whatever logger."""
    handler = Lines()
    root = logging.getLogger()
    root.addHandler(handler)
    yield handler
    root.removeHandler(handler)


def ask(port, path, **headers):
    """Ask, and return the status and the body."""
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as client:
        client.request("GET", f"/{path}/", headers=headers)
        response = client.getresponse()
        return response.status, response.read()


def server_span(telemetry):
    """Return the request's span: the outermost."""
    (span,) = [span for span in telemetry.spans if span.kind is SpanKind.SERVER]
    return span


def ids_of(span):
    """Return a span's ids as a record has them."""
    return f"{span.context.trace_id:032x}", f"{span.context.span_id:016x}", f"{span.context.trace_flags:02x}"


def ids_on(record):
    """Return a record's."""
    return record.trace_id, record.span_id, record.trace_flags


@pytest.mark.parametrize("server", BOTH)
@pytest.mark.parametrize(
    "place", PLACES, ids=lambda place: f"{place.path}-{place.logger}-{place.message[:12]}"
)
def test_line_has_the_ids_of_its_request(place, server, telemetry, lines, request):
    """Wherever a line is logged, its trace is the request's."""
    status, _ = ask(request.getfixturevalue(server), place.path, **dict(place.headers))
    assert status == place.status
    records = lines.all_of(place.logger, place.message, place.times)
    until(lambda: telemetry.spans, "the request's span", lines.told)
    trace_id, _, flags = ids_of(server_span(telemetry))
    assert {(record.trace_id, record.trace_flags) for record in records} == {(trace_id, flags)}
    assert all(len(record.span_id) == 16 for record in records)


# --- transactions and errors -----------------------------------------------------------------------


@pytest.mark.parametrize("server", BOTH)
def test_hook_on_commit_has_the_transaction_that_committed(server, telemetry, lines, request):
    """A line of an ``on_commit`` hook has the id of its own transaction; what follows has another's, or none."""
    ask(request.getfixturevalue(server), "on_commit")
    first, second = (
        span.attributes["cockroachdb.txn.id"]
        for span in telemetry.spans
        if span.name.startswith("transaction")
    )
    said = {record.getMessage(): record for record in lines.records if record.name == "bank"}
    assert {message: (record.txn_id, record.txn_attempt, record.db) for message, record in said.items()} == {
        "said": (first, 1, "default"),
        "committed": (first, 1, "default"),
        "another": (second, 1, "default"),
        "none": ("", "", ""),
    }
    assert said["committed"].span_id == ids_of(server_span(telemetry))[1]  # the transaction's span has ended


@pytest.mark.parametrize("server", BOTH)
def test_line_of_a_retried_transaction_has_its_attempt(server, telemetry, lines, request):
    """Lines of both attempts have the id that the attempts share, their own attempt and their own span."""
    ask(request.getfixturevalue(server), "retried")
    first, second = (span for span in telemetry.spans if span.name.startswith("transaction"))
    records = lines.of("bank", views.SAID)
    assert [(record.txn_id, record.txn_attempt) for record in records] == [
        (span.attributes["cockroachdb.txn.id"], span.attributes["cockroachdb.txn.attempt"])
        for span in (first, second)
    ]
    assert records[0].txn_id == records[1].txn_id


@pytest.mark.parametrize("serve", [wsgi_server, asgi_server])
def test_line_between_attempts_is_the_transactions(serve, lines, monkeypatch):
    """What is logged of the retry, between the attempts, has the transaction's id and the request's trace."""
    monkeypatch.setenv("OTEL_SEMCONV_STABILITY_OPT_IN", "http")
    with Telemetry(log_limit=0) as telemetry, serve() as port:
        ask(port, "retried")
    (span,) = [span for span in telemetry.spans if span.attributes.get("cockroachdb.txn.attempt") == 2]
    retries = lines.of("otel_crdb.db", "")
    assert retries
    assert {(record.trace_id, record.txn_id) for record in retries} == {
        (ids_of(span)[0], span.attributes["cockroachdb.txn.id"])
    }


@pytest.mark.parametrize("server", BOTH)
def test_line_after_a_swallowed_error_has_its_code(server, telemetry, lines, request):
    """A line that follows an error of the database has its code, until a later statement has succeeded."""
    ask(request.getfixturevalue(server), "swallowed")
    (said,) = lines.of("bank", views.SAID)
    (well,) = lines.of("bank", "all is well")
    assert (said.error_code, said.error_class) == ("23505", "constraint")
    assert (well.error_code, well.error_class) == ("", "")


@pytest.mark.parametrize("server", BOTH)
def test_late_line_of_a_swallowed_error_has_its_code(server, telemetry, lines, request):
    """Django's own line of the 4xx that an error became has the code too; the next request's has not."""
    port = request.getfixturevalue(server)
    ask(port, "declined")
    ask(port, "nowhere")
    (declined,) = lines.of("django.request", "Conflict")
    (nowhere,) = lines.of("django.request", "Not Found")
    assert (declined.error_code, nowhere.error_code) == ("23505", "")


# --- where there is no span to find ------------------------------------------------------------------


@pytest.mark.parametrize("server", BOTH)
@pytest.mark.parametrize("path", ["nowhere", "fails", "nested", "nested_async", "declined"])
def test_late_line_has_the_requests_own_span(path, server, telemetry, lines, request):
    """A line that Django logs when the request's span has ended has the ids of that very span."""
    ask(request.getfixturevalue(server), path)
    (record,) = [
        record
        for record in lines.records
        if record.name == "django.request" and f"/{path}/" in record.getMessage()
    ]
    assert ids_on(record) == ids_of(server_span(telemetry))


@pytest.mark.parametrize("place", ["plain", "in_thread", "in_submitted_call", "streamed", "nowhere"])
def test_unsampled_request_has_ids_that_say_so(place, lines, monkeypatch, accounts):
    """A request that is not sampled has ids all the same, and flags that say that nobody records it."""
    monkeypatch.setenv("OTEL_SEMCONV_STABILITY_OPT_IN", "http")
    recorded = Telemetry()
    recorded.tracer_provider = TracerProvider(ParentBased(ALWAYS_OFF), shutdown_on_exit=False)
    recorded.tracer_provider.add_span_processor(SimpleSpanProcessor(recorded.span_exporter))
    trace_id = "0af7651916cd43dd8448eb211c80319c"
    with recorded:
        response = Client().get(f"/{place}/", headers={"traceparent": f"00-{trace_id}-b7ad6b7169203331-00"})
        b"".join(response)
    assert recorded.spans == []
    assert lines.records
    assert {ids_on(record)[::2] for record in lines.records} == {(trace_id, "00")}


@pytest.mark.parametrize("path", ["plain", "nowhere", "in_thread", "in_submitted_call"])
def test_request_that_is_left_untold_has_no_ids(path, lines, monkeypatch):
    """A request that the options leave untold has no ids, also where the server left one open before it."""
    monkeypatch.setenv("OTEL_SEMCONV_STABILITY_OPT_IN", "http")
    with Telemetry(excluded_urls=[f"^/{path}/"]), served() as respond:
        respond("declined")
        assert state.late_request.get() is not None
        lines.records.clear()
        respond(path)
    assert lines.records
    assert {(*ids_on(record), record.error_code) for record in lines.records} == {("", "", "", "")}


def test_after_a_request_nothing_of_it_is_left(telemetry, lines):
    """What the same thread logs when the request is finished has neither its ids nor its error."""
    Client().get("/declined/")
    logging.getLogger("gunicorn.error").warning("worker exiting")
    (record,) = lines.of("gunicorn.error", "worker")
    assert (*ids_on(record), record.error_code) == ("", "", "", "")


@contextlib.contextmanager
def served():
    """Give what answers as a server does that never closes a response; in the end all is finished."""
    handler = Client().handler
    handler.load_middleware()
    try:
        yield lambda path: handler.get_response(RequestFactory().get(f"/{path}/"))
    finally:
        request_finished.send(None)
    assert state.late_request.get() is None


def test_request_that_has_been_answered_is_not_kept_alive(telemetry):
    """What waits for late lines keeps the ids and the route of a request, not what was uploaded."""
    with served() as respond:
        response = respond("plain")
        reference = weakref.ref(response._resource_closers[-1].__self__)
        assert state.late_request.get().route == "plain/"
        response._resource_closers.clear()  # Django's own reference to the request
        del response
        gc.collect()
        assert reference() is None


def test_request_that_is_left_by_an_exception_has_late_lines_too(telemetry, lines):
    """What the server logs of an exception that passed all of Django has the request's ids."""
    with override_settings(DEBUG_PROPAGATE_EXCEPTIONS=True):
        try:
            Client().get("/fails/")
        except ValueError:
            logging.getLogger("gunicorn.error").exception("Error handling request /fails/")
    (record,) = lines.of("gunicorn.error", "Error handling")
    assert ids_on(record) == ids_of(server_span(telemetry))
    request_finished.send(None)


@pytest.mark.parametrize("option", [True, False])
def test_option_hands_contexts_on_to_threads(option, lines, monkeypatch):
    """The option `thread_context` says whether threads have the ids of who started them."""
    monkeypatch.setenv("OTEL_SEMCONV_STABILITY_OPT_IN", "http")
    with Telemetry(thread_context=option):
        for path in ("in_thread", "in_submitted_call"):
            Client().get(f"/{path}/")
    assert [bool(record.trace_id) for record in lines.of("bank", views.SAID)] == [option, option]
