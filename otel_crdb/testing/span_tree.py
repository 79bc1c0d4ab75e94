# SPDX-License-Identifier: Apache-2.0
"""Spans as a tree of text: what a failed assertion shows."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from otel_crdb import semconv

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .otlp import Described, LogRecord, Span

#: What is worth a word beside a name.
TOLD = (
    "http.response.status_code",
    semconv.TXN_ATTEMPTS,
    semconv.TXN_OUTCOME,
    semconv.DB_RESPONSE_STATUS_CODE,
    semconv.ERROR_TYPE,
    semconv.RETRY_REASON,
)


def draw(spans: list[Span], logs: list[LogRecord]) -> str:
    """Draw spans by start, each below its parent, with its events; then the log records."""
    known = {span.span_id for span in spans}
    children: defaultdict[str, list[Span]] = defaultdict(list)
    for span in spans:
        children[span.parent_id if span.parent_id in known else ""].append(span)
    lines = [line for root in children[""] for line in _lines(root, children, "", "")]
    lines += [f"log: {record.event or record.body!r}{_told(record)}" for record in logs]
    return "\n".join(lines) or "(nothing)"


def _lines(span: Span, children: dict[str, list[Span]], corner: str, trunk: str) -> Iterator[str]:
    status = "  ERROR" if span.status == "ERROR" else ""
    yield f"{corner}{span.name}  {span.kind}{status}{_told(span)}"
    own = children.get(span.span_id, [])
    for event in span.events:
        yield f"{trunk}{'│' if own else ' '}  • {event.name}{_told(event)}"
    for child in own:
        last = child is own[-1]
        yield from _lines(
            child, children, trunk + ("└─ " if last else "├─ "), trunk + ("   " if last else "│  ")
        )


def _told(one: Described) -> str:
    """Write what is worth a word; the error's type only where no SQLSTATE says it."""
    told = {name: one.attributes[name] for name in TOLD if name in one.attributes}
    if told.get(semconv.ERROR_TYPE) == told.get(semconv.DB_RESPONSE_STATUS_CODE):
        told.pop(semconv.ERROR_TYPE, None)
    return "".join(f"  {name.rpartition('.')[2]}={value}" for name, value in told.items())
