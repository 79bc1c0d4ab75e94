# SPDX-License-Identifier: Apache-2.0
"""A retried transfer of the demo's, as Jaeger, Loki and Prometheus give it back."""

import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from otel_crdb import semconv
from stack.queries import Jaeger, Loki, Prometheus, until

ROOT = Path(__file__).resolve().parent.parent
LONGEST = 150


@pytest.fixture(scope="module")
def demo(stack):
    """Run `make demo STACK=1`'s command beside the stack; give its output and the trace that it shows."""
    jaeger, loki, prometheus = (each.address for each in stack.backends)
    ended = subprocess.run(
        [sys.executable, "-m", "demo"],
        cwd=ROOT,
        env={
            **os.environ,
            "STACK": "1",
            "OTEL_EXPORTER_OTLP_ENDPOINT": stack.agent.address,
            "JAEGER_URL": jaeger,
            "LOKI_URL": loki,
            "PROMETHEUS_URL": prometheus,
            "COLUMNS": "110",
            "PYTHONIOENCODING": "utf-8",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        timeout=LONGEST,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout
    return ended.stdout, re.search(r"Refused, run again, made: .* trace ([0-9a-f]{32})", ended.stdout)[1]


def test_the_demo_finds_its_retried_transfer_in_the_stack_and_says_where(demo, stack):
    """One more check passes, and the trace's address and the query for its lines are printed whole."""
    output, trace_id = demo
    assert "All 12 checks passed" in output
    assert "The stack has the retried transfer whole" in output
    assert f"{stack.jaeger.address}/trace/{trace_id}" in output
    assert f'{{service_name="bank"}} | trace_id="{trace_id}"\n' in output


def test_jaeger_has_its_whole_tree(demo, stack):
    """The request, below it the logical transaction, below that its attempts, below each its statements."""
    spans = Jaeger(stack.jaeger.address).trace(demo[1])
    by_id = {span.span_id: span for span in spans}
    (request,) = (span for span in spans if span.parent_id is None)
    (logical,) = (span for span in spans if semconv.TXN_ATTEMPTS in span.attributes)
    attempts = [span for span in spans if semconv.TXN_ATTEMPT in span.attributes]

    assert (request.name, request.attributes["span.kind"]) == ("POST transfer/", "server")
    assert request.attributes["http.response.status_code"] == 201
    assert request.resource["service.name"] == "bank"
    assert logical.parent_id == request.span_id
    assert logical.attributes[semconv.TXN_OUTCOME] == "committed"
    assert logical.attributes[semconv.TXN_ATTEMPTS] == len(attempts) > 1
    assert request.attributes[semconv.REQUEST_RETRIES] == len(attempts) - 1

    assert [span.attributes[semconv.TXN_ATTEMPT] for span in attempts] == list(range(1, len(attempts) + 1))
    outcomes = [span.attributes[semconv.TXN_OUTCOME] for span in attempts]
    assert outcomes == ["retryable"] * (len(attempts) - 1) + ["committed"]
    assert {span.parent_id for span in attempts} == {logical.span_id}
    assert {span.attributes[semconv.TXN_ID] for span in (logical, *attempts)} == {
        logical.attributes[semconv.TXN_ID]
    }

    statements = [span for span in spans if span.attributes["span.kind"] == "client"]
    assert len(spans) == 2 + len(attempts) + len(statements)
    attempt_of = {span.span_id: by_id[span.parent_id].attributes[semconv.TXN_ATTEMPT] for span in statements}
    last = Counter(span.name for span in statements if attempt_of[span.span_id] == len(attempts))
    assert last == {
        "SELECT bank_account": 1,
        "UPDATE bank_account": 2,
        "INSERT bank_transfer": 1,
        "INSERT bank_ledgerentry SELECT UNNEST": 1,
        "COMMIT": 1,
    }
    for span in statements:
        assert span.attributes[semconv.DB_SYSTEM_NAME] == "cockroachdb"
        assert span.attributes[semconv.TXN_ID] == logical.attributes[semconv.TXN_ID]


def test_jaeger_has_the_refusals_as_attributes_and_as_events(demo, stack):
    """Each refused attempt has one statement with SQLSTATE 40001, and the transaction one retry event for it."""
    spans = Jaeger(stack.jaeger.address).trace(demo[1])
    (logical,) = (span for span in spans if semconv.TXN_ATTEMPTS in span.attributes)
    refused = [span for span in spans if span.attributes.get(semconv.TXN_OUTCOME) == "retryable"]
    for attempt in refused:
        (failed,) = (
            span
            for span in spans
            if span.parent_id == attempt.span_id and span.attributes.get("otel.status_code") == "ERROR"
        )
        assert failed.attributes[semconv.DB_RESPONSE_STATUS_CODE] == "40001"
        assert failed.attributes[semconv.ERROR_TYPE] == "40001"
        assert failed.attributes[semconv.ERROR_CLASS] == "retryable"
        assert [name for name, _ in failed.events] == [semconv.DB_EXCEPTION_EVENT]
    retries = [attributes for name, attributes in logical.events if name == semconv.RETRY_EVENT]
    assert [attributes[semconv.TXN_ATTEMPT] for attributes in retries] == list(range(1, len(refused) + 1))
    for attributes in retries:
        assert attributes[semconv.ERROR_CLASS] == "retryable"
        assert attributes[semconv.DB_RESPONSE_STATUS_CODE] == "40001"
        assert attributes[semconv.RETRY_BACKOFF] > 0


def test_loki_has_its_lines_by_the_trace_id(demo, stack):
    """Of each refused attempt that it failed and that it is run again, and in the end the commit; with the ids."""
    _, trace_id = demo
    spans = Jaeger(stack.jaeger.address).trace(trace_id)
    refused = sum(span.attributes.get(semconv.TXN_OUTCOME) == "retryable" for span in spans)
    (logical,) = (span for span in spans if semconv.TXN_ATTEMPTS in span.attributes)
    lines = Loki(stack.loki.address).lines(f'{{service_name="bank"}} | trace_id="{trace_id}"')

    told = Counter(re.sub(r"[\d.]+", "#", line.text) for line in lines)
    assert sum(count for text, count in told.items() if "was refused" in text) == refused
    assert sum(count for text, count in told.items() if "failed after" in text) == refused
    assert sum(count for text, count in told.items() if "committed by attempt" in text) == 1
    assert {line.labels["span_id"] for line in lines} <= {span.span_id for span in spans}
    for line in lines:
        if semconv.TXN_ID.replace(".", "_") in line.labels:
            assert line.labels["cockroachdb_txn_id"] == logical.attributes[semconv.TXN_ID]
    (again, *_) = (line for line in lines if "was refused" in line.text)
    assert again.labels["severity_text"] == "WARNING"
    assert again.labels["db_response_status_code"] == "40001"
    assert again.labels["cockroachdb_error_class"] == "retryable"


def test_a_line_is_found_by_its_transaction_too(demo, stack):
    """The transaction's id, as the span has it, finds the lines that name it."""
    (logical,) = (
        span
        for span in Jaeger(stack.jaeger.address).trace(demo[1])
        if semconv.TXN_ATTEMPTS in span.attributes
    )
    txn_id = logical.attributes[semconv.TXN_ID]
    lines = Loki(stack.loki.address).lines(f'{{service_name="bank"}} | cockroachdb_txn_id="{txn_id}"')
    assert lines
    assert {line.labels["trace_id"] for line in lines} == {demo[1]}


def test_prometheus_counts_what_the_demo_counts(demo, stack):
    """Attempts by outcome and retries add up to what the demo has read from spans and records."""
    output, _ = demo
    prometheus = Prometheus(stack.prometheus.address)
    retries = int(re.search(r"cockroachdb\.client\.txn\.retries (\d+)", output)[1])
    attempts = int(re.search(r"(\d+) attempts of \d+ logical transactions", output)[1])
    until(
        lambda: (
            prometheus.value('sum(cockroachdb_client_txn_duration_seconds_count{job="bank"})') == attempts
        ),
        f"{attempts} attempts in Prometheus",
    )
    assert prometheus.value('sum(cockroachdb_client_txn_retries_total{job="bank"})') == retries
    assert prometheus.value(
        'sum(cockroachdb_client_errors_total{job="bank", db_response_status_code="40001"})'
    ) == sum(map(int, re.search(r"(\d+) retried and (\d+) given up", output).groups()))


def test_an_exemplar_of_a_refused_statement_leads_to_a_retried_trace(demo, stack):
    """Where Prometheus counts a 40001, it names a trace; Jaeger has it, with the span and its SQLSTATE."""
    found = Prometheus(stack.prometheus.address).exemplars(
        'db_client_operation_duration_seconds_bucket{job="bank", db_response_status_code="40001"}'
    )
    assert found
    jaeger = Jaeger(stack.jaeger.address)
    for exemplar in found:
        ids = exemplar["labels"]
        (span,) = (span for span in jaeger.trace(ids["trace_id"]) if span.span_id == ids["span_id"])
        assert span.attributes[semconv.DB_RESPONSE_STATUS_CODE] == "40001"
        assert span.name == exemplar["seriesLabels"]["db_query_summary"]
