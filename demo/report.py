# SPDX-License-Identifier: Apache-2.0
"""What the demo shows: progress while it works, then what was seen. Plain text where it is piped."""

from __future__ import annotations

import contextlib
import platform
import sys
import time
from collections import Counter
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from . import figures, log_lines, trace_choice, trace_view
from .traffic import CLIENTS, CROWDED_EVERY, IMPATIENT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from rich.console import RenderableType

    from otel_crdb.testing.otlp import Span

    from .back_ends import BackEnds
    from .forwarder import Forwarder
    from .receiver import Receiver
    from .run import Check, Run

WIDEST = 110
LOG_LINES = 25
PASSED, FAILED = Text("✓", style="green"), Text("✗", style="bold red")


@dataclass(frozen=True)
class Facts:
    """What ran: the server's description, the bank's own versions, who received it, the seconds it took."""

    server: str
    versions: dict[str, str]
    receiver: Receiver
    forwarder: Forwarder | None
    back_ends: BackEnds | None
    seconds: float


class Step:
    """A step under way. `result` is told when it is done."""

    def __init__(self, progress: Progress, title: str, total: int | None) -> None:
        self.result = ""
        self._progress = progress
        self._task = progress.add_task(title, total=total, told="")

    def advance(self, completed: int, told: str) -> None:
        """Move the bar."""
        self._progress.update(self._task, completed=completed, told=told)


class Screen:
    """The terminal, or the pipe, that the demo writes to."""

    def __init__(self) -> None:
        # Whatever the terminal's encoding lacks is no reason to fail.
        sys.stdout.reconfigure(errors="replace")
        self._console = Console(highlight=False)
        self._console.width = min(self._console.width, WIDEST)

    def title(self) -> None:
        """Say what this is."""
        self._say()
        self._say(Text("otel_crdb demo", style="bold"), "· a bank, seen through one call in its wsgi.py")
        self._say()

    @contextlib.contextmanager
    def step(self, title: str, total: int | None = None) -> Iterator[Step]:
        """Show that something is being done, and then how long it took."""
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TimeElapsedColumn(),
            TextColumn("{task.fields[told]}", style="dim"),
        )
        began = time.monotonic()
        progress = Progress(*columns, console=self._console, transient=True)
        step = Step(progress, title, total)
        with progress if self._console.is_terminal else contextlib.nullcontext():
            yield step
        self._say(PASSED, _line(title, step.result, f"{time.monotonic() - began:.1f} s"))

    def failed(self, reason: str) -> None:
        """Say why the demo cannot go on."""
        self._say(FAILED, Text(reason))

    def show_log(self, log: Path) -> None:
        """Show the end of what the bank's processes wrote, and where the rest is."""
        self._say()
        self._say(Text("The bank's log ends with:", style="bold"))
        for line in log.read_text(errors="replace").splitlines()[-LOG_LINES:]:
            self._say(f"  {line}")
        self._say()
        self._say(f"The whole log: {log}")

    def show(self, run: Run, checks: list[Check], facts: Facts) -> None:
        """Show everything."""
        self._section("What ran", _what_ran(facts, len(run.telemetry.processes())))
        self._section("What was seen, decoded from OTLP", _summary(run))
        self._trace("Refused, run again, made", trace_choice.retried(run.telemetry))
        self._lines(run)
        self._trace("Refused", trace_choice.refused(run.telemetry))
        self._section("Checked against what the clients saw", _checked(checks))
        if facts.back_ends is not None:
            where = "\n".join(f"{name:12}{told}" for name, told in facts.back_ends.where(run).items())
            # Commands to be copied: not broken into lines.
            self._section("The same transfer in the stack", Text(where), soft_wrap=True)
        self._section("Where to look next", _next(facts))
        self._say()
        missing = sum(not one.passed for one in checks)
        if missing:
            self._say(FAILED, f"{missing} of {len(checks)} checks failed, after {facts.seconds:.1f} s.")
        else:
            self._say(PASSED, f"All {len(checks)} checks passed, in {facts.seconds:.1f} s.")

    def _trace(self, title: str, trace: list[Span]) -> None:
        if trace:
            attempts = figures.times(trace_choice.attempts_of(trace), "attempt")
            tree = trace_view.render(trace, self._console.width)
            self._section(f"{title}: a transfer of {attempts}, trace {trace[0].trace_id}", tree)

    def _lines(self, run: Run) -> None:
        """Show what was logged of the retried transfer that is shown whole, and where each line was found."""
        trace = trace_choice.retried(run.telemetry)
        if trace:
            title = "Its log lines, by that trace id: in the rotating file, and by OTLP"
            self._section(title, _log_lines(run, trace[0].trace_id))

    def _section(self, title: str, content: RenderableType, *, soft_wrap: bool = False) -> None:
        self._say()
        with self._console.capture() as drawn:
            self._console.rule(Text(title, style="bold"), align="left", style="dim")
            self._console.print(content, soft_wrap=soft_wrap)
        for line in drawn.get().splitlines():
            # Tables are padded to their width, which nobody wants in a file.
            self._console.out(line if self._console.is_terminal else line.rstrip(), highlight=False)

    def _say(self, *parts: str | Text) -> None:
        self._console.print(*parts, markup=False, soft_wrap=True)


def _line(title: str, result: str, seconds: str) -> Text:
    line = Text(title)
    if result:
        line.append(f": {result}")
    return line.append(f"  {seconds}", style="dim")


def _what_ran(facts: Facts, processes: int) -> Table:
    receiver, versions = facts.receiver, facts.versions
    rows = {
        "Server": facts.server,
        "Bank": f"Django {versions['django']}, django-cockroachdb {version('django-cockroachdb')}, "
        f"{versions['driver']}; gunicorn {version('gunicorn')} on Python {platform.python_version()}",
        "Traffic": f"{CLIENTS} customers, one round in {CROWDED_EVERY} all at the same two accounts; a "
        f"refused transfer is run again, but {IMPATIENT} of the customers ask for a single attempt",
        "Telemetry": f"otel_crdb {version('otel-crdb')} on OpenTelemetry SDK {version('opentelemetry-sdk')}, "
        "by OTLP over HTTP",
        "Received": f"{_counted(receiver)} from {processes} processes, in "
        f"{sum(receiver.requests.values())} export requests, {receiver.received / 1024:,.0f} KiB compressed",
    }
    if facts.forwarder is not None:
        rows["Handed on"] = _handed_on(facts.forwarder)
    return _pairs(rows)


def _counted(receiver: Receiver) -> str:
    telemetry = receiver.telemetry
    metrics = {point.metric for point in telemetry.points}
    return (
        f"{len(telemetry.spans):,} spans, {len(telemetry.points)} series of {len(metrics)} metrics, "
        f"{len(telemetry.logs)} log records"
    )


def _handed_on(forwarder: Forwarder) -> str:
    told = f"{forwarder.sent} export requests to {forwarder.endpoint}"
    if forwarder.dropped:
        told += f", {forwarder.dropped} dropped"
    if forwarder.failed:
        told += f", {forwarder.failed} failed: {forwarder.last_failure}"
    return told


def _summary(run: Run) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, show_edge=False, header_style="dim")
    table.add_column("", no_wrap=True, min_width=34)
    for name in ("spans", "retries", "40001", "p50", "p95"):
        table.add_column(name, justify="right", no_wrap=True)
    telemetry = run.telemetry
    for title, rows in (
        ("Requests, by answer", figures.request_rows(telemetry)),
        ("Logical transactions, by outcome", figures.logical_rows(telemetry)),
        ("Their attempts, by outcome", figures.attempt_rows(telemetry)),
        ("Database, by operation", figures.operation_rows(telemetry)),
    ):
        table.add_row(Text(title, style="bold"), f"{sum(row.count for row in rows):,}", style="bold")
        for row in rows:
            table.add_row(
                f"  {row.name}",
                f"{row.count:,}",
                Text(str(row.retries) if row.retries else "", style="yellow"),
                Text(str(row.refused) if row.refused else "", style="red"),
                trace_view.duration(row.p50),
                trace_view.duration(row.p95),
            )
    return table


def _log_lines(run: Run, trace_id: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, show_edge=False, header_style="dim")
    table.add_column("file", justify="center", no_wrap=True)
    table.add_column("OTLP", justify="center", no_wrap=True)
    for name in ("time", "level", "span"):
        table.add_column(name, no_wrap=True)
    table.add_column("line")
    by_otlp = log_lines.by_trace(log_lines.of_otlp(run.telemetry)).get(trace_id, Counter())
    rows = [(when, line) for when, line in run.log_file if line.trace_id == trace_id]
    for when, line in rows:
        clock = when.partition("T")[2][:12]
        found = PASSED if by_otlp[line] > 0 else FAILED
        by_otlp[line] -= 1
        table.add_row(PASSED, found, clock, line.severity, line.span_id, Text(line.text))
    for line in (+by_otlp).elements():
        table.add_row(FAILED, PASSED, "", line.severity, line.span_id, Text(line.text))
    return table


def _checked(checks: list[Check]) -> Table:
    table = Table.grid(padding=(0, 1))
    table.add_column(no_wrap=True)
    table.add_column()
    for one in checks:
        told = Text(one.title, style="" if one.passed else "bold red")
        told.append(f"\n{one.figures}", style="dim" if one.passed else "")
        if not one.passed and one.hint:
            told.append(f"\n{one.hint}")
        table.add_row(PASSED if one.passed else FAILED, told)
    return table


def _next(facts: Facts) -> Table:
    lines = {
        "In your project": "README.md",
        "How it works": "docs/architecture.md",
        "This bank": "demo/bank/wsgi.py, demo/bank/transfers.py",
        "The other driver": "DRIVER=psycopg2 make demo, or DRIVER=psycopg",
        "With Jaeger": "make stack, or docker compose up; then make demo STACK=1; docs/stack.md",
        "Your collector": "OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:4318 make demo",
    }
    if facts.forwarder is not None:
        del lines["Your collector"]
    if facts.back_ends is not None:
        lines["With Jaeger"] = "docs/stack.md"
    return _pairs(lines)


def _pairs(lines: dict[str, str]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    for name, told in lines.items():
        table.add_row(name, Text(told))
    return table
