# SPDX-License-Identifier: Apache-2.0
"""A trace as a tree: names, kinds, when and how long, and what the spans that matter say."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len
from rich.text import Text

from . import figures

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from otel_crdb.testing.otlp import Event, Span

KIND_WIDTH, DURATION_WIDTH = 9, 9
#: Attributes worth a line, under the span they are on.
TOLD = (
    "http.response.status_code",
    "cockroachdb.request.statements",
    "cockroachdb.request.retries",
    "cockroachdb.request.db_time",
    "cockroachdb.txn.attempts",
    "cockroachdb.txn.attempt",
    "cockroachdb.txn.outcome",
    "cockroachdb.txn.statements",
    "cockroachdb.txn.idle_time",
    "db.response.status_code",
    "cockroachdb.error.class",
    "cockroachdb.retry.reason",
    "cockroachdb.node.id",
)
#: The same of a retry, under its event.
TOLD_OF_RETRY = (
    "cockroachdb.txn.attempt",
    "db.response.status_code",
    "cockroachdb.retry.reason",
    "cockroachdb.retry.cause",
    "cockroachdb.retry.backoff",
)
TIMES = ("_time", ".backoff")
#: Said once, where it happened, and not again on each span around it.
ONLY_ON_REFUSED = frozenset({"db.response.status_code", "cockroachdb.error.class", "cockroachdb.node.id"})


def render(trace: list[Span], width: int) -> Text:
    """Draw a trace, at most `width` cells wide."""
    children: defaultdict[str, list[Span]] = defaultdict(list)
    known = {span.span_id for span in trace}
    for span in trace:
        children[span.parent_id if span.parent_id in known else ""].append(span)
    rows = [row for root in children[""] for row in _rows(root, children, "", "")]
    return _Canvas(trace, rows, width).draw()


def duration(seconds: float) -> str:
    """Write a duration as people read it."""
    if seconds >= 0.9995:
        return f"{seconds:.2f} s"
    if seconds >= 0.00995:
        return f"{seconds * 1000:.0f} ms"
    return f"{seconds * 1000:.1f} ms"


def _rows(
    span: Span, children: dict[str, list[Span]], guide: str, below: str
) -> Iterator[tuple[str, str, Span]]:
    """Yield every span with the guide before its name and the guide before the lines it has below."""
    own = children[span.span_id]
    yield guide, below + ("│  " if own else "   "), span
    for child in own:
        corner, trunk = ("└─ ", "   ") if child is own[-1] else ("├─ ", "│  ")
        yield from _rows(child, children, below + corner, below + trunk)


class _Canvas:
    """The lines of a trace, all to the same columns."""

    def __init__(self, trace: list[Span], rows: list[tuple[str, str, Span]], width: int) -> None:
        self._rows = rows
        self._width = width
        self._start = min(span.start for span in trace)
        self._length = max(1, max(span.end for span in trace) - self._start)
        self._name_width = max(cell_len(guide) + cell_len(span.name) for guide, _, span in rows) + 2
        self._bar_width = max(8, width - self._name_width - KIND_WIDTH - DURATION_WIDTH - 3)

    def draw(self) -> Text:
        """Draw every span, and what it says."""
        return Text("\n").join(line for row in self._rows for line in self._lines(*row))

    def _lines(self, guide: str, below: str, span: Span) -> Iterator[Text]:
        style = "red" if span.status == "ERROR" else ""
        line = Text().append(guide, style="dim")
        line.append(span.name.ljust(self._name_width - cell_len(guide)), style=f"bold {style}".strip())
        line.append(span.kind.ljust(KIND_WIDTH), style="dim")
        line.append(self._bar(span), style=style or "cyan")
        line.append(duration(span.seconds).rjust(DURATION_WIDTH))
        yield line
        yield from self._told(below, _attributes(span))
        for event in span.events:
            yield from self._event(below, event)

    def _event(self, guide: str, event: Event) -> Iterator[Text]:
        """Write an event's name, its message beside it or below, and what else it tells."""
        is_retry = event.name == figures.RETRY_EVENT
        line = Text().append(f"{guide}• ", style="dim").append(event.name, "yellow" if is_retry else "")
        message = Text(str(event.attributes.get("exception.message", "")).partition("\n")[0], style="red")
        if line.cell_len + message.cell_len + 2 <= self._width:
            yield line.append("  " if message else "").append_text(message)
        else:
            yield line
            below = Text().append(f"{guide}  ", style="dim").append_text(message)
            below.truncate(self._width, overflow="ellipsis")
            yield below
        if is_retry:
            yield from self._told(f"{guide}  ", _picked(TOLD_OF_RETRY, event.attributes))

    def _bar(self, span: Span) -> str:
        """Draw where in the trace the span was, in eighths of a cell."""
        scale = self._bar_width / self._length
        first = min(int((span.start - self._start) * scale), self._bar_width - 1)
        eighths = max(1, round((span.end - span.start) * scale * 8))
        whole, rest = divmod(min(eighths, (self._bar_width - first) * 8), 8)
        return (" " * first + "█" * whole + " ▏▎▍▌▋▊▉"[rest].strip()).ljust(self._bar_width)

    def _told(self, guide: str, pairs: dict[str, str]) -> Iterator[Text]:
        """Write names and values, as many to a line as there is room for."""
        line = Text().append(guide, style="dim")
        for name, value in pairs.items():
            told = Text.assemble((f"{name} ", "dim"), value)
            if line.cell_len > len(guide) and line.cell_len + told.cell_len + 2 > self._width:
                yield line
                line = Text().append(guide, style="dim")
            line.append("  " if line.cell_len > len(guide) else "").append_text(told)
        if pairs:
            yield line


def _attributes(span: Span) -> dict[str, str]:
    """Pick what a span says that is worth a line."""
    refused = figures.is_refusal(span)
    return _picked((name for name in TOLD if refused or name not in ONLY_ON_REFUSED), span.attributes)


def _picked(names: Iterable[str], attributes: dict[str, Any]) -> dict[str, str]:
    return {name: _written(name, attributes[name]) for name in names if name in attributes}


def _written(name: str, value: Any) -> str:
    return duration(value) if name.endswith(TIMES) else str(value)
