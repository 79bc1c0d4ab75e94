# SPDX-License-Identifier: Apache-2.0
"""What the back ends answer, by their own query APIs."""

from __future__ import annotations

import json
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .programs import StackError

if TYPE_CHECKING:
    from collections.abc import Callable

#: Seconds for what is on its way: the decision about a trace, the queues, a busy machine.
ARRIVES_WITHIN = 90.0


@dataclass(frozen=True)
class JaegerSpan:
    """One span as Jaeger gives it back. `events` are its logs: name and attributes."""

    span_id: str
    parent_id: str | None
    name: str
    start: int
    attributes: dict[str, Any]
    resource: dict[str, Any]
    events: list[tuple[str, dict[str, Any]]]


@dataclass(frozen=True)
class LokiLine:
    """One line as Loki gives it back: its text, its stream's labels with its structured metadata."""

    timestamp: int
    text: str
    labels: dict[str, str] = field(default_factory=dict)


class Jaeger:
    """Jaeger's query API."""

    def __init__(self, address: str) -> None:
        self.address = address

    def trace(self, trace_id: str) -> list[JaegerSpan]:
        """Return the spans of a trace, by start; none where there is no such trace."""
        try:
            answer = _get(f"{self.address}/api/traces/{trace_id}")
        except urllib.error.HTTPError as error:
            if error.code != 404:
                raise
            return []
        return _spans(answer["data"][0]) if answer["data"] else []

    def traces(self, service: str, *, limit: int = 10_000, **tags: str) -> dict[str, list[JaegerSpan]]:
        """Return the traces of a service, by id: all, or those that have a span with all these tags."""
        asked: dict[str, Any] = {"service": service, "limit": limit, "lookback": "2d"}
        if tags:
            asked["tags"] = json.dumps(tags)
        answer = _get(f"{self.address}/api/traces", **asked)
        return {trace["traceID"]: _spans(trace) for trace in answer["data"]}

    def page_of(self, trace_id: str) -> str:
        """Return the address of the page that shows a trace."""
        return f"{self.address}/trace/{trace_id}"


class Loki:
    """Loki's query API."""

    def __init__(self, address: str) -> None:
        self.address = address

    def lines(self, query: str, *, limit: int = 5000, seconds: float = 6 * 3600) -> list[LokiLine]:
        """Return what LogQL finds in the last hours, by time; at most `limit` lines (Loki's own is 5000)."""
        now = time.time_ns()
        answer = _get(
            f"{self.address}/loki/api/v1/query_range",
            query=query,
            limit=limit,
            start=now - int(seconds * 1e9),
            end=now + 60 * 10**9,
            direction="forward",
        )
        streams = answer["data"]["result"]
        lines = [
            LokiLine(int(when), text, stream["stream"])
            for stream in streams
            for when, text in stream["values"]
        ]
        return sorted(lines, key=lambda line: line.timestamp)

    def count(self, selector: str, *, hours: int = 6) -> int:
        """Return how many lines of the last hours a log query finds."""
        answer = _get(
            f"{self.address}/loki/api/v1/query",
            query=f"sum(count_over_time({selector} [{hours}h]))",
            time=time.time_ns(),
        )
        result = answer["data"]["result"]
        return int(result[0]["value"][1]) if result else 0


class Prometheus:
    """Prometheus's query API."""

    def __init__(self, address: str) -> None:
        self.address = address

    def series(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """Return what PromQL gives at this moment: labels and value of each series."""
        answer = _get(f"{self.address}/api/v1/query", query=expression)
        return [(each["metric"], float(each["value"][1])) for each in answer["data"]["result"]]

    def value(self, expression: str) -> float:
        """Return the one value that PromQL gives; 0 where it gives none.

        Raises:
            StackError: it gives more than one.

        """
        series = self.series(expression)
        if len(series) > 1:
            raise StackError(f"{expression} has {len(series)} series")
        return series[0][1] if series else 0.0

    def exemplars(self, expression: str, *, seconds: float = 3600) -> list[dict[str, Any]]:
        """Return the exemplars of the last hour: labels (trace_id, span_id), value, labels of the series."""
        now = time.time()
        answer = _get(
            f"{self.address}/api/v1/query_exemplars", query=expression, start=now - seconds, end=now + 60
        )
        return [
            {**exemplar, "seriesLabels": series["seriesLabels"]}
            for series in answer["data"]
            for exemplar in series["exemplars"]
        ]


_SAMPLE = re.compile(r"^(\w+)(?:\{(.*)\})? (\S+)$")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


class Agent:
    """The collector's own metrics, as it tells them at this moment."""

    def __init__(self, address: str) -> None:
        self.address = address

    def total(self, name: str, **labels: str) -> float:
        """Return the sum of a metric's series that have these labels; `_total` may be left off the name."""
        total = 0.0
        for line in _text(self.address).splitlines():
            found = _SAMPLE.match(line)
            if found is None or found[1] not in (name, f"{name}_total"):
                continue
            if labels.items() <= dict(_LABEL.findall(found[2] or "")).items():
                total += float(found[3])
        return total


def until(told: Callable[[], Any], what: str, *, seconds: float = ARRIVES_WITHIN) -> Any:
    """Ask again and again until there is an answer that is not empty, and return it.

    Raises:
        StackError: there was none in so many seconds.

    """
    end = time.monotonic() + seconds
    while not (found := told()):
        if time.monotonic() > end:
            raise StackError(f"not seen in {seconds:.0f} s: {what}")
        time.sleep(0.2)
    return found


def _spans(trace: dict[str, Any]) -> list[JaegerSpan]:
    processes = {name: _tags(process["tags"]) for name, process in trace["processes"].items()}
    for name, process in trace["processes"].items():
        processes[name]["service.name"] = process["serviceName"]
    spans = [
        JaegerSpan(
            span_id=span["spanID"],
            parent_id=next(
                (ref["spanID"] for ref in span["references"] if ref["refType"] == "CHILD_OF"), None
            ),
            name=span["operationName"],
            start=span["startTime"],
            attributes=_tags(span["tags"]),
            resource=processes[span["processID"]],
            events=[_event(log["fields"]) for log in span["logs"] or ()],
        )
        for span in trace["spans"]
    ]
    return sorted(spans, key=lambda span: span.start)


def _event(tags: list[dict[str, Any]]) -> tuple[str, dict[str, Any]]:
    attributes = _tags(tags)
    return attributes.pop("event", ""), attributes


def _tags(tags: list[dict[str, Any]]) -> dict[str, Any]:
    return {tag["key"]: tag["value"] for tag in tags}


def _get(address: str, **parameters: Any) -> Any:
    query = f"?{urllib.parse.urlencode(parameters)}" if parameters else ""
    return json.loads(_text(f"{address}{query}"))


def _text(address: str) -> str:
    with urllib.request.urlopen(address, timeout=30) as answer:
        return str(answer.read().decode())
