# SPDX-License-Identifier: Apache-2.0
"""Which traces are shown whole: one of a transfer that was retried and made, one of a refused one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import figures

if TYPE_CHECKING:
    from collections.abc import Iterable

    from otel_crdb.testing.otlp import Span
    from otel_crdb.testing.telemetry import Telemetry


def retried(telemetry: Telemetry) -> list[Span]:
    """Return the trace of a transfer that was committed after retries, by start."""
    return _shortest(telemetry, figures.committed_after_retries(telemetry))


def refused(telemetry: Telemetry) -> list[Span]:
    """Return the trace of a transfer all of whose attempts were refused, by start."""
    logical = figures.logical(telemetry)
    return _shortest(telemetry, (span for span in logical if span.attributes[figures.OUTCOME] == "failed"))


def attempts_of(trace: list[Span]) -> int:
    """Return how often the trace's transaction was run."""
    return int(
        next(span.attributes[figures.ATTEMPTS] for span in trace if figures.ATTEMPTS in span.attributes)
    )


def _shortest(telemetry: Telemetry, chosen: Iterable[Span]) -> list[Span]:
    """Return the trace of these that has the fewest spans, the request's among them; else none."""
    all_traces = telemetry.traces()
    traces = [all_traces[span.trace_id] for span in chosen]
    whole = [trace for trace in traces if figures.has_request(trace)]
    # Requests that had to connect first are rare, and not what this is about: they have one more.
    return min(whole, key=len, default=[])
