# SPDX-License-Identifier: Apache-2.0
"""OpenTelemetry's variables are honoured; nonsense in one is said and passed over, and the process starts."""

import gzip
import json
import os
import re
import subprocess
import sys
import textwrap

import pytest
import requests

from demo.receiver import Receiver
from otel_crdb import environment, otlp

from .processes import environment_of

SCRIPT = """
import os, sys, logging
logging.basicConfig(format="%(name)s %(levelname)s %(message)s")
import otel_crdb
otel_crdb.instrument()
from opentelemetry import _logs, metrics, trace
from opentelemetry.propagate import inject
from otel_crdb import pipeline, signals
tracer = trace.get_tracer("application")
with tracer.start_as_current_span("work", attributes={"text": "x" * 100, "a": 1, "b": 2}) as span:
    metrics.get_meter("application").create_counter("payments").add(1)
    _logs.get_logger("application").emit(body="said")
    headers = {}
    inject(headers)
    with signals.current.tracer.start_as_current_span("ours") as ours:
        print("recording", ours.is_recording(), file=sys.stderr)
    signals.current.instruments.errors.add(1)
print("headers", *sorted(headers), file=sys.stderr)
"""


class Seen:
    """What a collector got: paths, headers, and the telemetry itself."""

    def __init__(self, receiver, requests, process):
        self.telemetry, self.requests, self.process = receiver.telemetry, requests, process
        self.stderr = process.stderr

    def span(self, name="work"):
        """Return the span of that name."""
        (span,) = [span for span in self.telemetry.spans if span.name == name]
        return span

    def header(self, path, name):
        """Return a header of the first request to a path."""
        return next(headers.get(name) for each, headers, _ in self.requests if each == path)

    def body(self, path):
        """Return the bodies sent to a path, joined."""
        return b"".join(body for each, _, body in self.requests if each == path)


def run(script=SCRIPT, **variables):
    """Run a script that sends to a collector, and return what was seen."""
    requests = []
    with Receiver(lambda *request: requests.append(request)) as receiver:
        named = {name: value.format(endpoint=receiver.endpoint) for name, value in variables.items()}
        named = {name: value.replace("tls+http:", "https:") for name, value in named.items()}
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(script)],
            env=environment_of(**{"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint, **named}),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    return Seen(receiver, requests, done)


def metrics_of(seen):
    """Return the names of the metrics that came."""
    return {point.metric for point in seen.telemetry.points}


def test_defaults():
    """Without variables all three signals are sent, with names and ids."""
    seen = run()
    assert len(seen.span().attributes["text"]) == 100
    assert "payments" in metrics_of(seen)
    assert [record.body for record in seen.telemetry.logs] == ["said"]
    assert "headers traceparent" in seen.stderr
    assert b"tests" in seen.body("/v1/traces")


def test_sdk_disabled():
    """``OTEL_SDK_DISABLED=true`` sends nothing at all."""
    script = SCRIPT.split("    with signals.current")[0]
    seen = run(script, OTEL_SDK_DISABLED="true")
    assert seen.requests == []


@pytest.mark.parametrize(
    ("sampler", "argument", "sampled"),
    [
        ("always_on", "", True),
        ("always_off", "", False),
        ("parentbased_always_off", "", False),
        ("traceidratio", "0", False),
        ("parentbased_traceidratio", "1.0", True),
        ("traceidratio", "nonsense", True),
        ("nonsense", "", True),
    ],
)
def test_sampler(sampler, argument, sampled):
    """A sampler decides on spans, ours too; data points and log records are kept. Nonsense samples all."""
    seen = run(OTEL_TRACES_SAMPLER=sampler, OTEL_TRACES_SAMPLER_ARG=argument)
    assert sorted(span.name for span in seen.telemetry.spans) == ["ours", "work"] * sampled
    assert f"recording {sampled}" in seen.stderr
    assert {"payments", "cockroachdb.client.errors"} <= metrics_of(seen)
    assert len(seen.telemetry.logs) == 1


def test_resource():
    """Name and attributes of the resource are those of the variables, on every signal; the name's own wins."""
    seen = run(
        OTEL_SERVICE_NAME="bank-1", OTEL_RESOURCE_ATTRIBUTES="service.name=other,team=blue%20team,nonsense"
    )
    for path in ("/v1/traces", "/v1/metrics", "/v1/logs"):
        body = seen.body(path)
        assert b"bank-1" in body
        assert b"blue team" in body
        assert b"other" not in body


def test_headers_and_compression():
    """Headers are sent, those of a signal in place of the general ones; compression is used."""
    seen = run(
        OTEL_EXPORTER_OTLP_HEADERS="x-tenant=general",
        OTEL_EXPORTER_OTLP_TRACES_HEADERS="x-tenant=traces",
        OTEL_EXPORTER_OTLP_METRICS_COMPRESSION="gzip",
    )
    assert seen.header("/v1/traces", "x-tenant") == "traces"
    assert seen.header("/v1/logs", "x-tenant") == "general"
    assert seen.header("/v1/metrics", "content-encoding") == "gzip"
    assert seen.header("/v1/traces", "content-encoding") is None
    (body,) = [body for path, _, body in seen.requests if path == "/v1/metrics"]
    assert b"payments" in gzip.decompress(body)


def test_endpoint_of_a_signal():
    """A signal's own endpoint is used as it is; the general one is none of its concern."""
    seen = run(
        OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:1",
        OTEL_EXPORTER_OTLP_TRACES_ENDPOINT="{endpoint}/v1/traces",
    )
    assert {path for path, _, _ in seen.requests} == {"/v1/traces"}
    assert "data points are being lost" in seen.stderr


@pytest.mark.parametrize("word", ["none", "console", "otlp,console", "nonsense,otlp"])
def test_exporter_words(word):
    """``OTEL_TRACES_EXPORTER`` names where spans go; a word that is none is said and passed over."""
    seen = run(OTEL_TRACES_EXPORTER=word)
    assert bool(seen.telemetry.spans) is ("otlp" in word)
    assert ('"name": "work"' in seen.process.stdout) is ("console" in word)
    assert ("nonsense" in seen.stderr) is ("nonsense" in word)
    assert seen.telemetry.points


def test_limits():
    """Limits of attributes hold."""
    seen = run(OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT="10", OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT="2")
    attributes = seen.span().attributes
    assert len(attributes) == 2
    assert all(len(value) <= 10 for value in attributes.values() if isinstance(value, str))


@pytest.mark.parametrize(("chosen", "there"), [("trace_based", True), ("always_off", False)])
def test_exemplars(chosen, there):
    """``OTEL_METRICS_EXEMPLAR_FILTER`` decides whether data points name a trace."""
    seen = run(OTEL_METRICS_EXEMPLAR_FILTER=chosen)
    trace_id = bytes.fromhex(seen.span().trace_id)
    assert (trace_id in seen.body("/v1/metrics")) is there


@pytest.mark.parametrize(
    ("chosen", "headers"),
    [("baggage", "headers\n"), ("tracecontext", "headers traceparent\n"), ("none", "headers\n")],
)
def test_propagators(chosen, headers):
    """``OTEL_PROPAGATORS`` decides what is handed on."""
    assert headers in run(OTEL_PROPAGATORS=chosen).stderr


SETTINGS = """
import json
import otel_crdb
otel_crdb.instrument()
from otel_crdb import pipeline
traces, metrics, logs = (sender for sender in pipeline._senders)
limits = lambda each: [each._limits.queue_size, each._limits.batch_size, each._limits.schedule_delay]
print(json.dumps([limits(traces), limits(logs), metrics.courier._interval]))
"""


def settings(**variables):
    """Return the settings of the three senders."""
    seen = run(SETTINGS, **variables)
    return json.loads(seen.process.stdout), seen.stderr


def test_batches_and_interval():
    """``OTEL_BSP_*``, ``OTEL_BLRP_*`` and ``OTEL_METRIC_EXPORT_INTERVAL`` are taken."""
    found, said = settings(
        OTEL_BSP_MAX_QUEUE_SIZE="100",
        OTEL_BSP_MAX_EXPORT_BATCH_SIZE="50",
        OTEL_BSP_SCHEDULE_DELAY="250",
        OTEL_BLRP_MAX_QUEUE_SIZE="300",
        OTEL_METRIC_EXPORT_INTERVAL="1500",
    )
    assert found == [[100, 50, 0.25], [300, 300, 5.0], 1.5]
    assert said == ""


def test_nonsense_in_batches_and_interval():
    """What is no number above 0 is said, and the default taken."""
    found, said = settings(
        OTEL_BSP_MAX_QUEUE_SIZE="-1",
        OTEL_BSP_MAX_EXPORT_BATCH_SIZE="5000",
        OTEL_BSP_SCHEDULE_DELAY="soon",
        OTEL_BLRP_MAX_QUEUE_SIZE="",
        OTEL_METRIC_EXPORT_INTERVAL="nan",
    )
    assert found == [[2048, 2048, 5.0], [2048, 512, 5.0], 60.0]
    for name in ("BSP_MAX_QUEUE_SIZE", "BSP_MAX_EXPORT_BATCH_SIZE", "BSP_SCHEDULE_DELAY", "EXPORT_INTERVAL"):
        assert name in said


@pytest.mark.parametrize(
    "variables",
    [
        {"OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT": "many"},
        {"OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT": "-5"},
        {"OTEL_METRICS_EXEMPLAR_FILTER": "nonsense"},
        {"OTEL_EXPORTER_OTLP_TIMEOUT": "soon"},
        {"OTEL_EXPORTER_OTLP_TRACES_TIMEOUT": "-1"},
        {"OTEL_EXPORTER_OTLP_COMPRESSION": "zstd"},
        {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"},
        {"OTEL_EXPORTER_OTLP_HEADERS": "no header at all"},
        {"OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE": "nonsense"},
        {"OTEL_RESOURCE_ATTRIBUTES": "nonsense,,=,%%"},
    ],
    ids=lambda variables: next(iter(variables)),
)
def test_nonsense_is_said_and_harms_nothing(variables):
    """A value that cannot be meant is said, and everything is sent as without it."""
    seen = run(**variables)
    assert seen.span()
    assert "payments" in metrics_of(seen)
    (name,) = variables
    said = re.search(rf"{name}|protocol|[Cc]ompression|[Hh]eader|resource|emporality", seen.stderr)
    assert said, seen.stderr


def test_certificate_that_is_not_there():
    """A certificate file that does not exist is a trouble of delivery; one for requests does not take its place."""
    seen = run(
        REQUESTS_CA_BUNDLE=requests.certs.where(),
        OTEL_EXPORTER_OTLP_ENDPOINT="tls+{endpoint}",
        OTEL_EXPORTER_OTLP_CERTIFICATE="/does/not/exist.pem",
    )
    assert "spans are being lost" in seen.stderr
    assert "exist.pem" in seen.stderr


@pytest.mark.parametrize(
    ("word", "means", "said"),
    [("gzip", "Gzip", 0), ("none", "NoCompression", 0), ("deflate", "NoCompression", 1)],
)
def test_compression_over_grpc(word, means, said, monkeypatch, caplog):
    """What gRPC cannot compress by is said, and sent as it is; the exporter itself would raise."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", word)
    assert otlp._grpc_compression("TRACES").name == means
    assert len(caplog.records) == said


def test_nonsense_among_propagators(monkeypatch, caplog):
    """Propagators that are not installed are said and left out, for as long as OpenTelemetry reads the variable."""
    monkeypatch.setattr(environment, "_said", set())
    monkeypatch.setenv("OTEL_PROPAGATORS", "nonsense,baggage")
    with environment.nonsense_set_aside():
        assert os.environ["OTEL_PROPAGATORS"] == "baggage"
    assert os.environ["OTEL_PROPAGATORS"] == "nonsense,baggage"
    (record,) = caplog.records
    assert "nonsense" in record.getMessage()


def test_switches():
    """``traces=False`` and the like leave that signal's provider unset."""
    script = """
    import otel_crdb
    from otel_crdb import pipeline
    from otel_crdb.config import Config
    pipeline.set_up(Config(traces=False, logs=False))
    print([type(provider).__name__ for provider in pipeline._providers])
    """
    assert run(script).process.stdout == "['MeterProvider']\n"
