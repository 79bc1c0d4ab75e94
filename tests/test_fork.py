# SPDX-License-Identifier: Apache-2.0
"""Forked processes: each sends its own, once, under a name of its own, and ends."""

import re
import subprocess
import sys
import textwrap
import threading
from collections import Counter
from concurrent import futures

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as trace
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as trace_grpc

from demo.receiver import SERVICES, Receiver

from .collectors import Collector
from .processes import environment_of

INSTANCE = "service.instance.id"
#: Where the items of a signal stand in a request.
FIELDS = {
    "traces": ("resource_spans", "scope_spans", "spans"),
    "metrics": ("resource_metrics", "scope_metrics", "metrics"),
    "logs": ("resource_logs", "scope_logs", "log_records"),
}
#: A parent that forks children and waits for them; `work` is what a child does, `leave` how it ends.
PREAMBLE = """
import os, sys, threading
import warnings
# Python 3.12 warns of each fork beside a thread; that is what is tried here.
warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
import otel_crdb
otel_crdb.instrument()
from opentelemetry import _logs, metrics, trace
tracer = trace.get_tracer("application")
counter = metrics.get_meter("application").create_counter("payments")
def tell(name):
    with tracer.start_as_current_span(name):
        counter.add(1)
    _logs.get_logger("application").emit(body=name)
def fork(work):
    pid = os.fork()
    if pid:
        return pid
    work()
    sys.exit(0)
def wait(*pids):
    for pid in pids:
        assert os.waitpid(pid, 0)[1] == 0, "a child failed"
"""


@pytest.fixture
def receiver():
    """A real OTLP receiver, which counts what came by the process that sent it."""
    sent = {signal: Counter() for signal in ("traces", "metrics", "logs")}
    span_names = []

    def count(path, _, body):
        signal, request_type, _ = SERVICES[path]
        for resource in getattr(request_type.FromString(body), FIELDS[signal][0]):
            (process,) = [
                each.value.string_value for each in resource.resource.attributes if each.key == INSTANCE
            ]
            for scope in getattr(resource, FIELDS[signal][1]):
                for item in getattr(scope, FIELDS[signal][2]):
                    if signal == "traces":
                        span_names.append(item.name)
                    if signal != "metrics":
                        sent[signal][process] += 1
                    elif item.name == "payments":
                        sent[signal][process] = item.sum.data_points[0].as_int

    with Receiver(count) as running:
        running.sent, running.span_names = sent, span_names
        yield running


def run(script, endpoint, **variables):
    """Run a script in a process of its own, which has to end by itself."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PREAMBLE + textwrap.dedent(script)],
        env=environment_of(OTEL_EXPORTER_OTLP_ENDPOINT=endpoint, **variables),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "otel_crdb: the hook" not in done.stderr, done.stderr
    return done


def names(receiver):
    """Return the names of the spans as often as they came, sorted; the telemetry has each span once."""
    return sorted(receiver.span_names)


CHILDREN = """
tell("parent before")
pids = [fork(lambda: tell("child")) for _ in range(3)]
wait(*pids)
tell("parent after")
"""


def test_each_process_sends_its_own_once(receiver):
    """What the parent had not sent yet is sent by the parent alone; each process has an id of its own."""
    run(CHILDREN, receiver.endpoint)
    assert names(receiver) == ["child"] * 3 + ["parent after", "parent before"]
    assert sorted(receiver.sent["traces"].values()) == [1, 1, 1, 2]
    assert receiver.sent["traces"] == receiver.sent["metrics"] == receiver.sent["logs"]
    spans = receiver.telemetry.spans
    assert len({span.span_id for span in spans}) == len({span.trace_id for span in spans}) == 5


def test_parent_that_has_sent_already(receiver):
    """With threads and connections of the parent's at work at the fork, it is the same."""
    run('tell("first")\nassert otel_crdb.flush()\n' + CHILDREN, receiver.endpoint)
    assert names(receiver) == ["child"] * 3 + ["first", "parent after", "parent before"]
    assert sorted(receiver.sent["metrics"].values()) == [1, 1, 1, 3]


def test_instance_id_that_is_given_is_kept(receiver):
    """An instance id in ``OTEL_RESOURCE_ATTRIBUTES`` is the children's too."""
    run(CHILDREN, receiver.endpoint, OTEL_RESOURCE_ATTRIBUTES="service.instance.id=pod-1,a=b")
    assert receiver.sent["traces"] == {"pod-1": 5}


def test_ids_differ_where_the_application_seeds_the_generator(receiver):
    """Children that seed Python's generator alike, as some libraries do, draw ids of their own."""
    run(
        """
        import random
        def work():
            random.seed(42)
            for _ in range(20):
                tell("child")
        wait(*[fork(work) for _ in range(3)])
        """,
        receiver.endpoint,
    )
    assert len({span.span_id for span in receiver.telemetry.spans}) == 60
    assert len({span.trace_id for span in receiver.telemetry.spans}) == 60


def test_span_open_at_the_fork_is_the_parents(receiver):
    """A span that was open when the process forked is sent by the parent alone; what lies below it by the child."""
    run(
        """
        with tracer.start_as_current_span("open"):
            pid = os.fork()
            tell("below")
        if pid:
            wait(pid)
        """,
        receiver.endpoint,
    )
    assert names(receiver) == ["below", "below", "open"]
    assert len({span.trace_id for span in receiver.telemetry.spans}) == 1


def test_fork_amid_an_export():
    """A child that is forked while an export of its parent's hangs sends its own, and ends."""
    answer, got = threading.Event(), []

    def answers(number):
        got.append(number)
        if number == 0:
            answer.wait(30)
        return b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"

    with Collector(answers) as collector:
        script = """
        tell("parent")
        threading.Thread(target=otel_crdb.flush, daemon=True).start()
        sys.stdin.readline()  # the export is under way
        pid = fork(lambda: tell("child") or print(otel_crdb.flush(), flush=True))
        wait(pid)
        os._exit(0)
        """
        with subprocess.Popen(
            [sys.executable, "-c", PREAMBLE + textwrap.dedent(script)],
            env=environment_of(
                OTEL_EXPORTER_OTLP_ENDPOINT=collector.endpoint,
                OTEL_METRICS_EXPORTER="none",
                OTEL_LOGS_EXPORTER="none",
            ),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            assert collector.asked.wait(30)
            out, _ = process.communicate("go\n", timeout=60)
            answer.set()
        assert out == "True\n"
        assert process.returncode == 0


def test_locks_that_threads_of_the_parent_hold(receiver):
    """Threads that end spans, count and flush all the while leave no child stuck."""
    run(
        """
        over = threading.Event()
        def busy():
            while not over.wait(0.001):
                tell("busy")
        def flushing():
            while not over.wait(0.001):
                otel_crdb.flush()
        threads = [threading.Thread(target=each, daemon=True) for each in (busy, busy, flushing)]
        for thread in threads:
            thread.start()
        def work():
            tell("child")
            assert otel_crdb.flush()
        for _ in range(15):
            wait(fork(work))
        over.set()
        for thread in threads:
            thread.join()
        """,
        receiver.endpoint,
        OTEL_BSP_MAX_QUEUE_SIZE="100000",
        OTEL_BLRP_MAX_QUEUE_SIZE="100000",
    )
    assert names(receiver).count("child") == 15
    assert len({span.span_id for span in receiver.telemetry.spans}) == len(names(receiver))


def test_connections_of_the_parent_are_left_alone(receiver):
    """A child sends by an exporter of its own for each signal, not over its parent's connections."""
    run(
        """
        from otel_crdb import pipeline
        def exporters():
            tell("span")
            assert otel_crdb.flush()
            return [sender.delivery._exporter for sender in pipeline._senders]
        before = exporters()
        assert before == exporters()
        def work():
            assert not set(map(id, before)) & set(map(id, exporters()))
        wait(fork(work))
        """,
        receiver.endpoint,
    )
    assert names(receiver) == ["span"] * 3


def test_child_of_a_child(receiver):
    """A grandchild, as of a daemon, has an id of its own too."""
    run(
        """
        def child():
            tell("child")
            wait(fork(lambda: tell("grandchild")))
        wait(fork(child))
        """,
        receiver.endpoint,
    )
    assert names(receiver) == ["child", "grandchild"]
    assert sorted(receiver.sent["traces"].values()) == [1, 1]


def test_child_that_ends_at_once(receiver):
    """A child that leaves by ``os._exit()`` leaves at once; what it flushed before has arrived."""
    run(
        """
        def work():
            tell("flushed")
            assert otel_crdb.flush()
            tell("lost")
            os._exit(0)
        wait(fork(work))
        """,
        receiver.endpoint,
    )
    assert names(receiver) == ["flushed"]


def test_no_thread_before_there_is_anything_to_send(receiver):
    """Spans and log records start their threads when they come: a server's master forks without them."""
    done = run(
        """
        print(sorted(thread.name for thread in threading.enumerate()))
        tell("first")
        print(sorted(thread.name for thread in threading.enumerate()))
        """,
        receiver.endpoint,
        OTEL_METRICS_EXPORTER="none",
    )
    assert done.stdout.splitlines() == [
        "['MainThread']",
        "['MainThread', 'otel_crdb-logs', 'otel_crdb-traces']",
    ]


def test_fork_that_python_does_not_see(receiver):
    """A child that was forked past Python, whose hooks have not run, notices with its first span."""
    run(
        """
        import ctypes
        tell("parent")
        pid = ctypes.PyDLL(None).fork()
        if pid == 0:
            tell("child")
            assert otel_crdb.flush()
            os._exit(0)
        wait(pid)
        """,
        receiver.endpoint,
    )
    assert names(receiver) == ["child", "parent"]
    assert sorted(receiver.sent["traces"].values()) == [1, 1]


@pytest.fixture
def grpc_receiver():
    """A gRPC collector of traces: its endpoint, and the spans it got."""
    spans = []

    class Service(trace_grpc.TraceServiceServicer):
        def Export(self, request, _):  # noqa: N802 - gRPC's name for it
            spans.extend(
                span
                for resource in request.resource_spans
                for scope in resource.scope_spans
                for span in scope.spans
            )
            return trace.ExportTraceServiceResponse()

    server = grpc.server(futures.ThreadPoolExecutor(4))
    trace_grpc.add_TraceServiceServicer_to_server(Service(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"http://127.0.0.1:{port}", spans
    server.stop(None).wait()


@pytest.mark.parametrize("before", ["", 'tell("first"); assert otel_crdb.flush()'])
def test_grpc_in_children(grpc_receiver, before):
    """Over gRPC each child makes a channel of its own, whether the parent had one or not."""
    endpoint, spans = grpc_receiver
    script = """
    def work():
        tell("child")
        assert otel_crdb.flush(20)
    wait(*[fork(work) for _ in range(3)])
    """
    run(
        before + textwrap.dedent(script),
        endpoint,
        OTEL_EXPORTER_OTLP_PROTOCOL="grpc",
        OTEL_METRICS_EXPORTER="none",
        OTEL_LOGS_EXPORTER="none",
    )
    assert sorted(span.name for span in spans) == ["child"] * 3 + ["first"] * bool(before)


def test_what_the_sdk_keeps_to_itself(receiver):
    """The private parts of the SDK that a child is made right by are where they are looked for."""
    done = run(
        """
        from otel_crdb import pipeline
        traces, meters, logs = pipeline._providers
        consumer = meters._measurement_consumer
        storages = dict(consumer._reader_storages)
        pipeline._forget_measurements()
        assert consumer._reader_storages.keys() == storages.keys()
        assert all(consumer._reader_storages[reader] is not storages[reader] for reader in storages)
        before = traces.resource
        pipeline._name_child()
        assert traces.resource is not before and traces.resource == logs.resource
        assert meters._sdk_config.resource == traces.resource
        print("as expected")
        """,
        receiver.endpoint,
    )
    assert re.fullmatch("as expected\n", done.stdout)
