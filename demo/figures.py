# SPDX-License-Identifier: Apache-2.0
"""What the received telemetry comes to, counted."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .traffic import SERIALIZATION_FAILURE

if TYPE_CHECKING:
    from collections.abc import Iterable

    from otel_crdb.testing.otlp import Span
    from otel_crdb.testing.telemetry import Telemetry

SQLSTATE = "db.response.status_code"
STATUS = "http.response.status_code"
TXN_ID, OUTCOME = "cockroachdb.txn.id", "cockroachdb.txn.outcome"
ATTEMPTS, ATTEMPT = "cockroachdb.txn.attempts", "cockroachdb.txn.attempt"
REQUEST_RETRIES = "cockroachdb.request.retries"
ERROR_EVENT, RETRY_EVENT = "db.client.operation.exception", "cockroachdb.txn.retry"
EXCEPTION_EVENTS = {ERROR_EVENT, "http.server.request.exception"}


@dataclass(frozen=True)
class Row:
    """Spans of one sort: how many, their retries, how many met a 40001, how long they took (seconds)."""

    name: str
    count: int
    retries: int
    refused: int
    p50: float
    p95: float


def is_refusal(span: Span) -> bool:
    """Whether this is the operation that the database refused: the statement or the COMMIT itself."""
    return span.kind == "CLIENT" and span.attributes.get(SQLSTATE) == SERIALIZATION_FAILURE


def refused_operations(telemetry: Telemetry) -> list[Span]:
    """Return every statement or COMMIT that was refused with a 40001."""
    return [span for span in telemetry.spans if is_refusal(span)]


def requests(telemetry: Telemetry) -> list[Span]:
    """Return the requests' spans."""
    return [span for span in telemetry.spans if span.kind == "SERVER"]


def logical(telemetry: Telemetry) -> list[Span]:
    """Return the spans of logical transactions, each around all its attempts."""
    return [span for span in telemetry.spans if ATTEMPTS in span.attributes]


def attempts(telemetry: Telemetry) -> list[Span]:
    """Return the transactions' spans: one an attempt."""
    return [span for span in telemetry.spans if ATTEMPT in span.attributes]


def committed_after_retries(telemetry: Telemetry) -> list[Span]:
    """Return the spans of logical transactions that were refused, run again and committed."""
    return [
        span for span in logical(telemetry) if retries_of(span) and span.attributes[OUTCOME] == "committed"
    ]


def retries_of(span: Span) -> int:
    """Count the retries that a span tells of: a request's by their total, a transaction's by their events."""
    events = sum(event.name == RETRY_EVENT for event in span.events)
    return int(span.attributes.get(REQUEST_RETRIES, events))


def requests_seen(telemetry: Telemetry) -> Counter[tuple[str, str, int]]:
    """Count the SERVER spans by method, path and status."""
    return Counter(
        (
            str(span.attributes.get("http.request.method")),
            str(span.attributes.get("url.path")),
            int(span.attributes.get(STATUS, 0)),
        )
        for span in requests(telemetry)
    )


def refusals_on_metric(telemetry: Telemetry, metric: str) -> int:
    """Add up what a metric says of 40001s, over all processes."""
    return int(
        sum(
            point.value
            for point in telemetry.points
            if point.metric == metric and point.attributes.get(SQLSTATE) == SERIALIZATION_FAILURE
        )
    )


def refusals_in_logs(telemetry: Telemetry) -> int:
    """Count the log records of a 40001 that belong to a trace."""
    return sum(
        record.event == ERROR_EVENT
        and record.attributes.get(SQLSTATE) == SERIALIZATION_FAILURE
        and bool(record.trace_id.strip("0"))
        for record in telemetry.logs
    )


def request_rows(telemetry: Telemetry) -> list[Row]:
    """Sum up the requests by name and answer."""
    return _rows((f"{span.name}  {span.attributes.get(STATUS)}", span) for span in requests(telemetry))


def logical_rows(telemetry: Telemetry) -> list[Row]:
    """Sum up the logical transactions by outcome and attempts."""
    rows = _rows(
        (f"{span.attributes[OUTCOME]}, {times(span.attributes[ATTEMPTS], 'attempt')}", span)
        for span in logical(telemetry)
    )
    return sorted(rows, key=lambda row: row.name)


def attempt_rows(telemetry: Telemetry) -> list[Row]:
    """Sum up the attempts by outcome."""
    return _rows((str(span.attributes[OUTCOME]), span) for span in attempts(telemetry))


def operation_rows(telemetry: Telemetry) -> list[Row]:
    """Sum up what was sent to the database by name."""
    return _rows((span.name, span) for span in telemetry.spans if span.kind == "CLIENT")


def _rows(named: Iterable[tuple[str, Span]]) -> list[Row]:
    groups: defaultdict[str, list[Span]] = defaultdict(list)
    for name, span in named:
        groups[name].append(span)
    rows = [
        Row(
            name,
            len(spans),
            sum(map(retries_of, spans)),
            sum(span.attributes.get(SQLSTATE) == SERIALIZATION_FAILURE for span in spans),
            percentile([span.seconds for span in spans], 50),
            percentile([span.seconds for span in spans], 95),
        )
        for name, spans in groups.items()
    ]
    return sorted(rows, key=lambda row: (-row.count, row.name))


def percentile(values: list[float], percent: int) -> float:
    """Return the nearest-rank percentile."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * percent // 100) - 1)]


def has_request(trace: list[Span]) -> bool:
    """Whether the request's own span has come."""
    return any(span.kind == "SERVER" for span in trace)


def times(count: int, word: str) -> str:
    """Write a number with its word."""
    return f"{count} {word}" if count == 1 else f"{count} {word}s"
