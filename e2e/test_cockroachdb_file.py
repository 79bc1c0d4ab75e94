# SPDX-License-Identifier: Apache-2.0
"""`collector/cockroachdb.yaml` beside agent.yaml: what comes of CockroachDB's metrics, logs and spans.

The samples are written after CockroachDB's documentation (log-formats, eventlog, prometheus endpoint) and sources:
no CockroachDB ran here.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2 as logs
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as trace
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord, ResourceLogs, ScopeLogs, SeverityNumber
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span, Status

from e2e.agent import Agent, BackEnds, pairs
from otel_crdb.testing.otlp import attributes_of, value_of
from stack import servers
from tests.processes import free_port

COCKROACHDB = servers.CONFIGURATION / "cockroachdb.yaml"
CLUSTER = "a2fa3fc5-6c5d-4b0b-8a47-0c0f0a2c1b1d"
#: As a node serves it: no content type that says more, names with dots made underscores, a label for the store.
VARS = """\
# HELP sql_txn_commit_count Number of SQL transaction COMMIT statements successfully executed
# TYPE sql_txn_commit_count counter
sql_txn_commit_count{node_id="1"} 1234
# HELP txn_restarts_serializable Number of restarts due to a forwarded commit timestamp
# TYPE txn_restarts_serializable counter
txn_restarts_serializable{node_id="1"} 7
# HELP capacity_available Available storage capacity
# TYPE capacity_available gauge
capacity_available{store="1",node_id="1"} 4.5e+10
# HELP sql_service_latency Latency of SQL request execution
# TYPE sql_service_latency histogram
sql_service_latency_bucket{node_id="1",le="1000"} 3
sql_service_latency_bucket{node_id="1",le="+Inf"} 4
sql_service_latency_sum{node_id="1"} 5000
sql_service_latency_count{node_id="1"} 4
"""
_COMMON = {
    "channel_numeric": 1, "severity_numeric": 1, "goroutine": 11, "file": "util/log/event_log.go", "line": 32,
    "entry_counter": 1, "redactable": 1, "node_id": 2, "tenant_id": 1, "cluster_id": CLUSTER, "version": "v26.2.5",
    "tags": {"n": "2", "client": "‹10.0.0.7:5432›", "user": "bank"},
}  # fmt: skip
LINES = [
    {**_COMMON, "header": 1, "timestamp": "1634742436.400113000", "message": "file created at: 2021/10/20"},
    {**_COMMON, "channel": "OPS", "severity": "INFO", "timestamp": "1634742436.500113000", "message": "node starting ‹Annelie›"},
    {**_COMMON, "channel": "DEV", "severity": "WARNING", "timestamp": "1634742437.000000001", "message": "slow heartbeat"},
    {**_COMMON, "channel": "DEV", "severity": "ERROR", "timestamp": "1634742438.000000000", "message": "queue", "stacks": "goroutine 1"},
    {**_COMMON, "channel": "DEV", "severity": "FATAL", "timestamp": "1634742439.000000000", "message": "password=hunter2"},
    {
        **_COMMON, "channel": "SQL_EXEC", "severity": "INFO", "timestamp": "1634742440.000000000",
        "event": {
            "Timestamp": 1634742440000000000, "EventType": "query_execute", "ApplicationName": "bank", "User": "bank",
            "Statement": "INSERT INTO ‹\"\"›.public.account VALUES (‹'Annelie'›, 1)", "Tag": "INSERT",
            "PlaceholderValues": ["‹'Leopold'›", "bare"], "SQLSTATE": "23505", "Age": 3.5, "NumRetries": 0,
            "ErrorText": "duplicate key value violates unique constraint ‹\"account_pkey\"›",
        },
    },
    {**_COMMON, "channel": "HEALTH", "severity": "INFO", "timestamp": "1634742441.000000000", "event": {"EventType": "runtime_stats", "GoroutineCount": 321}},
]  # fmt: skip


@pytest.fixture(scope="module")
def node():
    """An HTTP server that answers at /_status/vars as a node does: target and number of scrapes."""
    scrapes = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            scrapes.append(self.path)
            self.send_response(200)
            self.send_header("Content-Type", "text/plain")
            self.end_headers()
            self.wfile.write(VARS.encode())

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        thread = threading.Thread(target=listening.serve_forever, args=(0.05,))
        thread.start()
        yield f"127.0.0.1:{listening.server_address[1]}", scrapes
        listening.shutdown()
        thread.join()


class Cluster:
    """An agent with both files, the folder that nodes write their logs to, and what came of all."""

    def __init__(self, folder, target, back_ends):
        self.logs = folder / "cockroach"
        self.logs.mkdir(parents=True)
        self.file = self.logs / "cockroach.roach1.root.2021-10-20T15_07_16Z.000001.log"
        self.back_ends = back_ends
        self.otlp = f"127.0.0.1:{free_port()}"
        self._folder = folder
        self._variables = {
            "COCKROACHDB_HTTP_TARGETS": f"[{target}]",
            "COCKROACHDB_LOGS": f"{self.logs}/*.*.*.*.*.log",
            "COCKROACHDB_OTLP_GRPC": self.otlp,
            "COCKROACHDB_SCRAPE_INTERVAL": "1s",
            "COCKROACHDB_KEEP_PERCENT": 0,
            "AGENT_DECISION_WAIT": "1s",
        }

    def agent(self):
        return Agent(self._folder, self.back_ends, self._variables, more=[COCKROACHDB])

    def write(self, *lines):
        with self.file.open("a") as file:
            file.writelines(
                f"{line if isinstance(line, str) else json.dumps(line, ensure_ascii=False)}\n"
                for line in lines
            )

    def bodies(self):
        return [value_of(record.body) for _, record in self.back_ends.records]


@contextlib.contextmanager
def _cluster(folder, node):
    with BackEnds() as back_ends:
        yield Cluster(folder, node[0], back_ends)


@pytest.fixture(scope="module")
def came(node, tmp_path_factory):
    """What came of a node's metrics, of a log file and of spans, by one agent."""
    with _cluster(tmp_path_factory.mktemp("cockroachdb"), node) as cluster:
        cluster.write(*LINES, "a line that is no JSON", '{"broken')
        shutil.copy(cluster.file, cluster.logs / "cockroach.log")  # the link to the newest file
        with cluster.agent() as agent:
            agent.send_by_grpc(cluster.otlp, _spans())
            agent.send_by_grpc(cluster.otlp, _otlp_log())
            ends = cluster.back_ends
            ends.wait_for(
                lambda: len(ends.records) >= len(LINES) + 2, "each line but the header, and the OTLP one"
            )
            ends.wait_for(lambda: len(ends.spans) >= 2, "the spans that are kept")
            ends.wait_for(lambda: "up" in {metric.name for _, metric in ends.metrics}, "a scrape")
            ends.wait_for(
                lambda: agent.counted(
                    "otelcol_processor_tail_sampling_global_count_traces_sampled", decision="not_sampled"
                ) >= 1,
                "the rest of the traces is dropped",
            )  # fmt: skip
        yield ends


def _spans():
    def span(number, name, **more):
        start = time.time_ns()
        return Span(
            trace_id=bytes([number] * 16), span_id=bytes([number] * 8), name=name, start_time_unix_nano=start,
            end_time_unix_nano=start + more.pop("milliseconds", 1) * 1_000_000, **more,
        )  # fmt: skip

    spans = [
        span(
            1, "exec stmt", milliseconds=1500, attributes=pairs({"statement": "SELECT ‹'Annelie'›"}),
            events=[Span.Event(name="executing: SELECT ‹'Annelie'› with password=hunter2")],
        ),
        span(2, "/cockroach.roachpb.Internal/Batch", status=Status(code=Status.STATUS_CODE_ERROR, message="on key /Table/106/1/‹\"Annelie\"›/0")),
        span(3, "batch"),
    ]  # fmt: skip
    resource = Resource(attributes=pairs({"service.name": "CockroachDB", "node_id": "1"}))
    return trace.ExportTraceServiceRequest(
        resource_spans=[ResourceSpans(resource=resource, scope_spans=[ScopeSpans(spans=spans)])]
    )


def _otlp_log():
    line = {
        **_COMMON,
        "channel": "OPS",
        "severity": "INFO",
        "timestamp": "1634742450.000000000",
        "message": "by OTLP",
    }
    record = LogRecord(body=AnyValue(string_value=json.dumps(line)))
    return logs.ExportLogsServiceRequest(
        resource_logs=[ResourceLogs(scope_logs=[ScopeLogs(log_records=[record])])]
    )


def _line(ends, body):
    (found,) = [(resource, record) for resource, record in ends.records if value_of(record.body) == body]
    return found


def test_metrics_of_a_node(came, node):
    """What /_status/vars serves comes as it is named there, with its labels, under the service cockroachdb."""
    _, scrapes = node
    assert set(scrapes) == {"/_status/vars"}
    by_name = {metric.name: (resource, metric) for resource, metric in came.metrics}
    resource, commits = by_name["sql_txn_commit_count"]
    (point, *_) = commits.sum.data_points
    assert (point.as_double, attributes_of(point.attributes)) == (1234, {"node_id": "1"})
    assert commits.sum.is_monotonic
    told = attributes_of(resource.attributes)
    assert (told["service.name"], told["service.instance.id"]) == ("cockroachdb", node[0])
    (room,) = by_name["capacity_available"][1].gauge.data_points
    assert (room.as_double, attributes_of(room.attributes)) == (4.5e10, {"store": "1", "node_id": "1"})
    (latency,) = by_name["sql_service_latency"][1].histogram.data_points
    assert (latency.count, latency.sum, list(latency.bucket_counts)) == (4, 5000, [3, 1])
    assert by_name["up"][1].gauge.data_points[0].as_double == 1


def test_a_line_of_a_log(came):
    """A line's time, severity, channel, node and cluster are told, and what is between marks is masked."""
    resource, record = _line(came, "node starting ‹×›")
    assert attributes_of(resource.attributes) == {"service.name": "cockroachdb"}
    assert record.time_unix_nano == 1634742436500113000
    assert (record.severity_text, record.severity_number) == ("INFO", SeverityNumber.SEVERITY_NUMBER_INFO)
    told = attributes_of(record.attributes)
    assert told.pop("log.file.name", None) is None
    assert told == {
        "cockroachdb.log.channel": "OPS",
        "cockroachdb.node.id": 2,
        "cockroachdb.tenant.id": 1,
        "cockroachdb.version": "v26.2.5",
        "cockroachdb.cluster.id": CLUSTER,
        "cockroachdb.log.tags": {"n": "2", "client": "‹×›", "user": "bank"},
        "code.file.path": "util/log/event_log.go",
        "code.line.number": 32,
        "thread.id": 11,
    }


def test_severities_of_lines(came):
    """Each severity has OpenTelemetry's number."""
    numbers = {value_of(record.body): record.severity_number for _, record in came.records}
    assert numbers["slow heartbeat"] == SeverityNumber.SEVERITY_NUMBER_WARN
    assert numbers["queue"] == SeverityNumber.SEVERITY_NUMBER_ERROR
    assert numbers["****"] == SeverityNumber.SEVERITY_NUMBER_FATAL


def test_an_event_of_a_log(came):
    """An event is its JSON, with its type as a name, its error classified, its statement without literals."""
    (record,) = [record for _, record in came.records if record.event_name == "cockroachdb.query_execute"]
    told = attributes_of(record.attributes)
    body = json.loads(value_of(record.body))
    assert body["EventType"] == told["cockroachdb.event.type"] == "query_execute"
    assert "PlaceholderValues" not in body
    assert told["db.system.name"] == "cockroachdb"
    assert (told["db.response.status_code"], told["cockroachdb.error.class"]) == ("23505", "constraint")
    assert told["db.query.text"] == "INSERT INTO ‹×›.public.account VALUES (‹×›, ?)"
    assert told["exception.message"] == "duplicate key value violates unique constraint ‹×›"
    assert told["cockroachdb.application.name"] == "bank"


def test_lines_that_are_no_records(came):
    """A file's header is left out, a line that is no JSON comes as it is, and each line comes once."""
    bodies = [value_of(record.body) for _, record in came.records]
    assert not [body for body in bodies if "file created" in body]
    assert bodies.count("a line that is no JSON") == bodies.count('{"broken') == 1
    assert len(bodies) == len(LINES) - 1 + 2 + 1


def test_lines_that_come_by_otlp(came):
    """What an otlp-servers sink sends, the same JSON as a record's body, comes out as from a file."""
    _, record = _line(came, "by OTLP")
    assert record.time_unix_nano == 1634742450000000000
    assert attributes_of(record.attributes)["cockroachdb.node.id"] == 2


def test_spans_of_a_node(came):
    """Failed and slow spans are kept, the rest is dropped; names, events and statuses are without values."""
    spans = {span.name: (resource, span) for resource, span in came.spans}
    assert set(spans) == {"exec stmt", "/cockroach.roachpb.Internal/Batch"}
    resource, slow = spans["exec stmt"]
    assert attributes_of(resource.attributes) == {"service.name": "cockroachdb", "node_id": "1"}
    assert attributes_of(slow.attributes) == {"statement": "SELECT ‹×›"}
    assert [event.name for event in slow.events] == ["executing: SELECT ‹×› with ****"]
    assert spans["/cockroach.roachpb.Internal/Batch"][1].status.message == "on key ****"


def test_no_value_leaves(came):
    """What stood between marks, and secrets beside them, are in no byte that left the agent."""
    for value in (b"Annelie", b"Leopold", b"bare", b"hunter2", b"10.0.0.7"):
        assert value not in came.sent, value


def test_a_restart_reads_on_where_it_was(node, tmp_path):
    """Each line comes once, those too that were written while no agent ran."""
    with _cluster(tmp_path, node) as cluster:
        for number in range(3):
            cluster.write(*({**LINES[2], "message": f"line {number}.{each}"} for each in range(50)))
            with cluster.agent():
                cluster.back_ends.wait_for(
                    lambda wanted=50 * (number + 1): len(cluster.bodies()) >= wanted, "all lines"
                )
        assert sorted(cluster.bodies()) == sorted(
            f"line {number}.{each}" for number in range(3) for each in range(50)
        )
