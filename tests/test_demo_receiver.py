# SPDX-License-Identifier: Apache-2.0
"""The demo's OTLP receiver: it decodes what the SDK's own exporters send, hands it on, refuses the rest."""

import gzip
import http.client
import socket
from contextlib import ExitStack
from urllib.parse import urlsplit

import pytest
from google.rpc.status_pb2 import Status
from opentelemetry._logs import SeverityNumber
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import SimpleLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.trace import SpanKind, StatusCode
from opentelemetry.trace import Status as SpanStatus

from demo.forwarder import Forwarder
from demo.receiver import LARGEST_BODY, PROTOBUF, Receiver

RESOURCE = Resource({"service.instance.id": "worker-1"})


@pytest.fixture
def receiver():
    """A receiver that hands nothing on."""
    with Receiver() as running:
        yield running


@pytest.fixture
def send_spans():
    """A function that sends a SERVER span with a CLIENT span below it, by the SDK's exporter."""
    with ExitStack() as stack:

        def send(endpoint, compression=Compression.NoCompression):
            provider = TracerProvider(resource=RESOURCE, shutdown_on_exit=False)
            stack.callback(provider.shutdown)
            exporter = OTLPSpanExporter(f"{endpoint}/v1/traces", compression=compression)
            provider.add_span_processor(SimpleSpanProcessor(exporter))
            tracer = provider.get_tracer("test")
            with (
                tracer.start_as_current_span("GET /", kind=SpanKind.SERVER),
                tracer.start_as_current_span("SELECT", kind=SpanKind.CLIENT) as span,
            ):
                span.set_attributes(
                    {"text": "é", "number": 7, "ratio": 0.5, "flag": True, "list": ["a", "b"]}
                )
                span.add_event("refused", {"code": "40001"})
                span.set_status(SpanStatus(StatusCode.ERROR))

        yield send


@pytest.mark.parametrize("compression", [Compression.NoCompression, Compression.Gzip])
def test_spans_of_the_sdk_are_decoded_whole(receiver, send_spans, compression):
    """Names, kinds, parents, attributes of every type, events and status survive, compressed or not."""
    send_spans(receiver.endpoint, compression)

    server, client = receiver.telemetry.spans
    assert (server.name, server.kind, server.parent_id, server.status) == ("GET /", "SERVER", "", "UNSET")
    assert (client.name, client.kind, client.parent_id, client.status) == (
        "SELECT",
        "CLIENT",
        server.span_id,
        "ERROR",
    )
    assert client.attributes == {"text": "é", "number": 7, "ratio": 0.5, "flag": True, "list": ["a", "b"]}
    assert [(event.name, event.attributes) for event in client.events] == [("refused", {"code": "40001"})]
    assert server.start <= client.start <= client.end <= server.end
    assert receiver.telemetry.processes() == {"worker-1"}
    assert set(receiver.telemetry.traces()) == {server.trace_id}


def test_metrics_of_the_sdk_stand_at_their_last_point(receiver):
    """Of a cumulative series that was sent twice the last value counts, and a histogram's is its count, beside its sum."""
    reader = PeriodicExportingMetricReader(
        OTLPMetricExporter(f"{receiver.endpoint}/v1/metrics"), export_interval_millis=float("inf")
    )
    provider = MeterProvider([reader], resource=RESOURCE, shutdown_on_exit=False)
    errors = provider.get_meter("test").create_counter("errors")
    durations = provider.get_meter("test").create_histogram("durations")
    for code in ("40001", "40001", "23505"):
        errors.add(1, {"code": code})
        durations.record(0.25)
        provider.force_flush()
    provider.shutdown()

    told = {
        (point.metric, point.attributes.get("code")): (point.value, point.total)
        for point in receiver.telemetry.points
    }
    assert told == {("errors", "40001"): (2, 0), ("errors", "23505"): (1, 0), ("durations", None): (3, 0.75)}
    assert receiver.requests["metrics"] >= 3


def test_log_records_of_the_sdk_are_decoded(receiver):
    """The event's name, its attributes and the process arrive."""
    provider = LoggerProvider(resource=RESOURCE, shutdown_on_exit=False)
    provider.add_log_record_processor(
        SimpleLogRecordProcessor(OTLPLogExporter(f"{receiver.endpoint}/v1/logs"))
    )
    provider.get_logger("test").emit(
        severity_number=SeverityNumber.WARN, event_name="refused", body="no", attributes={"code": "40001"}
    )
    provider.shutdown()

    (record,) = receiver.telemetry.logs
    assert (record.process, record.event, record.attributes) == ("worker-1", "refused", {"code": "40001"})


def test_a_batch_that_is_sent_twice_counts_once(receiver, send_spans):
    """An exporter that repeats itself after a lost answer does not make more spans of what happened."""
    bodies = []
    with Receiver(lambda path, headers, body: bodies.append((path, headers, body))) as first:
        send_spans(first.endpoint)
    for path, headers, body in bodies * 2:
        assert _post(receiver, path, body, headers)[0] == 200
    assert len(receiver.telemetry.spans) == 2


def test_the_answer_is_the_one_of_the_specification(receiver):
    """Success is HTTP 200 with an ExportTraceServiceResponse as protobuf."""
    status, content_type, body = _post(receiver, "/v1/traces", b"")
    assert (status, content_type) == (200, PROTOBUF)
    assert ExportTraceServiceResponse.FromString(body) == ExportTraceServiceResponse()


BOMB = gzip.compress(bytes(LARGEST_BODY + 1))


@pytest.mark.parametrize(
    ("path", "body", "headers", "status"),
    [
        pytest.param("/v1/traces", b"\xff\xff rubbish", {}, 400, id="not protobuf"),
        pytest.param("/v1/traces", b"{}", {"content-type": "application/json"}, 415, id="JSON"),
        pytest.param("/v1/traces", b"", {"content-encoding": "zstd"}, 415, id="unknown compression"),
        pytest.param("/v1/logs", b"plain", {"content-encoding": "gzip"}, 400, id="not gzip"),
        pytest.param(
            "/v1/logs", gzip.compress(b"x" * 99)[:-4], {"content-encoding": "gzip"}, 400, id="cut short"
        ),
        pytest.param("/v1/metrics", BOMB, {"content-encoding": "gzip"}, 413, id="gzip bomb"),
        pytest.param("/v1/metrics", b"", {"content-length": str(LARGEST_BODY + 1)}, 413, id="too long"),
        pytest.param("/v1/metrics", b"", {"content-length": "-1"}, 411, id="no length"),
        pytest.param("/v1/profiles", b"", {}, 404, id="unknown path"),
    ],
)
def test_rubbish_is_refused_and_not_kept(path, body, headers, status):
    """What cannot be taken gets a 4xx with a Status that says why, and goes no further."""
    handed_on = []
    with Receiver(lambda *item: handed_on.append(item)) as receiver:
        answered, content_type, answer = _post(receiver, path, body, headers)
        telemetry = receiver.telemetry
        assert (answered, content_type) == (status, PROTOBUF)
        assert Status.FromString(answer).message
        kept = [telemetry.spans, telemetry.points, telemetry.logs, list(receiver.requests), handed_on]
        assert not any(kept)


def test_only_post_is_allowed(receiver):
    """A browser that looks in is told that it cannot."""
    connection = _connection(receiver)
    connection.request("GET", "/v1/traces")
    assert connection.getresponse().status == 405
    connection.close()


def test_closing_does_not_wait_for_idle_connections():
    """Exporters keep their connections open; that does not keep the receiver open."""
    with Receiver() as receiver:
        connection = _connection(receiver)
        connection.request("POST", "/v1/traces", b"", {"content-type": PROTOBUF})
        connection.getresponse().read()
        kept_open = connection.sock
    assert kept_open.recv(1) == b""
    connection.close()


def test_bodies_are_handed_on_as_they_came(receiver, send_spans):
    """A collector behind the receiver gets the same bytes, compressed as they were, with the headers set."""
    seen = []
    with Receiver(lambda path, headers, body: seen.append((path, headers, body))) as collector:
        with Forwarder(collector.endpoint, headers="x-key=secret%20word") as forwarder:
            with Receiver(forwarder) as first:
                send_spans(first.endpoint, Compression.Gzip)
        assert (forwarder.sent, forwarder.failed, forwarder.dropped) == (2, 0, 0)
        assert collector.telemetry.spans == first.telemetry.spans
    assert {headers["x-key"] for _, headers, _ in seen} == {"secret word"}
    assert {headers["content-encoding"] for _, headers, _ in seen} == {"gzip"}


def test_a_collector_that_is_not_there_costs_nothing_but_a_word(send_spans):
    """What cannot be handed on is counted with its reason, and the receiver has it all the same."""
    with socket.create_server(("127.0.0.1", 0)) as gone:
        endpoint = f"http://127.0.0.1:{gone.getsockname()[1]}"
    with Forwarder(endpoint) as forwarder, Receiver(forwarder) as receiver:
        send_spans(receiver.endpoint)
    assert (forwarder.sent, forwarder.failed) == (0, 2)
    assert "refused" in forwarder.last_failure
    assert len(receiver.telemetry.spans) == 2


def test_a_collector_that_never_answers_does_not_hold_up_the_end(send_spans):
    """The queue's rest is dropped and counted once the patience at the end is over."""
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        Forwarder(f"http://127.0.0.1:{silent.getsockname()[1]}", timeout=0.1, patience=0.0) as forwarder,
        Receiver(forwarder) as receiver,
    ):
        for _ in range(5):
            send_spans(receiver.endpoint)
    assert forwarder.sent == 0
    assert forwarder.failed + forwarder.dropped > 0
    assert len(receiver.telemetry.spans) == 10


def test_there_is_no_forwarder_without_an_endpoint():
    """Only OTEL_EXPORTER_OTLP_ENDPOINT makes the demo send anything off."""
    assert Forwarder.from_environment({}) is None
    assert Forwarder.from_environment({"OTEL_EXPORTER_OTLP_ENDPOINT": " "}) is None
    made = Forwarder.from_environment({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318/"})
    assert made.endpoint == "http://collector:4318"


def _address(receiver):
    parts = urlsplit(receiver.endpoint)
    return parts.hostname, parts.port


def _connection(receiver):
    return http.client.HTTPConnection(*_address(receiver), timeout=10)


def _post(receiver, path, body, headers=()):
    connection = _connection(receiver)
    connection.request("POST", path, body, {"content-type": PROTOBUF, **dict(headers)})
    response = connection.getresponse()
    answer = response.status, response.headers["content-type"], response.read()
    connection.close()
    return answer
