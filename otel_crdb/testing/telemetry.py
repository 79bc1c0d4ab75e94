# SPDX-License-Identifier: Apache-2.0
"""All that was told over OTLP, and the questions that a test asks of it."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn, TypeVar

from otel_crdb import semconv

from . import span_tree
from .otlp import Event, LogRecord, Point, Span, log_records_of, points_of, spans_of

T = TypeVar("T", Span, Event, LogRecord)


@dataclass(frozen=True)
class Transaction:
    """One transaction with all its attempts.

    `name` is that of `run_transaction`, empty for a block of `atomic()`. `attempts` are the attempts'
    outcomes, `retries` the reasons why it was run again. `span` is the one around all attempts, or the
    block's own.
    """

    name: str
    outcome: str
    attempts: tuple[str, ...]
    retries: tuple[str, ...]
    id: str = field(repr=False)
    span: Span = field(repr=False)


class Telemetry:
    """What was told so far: `spans`, `points` and `logs`, and what they come to.

    Questions that mean one thing raise AssertionError where there is not exactly one, and say what there was.
    A batch that an exporter sends twice counts once, where ids tell.
    """

    def __init__(self, collect: Callable[[], None] = lambda: None) -> None:
        """`collect` is called before a look at the metrics, and has what is due brought to `add`."""
        self._collect = collect
        self._lock = threading.Lock()
        self._spans: dict[tuple[str, str], Span] = {}
        self._points: dict[tuple[Any, ...], Point] = {}
        self._points_before: dict[tuple[Any, ...], Point] = {}
        self._logs: list[LogRecord] = []

    def add(self, signal: str, request: Any) -> None:
        """Take in a decoded export request of `traces`, `metrics` or `logs`."""
        with self._lock:
            if signal == "traces":
                self._spans.update(((span.trace_id, span.span_id), span) for span in spans_of(request))
            elif signal == "metrics":
                self._points.update(points_of(request))
            else:
                self._logs.extend(log_records_of(request))

    def clear(self) -> None:
        """Forget all so far; metrics count from here."""
        self._collect()
        with self._lock:
            self._spans.clear()
            self._logs.clear()
            self._points_before = dict(self._points)

    # --- as it came ----------------------------------------------------------------------------------------

    @property
    def spans(self) -> list[Span]:
        """The spans that have ended, by start."""
        with self._lock:
            return sorted(self._spans.values(), key=lambda span: span.start)

    @property
    def points(self) -> list[Point]:
        """The last data point of every series."""
        self._collect()
        with self._lock:
            grown = [_grown(point, self._points_before.get(key)) for key, point in self._points.items()]
        return [point for point in grown if point is not None]

    @property
    def logs(self) -> list[LogRecord]:
        """The log records."""
        with self._lock:
            return list(self._logs)

    def processes(self) -> set[str]:
        """Name the processes whose spans have come."""
        return {span.process for span in self.spans}

    def traces(self) -> dict[str, list[Span]]:
        """Return the spans of each trace, by start."""
        traces = defaultdict(list)
        for span in self.spans:
            traces[span.trace_id].append(span)
        return dict(traces)

    def tree(self) -> str:
        """Draw the spans as trees, with what matters of them, and the log records below."""
        return span_tree.draw(self.spans, self.logs)

    # --- what it comes to ----------------------------------------------------------------------------------

    @property
    def transactions(self) -> list[Transaction]:
        """The transactions that have ended, by start, each with all its attempts."""
        by_id: defaultdict[str, list[Span]] = defaultdict(list)
        for span in self.spans:
            if semconv.TXN_ATTEMPTS in span.attributes or semconv.TXN_ATTEMPT in span.attributes:
                by_id[span[semconv.TXN_ID]].append(span)
        return [_transaction(spans) for spans in by_id.values()]

    @property
    def outcomes(self) -> list[str]:
        """How each transaction ended: `committed`, `rolled_back`, `ambiguous`, `failed` or `retryable`."""
        return [transaction.outcome for transaction in self.transactions]

    @property
    def outcome(self) -> str:
        """How the only transaction ended."""
        __tracebackhide__ = True
        return self.transaction().outcome

    @property
    def retries(self) -> list[str]:
        """Why transactions were run again: the reason of each retry, in their order."""
        return [reason for transaction in self.transactions for reason in transaction.retries]

    @property
    def errors(self) -> list[str]:
        """The database errors in their order: SQLSTATE, or the exception's class where there is none."""
        return [
            str(span.attributes.get(semconv.DB_RESPONSE_STATUS_CODE) or span[semconv.ERROR_TYPE])
            for span in sorted(self.spans, key=lambda span: span.end)
            if span.kind == "CLIENT"
            and semconv.DB_SYSTEM_NAME in span.attributes
            and semconv.ERROR_TYPE in span.attributes
        ]

    # --- one of many ---------------------------------------------------------------------------------------

    def transaction(self, name: str | None = None) -> Transaction:
        """Return the only transaction, or the only one of that name."""
        __tracebackhide__ = True
        found = [one for one in self.transactions if name in (None, one.name)]
        if len(found) != 1:
            self._fail(found, "transaction" if name is None else f"transaction {name!r}")
        return found[0]

    def spans_named(self, name: str) -> list[Span]:
        """Return the spans of that name, by start."""
        return [span for span in self.spans if span.name == name]

    def span(self, name: str, attributes: Mapping[str, Any] | None = None) -> Span:
        """Return the only span of that name, with these attributes among its own."""
        __tracebackhide__ = True
        return self._only(self.spans_named(name), f"span {name!r}", attributes)

    def event(self, name: str, attributes: Mapping[str, Any] | None = None) -> Event:
        """Return the only event of that name on any span, with these attributes among its own."""
        __tracebackhide__ = True
        found = [event for span in self.spans for event in span.events if event.name == name]
        return self._only(found, f"event {name!r}", attributes)

    def log(self, words: str, attributes: Mapping[str, Any] | None = None) -> LogRecord:
        """Return the only log record with that event name, or with those words in its text."""
        __tracebackhide__ = True
        found = [one for one in self.logs if one.event == words or words in str(one.body)]
        return self._only(found, f"log record {words!r}", attributes)

    def metric(self, name: str, attributes: Mapping[str, Any] | None = None) -> float:
        """Add up a metric since the start: a counter's value, or how often a histogram was recorded.

        Only data points that have these attributes among their own count.
        """
        return sum(point.value for point in self.points if point.metric == name and _has(point, attributes))

    def _only(self, found: list[T], sought: str, attributes: Mapping[str, Any] | None) -> T:
        __tracebackhide__ = True
        fitting = [one for one in found if _has(one, attributes)]
        if len(fitting) != 1:
            self._fail(fitting, f"{sought} with {dict(attributes)}" if attributes else sought)
        return fitting[0]

    def _fail(self, found: Sequence[object], sought: str) -> NoReturn:
        __tracebackhide__ = True
        count = f"{len(found)} of them" if found else "none"
        raise AssertionError(f"one {sought} was expected, and there is {count}. Seen:\n{self.tree()}")

    def __repr__(self) -> str:
        outcomes = ", ".join(self.outcomes) or "none"
        return f"<Telemetry: {len(self.spans)} spans, {len(self.logs)} log records, transactions: {outcomes}>"


def _grown(point: Point, before: Point | None) -> Point | None:
    """Return what came to a data point since, or None where nothing did."""
    if before is None:
        return point
    grown = replace(point, value=point.value - before.value, total=point.total - before.total)
    return grown if grown.value or grown.total else None


def _transaction(spans: list[Span]) -> Transaction:
    """Sum up the spans of one transaction's id: its attempts, and the one around them where it is retried."""
    attempts = [span for span in spans if semconv.TXN_ATTEMPT in span.attributes]
    around = [span for span in spans if semconv.TXN_ATTEMPTS in span.attributes]
    whole = around[0] if around else attempts[-1]
    return Transaction(
        name=whole.attributes.get(semconv.TXN_NAME, ""),
        outcome=whole.attributes.get(semconv.TXN_OUTCOME, ""),
        attempts=tuple(span.attributes.get(semconv.TXN_OUTCOME, "") for span in attempts),
        retries=tuple(
            event.attributes.get(semconv.RETRY_REASON) or event[semconv.ERROR_TYPE]
            for event in whole.events
            if event.name == semconv.RETRY_EVENT
        ),
        id=whole[semconv.TXN_ID],
        span=whole,
    )


def _has(one: Span | Event | LogRecord | Point, attributes: Mapping[str, Any] | None) -> bool:
    missing = object()
    return all(one.attributes.get(name, missing) == value for name, value in (attributes or {}).items())
