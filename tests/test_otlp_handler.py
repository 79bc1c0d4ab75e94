# SPDX-License-Identifier: Apache-2.0
"""OTLPHandler: records become OTLP log records, each once, and nothing of it can harm who logs."""

import contextlib
import gc
import logging
import logging.config
import logging.handlers
import os
import queue
import signal
import socket
import threading
import warnings

import pytest
from django.test import RequestFactory
from django.urls import resolve
from opentelemetry import context as context_api
from opentelemetry._logs import SeverityNumber
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.sdk._logs import LoggerProvider, LogRecordLimits
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
from opentelemetry.sdk.trace import TracerProvider

from otel_crdb import courier, delivery, hooks
from otel_crdb.environment import BatchLimits
from otel_crdb.logs import OTLPHandler, otlp_handler
from otel_crdb.logs.filters import CockroachTxnFilter

from .telemetry import Telemetry


class Sent:
    """A logger, the handler on it, and what arrives."""

    def __init__(self, **limits):
        self.exporter = InMemoryLogRecordExporter()
        self.provider = LoggerProvider(shutdown_on_exit=False, log_record_limits=LogRecordLimits(**limits))
        self.provider.add_log_record_processor(SimpleLogRecordProcessor(self.exporter))
        self.handler = OTLPHandler(logger_provider=self.provider)
        self.log = logging.getLogger("bank.transfers")

    def __enter__(self):
        self.log.handlers, self.log.propagate, self.log.level = [self.handler], False, logging.DEBUG
        return self

    def __exit__(self, *_):
        self.log.handlers, self.log.propagate, self.log.level = [], True, logging.NOTSET

    @property
    def records(self):
        """What has arrived."""
        return [each.log_record for each in self.exporter.get_finished_logs()]

    @property
    def one(self):
        """The only record that has arrived."""
        (record,) = self.records
        return record


@pytest.fixture
def sent():
    """A logger whose records are sent, and what arrives."""
    with Sent() as sent:
        yield sent


@pytest.fixture
def tracer():
    return TracerProvider(shutdown_on_exit=False).get_tracer("application")


def test_a_record_over_otlp(sent, tracer):
    """Scope, severity, body, time, ids, code and thread are those of the record."""
    with tracer.start_as_current_span("work") as span:
        sent.log.warning("paid %d", 7, extra={"account": 5, "otel.event.name": "bank.paid"})
    (readable,), told = sent.exporter.get_finished_logs(), span.get_span_context()
    record = readable.log_record
    assert readable.instrumentation_scope.name == "bank.transfers"
    assert (record.severity_number, record.severity_text) == (SeverityNumber.WARN, "WARNING")
    assert (record.body, record.event_name) == ("paid 7", "bank.paid")
    assert (record.trace_id, record.span_id) == (told.trace_id, told.span_id)
    assert record.trace_flags == told.trace_flags
    assert 0 <= record.observed_timestamp - record.timestamp < 60e9
    attributes = dict(record.attributes)
    assert attributes.pop("code.line.number") > 0
    assert attributes == {
        "code.file.path": __file__,
        "code.function.name": "test_a_record_over_otlp",
        "thread.id": threading.get_ident(),
        "thread.name": "MainThread",
        "account": 5,
    }


class OwnError(ValueError):
    """An application's."""


def test_an_exception_is_told_once(sent):
    """Type is qualified, the message is all of it, the stack is there once; neither is in the body."""
    try:
        raise OwnError("a", "b")
    except OwnError:
        sent.log.exception("failed")
    attributes = sent.one.attributes
    assert attributes["exception.type"] == f"{__name__}.OwnError"
    assert attributes["exception.message"] == "('a', 'b')"
    assert attributes["exception.stacktrace"].count("Traceback") == 1
    assert sent.one.body == "failed"
    assert "exc_info" not in attributes
    assert "exc_text" not in attributes


def test_a_request_in_extra(sent, recwarn):
    """Of Django's request its method, path, route and the answer's status are told, and nothing is warned of."""
    request = RequestFactory().post("/transfer/7/?token=hunter2", HTTP_AUTHORIZATION="Bearer hunter2")
    request.resolver_match = resolve("/transfer/7/")
    sent.log.warning("Bad Request", extra={"request": request, "status_code": 400})
    ours = ("http", "url", "re", "st")
    told = {name: value for name, value in sent.one.attributes.items() if name.startswith(ours)}
    assert told == {
        "http.request.method": "POST",
        "url.path": "/transfer/7/",
        "http.route": "transfer/<int:amount>/",
        "http.response.status_code": 400,
    }
    assert "hunter2" not in str(vars(sent.one))
    assert not recwarn.list


def test_foreign_objects_are_named(sent, caplog):
    """A socket, a model's class, a function are told by their class; OpenTelemetry has nothing to warn of."""
    with socket.socket() as connection, caplog.at_level(logging.DEBUG, "opentelemetry"):
        sent.log.info("x", extra={"request": connection, "error": OwnError("x"), "call": print, "none": None})
    attributes = sent.one.attributes
    assert attributes["request"] == "<socket.socket>"
    assert "OwnError" in attributes["error"]
    assert "none" not in attributes
    assert not [each for each in caplog.records if each.name != "bank.transfers"]


def test_extra_is_bounded(sent):
    """At most 64 attributes of bounded length leave; ours are among them, whatever is added."""
    huge = {f"field{number}": "x" * 100_000 for number in range(500)}
    sent.log.error("x", exc_info=ValueError("x"), extra={**huge, "error_code": "40001"})
    attributes = sent.one.attributes
    assert len(attributes) == 64
    assert attributes["db.response.status_code"] == "40001"
    assert "exception.stacktrace" in attributes
    assert max(len(value) for value in attributes.values() if isinstance(value, str)) <= 4096


def test_the_limits_of_the_sdk(caplog):
    """Attributes keep to the SDK's own limits, so that it warns of nothing."""
    with warnings.catch_warnings(), caplog.at_level(logging.DEBUG, "opentelemetry"):
        warnings.simplefilter("error")
        with Sent(max_log_record_attributes=7, max_log_record_attribute_length=5) as sent:
            sent.log.info("x", extra={"d": {"e": "long text"}, "b": 2, "c": 3, "a": ["long text"]})
    assert len(sent.one.attributes) == 7
    assert sent.one.attributes["d"] == {"e": "long "}
    assert not [each for each in caplog.records if each.name != "bank.transfers"]


def test_secrets_stay(sent):
    """Secrets are in neither body nor attributes nor stack nor event name."""
    try:
        raise ValueError("password=hunter2")
    except ValueError:
        extra = {"password": "hunter2", "headers": {"Cookie": "sessionid=hunter2"}, "note": "token=hunter2"}
        sent.log.exception("password=%s", "hunter2", extra={**extra, "otel.event.name": "token=hunter2"})
    assert "hunter2" not in str(vars(sent.one))


# --- whose ids -----------------------------------------------------------------------------------


def test_a_listener_in_another_thread(sent, tracer):
    """A record that a queue's listener sends has the ids of where it was made, none where none was current."""
    waiting = queue.SimpleQueue()
    sent.log.handlers = [logging.handlers.QueueHandler(waiting)]
    sent.log.handlers[0].addFilter(CockroachTxnFilter())
    with tracer.start_as_current_span("work") as span:
        sent.log.info("within")
    sent.log.info("without")
    with tracer.start_as_current_span("another"):
        for _ in range(2):
            sent.handler.handle(waiting.get())
    assert [record.trace_id for record in sent.records] == [span.get_span_context().trace_id, 0]


def test_an_id_of_the_applications_own(sent, tracer):
    """A trace_id that is none leaves the current span's ids in force."""
    with tracer.start_as_current_span("work") as span:
        sent.log.info("x", extra={"trace_id": "request-7"})
    assert sent.one.trace_id == span.get_span_context().trace_id


# --- each once -----------------------------------------------------------------------------------


def test_two_handlers_send_a_record_once(sent):
    """What one handler has sent another does not send, also behind a queue."""
    waiting = queue.SimpleQueue()
    sent.log.handlers += [OTLPHandler(logger_provider=sent.provider), logging.handlers.QueueHandler(waiting)]
    sent.log.info("once")
    sent.handler.handle(waiting.get())
    assert len(sent.records) == 1


def test_our_own_events_are_not_sent_again(sent):
    """A line that stands beside an event of ours is not sent: the event is there already."""
    sent.log.warning("retried", extra={"otel_crdb_event": "cockroachdb.txn.retry"})
    assert not sent.records


def theirs():
    """Return OpenTelemetry's own handlers, those that are installed."""
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the SDK's is deprecated
        from opentelemetry.sdk._logs import LoggingHandler

        found.append(LoggingHandler)
    with contextlib.suppress(ImportError):
        from opentelemetry.instrumentation.logging.handler import LoggingHandler as ContribHandler

        found.append(ContribHandler)
    return found


@pytest.mark.parametrize("kind", theirs(), ids=lambda kind: kind.__module__)
@pytest.mark.parametrize("ours_first", [True, False])
def test_opentelemetrys_own_handler_on_root(sent, kind, ours_first, caplog):
    """A record that ours sends theirs does not, in either order; that is said once, and ends."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        other = kind(logger_provider=sent.provider)
    before, sent.log.propagate, sent.log.handlers = list(logging.root.handlers), True, []
    logging.root.handlers += [sent.handler, other] if ours_first else [other, sent.handler]
    try:
        with caplog.at_level(logging.INFO, "otel_crdb"):
            otlp_handler.stand_before_others(logging.root)
            for number in range(3):
                sent.log.warning("n%d", number)
        assert [record.body for record in sent.records if record.body[0] == "n"] == ["n0", "n1", "n2"]
        (said,) = [each for each in caplog.records if each.name == "otel_crdb"]
        assert kind.__module__ in said.getMessage()
        otlp_handler.stand_beside_others()
        assert not other.filters
        logging.root.handlers.remove(sent.handler)
        sent.log.warning("theirs")
        assert sent.records[-1].body == "theirs"
    finally:
        otlp_handler.stand_beside_others()
        logging.root.handlers = before


# --- what must not feed itself -------------------------------------------------------------------


class Chatty:
    """An argument that logs when it is written."""

    def __init__(self, log):
        self.log = log

    def __str__(self):
        self.log.warning("I am being written")
        return "chatty"


def test_what_is_logged_while_sending_is_not_sent(sent):
    """An argument that logs when it is written is written once, and its own line goes no further."""
    sent.handler.handle(logging.makeLogRecord({"msg": Chatty(sent.log)}))
    assert [record.body for record in sent.records] == ["chatty"]


@pytest.mark.parametrize("name", ["opentelemetry.sdk._logs", "opentelemetry", "otel_crdb.delivery"])
def test_lines_about_sending(sent, name):
    """Lines of what sends telemetry are not sent."""
    sent.handler.handle(logging.makeLogRecord({"name": name, "msg": "the collector is away"}))
    assert not sent.records


def test_lines_of_threads_that_send(sent):
    """Whatever is logged in a thread that sends telemetry, such as by urllib3, is not sent."""
    for name in ("otel_crdb-logs", "OtelBatchLogRecordProcessor"):
        thread = threading.Thread(target=lambda: sent.log.info("POST /v1/logs"), name=name)
        thread.start()
        thread.join()
    with suppress_instrumentation():
        sent.log.info("of a request that is left untold")
    assert not sent.records


# --- what must not harm --------------------------------------------------------------------------


def test_no_lock_is_taken(sent):
    """A record is sent while another thread is in the midst of sending one, and within a signal's handler."""
    entered, leave = threading.Event(), threading.Event()

    class Slow:
        def __str__(self):
            entered.set()
            assert leave.wait(60)
            return "slow"

    record = logging.makeLogRecord({"msg": Slow()})
    thread = threading.Thread(target=sent.handler.handle, args=[record])
    thread.start()
    assert entered.wait(60)
    sent.log.info("fast")
    assert [record.body for record in sent.records] == ["fast"]
    leave.set()
    thread.join()
    assert sent.handler.lock is None


def test_a_provider_that_raises_breaks_nothing(sent, monkeypatch):
    """Whatever the SDK raises stays here, and is counted."""
    monkeypatch.setattr(sent.provider, "get_logger", lambda *_: 1 / 0)
    monkeypatch.setitem(hooks.faults, "OTLPHandler", 1)
    sent.log.info("x")
    assert hooks.faults["OTLPHandler"] == 2


def test_drops_are_counted(sent):
    """What a full queue has no room for is dropped without a wait, and counted."""
    way = delivery.Delivery("logs", lambda _: pytest.fail("nothing is to be sent"), len)
    waiting = courier.LogRecordBatches(way, BatchLimits(queue_size=2, batch_size=2, schedule_delay=3600))
    waiting.courier.start = waiting.courier.wake = lambda: True
    provider = LoggerProvider(shutdown_on_exit=False)
    provider.add_log_record_processor(waiting)
    sent.log.handlers = [OTLPHandler(logger_provider=provider)]
    before = delivery.drop_counts().get(("logs", delivery.QUEUE_FULL), 0)
    for number in range(7):
        sent.log.info("n%d", number)
    assert waiting.waiting == 2
    assert delivery.drop_counts()[("logs", delivery.QUEUE_FULL)] == before + 5
    assert waiting._queue[0].log_record.context == context_api.Context()


def test_where_records_go(sent):
    """Without a provider of its own it sends where instrument() was told to; with logs=False nowhere."""
    sent.log.handlers = [OTLPHandler()]
    sent.log.info("nobody is there")
    with Telemetry(python_logs=False) as telemetry:
        sent.log.info("told")
        telemetry.instrument()
    with Telemetry(logs=False) as silent:
        sent.log.info("not told")
    assert [record.body for record in telemetry.log_records] == ["told"]
    assert not silent.log_records


def test_dict_config_and_shutdown():
    """It is configured by its class path, again and again, and logging.shutdown() ends it without a wait."""
    for _ in range(3):
        logging.config.dictConfig(
            {
                "version": 1,
                "disable_existing_loggers": False,
                "handlers": {"otlp": {"class": "otel_crdb.logs.OTLPHandler", "level": "ERROR"}},
                "loggers": {"bank.configured": {"handlers": ["otlp"], "propagate": False}},
            }
        )
    (handler,) = logging.getLogger("bank.configured").handlers
    assert (type(handler), handler.level) == (OTLPHandler, logging.ERROR)
    logging.getLogger("bank.configured").error("x")
    logging.shutdown([lambda: handler])
    logging.getLogger("bank.configured").error("after the end")
    logging.getLogger("bank.configured").handlers = []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_after_a_fork(sent):
    """A child of a process that was sending sends on."""
    sent.log.info("parent")
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads
        child = os.fork()
    if not child:
        signal.alarm(60)
        sent.log.info("child")
        os.write(writer, sent.records[-1].body.encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        assert pipe.read() == "child"
    assert os.waitpid(child, 0)[1] == 0


def test_nothing_is_kept_alive(sent):
    """Loggers that are remembered are bounded, and no record is held."""
    for number in range(otlp_handler._MOST_LOGGERS + 50):
        sent.handler.handle(logging.makeLogRecord({"name": f"made.up.{number}"}))
    assert len(sent.handler._loggers[1]) <= otlp_handler._MOST_LOGGERS
    sent.exporter.clear()
    gc.collect()
    assert not [
        each for each in gc.get_objects() if type(each) is logging.LogRecord and "made.up" in str(each.name)
    ]
