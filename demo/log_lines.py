# SPDX-License-Identifier: Apache-2.0
"""The lines that the bank logged, from its rotating file and from what came by OTLP, by trace."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from . import figures
from .run import Check

if TYPE_CHECKING:
    from pathlib import Path

    from otel_crdb.testing.telemetry import Telemetry

    from .run import Run


@dataclass(frozen=True, order=True)
class Line:
    """One line, as both the file and OTLP have it."""

    trace_id: str
    span_id: str
    severity: str
    text: str


def of_file(path: Path) -> list[tuple[str, Line]]:
    """Return the lines of the file, and of those that it was rotated into, each with its time."""
    lines = []
    for file in path.parent.glob(f"{path.name}*"):
        if file.suffix != ".lock":
            lines += [_line_of(json.loads(text)) for text in file.read_text().splitlines()]
    return sorted(lines)


def _line_of(told: dict[str, Any]) -> tuple[str, Line]:
    line = Line(told.get("trace_id", ""), told.get("span_id", ""), told["severity_text"], str(told["body"]))
    return told["timestamp"], line


def of_otlp(telemetry: Telemetry) -> list[Line]:
    """Return the log records that are lines.

    Not the records of exceptions, which `OTEL_SEMCONV_EXCEPTION_SIGNAL_OPT_IN=logs/dup` asks for besides.
    """
    return [
        Line(record.trace_id, record.span_id, record.severity, str(record.body))
        for record in telemetry.logs
        if record.event not in figures.EXCEPTION_EVENTS
    ]


def by_trace(lines: list[Line]) -> dict[str, Counter[Line]]:
    """Group the lines of requests; what was logged outside of any is left out."""
    grouped: dict[str, Counter[Line]] = defaultdict(Counter)
    for line in lines:
        if line.trace_id.strip("0"):
            grouped[line.trace_id][line] += 1
    return grouped


def agree(run: Run) -> Check:
    """Each request's lines are the same in the file and in what came by OTLP."""
    in_file = by_trace([line for _, line in run.log_file])
    by_otlp = by_trace(of_otlp(run.telemetry))
    retried = {span.trace_id for span in figures.committed_after_retries(run.telemetry)}
    count = sum(in_file[trace].total() for trace in retried if trace in in_file)
    silent = retried - in_file.keys()
    differ = [trace for trace in in_file.keys() | by_otlp.keys() if in_file.get(trace) != by_otlp.get(trace)]
    told = f"{count} lines of {len(retried)} transfers that were retried and made; "
    told += f"{sum(each.total() for each in in_file.values())} lines of {len(in_file)} traces in all"
    if differ:
        told += f"; they differ for {', '.join(sorted(differ)[:3])}"
    return Check(
        bool(retried) and not silent and not differ,
        "The log file and OTLP have the same lines of every request",
        told,
        "demo/bank/settings.py's LOGGING writes the file; what leaves over OTLP may have been dropped.",
    )
