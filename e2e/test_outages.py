# SPDX-License-Identifier: Apache-2.0
"""What is away or refuses for a while costs nothing that a queue could hold; what is lost is counted, to the last.

What counts as exact where a batch may be sent twice, after a kill or an answer that was lost: each span is in
Jaeger once, for it is stored by its id; each record in Loki once, for the same line at the same time in one
stream is one; each point in Prometheus once, for a series has one at a time.
"""

import contextlib
import os
import time
import urllib.request
from collections import Counter

import pytest
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2 as logs
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as metrics
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord, ResourceLogs, ScopeLogs
from opentelemetry.proto.metrics.v1.metrics_pb2 import (
    Gauge,
    Metric,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
)
from opentelemetry.proto.resource.v1.resource_pb2 import Resource

from demo.receiver import PROTOBUF
from e2e.agent import any_value, pairs
from e2e.arrivals import Arrived, Front, Wire, assert_all_arrived, expect, wait_until_drained
from e2e.conftest import COUNTED
from e2e.sending import Sender
from otel_crdb.testing import server
from stack.queries import Loki, Prometheus, until
from stack.servers import Ports, Stack

#: Seconds that Jaeger is away, Prometheus too, and Loki refuses.
OUTAGE = float(os.environ.get("OTEL_CRDB_TEST_OUTAGE", "60"))


class Ground:
    """A stack whose servers may be stopped, with a front before Loki that can refuse; and a database."""

    def __init__(self, stack, front, database, folder):
        self.stack = stack
        self.front = front
        self._database = database
        self._folder = folder

    def sender(self, service, transactions, **options):
        """Make an application that sends to the agent."""
        return Sender(
            self._folder, self._database.url, self.stack.agent.address, service, transactions, **options
        )

    def send(self, signal, request):
        """Hand one export request to the agent."""
        address = f"{self.stack.agent.address}/v1/{signal}"
        body, headers = request.SerializeToString(), {"Content-Type": PROTOBUF}
        with urllib.request.urlopen(urllib.request.Request(address, body, headers), timeout=60) as answer:
            assert answer.status == 200

    def start(self, *servers):
        """Start these again, all at once, on what they have on disk."""
        for each in servers:
            each.start()
        for each in servers:
            each.wait_until_ready()

    @contextlib.contextmanager
    def agent_with(self, **variables):
        """Have the agent run with these variables for a while."""
        agent, usual = self.stack.agent, dict(self.stack.agent.variables)
        agent.stop()
        agent.variables.update({name: str(value) for name, value in variables.items()})
        self.start(agent)
        try:
            yield agent
            wait_until_drained(self.stack)
        finally:
            agent.stop()
            agent.variables.clear()
            agent.variables.update(usual)
            self.start(agent)


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    """One stack for all outages: each test leaves it whole, and its queues empty."""
    folder, ports = tmp_path_factory.mktemp("outages"), Ports.free()
    with (
        Front() as front,
        server() as database,
        Stack(folder, ports, variables={**COUNTED, "AGENT_LOKI": f"{front.address}/otlp"}) as stack,
    ):
        front.target = stack.loki.address
        yield Ground(stack, front, database, folder)


def test_collector_restarted_while_the_bank_sends(ground):
    """Stopped by SIGTERM and started again: all that the application sends meanwhile is there, once."""
    agent = ground.stack.agent
    with ground.sender("restarted", 300, rate=60) as sender:
        sender.wait_until_done(100)
        agent.stop()
        sender.wait_until_done(160)
        ground.start(agent)
        journal = sender.journal()
    assert_all_arrived(ground.stack, journal)


def test_collector_killed_with_everything_in_its_queues(ground):
    """What it took in while all three back ends were stopped outlives a SIGKILL, and is then sent once."""
    stack = ground.stack
    for each in stack.backends:
        each.stop()
    with ground.sender("queued", 200) as sender:
        journal = sender.journal()
    until(lambda: Wire(stack).waiting("traces") >= journal.spans.total(), "all spans in the queue")
    stack.agent.kill()
    ground.start(stack.agent, *stack.backends)
    assert_all_arrived(stack, journal)
    # On the wire too: nothing had been sent before, and its counters began anew with it.
    assert Wire(stack).total("exporter_sent", "spans") == journal.spans.total()
    assert Wire(stack).total("exporter_sent", "log_records") == journal.records.total()


KILLS = 3
SPANS_OF_A_REQUEST = 64


def test_collector_killed_while_the_bank_sends(ground):
    """Of logs and metrics nothing is lost; of spans at most what was taken in and not yet looked at.

    Receiver and queue are one step for logs and metrics: they are on disk before the sender is answered. Spans
    are handed to the sampling, which looks at one request and lets as many wait as there are processors; their
    sender has been answered. What was on its way at the kill may come twice.
    """
    agent = ground.stack.agent
    with ground.sender("killed", 500, rate=80, OTEL_BSP_MAX_EXPORT_BATCH_SIZE=SPANS_OF_A_REQUEST) as sender:
        for number in range(KILLS):
            sender.wait_until_done(100 * (number + 1))
            agent.kill()
            ground.start(agent)
        journal = sender.journal()
    assert_all_arrived(ground.stack, journal, spans=False)
    arrived = Arrived(ground.stack, journal.service)
    at_most = KILLS * (1 + os.cpu_count()) * SPANS_OF_A_REQUEST
    until(lambda: (journal.spans - arrived.spans()).total() <= at_most, f"all spans but {at_most}")
    assert arrived.spans() - journal.spans == Counter(), "none is there twice"


def test_collector_killed_before_it_has_decided(ground):
    """Traces with a retry are on disk at once and whole; what is in memory only is what nothing has spoken for."""
    with ground.agent_with(AGENT_KEEP_PERCENT=0, AGENT_SLOW_MS=60_000, AGENT_DECISION_WAIT="60s") as agent:
        with ground.sender("undecided", 100) as sender:
            journal = sender.journal()
        wait_until_looked_at(ground.stack, journal)
        agent.kill()
        ground.start(agent)
        expect(
            "kept", Arrived(ground.stack, journal.service).attempts_of_traces, Counter({2: journal.retries})
        )


def wait_until_looked_at(stack, journal):
    """Wait until the sampling has seen what the receiver has taken in."""
    until(
        lambda: Wire(stack).total("processor_tail_sampling_new_trace_id_received") >= journal.transactions,
        "all traces seen",
    )


def test_back_ends_away_for_a_minute(ground):
    """Jaeger killed, Prometheus stopped, Loki refusing, while the bank sends: afterwards all is there, once."""
    stack, rate, before = ground.stack, 20, 60
    wait_until_drained(stack)
    counted = Wire(stack).all()
    with ground.sender("away", int(before + rate * OUTAGE + before), rate=rate) as sender:
        sender.wait_until_done(before)
        began = time.monotonic()
        stack.jaeger.kill()
        stack.prometheus.stop()
        ground.front.refuse_with = 503
        sender.wait_until_done(before + int(rate * OUTAGE / 2))
        ground.front.refuse_with = 429
        sender.wait_until_done(before + int(rate * OUTAGE))
        until(lambda: time.monotonic() - began >= OUTAGE, "the end of the outage", seconds=2 * OUTAGE)
        ground.front.refuse_with = None
        ground.start(stack.jaeger, stack.prometheus)
        journal = sender.journal()
    assert ground.front.answered[503]
    assert ground.front.answered[429]
    assert_all_arrived(stack, journal)
    counted = Wire(stack).all() - counted
    # Acknowledged by the back ends, each once, of what the agent took in; and nothing of it refused or lost.
    for items, number in (("spans", journal.spans.total()), ("log_records", journal.records.total())):
        assert counted[f"receiver_accepted {items}"] == counted[f"exporter_sent {items}"] == number
    assert counted["receiver_accepted metric_points"] == counted["exporter_sent metric_points"]
    assert not [name for name in counted if "refused" in name or "failed" in name]


HOUR = 3600


def logs_of(service, *ages):
    """Make an export request of one record for each age in seconds."""
    record = [
        LogRecord(time_unix_nano=time.time_ns() - age * 10**9, body=any_value(f"{age} s old")) for age in ages
    ]
    group = ResourceLogs(
        resource=Resource(attributes=pairs({"service.name": service})),
        scope_logs=[ScopeLogs(log_records=record)],
    )
    return logs.ExportLogsServiceRequest(resource_logs=[group])


def points_of(service, **ages):
    """Make an export request of one point for each series, with its age in seconds."""
    series = [
        Metric(
            name=name,
            gauge=Gauge(
                data_points=[NumberDataPoint(time_unix_nano=time.time_ns() - age * 10**9, as_int=age)]
            ),
        )
        for name, age in ages.items()
    ]
    group = ResourceMetrics(
        resource=Resource(attributes=pairs({"service.name": service})),
        scope_metrics=[ScopeMetrics(metrics=series)],
    )
    return metrics.ExportMetricsServiceRequest(resource_metrics=[group])


def test_record_that_loki_refuses_for_good(ground):
    """A record of last week is not sent again and again: it is dropped, counted, and the agent's log says why.

    Loki takes the good ones of a request and answers 400 for the rest; the agent counts them all. What is
    reported is never less than what is lost.
    """
    stack, loki = ground.stack, Loki(ground.stack.loki.address)
    wait_until_drained(stack)
    before = Wire(stack).all()
    ground.send("logs", logs_of("aged", 8 * 24 * HOUR))
    expect("counted", lambda: Wire(stack).all() - before, Counter(failed("log_records", 1)))
    assert loki.count('{service_name="aged"}') == 0
    ground.send("logs", logs_of("aged", 0, 8 * 24 * HOUR))
    expect("counted", lambda: Wire(stack).all() - before, Counter(failed("log_records", 3)))
    assert [line.text for line in loki.lines('{service_name="aged"}')] == ["0 s old"]
    told = stack.agent.log.read_text()
    assert "Dropping data" in told
    assert "has timestamp too old" in told


def test_points_out_of_their_order(ground):
    """What waited while newer points came is taken for two hours; older points are dropped and counted.

    Prometheus takes a request as a whole or not at all: a good point beside one that is too old goes with it.
    """
    stack, prometheus = ground.stack, Prometheus(ground.stack.prometheus.address)
    wait_until_drained(stack)
    before = Wire(stack).all()
    for age in (0, HOUR, 2 * HOUR - 300):
        ground.send("metrics", points_of("aged", first=age))
        wait_until_drained(stack)
    expect("points", lambda: prometheus.value('count_over_time(first{job="aged"}[4h])'), 3)
    assert Wire(stack).all() - before == {
        "receiver_accepted metric_points": 3,
        "exporter_sent metric_points": 3,
    }
    before = Wire(stack).all()
    ground.send("metrics", points_of("aged", first=2 * HOUR + 300, second=0))
    expect("counted", lambda: Wire(stack).all() - before, Counter(failed("metric_points", 2)))
    assert prometheus.value('count_over_time(first{job="aged"}[4h])') == 3
    assert prometheus.series('second{job="aged"}') == []


def failed(items, number):
    """Count what was taken in and could not be handed on."""
    return {f"receiver_accepted {items}": number, f"exporter_send_failed {items}": number}


def test_queues_too_small_for_an_outage(ground):
    """What does not fit is refused to the application, or counted where it cannot be: sent = there + reported."""
    stack = ground.stack
    with (
        ground.agent_with(AGENT_QUEUE_SIZE=150),
        ground.sender(
            "crowded",
            500,
            rate=40,
            OTEL_EXPORTER_OTLP_TIMEOUT=3,
            OTEL_BLRP_MAX_EXPORT_BATCH_SIZE=30,
            OTEL_METRIC_EXPORT_INTERVAL=100,
        ) as sender,
    ):
        for each in (stack.jaeger, stack.prometheus):
            each.stop()
        ground.front.refuse_with = 503
        # The application gives up what was refused for three seconds, and says so.
        until(lambda: "log records are being lost" in sender.log, "a full queue of logs")
        until(lambda: "data points are being lost" in sender.log, "a full queue of metrics")
        until(lambda: Wire(stack).total("exporter_enqueue_failed", "spans"), "a full queue of spans")
        ground.front.refuse_with = None
        ground.start(stack.jaeger, stack.prometheus)
        journal = sender.journal()
        wait_until_drained(stack)
        wire, arrived = Wire(stack).all(), Arrived(stack, journal.service)

    # Spans: the sampling cannot hand a refusal back. The application has done its part, and the agent counts.
    lost = wire["exporter_enqueue_failed spans"]
    assert wire["receiver_accepted spans"] == journal.spans.total() == wire["exporter_sent spans"] + lost
    expect("spans", lambda: arrived.spans().total(), journal.spans.total() - lost)
    # Logs: refused, tried again, and in the end given up and counted by the application.
    lost = journal.dropped["logs export_failed"]
    assert (
        wire["receiver_accepted log_records"]
        == wire["exporter_sent log_records"]
        == journal.records.total() - lost
    )
    expect("records", lambda: arrived.records().total(), journal.records.total() - lost)
    # Metrics too: points are missing, and the totals are right again.
    assert wire["receiver_accepted metric_points"] == wire["exporter_sent metric_points"]
    expect("sums", lambda: arrived.sums(journal.sums), journal.sums)
    assert arrived.points() < journal.collections
    # Who looks at Prometheus sees what the application could not send.
    reported = Prometheus(stack.prometheus.address).series(
        'sum by (otel_crdb_telemetry_signal) (otel_crdb_telemetry_dropped_total{job="crowded"})'
    )
    assert set(journal.dropped) == {"logs export_failed", "metrics export_failed"}
    assert {
        f"{labels['otel_crdb_telemetry_signal']} export_failed": count for labels, count in reported
    } == journal.dropped
