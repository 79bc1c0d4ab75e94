# SPDX-License-Identifier: Apache-2.0
"""Spans by fastotel: scrubbed before it sees them, from each process its own, and never a reason not to start."""

import subprocess
import sys
import textwrap

import pytest

from demo.receiver import SERVICES, Receiver

from .collectors import refusing_port
from .processes import environment_of

PREAMBLE = """
import logging, os, sys, warnings
warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
logging.basicConfig(format="%(name)s %(levelname)s %(message)s")
import otel_crdb
otel_crdb.instrument(exporter="fastotel")
from opentelemetry import trace
from otel_crdb import delivery, pipeline
tracer = trace.get_tracer("application")
print("by", *(type(sender).__name__ for sender in pipeline._senders), file=sys.stderr)
"""

with_fastotel = pytest.mark.skipif(sys.version_info < (3, 11), reason="fastotel needs Python 3.11")


@pytest.fixture
def receiver():
    """A real OTLP receiver, which notes the names of spans as often as they come."""
    came = []

    def note(path, _, body):
        for resource in SERVICES[path][1].FromString(body).resource_spans:
            came.extend(span.name for scope in resource.scope_spans for span in scope.spans)

    with Receiver(note) as running:
        running.came = came
        yield running


def run(script, endpoint, before="", **variables):
    """Run a script in a process of its own, and return it."""
    done = subprocess.run(
        [sys.executable, "-c", before + PREAMBLE + textwrap.dedent(script)],
        env=environment_of(
            OTEL_EXPORTER_OTLP_ENDPOINT=endpoint,
            OTEL_METRICS_EXPORTER="none",
            OTEL_LOGS_EXPORTER="none",
            **variables,
        ),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done


def names(receiver):
    """Return the names of the spans received, sorted."""
    return sorted(receiver.came)


@with_fastotel
def test_spans_arrive(receiver):
    """Spans are sent by fastotel, by ``flush()`` and when the process ends."""
    done = run(
        """
        tracer.start_span("first").end()
        print(otel_crdb.flush())
        tracer.start_span("second").end()
        """,
        receiver.endpoint,
    )
    assert "by FastSpans" in done.stderr
    assert done.stdout == "True\n"
    assert names(receiver) == ["first", "second"]


@with_fastotel
def test_keys_and_rows_are_out_before_fastotel_sees_them(receiver):
    """A span of the application's with a database error's text leaves without its keys, and otherwise whole."""
    run(
        r"""
        error = ValueError("duplicate key\nDETAIL:  Key (email)=(" + "s3c" + "ret@example.com) already exists.")
        try:
            with tracer.start_as_current_span("mine", attributes={"a": 1}):
                raise error
        except ValueError:
            pass
        """,
        receiver.endpoint,
    )
    (span,) = receiver.telemetry.spans
    assert "s3cret" not in repr(span)
    assert "duplicate key" in repr(span.events)
    assert span.attributes["a"] == 1


@with_fastotel
def test_children_send_their_own(receiver):
    """A child that was forked after the first span sends its own spans, and the parent goes on."""
    run(
        """
        tracer.start_span("parent").end()
        assert otel_crdb.flush()
        pids = []
        for _ in range(2):
            pid = os.fork()
            if not pid:
                tracer.start_span("child").end()
                sys.exit(0)
            pids.append(pid)
        for pid in pids:
            assert os.waitpid(pid, 0)[1] == 0
        tracer.start_span("parent").end()
        """,
        receiver.endpoint,
    )
    assert names(receiver) == ["child", "child", "parent", "parent"]
    assert len({span.span_id for span in receiver.telemetry.spans}) == 4


@with_fastotel
def test_what_it_drops_is_counted_and_said():
    """Spans that fastotel fails to send are counted as any others, and one line says so."""
    done = run(
        """
        tracer.start_span("lost").end()
        print(otel_crdb.flush(), delivery.drop_counts())
        delivery.drop_counts()
        """,
        refusing_port(),
        OTEL_EXPORTER_OTLP_TIMEOUT="1",
    )
    assert done.stdout == "False {('traces', 'export_failed'): 1}\n"
    assert done.stderr.count("spans are being lost") == 1


@pytest.mark.parametrize(
    ("before", "variables", "words"),
    [
        ("import sys; sys.modules['fastotel'] = None", {}, "pip install"),
        ("", {"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "grpc"}, "HTTP only"),
        ("", {"OTEL_EXPORTER_OTLP_TRACES_HEADERS": "x-a=b%0Ac"}, ""),
    ],
    ids=["not installed", "gRPC", "header that HTTP cannot carry"],
)
def test_where_it_cannot_be_had(receiver, before, variables, words):
    """Where fastotel cannot be used one warning says why, and OpenTelemetry's exporter takes its place."""
    done = run("os._exit(0)", receiver.endpoint, before, **variables)
    assert "by SpanBatches" in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if "exporter='fastotel'" in line]
    assert words in line


@with_fastotel
def test_what_fastotel_keeps_to_itself():
    """The counts that fastotel does not publish are where they are looked for."""
    from fastotel import OTLPSpanProcessor

    native = OTLPSpanProcessor(endpoint=refusing_port())._native
    assert (native.dropped_spans(), native.failed_spans(), native.rejected_spans()) == (0, 0, 0)
