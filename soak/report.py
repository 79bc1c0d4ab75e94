# SPDX-License-Identifier: Apache-2.0
"""The report of a soak: what was checked, what it counted, how it went over time."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from .check import verdict
from .memory import MEBIBYTE

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from .check import Check
    from .evidence import Evidence
    from .journal import Operation

#: Bins of time: at the most so many, and none narrower than this many seconds.
BINS, NARROWEST = 100, 1.0
PERCENTILES = (50, 95, 99)


@dataclass(frozen=True)
class Course:
    """What went on in each bin of time: seconds since the begin, and one value a bin."""

    begin: float
    width: float
    #: A second.
    done: list[float]
    retries: list[float]
    faults: list[float]
    #: Seconds, by percentile.
    latency: dict[int, list[float]]

    @property
    def middles(self) -> list[float]:
        """The middle of each bin."""
        return [(number + 0.5) * self.width for number in range(len(self.done))]


def course_of(evidence: Evidence) -> Course:
    """Sort what happened into bins of time."""
    begin = min(one.begin for one in evidence.operations)
    end = max(one.end for one in evidence.operations)
    bins = max(1, min(BINS, int((end - begin) / NARROWEST)))
    width = max((end - begin) / bins, 1e-9)
    groups: list[list[Operation]] = [[] for _ in range(bins)]
    for one in evidence.operations:
        groups[min(int((one.end - begin) / width), bins - 1)].append(one)
    faults = [0] * bins
    before = 0
    for strike in evidence.strikes:
        faults[min(max(int((strike.at - begin) / width), 0), bins - 1)] += strike.faults - before
        before = strike.faults
    return Course(
        begin,
        width,
        [len(group) / width for group in groups],
        [sum(one.attempts - 1 for one in group) / width for group in groups],
        [count / width for count in faults],
        {
            percent: [percentile([_took(one) for one in group], percent) for group in groups]
            for percent in PERCENTILES
        },
    )


def percentile(values: Sequence[float], percent: int) -> float:
    """Return the nearest-rank percentile; not a number where there is none."""
    if not values:
        return float("nan")
    return sorted(values)[max(0, -(-len(values) * percent // 100) - 1)]


def _took(operation: Operation) -> float:
    return operation.end - operation.begin


def write(folder: Path, evidence: Evidence, checks: Sequence[Check]) -> None:
    """Write `report.md`, and `course.png` and `course.svg` where matplotlib is there."""
    picture = False
    if evidence.operations:
        from . import plot

        plot.draw(folder, course_of(evidence), evidence)
        picture = True
    (folder / "report.md").write_text(text_of(evidence, checks, picture=picture), encoding="utf-8")


def text_of(evidence: Evidence, checks: Sequence[Check], *, picture: bool) -> str:
    """Give the report as Markdown."""
    lines = ["# Soak", "", f"**{verdict(checks)}.**", ""]
    lines += _table(("what", "it ran on"), evidence.ground.items())
    lines += _table(("what", "figure"), figures_of(evidence))
    if picture:
        lines += ["![over time](course.png)", ""]
    lines += ["## Checks", "", "```", *map(str, checks), "```", ""]
    kinds = sorted({one.kind for one in evidence.operations})
    lines += ["## By kind of operation", ""]
    lines += _table(
        ("kind", "operations", "attempts", "p50", "p95", "p99"), (_kind_row(evidence, kind) for kind in kinds)
    )
    lines += ["## What callers saw", ""]
    seen = Counter(
        f"{one.saw} {'' if one.saw == one.error else one.error}".strip() for one in evidence.operations
    )
    lines += _table(("saw", "operations"), sorted(seen.items()))
    lines += ["## Outages", ""]
    begin = min((one.begin for one in evidence.operations), default=0.0)
    lines += _table(
        ("kind", "nodes", "begin", "lasted"),
        (
            (
                one.kind,
                ", ".join(map(str, one.nodes)),
                f"{one.begin - begin:.1f} s",
                f"{one.end - one.begin:.1f} s",
            )
            for one in evidence.outages
        ),
    )
    lines += ["## Faults", ""]
    lines += _table(
        ("fault", "put in force", "struck"),
        ((name, count, evidence.struck[name]) for name, count in sorted(evidence.scheduled.items())),
    )
    return "\n".join(lines)


def figures_of(evidence: Evidence) -> list[tuple[str, str]]:
    """Give the figures of the whole."""
    operations = evidence.operations
    if not operations:
        return []
    took = [_took(one) for one in operations]
    seconds = max(one.end for one in operations) - min(one.begin for one in operations)
    drivers = Counter(one.driver for one in operations)
    seen = Counter(one.saw for one in operations)
    return [
        (
            "transactions",
            f"{len(operations)} ({', '.join(f'{n} on {d}' for d, n in sorted(drivers.items()))})",
        ),
        ("time", f"{seconds:.0f} s, {len(operations) / seconds:.0f} a second"),
        ("attempts", str(sum(one.attempts for one in operations))),
        ("transactions that were run again", str(sum(one.attempts > 1 for one in operations))),
        ("seen by callers", ", ".join(f"{count} {word}" for word, count in seen.most_common())),
        ("faults struck", f"{sum(evidence.struck.values())}, of {len(evidence.struck)} kinds"),
        ("outages", ", ".join(f"{n} {k}" for k, n in Counter(one.kind for one in evidence.outages).items())),
        ("waits ended by the client", str(sum(one.waits_ended for one in evidence.endings.values()))),
        (
            "latency",
            ", ".join(f"p{percent} {percentile(took, percent) * 1000:.0f} ms" for percent in PERCENTILES),
        ),
        ("longest", f"{max(took):.1f} s"),
        ("spans", str(sum(evidence.arrivals.spans.values()))),
        ("log records", str(sum(evidence.arrivals.logs.values()))),
        ("memory of a worker", f"{median(_last_held(evidence)) / MEBIBYTE:.0f} MiB at the end (median)"),
    ]


def _last_held(evidence: Evidence) -> list[int]:
    last = {one.worker: one.rss for one in evidence.memory}
    return list(last.values()) or [0]


def _kind_row(evidence: Evidence, kind: str) -> tuple[object, ...]:
    group = [one for one in evidence.operations if one.kind == kind]
    took = [_took(one) for one in group]
    latencies = (f"{percentile(took, percent) * 1000:.0f} ms" for percent in PERCENTILES)
    return (kind, len(group), sum(one.attempts for one in group), *latencies)


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    lines += [f"| {' | '.join(map(str, row))} |" for row in rows]
    return [*lines, ""]
