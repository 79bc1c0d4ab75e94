# SPDX-License-Identifier: Apache-2.0
"""What happens when telemetry cannot be delivered: nothing to the application; counted, and said once."""

import contextlib
import itertools
import logging
import threading

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider

from demo.receiver import SERVICES, Receiver
from otel_crdb import courier, delivery, environment, hooks, pipeline

from .collectors import HTML, Collector, partial, refusing_port, response

LIMITS = environment.BatchLimits(queue_size=20, batch_size=5, schedule_delay=3600)
WAIT = 30


@pytest.fixture(autouse=True)
def fresh_counts(monkeypatch):
    """Each test counts from nothing, tries no longer than it must, and finds no fault of ours."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    delivery.forget_counts()
    faults = hooks.fault_counts()
    yield
    delivery.forget_counts()
    assert hooks.fault_counts() == faults


@pytest.fixture
def sender(monkeypatch):
    """Make a tracer that sends to an endpoint, and what it sends by."""
    made = []

    def make(endpoint, limits=LIMITS):
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
        batches = courier.SpanBatches(pipeline._otlp_delivery("TRACES", len), limits)
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(batches)
        made.append(batches)
        return provider.get_tracer("application"), batches

    yield make
    courier.close(made, 0)


def end_spans(tracer, number):
    """End so many spans."""
    for index in range(number):
        tracer.start_span(f"span {index}").end()


def said(caplog, level=logging.INFO):
    """Return what was logged from a level on, by anybody."""
    return [record.getMessage() for record in caplog.records if record.levelno >= level]


@contextlib.contextmanager
def nobody():
    """An endpoint at which nobody listens."""
    yield type("Nobody", (), {"endpoint": refusing_port()})


TROUBLES = {
    "refused": (nobody, "Connection refused"),
    "silent": (lambda: Collector(lambda _: None), "no answer in time"),
    "hangs up": (lambda: Collector(lambda _: b""), "RemoteDisconnected"),
    "bad request": (lambda: Collector(lambda _: response(400)), "answered 400"),
    "not found": (lambda: Collector(lambda _: response(404, HTML)), "answered 404"),
    "throttled": (lambda: Collector(lambda _: response(429, b"", "Retry-After: 3600")), "answered 429"),
    "broken": (lambda: Collector(lambda _: response(500)), "answered 500"),
    "unavailable": (lambda: Collector(lambda _: response(503)), "answered 503"),
    "redirect": (
        lambda: Collector(lambda _: response(307, b"", "Location: https://login/")),
        "redirect (307)",
    ),
    "web page": (lambda: Collector(lambda _: response(200, HTML, "Content-Type: text/html")), "a web page"),
    "no HTTP": (lambda: Collector(lambda _: b"SSH-2.0-OpenSSH\r\n"), "BadStatusLine"),
}


@pytest.mark.parametrize("trouble", TROUBLES)
def test_trouble_is_counted_and_said_once(trouble, sender, caplog):
    """Whatever a collector does instead of taking spans, they are counted, and one line says what it did."""
    caplog.set_level(logging.INFO)
    make, words = TROUBLES[trouble]
    with make() as collector:
        tracer, batches = sender(collector.endpoint)
        end_spans(tracer, 3)
        assert not batches.force_flush(WAIT * 1000)
        end_spans(tracer, 4)
        assert not batches.force_flush(WAIT * 1000)
    assert delivery.drop_counts() == {("traces", "export_failed"): 7}
    (line,) = said(caplog)
    assert words in line
    assert "spans are being lost" in line


def endless():
    """Give an answer that never ends."""
    yield b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    yield from itertools.repeat(b"1000\r\n" + b"x" * 4096 + b"\r\n")


ODD_ANSWERS = {
    "truncated protobuf": lambda _: partial(1)[:-20] + b"\xff" * 20,
    "cut off": lambda _: b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\nhalf",
    "endless": lambda _: endless(),
    "JSON": lambda _: response(200, b'{"partialSuccess":{}}', "Content-Type: application/json"),
    "nothing": lambda _: response(200),
    "gzip that is none": lambda _: response(200, b"not gzip", "Content-Encoding: gzip"),
}


@pytest.mark.parametrize("answer", ODD_ANSWERS)
def test_odd_answer_to_what_was_taken(answer, sender, caplog):
    """An answer 200 whose body is of no use means that the spans were taken: they are not sent again."""
    with Collector(ODD_ANSWERS[answer]) as collector:
        tracer, batches = sender(collector.endpoint)
        end_spans(tracer, 3)
        assert batches.force_flush(WAIT * 1000)
    assert collector.requests == 1
    assert delivery.drop_counts() == {}
    assert said(caplog) == []


def test_what_a_collector_refuses_of_a_batch_is_counted(sender, caplog):
    """A partial success counts what was rejected, and says why."""
    with Collector(lambda _: partial(2)) as collector:
        tracer, batches = sender(collector.endpoint)
        end_spans(tracer, 3)
        assert not batches.force_flush(WAIT * 1000)
    assert delivery.drop_counts() == {("traces", "rejected"): 2}
    assert "refused 2: too old" in said(caplog)[0]


def test_collector_that_comes_back(sender, caplog, monkeypatch):
    """It is tried again by itself, and when it is calm a line says what the trouble cost."""
    caplog.set_level(logging.INFO)
    down = threading.Event()
    down.set()
    with Collector(lambda _: response(500) if down.is_set() else response(200)) as collector:
        tracer, batches = sender(collector.endpoint)
        end_spans(tracer, 3)
        assert not batches.force_flush(WAIT * 1000)
        down.clear()
        end_spans(tracer, 1)
        assert batches.force_flush(WAIT * 1000)
        assert len(said(caplog)) == 1, "too early to call it over"
        monkeypatch.setattr(delivery, "CALM_SECONDS", 0)
        end_spans(tracer, 1)
        assert batches.force_flush(WAIT * 1000)
        assert said(caplog)[1:] == [line for line in said(caplog)[1:] if "delivered again" in line]
        assert "3 were lost" in said(caplog)[1]
        down.set()
        end_spans(tracer, 1)
        assert not batches.force_flush(WAIT * 1000)
    assert len(said(caplog)) == 3, "the next spell is said again"


def test_short_trouble_costs_nothing(sender, monkeypatch):
    """A collector that is unavailable for a moment is asked again, and gets the spans."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "20")
    answers = [response(503, b"", "Retry-After: 0"), response(200)]
    with Collector(answers.__getitem__) as collector:
        tracer, batches = sender(collector.endpoint)
        end_spans(tracer, 3)
        assert batches.force_flush(WAIT * 1000)
    assert collector.requests == 2
    assert delivery.drop_counts() == {}


def test_nobody_waits_for_a_collector_and_memory_is_bounded(sender, monkeypatch):
    """While an export hangs, spans end without waiting for it; as many wait as may, the rest is counted."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "60")
    answer = threading.Event()

    def late(_):
        answer.wait(60)
        return response(200)

    with Collector(late) as collector:
        tracer, batches = sender(collector.endpoint)
        end_spans(tracer, LIMITS.batch_size)
        assert collector.asked.wait(WAIT)
        end_spans(tracer, LIMITS.queue_size + 7)
        assert not answer.is_set(), "they ended while the export was under way"
        assert batches.waiting == LIMITS.queue_size + LIMITS.batch_size
        assert delivery.drop_counts() == {("traces", "queue_full"): 7}
        answer.set()
        assert batches.force_flush(WAIT * 1000)
        assert batches.waiting == 0
    assert delivery.drop_counts() == {("traces", "queue_full"): 7}


def test_many_threads_lose_and_double_nothing(sender):
    """Spans that end in many threads at once arrive once each."""
    ids = []

    def note(path, _, body):
        for resource in SERVICES[path][1].FromString(body).resource_spans:
            ids.extend(span.span_id for scope in resource.scope_spans for span in scope.spans)

    with Receiver(note) as receiver:
        tracer, batches = sender(receiver.endpoint, environment.BatchLimits(10_000, 64, 3600))
        threads = [threading.Thread(target=end_spans, args=(tracer, 500)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert batches.force_flush(WAIT * 1000)
    assert len(ids) == len(set(ids)) == 4000
    assert delivery.drop_counts() == {}


def test_full_batch_leaves_at_once(sender):
    """A full batch does not wait for the schedule, and what is left over does."""
    with Collector(lambda _: response(200)) as collector:
        tracer, _ = sender(collector.endpoint)
        end_spans(tracer, LIMITS.batch_size - 1)
        assert not collector.asked.is_set()
        end_spans(tracer, 2)
        assert collector.asked.wait(WAIT)


def test_batch_leaves_on_schedule(sender):
    """A batch that is not full leaves after the delay."""
    with Collector(lambda _: response(200)) as collector:
        tracer, _ = sender(collector.endpoint, environment.BatchLimits(20, 10, 0.05))
        end_spans(tracer, 1)
        assert collector.asked.wait(WAIT)


def test_closing_ends_in_time_and_counts_what_is_left(sender, caplog):
    """With a collector that never answers, closing returns when its time is up and counts what was lost."""
    with Collector(lambda _: None) as collector:
        tracer, batches = sender(collector.endpoint)
        end_spans(tracer, LIMITS.batch_size)
        assert collector.asked.wait(WAIT)
        end_spans(tracer, 3)
        courier.close([batches], 0.2)
        end_spans(tracer, 2)
        batches.courier._thread.join(WAIT)  # what was counted for it, it does not count again
    counts = delivery.drop_counts()
    assert counts.pop(("traces", "after_shutdown")) == 2
    assert sum(counts.values()) == LIMITS.batch_size + 3
    assert len(said(caplog, logging.WARNING)) == 1


def test_closing_asks_nobody_twice_where_nobody_listens(sender, monkeypatch):
    """A process that ends where nobody listens tries once, not for as long as it may."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "60")
    waited = []
    monkeypatch.setattr(threading.Event, "wait", recording_waits(waited, threading.Event.wait))
    tracer, batches = sender(refusing_port())
    end_spans(tracer, 3)
    courier.close([batches], 20)
    assert delivery.drop_counts() == {("traces", "export_failed"): 3}
    assert [seconds for seconds in waited if seconds is not None and seconds < 60] == [], "no back-off"


def recording_waits(waited, wait):
    """Give a method that notes how long it is asked to wait."""

    def recorded(self, timeout=None):
        waited.append(timeout)
        return wait(self, timeout)

    return recorded


def test_drops_are_a_metric():
    """``otel_crdb.telemetry.dropped`` tells signal and reason."""
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader], shutdown_on_exit=False)
    delivery.observe(provider.get_meter("test"))
    delivery.Spell("logs").lose(delivery.QUEUE_FULL, 3, "test")
    (resource,) = reader.get_metrics_data().resource_metrics
    (metric,) = resource.scope_metrics[0].metrics
    assert metric.name == "otel_crdb.telemetry.dropped"
    (point,) = metric.data.data_points
    assert (point.value, dict(point.attributes)) == (
        3,
        {"otel_crdb.telemetry.signal": "logs", "otel_crdb.telemetry.drop_reason": "queue_full"},
    )


def test_exporters_of_others_go_on_logging(caplog):
    """Only the lines about an export of ours are kept: an application's own exporter says what it says."""
    for name in delivery.EXPORTER_LOGGERS:
        logging.getLogger(name).error("theirs: %s", name)
    assert len(said(caplog)) == len(delivery.EXPORTER_LOGGERS)


def test_span_that_cannot_be_encoded_goes_alone(sender, caplog):
    """A span that cannot be encoded is lost and counted; those that leave with it arrive."""
    with Receiver() as receiver:
        tracer, batches = sender(receiver.endpoint)
        end_spans(tracer, 2)
        tracer.start_span("before all time", start_time=-1).end()
        tracer.start_span("\ud800").end()
        tracer.start_span("bytes", attributes={"text": "\ud800"}).end()
        assert not batches.force_flush(WAIT * 1000)
        assert sorted(span.name for span in receiver.telemetry.spans) == ["?", "bytes", "span 0", "span 1"]
    assert delivery.drop_counts() == {("traces", "export_failed"): 1}
    assert len(said(caplog)) == 1


def test_secrets_of_an_endpoint_are_not_logged(sender, caplog):
    """User, password and query of the endpoint are not in the line that says it is in trouble."""
    endpoint = refusing_port().replace("http://", "http://user:s3cret@") + "/?token=s3cret"
    tracer, batches = sender(endpoint)
    end_spans(tracer, 1)
    assert not batches.force_flush(WAIT * 1000)
    assert "s3cret" not in "".join(said(caplog))


def test_endpoint_that_is_none(sender, caplog):
    """An endpoint that is no address is said, and harms nothing."""
    tracer, batches = sender("not an address")
    end_spans(tracer, 1)
    assert not batches.force_flush(WAIT * 1000)
    assert delivery.drop_counts() == {("traces", "export_failed"): 1}
    assert len(said(caplog)) == 1
