# SPDX-License-Identifier: Apache-2.0
"""What the received telemetry comes to, counted."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .telemetry import Span, Telemetry

SERIALIZATION_FAILURE = "40001"
SQLSTATE = "db.response.status_code"
OUTCOME = "cockroachdb.txn.outcome"
STATUS = "http.response.status_code"
ERROR_EVENT = "db.client.operation.exception"


@dataclass(frozen=True)
class Row:
    """Spans of one sort: how many, how many met a 40001, how long they took (seconds)."""

    name: str
    count: int
    refused: int
    p50: float
    p95: float


def is_refusal(span: Span) -> bool:
    """Whether this is the operation that the database refused: the statement or the COMMIT itself."""
    return span.kind == "CLIENT" and span.attributes.get(SQLSTATE) == SERIALIZATION_FAILURE


def refused_operations(telemetry: Telemetry) -> list[Span]:
    """Return every statement or COMMIT that was refused with a 40001."""
    return [span for span in telemetry.spans if is_refusal(span)]


def requests_seen(telemetry: Telemetry) -> Counter[tuple[str, str, int]]:
    """Count the SERVER spans by method, path and status."""
    return Counter(
        (
            str(span.attributes.get("http.request.method")),
            str(span.attributes.get("url.path")),
            int(span.attributes.get(STATUS, 0)),
        )
        for span in telemetry.spans
        if span.kind == "SERVER"
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
    return _rows(
        (f"{span.name}  {span.attributes.get(STATUS)}", span)
        for span in telemetry.spans
        if span.kind == "SERVER"
    )


def transaction_rows(telemetry: Telemetry) -> list[Row]:
    """Sum up the transactions by outcome."""
    return _rows((str(span.attributes[OUTCOME]), span) for span in transactions(telemetry))


def operation_rows(telemetry: Telemetry) -> list[Row]:
    """Sum up what was sent to the database by name."""
    return _rows((span.name, span) for span in telemetry.spans if span.kind == "CLIENT")


def transactions(telemetry: Telemetry) -> list[Span]:
    """Return the transactions' spans."""
    return [span for span in telemetry.spans if OUTCOME in span.attributes]


def _rows(named: Iterable[tuple[str, Span]]) -> list[Row]:
    groups: defaultdict[str, list[Span]] = defaultdict(list)
    for name, span in named:
        groups[name].append(span)
    rows = [
        Row(
            name,
            len(spans),
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


def refused_trace(telemetry: Telemetry) -> list[Span]:
    """Return the trace of one refused transfer, by start: one refused at COMMIT where there is one."""
    refused = {span.trace_id: span.name == "COMMIT" for span in refused_operations(telemetry)}
    traces = telemetry.traces()
    whole = [trace for trace in refused if any(span.kind == "SERVER" for span in traces[trace])]
    if not whole:
        return []
    # Requests that had to connect first are rare, and not what this is about.
    chosen = max(whole, key=lambda trace: (refused[trace], not _connects(traces[trace])))
    return traces[chosen]


def _connects(trace: list[Span]) -> bool:
    return any(span.name.startswith("connect") for span in trace)
