# SPDX-License-Identifier: Apache-2.0
"""What leaves a real process over OTLP, for applications that have set up none, some or all of it."""

import os
import socket
import subprocess
import sys
import textwrap

import pytest

from demo.receiver import Receiver

pytestmark = pytest.mark.usefixtures("accounts")

SECRET = "s3cret-value"

PREAMBLE = """
import os, sys
if os.environ.get("OTEL_CRDB_TEST_DRIVER") == "psycopg2":
    sys.modules["psycopg"] = None
import otel_crdb
"""
WORK = """
import django
django.setup()
from django.db import connection, transaction, DatabaseError
from tests.project.models import Account
try:
    with transaction.atomic():
        Account.objects.create(email=Account.objects.first().email)
except DatabaseError:
    pass
"""


def run(script, **environment):
    """Run a script in a process of its own, and return what it printed."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_EXPORTER")}
    program = PREAMBLE + textwrap.dedent(script)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        env={**clean, "OTEL_SEMCONV_STABILITY_OPT_IN": "", **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture
def receiver():
    """A real OTLP receiver."""
    with Receiver() as running:
        yield running


def names(receiver):
    """Return the names of the spans received."""
    return [span.name for span in receiver.telemetry.spans]


def test_all_signals_leave_by_the_standard_variables(receiver):
    """Without providers of its own, a process sends spans, data points and log records by OTLP."""
    run(
        "otel_crdb.instrument()" + WORK + "assert otel_crdb.flush()",
        OTEL_EXPORTER_OTLP_ENDPOINT=receiver.endpoint,
        OTEL_SEMCONV_EXCEPTION_SIGNAL_OPT_IN="logs",
    )
    assert {"SELECT account", "INSERT account", "ROLLBACK"} <= set(names(receiver))
    assert receiver.requests["traces"] > 0
    assert receiver.requests["metrics"] > 0
    assert receiver.requests["logs"] == 1
    metrics = {point.metric for point in receiver.telemetry.points}
    assert {"db.client.operation.duration", "cockroachdb.client.txn.duration"} <= metrics


def test_process_that_just_ends_loses_nothing(receiver):
    """Without a ``flush()`` everything still leaves when the process ends."""
    run("otel_crdb.instrument()" + WORK, OTEL_EXPORTER_OTLP_ENDPOINT=receiver.endpoint)
    assert "ROLLBACK" in names(receiver)


def test_resource_names_the_project_and_the_process(receiver):
    """``service.name`` is the Django project's, unless the variables say another; each process has an id."""
    script = """
    otel_crdb.instrument()
    from opentelemetry import trace
    resource = trace.get_tracer_provider().resource.attributes
    print(resource["service.name"], len(resource["service.instance.id"]))
    """
    assert run(script, OTEL_EXPORTER_OTLP_ENDPOINT=receiver.endpoint).stdout.split() == ["tests", "36"]
    named = run(script, OTEL_EXPORTER_OTLP_ENDPOINT=receiver.endpoint, OTEL_SERVICE_NAME="bank")
    assert named.stdout.split()[0] == "bank"


def test_provider_of_the_application_is_used(receiver):
    """A provider that the application has set is used as it is; the other signals get ours."""
    own = """
        from opentelemetry import trace
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor
        from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
        mine, exporter = TracerProvider(), InMemorySpanExporter()
        mine.add_span_processor(SimpleSpanProcessor(exporter))
        trace.set_tracer_provider(mine)
        otel_crdb.instrument()
        assert trace.get_tracer_provider() is mine
    """
    tell = "print(*(span.name for span in exporter.get_finished_spans()), sep=',')"
    script = textwrap.dedent(own) + WORK + tell
    done = run(script, OTEL_EXPORTER_OTLP_ENDPOINT=receiver.endpoint)
    assert "ROLLBACK" in done.stdout
    assert names(receiver) == []
    assert receiver.requests["metrics"] > 0


def test_providers_outlive_uninstrument(receiver):
    """Providers can be set once in a process: the next ``instrument()`` uses the same, which still send."""
    run(
        "otel_crdb.instrument(); otel_crdb.uninstrument(); otel_crdb.instrument()" + WORK,
        OTEL_EXPORTER_OTLP_ENDPOINT=receiver.endpoint,
    )
    assert names(receiver).count("ROLLBACK") == 1


def test_signals_can_be_switched_off(receiver):
    """``OTEL_METRICS_EXPORTER=none`` sends no data points."""
    run(
        "otel_crdb.instrument()" + WORK,
        OTEL_EXPORTER_OTLP_ENDPOINT=receiver.endpoint,
        OTEL_METRICS_EXPORTER="none",
        OTEL_LOGS_EXPORTER="none",
    )
    assert receiver.requests["metrics"] == 0
    assert "ROLLBACK" in names(receiver)


def test_rows_in_spans_of_others_are_scrubbed_on_the_way_out(receiver):
    """A span of the application's that a database error passed through leaves without the row."""
    run(
        f"""
        otel_crdb.instrument()
        import django
        django.setup()
        from django.db import DatabaseError, transaction
        from opentelemetry import trace
        from tests.project.models import Account
        email = "-".join({SECRET.split("-")!r}) + "@example.com"
        Account.objects.create(email=email)
        try:
            with trace.get_tracer("application").start_as_current_span("mine"):
                Account.objects.create(email=email)
        except DatabaseError as error:
            assert email in str(error)
        """,
        OTEL_EXPORTER_OTLP_ENDPOINT=receiver.endpoint,
    )
    (mine,) = [span for span in receiver.telemetry.spans if span.name == "mine"]
    (event,) = mine.events
    assert event.name == "exception"
    assert "UniqueViolation" in event.attributes["exception.stacktrace"]
    assert SECRET not in repr(receiver.telemetry.spans)


def test_nobody_listening_is_told_and_harms_nothing():
    """Where nobody takes the telemetry, ``flush()`` says so within its time and the work is done."""
    with socket.socket() as unheard:
        unheard.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{unheard.getsockname()[1]}"
        done = run(
            "otel_crdb.instrument()" + WORK + "print(Account.objects.count(), otel_crdb.flush(timeout=1))",
            OTEL_EXPORTER_OTLP_ENDPOINT=endpoint,
            OTEL_EXPORTER_OTLP_TIMEOUT="1",
        )
    assert done.stdout.split()[0] == "2"


def test_flush_keeps_to_its_time():
    """``flush(timeout)`` comes back in time with False where the collector takes a connection and is silent."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        done = run(
            "otel_crdb.instrument()"
            + WORK
            + "import time; began = time.monotonic(); sent = otel_crdb.flush(timeout=0.2)\n"
            + "print(sent, time.monotonic() - began < 5, flush=True); os._exit(0)",
            OTEL_EXPORTER_OTLP_ENDPOINT=endpoint,
        )
    assert done.stdout.split() == ["False", "True"]


SPANS = """
otel_crdb.instrument()
from opentelemetry import _logs, metrics, trace
for index in range(2000):
    trace.get_tracer("application").start_span(f"span {index}").end()
_logs.get_logger("application").emit(body="said")
metrics.get_meter("application").create_counter("payments").add(1)
"""


def test_process_that_just_ends_loses_nothing_of_much(receiver):
    """A queue that is nearly full leaves whole when the process ends, with the other signals."""
    done = run(SPANS, OTEL_EXPORTER_OTLP_ENDPOINT=receiver.endpoint)
    assert len(set(names(receiver))) == 2000
    assert len(receiver.telemetry.logs) == 1
    assert "payments" in {point.metric for point in receiver.telemetry.points}
    assert done.stderr == ""


def test_process_ends_where_nobody_answers():
    """With a collector that never answers the process ends all the same, and says once a signal what was lost."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        # Sixty seconds and more, but for the end's own bound; run() waits for less.
        done = run(SPANS, OTEL_EXPORTER_OTLP_ENDPOINT=endpoint, OTEL_EXPORTER_OTLP_TIMEOUT="600")
    for noun in ("spans", "log records", "data points"):
        assert done.stderr.count(f"otel_crdb: {noun} are being lost") == 1


def test_drops_leave_with_the_metrics(receiver):
    """What a signal has lost arrives as a metric, by the signal that works."""
    run(
        SPANS + "assert not otel_crdb.flush()",
        OTEL_EXPORTER_OTLP_ENDPOINT=receiver.endpoint,
        OTEL_EXPORTER_OTLP_TRACES_ENDPOINT="http://127.0.0.1:1/v1/traces",
        OTEL_EXPORTER_OTLP_TIMEOUT="1",
    )
    last = [point for point in receiver.telemetry.points if point.metric == "otel_crdb.telemetry.dropped"][-1]
    assert last.value == 2000
    assert last.attributes["otel_crdb.telemetry.drop_reason"] == "export_failed"


def test_protocol_can_be_chosen_for_one_signal(receiver):
    """``OTEL_EXPORTER_OTLP_TRACES_PROTOCOL=grpc`` makes the gRPC exporter for traces alone."""
    done = run(
        """
        from otel_crdb import otlp
        print(*(type(otlp.exporter(s, otlp.protocol(s))).__module__.split(".")[4] for s in ("TRACES", "METRICS")))
        os._exit(0)
        """,
        OTEL_EXPORTER_OTLP_TRACES_PROTOCOL="grpc",
        OTEL_EXPORTER_OTLP_ENDPOINT=receiver.endpoint,
    )
    assert done.stdout.split() == ["grpc", "http"]
