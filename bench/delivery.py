# SPDX-License-Identifier: Apache-2.0
"""What delivery costs the application, by what becomes of it; and OpenTelemetry's exporter against fastotel.

    python bench/delivery.py [rounds]

A "request" is twenty spans as they are made of statements, and a little work. Every round measures each way
once, in an order that turns; told is the least of all rounds, and in brackets how much of the first line that
is. The collectors are processes of their own. "until sent" is processor time of this process, with its flush.
"""

import contextlib
import multiprocessing
import os
import sys
import time
from collections import defaultdict
from pathlib import Path

from opentelemetry.sdk.trace import TracerProvider

from otel_crdb import courier, environment, fast_exporter, pipeline

ROUNDS = 7
REQUESTS = 100
SPANS = 20
ATTRIBUTES = {
    "db.system.name": "cockroachdb",
    "db.namespace": "bank",
    "db.query.summary": "SELECT bank_account",
    "db.query.text": "SELECT id, email, balance FROM bank_account WHERE id = %s AND balance > ?",
    "server.address": "db-7.internal",
    "server.port": 26257,
    "cockroachdb.node.id": 7,
}


def collector(kind, said):
    """Answer as a collector that is healthy, broken or silent, for good."""
    sys.path.insert(0, str(Path.cwd()))
    from tests.collectors import Collector, response

    answers = {"healthy": response(200), "unavailable": response(503), "silent": None}
    with Collector(lambda _: answers[kind]) as running:
        said.send(running.endpoint)
        said.recv()


@contextlib.contextmanager
def collectors(*kinds):
    """Run a process for each kind of collector; gives their endpoints."""
    context = multiprocessing.get_context("spawn")
    running = {}
    for kind in kinds:
        ours, theirs = context.Pipe()
        process = context.Process(target=collector, args=(kind, theirs), daemon=True)
        process.start()
        running[kind] = (process, ours, ours.recv())
    try:
        yield {kind: endpoint for kind, (_, _, endpoint) in running.items()}
    finally:
        for process, ours, _ in running.values():
            ours.send(None)
            process.join()


def tracer_to(endpoint, *, fast=False):
    """Give a tracer that sends there, and what it sends by."""
    os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = endpoint
    limits = environment.batch_limits("OTEL_BSP", 5000)
    if fast:
        sender = fast_exporter.processor()
    else:
        sender = courier.SpanBatches(pipeline._otlp_delivery("TRACES", len), limits)
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(sender)
    return provider.get_tracer("bench"), sender


def request(tracer):
    """Answer one request."""
    with tracer.start_as_current_span("request"):
        for _ in range(SPANS):
            with tracer.start_as_current_span("SELECT bank_account", attributes=ATTRIBUTES):
                sum(range(500))


def seconds_of_requests(tracer):
    """Return what one request took, on the mean of many."""
    began = time.perf_counter()
    for _ in range(REQUESTS):
        request(tracer)
    return (time.perf_counter() - began) / REQUESTS


def processor_seconds(tracer, sender):
    """Return the processor time of one request, its export with it."""
    began = time.process_time()
    for _ in range(REQUESTS):
        request(tracer)
    sender.force_flush(30_000)
    return (time.process_time() - began) / REQUESTS


def measured(ways, measure, rounds):
    """Return the least of each way over all rounds, their order turning."""
    found = defaultdict(list)
    names = list(ways)
    for number in range(rounds):
        for index in range(len(names)):
            name = names[(index + number) % len(names)]
            found[name].append(measure(*ways[name]))
    return {name: min(found[name]) for name in names}


def tell(title, results):
    """Print results beside the first of them."""
    first = next(iter(results.values()))
    sys.stdout.write(f"{title}\n")
    for name, seconds in results.items():
        sys.stdout.write(f"  {name:28} {seconds * 1e6:9.0f} µs  [{seconds / first:.2f}]\n")


def own_time(tracer, _):
    """Measure what a request waits for."""
    return seconds_of_requests(tracer)


def main():
    """Measure, and tell."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS
    with collectors("healthy", "unavailable", "silent") as endpoints:
        ways = {kind: tracer_to(endpoint) for kind, endpoint in endpoints.items()}
        ways["nobody listens"] = tracer_to("http://127.0.0.1:1")
        tell("a request, by what the collector does", measured(ways, own_time, rounds))
        waiting = {name: sender.waiting for name, (_, sender) in ways.items()}
        sys.stdout.write(f"spans that wait then: {waiting}\n")
        courier.close([sender for _, sender in ways.values()], courier.EXIT_SECONDS)
        healthy = endpoints["healthy"]
        ways = {"OpenTelemetry's exporter": tracer_to(healthy), "fastotel": tracer_to(healthy, fast=True)}
        tell("a request until sent, processor time", measured(ways, processor_seconds, rounds))
        tell("a request, its own time", measured(ways, own_time, rounds))
        courier.close([sender for _, sender in ways.values()], courier.EXIT_SECONDS)


if __name__ == "__main__":
    main()
