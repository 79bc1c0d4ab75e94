# SPDX-License-Identifier: Apache-2.0
"""What a drill shows: what was done, what users saw, the traces, and each expectation with what was found."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from typing import TYPE_CHECKING

from rich.console import Group
from rich.table import Table
from rich.text import Text

from . import trace_view
from .report import FAILED, PASSED, Screen, _pairs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import RenderableType

    from otel_crdb.testing.drills import Drill, Finding
    from otel_crdb.testing.otlp import Span

    from .drill_stage import Performance

#: Of things that have the right name and are otherwise, so many are shown, so long.
MOST_NEAR, LONGEST_NEAR = 3, 400


class DrillScreen(Screen):
    """The terminal, or the pipe, that drills are shown on."""

    def __init__(self) -> None:
        super().__init__()
        self._count = 0

    @contextlib.contextmanager
    def playing(self, drill: Drill) -> Iterator[None]:
        """Say which drill comes, and that it is under way."""
        self._count += 1
        self._section(f"{drill.title} ({drill.name})", Text(drill.summary))
        shown = self._console.is_terminal
        with self._console.status("under way …") if shown else contextlib.nullcontext():
            yield

    def played(self, performance: Performance) -> None:
        """Show what came of it."""
        drill = performance.drill
        self._say()
        self._print(
            _pairs(
                {
                    "Done": "; ".join(map(str, drill.steps)),
                    "Users notice": drill.user_notices,
                    "On call": drill.on_call,
                }
            )
        )
        self._say()
        self._print(_answers(performance))
        for trace in _traces(performance.seen.spans):
            self._say()
            self._print(trace_view.render(trace, self._console.width))
        self._say()
        self._print(_findings(performance.findings))
        for told in performance.broken:
            self._print(Text(f"✗ {told}", style="bold red"))

    def left_out(self, drill: Drill, why: str) -> None:
        """Say that a drill cannot be played here."""
        self._section(f"{drill.title} ({drill.name})", Text(f"Not played: {why}."))

    def verdict(self, failed: list[str]) -> None:
        """Say how all of it went."""
        self._say()
        if failed:
            self._say(FAILED, f"{len(failed)} of {self._count} drills went otherwise: {', '.join(failed)}")
        else:
            self._say(PASSED, f"{self._count} of {self._count} drills went as they have to.")

    def _print(self, content: RenderableType) -> None:
        with self._console.capture() as drawn:
            self._console.print(content)
        for line in drawn.get().splitlines():
            self._console.out(line if self._console.is_terminal else line.rstrip(), highlight=False)


def _answers(performance: Performance) -> Table:
    table = Table.grid(padding=(0, 1))
    for one in performance.answers:
        well = one.status == one.ask.status
        told = f"{one.ask} → {one.status or 'no answer'}, after {trace_view.duration(one.seconds)}"
        table.add_row(PASSED if well else FAILED, told + ("" if well else f"; wanted: {one.ask.status}"))
    moved, due = performance.moved, performance.drill.moved
    told = f"the recipient has {moved / 100:.2f} more" + ("" if moved == due else f"; due: {due / 100:.2f}")
    table.add_row(PASSED if moved == due else FAILED, told)
    return table


def _traces(spans: tuple[Span, ...]) -> list[list[Span]]:
    traces: defaultdict[str, list[Span]] = defaultdict(list)
    for span in spans:
        traces[span.trace_id].append(span)
    return list(traces.values())


def _findings(findings: list[Finding]) -> Table:
    table = Table.grid(padding=(0, 1))
    table.add_column(no_wrap=True)
    table.add_column()
    for one in findings:
        told = Text(str(one.expectation), style="" if one.passed else "bold red")
        table.add_row(PASSED if one.passed else FAILED, told if one.passed else Group(told, _missing(one)))
    return table


def _missing(finding: Finding) -> Text:
    """Say what was found in place of what was wanted."""
    if finding.found:
        seen, items = f"there is this {len(finding.found)} times:", finding.found
    elif finding.near:
        seen, items = "not seen; by this name there is:", finding.near
    else:
        return Text("not seen, nor anything by this name")
    shown = (Text(f"\n  {item}"[:LONGEST_NEAR], style="dim") for item in items[:MOST_NEAR])
    return Text.assemble(seen, *shown)
