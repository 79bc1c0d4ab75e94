# SPDX-License-Identifier: Apache-2.0
"""The soak: each of its checks sees what it is there for, and a short one holds from end to end."""

import dataclasses
import random
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import psycopg2
import pytest
from opentelemetry._logs import SeverityNumber
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import SimpleLogRecordProcessor
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

from demo.receiver import Receiver
from otel_crdb import semconv
from otel_crdb.testing import FaultProxy
from otel_crdb.testing.otlp import Point
from soak import checks, report
from soak.arrivals import Arrivals, Logical, Trace
from soak.evidence import Evidence, Outage, Row, Strike, Truth
from soak.journal import Ending, Memory, Operation, read_line
from soak.memory import ENOUGH, MEBIBYTE, trend
from soak.node import Node
from soak.pulse import Pulse, Watchdog
from soak.schedule import passing_faults, plan

ROOT = Path(__file__).parent.parent
OPENING = 100
#: Kind, what the caller saw, attempts, those that had a connection, rows, what telemetry told.
STORIES = (
    ("transfer", "committed", 2, 2, 1, "committed"),
    ("transfer", "committed", 3, 1, 1, "committed"),
    ("audit", "committed", 1, 1, 0, "committed"),
    ("transfer", "hook_failed", 1, 1, 1, "committed"),
    ("decorated", "schema_failed", 1, 1, 1, "committed"),
    ("transfer", "ambiguous", 2, 2, 1, "ambiguous"),
    ("transfer", "ambiguous", 1, 1, 0, "ambiguous"),
    ("savepoints", "exhausted", 8, 8, 0, "failed"),
    ("refused", "refused", 1, 1, 0, "rolled_back"),
    ("transfer", "error", 1, 1, 0, "failed"),
    ("cancelled", "cancelled", 1, 1, 1, "committed"),
    ("cancelled", "cancelled", 1, 0, 0, "rolled_back"),
)


@pytest.fixture
def evidence():
    """A soak of two workers in which everything is as it should be."""
    told = Evidence(accounts=2, opening=OPENING, ground={"server": "none"})
    told.truth = Truth(balances={1: OPENING, 2: OPENING})
    for worker in ("soak-0", "soak-1"):
        told.ordered[worker] = len(STORIES)
        told.statuses[worker] = 0
        told.memory += [Memory(worker, done, 50 * MEBIBYTE) for done in range(25, 4 * ENOUGH, 25)]
        for number, story in enumerate(STORIES):
            _add(told, worker, number, *story)
        told.arrivals.spans[worker], told.arrivals.logs[worker] = 200, 30
        _count_durations(told, worker)
        told.endings[worker] = Ending(worker, spans=200, logs=30, flushed=True)
    told.scheduled = Counter({fault.name: 4 for fault in passing_faults()})
    told.struck = Counter(told.scheduled)
    told.strikes = [Strike(1000.0, 0), Strike(1001.0, 300)]
    told.outages = [Outage("partition", (1,), 1000.2, 1001.0)]
    return told


def _add(told, worker, number, kind, saw, attempts, bodies, rows, outcome):
    name, trace, txn = f"{worker}/{number}", f"{worker}{number:025x}", f"txn-{worker}-{number}"
    error = {"error": "OperationalError 57014"}.get(saw, "")
    hooks = rows if saw == "cancelled" else int(saw in ("committed", "hook_failed"))
    operation = Operation(
        name,
        worker,
        "psycopg",
        kind,
        trace,
        (txn,),
        saw,
        error,
        attempts,
        bodies,
        4,
        hooks,
        1000 + number,
        1001 + number,
    )
    told.operations.append(operation)
    if rows:
        told.truth.rows.append(Row(name, 1, 2, 5))
        told.truth.balances[1] -= 5
        told.truth.balances[2] += 5
    begun = attempts if bodies or saw != "cancelled" else 0
    doubts = int(saw == "ambiguous")
    told.arrivals.traces[trace] = Trace(
        [Logical(txn, begun, outcome, attempts - 1)], [txn] * bodies, 4, attempts - 1, doubts, doubts
    )
    _count(told, worker, kind, outcome, begun, attempts - 1)


def _count_durations(told, worker):
    bodies = sum(one.bodies for one in told.operations if one.worker == worker)
    told.arrivals.operations[worker] = 150
    told.arrivals._points[worker, "blocks"] = Point(worker, semconv.TXN_DURATION, {}, bodies)
    told.arrivals._points[worker, "operations"] = Point(worker, semconv.DB_OPERATION_DURATION, {}, 150)


def _count(told, worker, kind, outcome, attempts, retries):
    points = told.arrivals._points
    words = {semconv.TXN_NAME: f"soak.{kind}"}
    if attempts:
        key = (worker, kind, outcome)
        before = points.get(
            key, Point(worker, semconv.TXN_ATTEMPTS_METRIC, {**words, semconv.TXN_OUTCOME: outcome}, 0)
        )
        points[key] = dataclasses.replace(before, value=before.value + 1, total=before.total + attempts)
    if retries:
        before = points.get((worker, kind), Point(worker, semconv.TXN_RETRIES, words, 0))
        points[worker, kind] = dataclasses.replace(before, value=before.value + retries)


def failed(evidence):
    """The names of the checks that fail."""
    return {check.name for check in checks.judge(evidence) if not check.held}


def test_all_checks_hold_where_everything_is_as_it_should_be(evidence):
    assert failed(evidence) == set()
    assert not any(check.not_judged for check in checks.judge(evidence))


# --- each check sees what it is there for ------------------------------------------------------------------


def operation(evidence, **sought):
    """The first operation with these fields, and its number."""
    for number, one in enumerate(evidence.operations):
        if all(getattr(one, name) == value for name, value in sought.items()):
            return number, one
    raise AssertionError(sought)


def changed(evidence, sought, **fields):
    number, one = operation(evidence, **sought)
    evidence.operations[number] = dataclasses.replace(one, **fields)


def trace_of(evidence, **sought):
    return evidence.arrivals.traces[operation(evidence, **sought)[1].trace]


def relabel(about, **fields):
    about.logical[0] = dataclasses.replace(about.logical[0], **fields)


def ending(evidence, **fields):
    evidence.endings["soak-0"] = dataclasses.replace(evidence.endings["soak-0"], **fields)


def row_of(evidence, **sought):
    name = operation(evidence, **sought)[1].id
    return next(row for row in evidence.truth.rows if row.operation == name)


MONEY = "nothing is lost and nothing is applied twice"
BALANCES = "the balances are those of the ledger"
HOOKS = "on_commit ran once after each COMMIT and never else"
SPANS = "one logical span an operation, one span an attempt, one a statement"
RETRIES = "one event and one log record a retry and a doubt"
OUTCOMES = "the outcome told is the outcome seen"
METRICS = "the metrics are the journals' sums"
ARRIVED = "all that was sent has arrived, once"
DONE = "every operation is accounted for"
BROKEN = {
    "an operation is in no journal": (lambda e: e.operations.pop(2), {DONE, SPANS, METRICS}),
    "a worker was killed": (lambda e: e.statuses.update({"soak-0": -9}), {DONE}),
    "a worker never said how it ended": (lambda e: e.endings.pop("soak-0"), {DONE}),
    "a caller saw half a sum": (lambda e: changed(e, {"saw": "error"}, error="Unbalanced"), {DONE}),
    "a fault never struck": (lambda e: e.struck.pop("black_hole"), {"every kind of fault has struck"}),
    "a committed row is lost": (
        lambda e: e.truth.rows.remove(row_of(e, saw="committed")),
        {MONEY, BALANCES, OUTCOMES},
    ),
    "a row is there twice": (
        lambda e: e.truth.rows.append(row_of(e, saw="committed")),
        {MONEY, BALANCES, OUTCOMES},
    ),
    "an exhausted one was applied": (
        lambda e: e.truth.rows.append(Row(operation(e, saw="exhausted")[1].id, 1, 2, 0)),
        {MONEY, OUTCOMES},
    ),
    "an ambiguous one was applied twice": (
        lambda e: e.truth.rows.append(dataclasses.replace(row_of(e, saw="ambiguous"), amount=0)),
        {MONEY},
    ),
    "a row is nobody's": (lambda e: e.truth.rows.append(Row("undone 3", 1, 2, 0)), {MONEY}),
    "money was made": (lambda e: e.truth.balances.update({2: 10_000}), {BALANCES}),
    "on_commit ran twice": (lambda e: changed(e, {"saw": "committed"}, hooks=2), {HOOKS}),
    "on_commit ran without COMMIT": (lambda e: changed(e, {"saw": "exhausted"}, hooks=1), {HOOKS}),
    "a logical span is missing": (lambda e: trace_of(e, saw="refused").logical.clear(), {SPANS, METRICS}),
    "a logical span is there twice": (
        lambda e: trace_of(e, saw="refused").logical.extend(trace_of(e, saw="refused").logical),
        {SPANS, METRICS},
    ),
    "an attempt's span is missing": (lambda e: trace_of(e, saw="exhausted").attempts.pop(), {SPANS}),
    "a statement's span is missing": (
        lambda e: setattr(trace_of(e, saw="refused"), "statements", 3),
        {SPANS},
    ),
    "a statement has no data point": (lambda e: e.arrivals.operations.update(["soak-0"]), {METRICS}),
    "the attempts are miscounted": (lambda e: relabel(trace_of(e, saw="exhausted"), attempts=7), {SPANS}),
    "two ids in one transaction": (lambda e: relabel(trace_of(e, saw="refused"), txn_id="x"), {SPANS}),
    "a span is of no operation": (lambda e: e.arrivals.traces.update({"f" * 32: Trace()}), {SPANS}),
    "a retry has no event": (lambda e: relabel(trace_of(e, saw="exhausted"), retries=6), {RETRIES}),
    "a retry has no log record": (
        lambda e: setattr(trace_of(e, saw="exhausted"), "retry_logs", 6),
        {RETRIES},
    ),
    "a doubt has no log record": (
        lambda e: setattr(trace_of(e, saw="ambiguous"), "doubt_logs", 0),
        {RETRIES},
    ),
    "a doubt is told as committed": (
        lambda e: relabel(trace_of(e, saw="ambiguous"), outcome="committed"),
        {OUTCOMES},
    ),
    "a cancelled one is told as rolled back and applied": (
        lambda e: relabel(trace_of(e, saw="cancelled"), outcome="rolled_back"),
        {OUTCOMES, METRICS},
    ),
    "a data point is missing": (lambda e: e.arrivals._points.popitem(), {METRICS}),
    "a retry is counted twice": (
        lambda e: e.arrivals._points.update(
            {
                ("soak-0", "transfer"): Point(
                    "soak-0", semconv.TXN_RETRIES, {semconv.TXN_NAME: "soak.transfer"}, 99
                )
            }
        ),
        {METRICS},
    ),
    "a span was dropped": (lambda e: ending(e, spans=201), {ARRIVED}),
    "a log record came twice": (lambda e: e.arrivals.logs.update(["soak-0"]), {ARRIVED}),
    "the SDK tells of a drop": (lambda e: ending(e, told=("Queue full",)), {ARRIVED}),
    "the last export failed": (lambda e: ending(e, flushed=False), {ARRIVED}),
    "an id came twice": (lambda e: setattr(e.arrivals, "repeated", 1), {ARRIVED}),
    "a connection is left": (lambda e: e.truth.sessions.append("soak-0: idle"), {"no connection is left"}),
    "a lock is left": (lambda e: e.truth.locks.append("relation"), {"no lock is left"}),
    "a thread is left": (lambda e: ending(e, threads=("Thread-9",)), {"no thread is left"}),
    "a span is left current": (
        lambda e: changed(e, {"saw": "committed"}, left=("a current span",)),
        {"no context is left"},
    ),
    "a hook failed": (lambda e: ending(e, hook_faults={"cursor": 1}), {"no hook has failed"}),
    "memory grows": (
        lambda e: e.memory.extend(
            Memory("soak-2", done, 50 * MEBIBYTE + done * 4096) for done in range(25, 4 * ENOUGH, 25)
        ),
        {"memory is flat over the second half"},
    ),
}


@pytest.mark.parametrize("breaking", BROKEN)
def test_what_is_broken_fails_its_checks_and_no_other(evidence, breaking):
    break_it, fail = BROKEN[breaking]
    break_it(evidence)
    assert failed(evidence) == fail


def test_every_check_is_seen_to_fail():
    seen = {name for _, names in BROKEN.values() for name in names}
    assert seen == {check(Evidence()).name for check in checks.CHECKS}


def test_a_short_soak_does_not_judge_memory_or_the_catalogue(evidence):
    evidence.memory = [Memory("soak-0", done, done * MEBIBYTE) for done in range(25, 500, 25)]
    evidence.scheduled = Counter({"black_hole": 1})
    evidence.struck = Counter()
    untold = {check.name for check in checks.judge(evidence) if check.not_judged}
    assert untold == {"memory is flat over the second half", "every kind of fault has struck"}
    assert failed(evidence) == set()


# --- memory ------------------------------------------------------------------------------------------------


def _samples(rss_of):
    return [Memory("soak-0", done, round(rss_of(done) * MEBIBYTE)) for done in range(25, 5001, 25)]


def test_peaks_and_noise_are_flat_and_a_leak_is_not():
    """A buffer that is needed once in a while is no leak; 3 KiB an operation are."""
    noise = random.Random(1)
    peaks = trend("soak-0", _samples(lambda done: 60 + 20 * (done % 200 == 0) + noise.uniform(-1, 1)))
    leak = trend("soak-0", _samples(lambda done: 60 + done * 3 / 1024 + noise.uniform(-1, 1)))
    assert peaks.judged
    assert peaks.flat
    assert not leak.flat
    assert leak.growth / MEBIBYTE == pytest.approx(2500 * 3 / 1024, rel=0.1)


def test_growth_before_the_second_half_does_not_count():
    assert trend("soak-0", _samples(lambda done: min(done, 2000) / 20)).growth == 0


# --- the schedule ------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_schedule_and_another_does_not():
    assert plan(2000, 0.05, 2, seed=7) == plan(2000, 0.05, 2, seed=7)
    assert plan(2000, 0.05, 2, seed=7) != plan(2000, 0.05, 2, seed=8)


def test_the_share_is_kept_and_no_kind_comes_twice_before_every_kind_has_come():
    counts = Counter(event.fault for event in plan(20_000, 0.05, 2, seed=1) if not event.outage)
    assert sum(counts.values()) == 1000
    assert set(counts) == {fault.name for fault in passing_faults()}
    assert max(counts.values()) - min(counts.values()) <= 1


@pytest.mark.parametrize("transactions", [1500, 20_000])
def test_outages_never_touch_two_nodes_at_once_and_all_end(transactions):
    kinds, out = set(), {}
    for event in plan(transactions, 0.05, 2, seed=3):
        if not event.outage:
            continue
        kinds.add(event.outage)
        if event.do == "inject":
            out[event.rule] = event.node
        else:
            out.pop(event.rule)
        assert len(set(out.values())) <= 1, event
        assert event.at <= transactions
    assert not out
    assert kinds == {"rolling_restart", "partition", "node_killed", "connection_refused", "latency"}


# --- its parts ---------------------------------------------------------------------------------------------


def test_a_journals_lines_are_read_as_they_were_written(evidence):
    one = evidence.operations[0]
    for entry in (one, evidence.memory[0], evidence.endings["soak-0"]):
        assert read_line(entry.to_line()) == entry


def test_a_node_strikes_as_it_is_told_counts_it_and_ends_with_its_input(crdb_server):
    with Node(crdb_server, 0) as node:
        address = dataclasses.replace(crdb_server, host="127.0.0.1", port=node.port).url
        node.tell({"do": "inject", "rule": "f1", "fault": "internal_error", "nth": 2})
        with closing(psycopg2.connect(address)) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT 1")
            assert node.struck()["internal_error"] == 0
            with pytest.raises(psycopg2.errors.InternalError_):
                cursor.execute("SELECT 1")
        assert node.struck()["internal_error"] == 1
        node.tell({"do": "inject", "rule": "o1", "fault": "node_killed", "nth": 1})
        with pytest.raises(psycopg2.OperationalError):
            psycopg2.connect(address)
        node.tell({"do": "lift", "rule": "o1"})
        psycopg2.connect(address).close()
        process = node._process
    assert process.returncode == 0


def test_a_wait_for_a_silent_node_is_ended_and_a_rest_is_not(crdb_server):
    with FaultProxy(crdb_server) as proxy, Watchdog(0.3, [proxy.port]) as watchdog:
        with closing(psycopg2.connect(proxy.url)) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT 1")
            pulse, resting = (Pulse(SimpleNamespace(connection=connection)) for _ in range(2))
            resting.rest()
            watchdog.watch(resting)
            proxy.inject("black_hole")
            watchdog.watch(pulse)
            pulse.beat()
            with pytest.raises(psycopg2.OperationalError):
                cursor.execute("SELECT 1")
    assert watchdog.ended == 1


def test_a_socket_that_leads_elsewhere_is_left_alone(crdb_server):
    with FaultProxy(crdb_server) as proxy, Watchdog(0.01, [1]) as watchdog:
        with closing(psycopg2.connect(proxy.url)) as connection, connection.cursor() as cursor:
            pulse = Pulse(SimpleNamespace(connection=connection))
            pulse.at = time.monotonic() - 60
            watchdog.watch(pulse)
            cursor.execute("SELECT pg_sleep(0.6)")
    assert watchdog.ended == 0


def test_what_arrives_is_counted_by_process_and_a_span_that_comes_twice_is_seen():
    arrivals = Arrivals()
    resource = Resource({"service.instance.id": "soak-7"})
    with Receiver() as receiver:
        receiver.telemetry = arrivals
        tracers = TracerProvider(resource=resource, shutdown_on_exit=False)
        exporter = OTLPSpanExporter(f"{receiver.endpoint}/v1/traces")
        tracers.add_span_processor(SimpleSpanProcessor(exporter))
        with tracers.get_tracer("test").start_as_current_span("run_transaction x") as span:
            span.set_attributes(
                {semconv.TXN_ID: "t", semconv.TXN_ATTEMPTS: 2, semconv.TXN_OUTCOME: "committed"}
            )
            span.add_event(semconv.RETRY_EVENT)
            loggers = LoggerProvider(resource=resource, shutdown_on_exit=False)
            logs = OTLPLogExporter(f"{receiver.endpoint}/v1/logs")
            loggers.add_log_record_processor(SimpleLogRecordProcessor(logs))
            loggers.get_logger("test").emit(
                severity_number=SeverityNumber.WARN, event_name=semconv.RETRY_EVENT
            )
        exporter.export([span])
        tracers.shutdown()
        loggers.shutdown()
    about = arrivals.traces[f"{span.context.trace_id:032x}"]
    assert about.logical[0] == Logical("t", 2, "committed", 1)
    assert about.retry_logs == 1
    assert (arrivals.spans["soak-7"], arrivals.logs["soak-7"], arrivals.repeated) == (2, 1, 1)


def test_the_report_tells_counts_and_failures_and_what_struck(evidence):
    BROKEN["a lock is left"][0](evidence)
    text = report.text_of(evidence, checks.judge(evidence), picture=True)
    assert "**15 of 16 checks held.**" in text
    assert "FAILED no lock is left: found 1" in text
    assert "| black_hole | 4 | 4 |" in text
    assert "![over time](course.png)" in text


def test_the_course_has_everything_in_its_bins(evidence):
    course = report.course_of(evidence)
    assert sum(course.done) * course.width == pytest.approx(len(evidence.operations))
    retries = sum(one.attempts - 1 for one in evidence.operations)
    assert sum(course.retries) * course.width == pytest.approx(retries)
    assert sum(course.faults) * course.width == pytest.approx(300)


# --- end to end --------------------------------------------------------------------------------------------


def _soak(folder, *options):
    command = [sys.executable, "-m", "soak", "--report", str(folder), *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


def test_a_short_soak_holds_and_leaves_a_report(tmp_path):
    done = _soak(tmp_path, "--transactions", "240", "--workers", "2", "--seed", "5")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "14 of 16 checks held, 2 were told and not judged" in done.stdout
    assert "240 of 240 transactions" in done.stdout
    assert (tmp_path / "report.md").read_text(encoding="utf-8").startswith("# Soak")
    assert (tmp_path / "course.png").stat().st_size > 10_000
    assert len((tmp_path / "soak-1.jsonl").read_text(encoding="utf-8").splitlines()) >= 121


def test_a_soak_whose_time_is_over_ends_early_and_in_good_order(tmp_path):
    done = _soak(tmp_path, "--transactions", "100000", "--workers", "2", "--minutes", "0.15")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0.15 minutes are over" in done.stdout
