# SPDX-License-Identifier: Apache-2.0
"""What arrived at the receiver, counted: a whole soak's spans would not fit as they are."""

from __future__ import annotations

import threading
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

from otel_crdb import semconv
from otel_crdb.testing.otlp import Point, attributes_of, points_of

SERVICE_INSTANCE = "service.instance.id"
INTERNAL, CLIENT = 1, 3  # OTLP's numbers of kinds of spans
#: Names of the spans that end a transaction.
ENDS = frozenset({"COMMIT", "ROLLBACK"})
#: The trace of what is of no operation.
NO_TRACE = "0" * 32


@dataclass(frozen=True)
class Logical:
    """The span of one logical transaction."""

    txn_id: str
    attempts: int
    outcome: str
    #: Events of a retry on it.
    retries: int


@dataclass
class Trace:
    """What was told of one operation."""

    logical: list[Logical] = field(default_factory=list)
    #: The spans of its attempts: the transaction's id of each.
    attempts: list[str] = field(default_factory=list)
    #: Spans of its statements: all CLIENT spans but those of COMMIT, ROLLBACK and connects.
    statements: int = 0
    #: Log records of retries, and of a COMMIT in doubt.
    retry_logs: int = 0
    #: Events of a COMMIT in doubt on the attempts' spans, and their log records.
    doubts: int = 0
    doubt_logs: int = 0


class Arrivals:
    """All that came, for a `Receiver` in the place of its `telemetry`."""

    def __init__(self) -> None:
        self.traces: defaultdict[str, Trace] = defaultdict(Trace)
        #: By process.
        self.spans: Counter[str] = Counter()
        self.logs: Counter[str] = Counter()
        #: Spans of database operations, by process: statements, COMMIT, ROLLBACK.
        self.operations: Counter[str] = Counter()
        #: Spans whose ids had come before.
        self.repeated = 0
        self._ids: set[bytes] = set()
        self._points: dict[tuple[Any, ...], Point] = {}
        self._lock = threading.Lock()

    def add(self, signal: str, request: Any) -> None:
        """Take in a decoded export request of `traces`, `metrics` or `logs`."""
        with self._lock:
            if signal == "traces":
                for group in request.resource_spans:
                    process = _process(group.resource)
                    for scope in group.scope_spans:
                        for span in scope.spans:
                            self._add_span(process, span)
            elif signal == "metrics":
                self._points.update(points_of(request))
            else:
                for group in request.resource_logs:
                    process = _process(group.resource)
                    for scope in group.scope_logs:
                        for record in scope.log_records:
                            self._add_log(process, record)

    @property
    def points(self) -> list[Point]:
        """The last data point of every series."""
        with self._lock:
            return list(self._points.values())

    def _add_span(self, process: str, span: Any) -> None:
        self.spans[process] += 1
        identity = span.trace_id + span.span_id
        self.repeated += identity in self._ids
        self._ids.add(identity)
        if span.kind == CLIENT and not span.name.startswith("connect "):
            self.operations[process] += 1
            self.traces[span.trace_id.hex()].statements += span.name not in ENDS
        if span.kind != INTERNAL:
            return
        told = attributes_of(span.attributes)
        events = Counter(event.name for event in span.events)
        if semconv.TXN_ATTEMPTS in told:
            self.traces[span.trace_id.hex()].logical.append(
                Logical(
                    told.get(semconv.TXN_ID, ""),
                    told[semconv.TXN_ATTEMPTS],
                    told.get(semconv.TXN_OUTCOME, ""),
                    events[semconv.RETRY_EVENT],
                )
            )
        elif semconv.TXN_ATTEMPT in told:
            about = self.traces[span.trace_id.hex()]
            about.attempts.append(told.get(semconv.TXN_ID, ""))
            about.doubts += events[semconv.AMBIGUOUS_EVENT]

    def _add_log(self, process: str, record: Any) -> None:
        self.logs[process] += 1
        if record.event_name == semconv.RETRY_EVENT:
            self.traces[record.trace_id.hex()].retry_logs += 1
        elif record.event_name == semconv.AMBIGUOUS_EVENT:
            self.traces[record.trace_id.hex()].doubt_logs += 1


def _process(resource: Any) -> str:
    return str(attributes_of(resource.attributes).get(SERVICE_INSTANCE, "unnamed"))
