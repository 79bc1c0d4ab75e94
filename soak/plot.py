# SPDX-License-Identifier: Apache-2.0
"""The picture of a soak: throughput, retries and faults, latency, memory, with the outages behind them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.patches import Patch

from .memory import MEBIBYTE

if TYPE_CHECKING:
    from pathlib import Path

    from .evidence import Evidence
    from .report import Course

#: Okabe and Ito's colours: told apart by everybody.
BLUE, ORANGE, RED, GREEN, GREY = "#0072b2", "#e69f00", "#d55e00", "#009e73", "#555555"
SHADES = {
    "rolling_restart": "#56b4e9",
    "partition": "#cc79a7",
    "node_killed": "#d55e00",
    "connection_refused": "#f0e442",
    "latency": "#999999",
}


def draw(folder: Path, course: Course, evidence: Evidence) -> None:
    """Draw it, as `course.png` and `course.svg`."""
    style: dict[Any, Any] = {
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.alpha": 0.25,
    }
    with plt.rc_context({**style, "font.size": 10, "svg.fonttype": "none"}):
        figure, panels = plt.subplots(4, 1, figsize=(11, 10.5), sharex=True, constrained_layout=True)
        _throughput(panels[0], course)
        _troubles(panels[1], course)
        _latency(panels[2], course)
        _memory(panels[3], course, evidence)
        for panel in panels:
            _outages(panel, course, evidence)
        panels[-1].set_xlabel("seconds since the first transaction began")
        panels[-1].set_xlim(0, course.width * len(course.done))
        kinds = [kind for kind in SHADES if any(one.kind == kind for one in evidence.outages)]
        if kinds:
            shades = [Patch(color=SHADES[kind], alpha=0.3, label=kind.replace("_", " ")) for kind in kinds]
            figure.legend(
                handles=shades, loc="outside lower center", ncols=len(kinds), title="outage of a node"
            )
        figure.suptitle(f"{len(evidence.operations)} transactions: {evidence.ground.get('options', '')}")
        for ending in ("png", "svg"):
            figure.savefig(folder / f"course.{ending}", dpi=130)
        plt.close(figure)


def _throughput(panel: Any, course: Course) -> None:
    panel.stairs(course.done, _edges(course), color=BLUE, fill=True, alpha=0.25)
    panel.stairs(course.done, _edges(course), color=BLUE, linewidth=1.5)
    panel.set_ylabel("transactions\na second")
    panel.set_ylim(bottom=0)


def _troubles(panel: Any, course: Course) -> None:
    panel.stairs(course.retries, _edges(course), color=ORANGE, linewidth=1.5, label="retries")
    panel.stairs(course.faults, _edges(course), color=RED, linewidth=1.5, label="faults struck")
    panel.set_ylabel("a second")
    panel.set_ylim(bottom=0)
    _name_lines(panel)


def _latency(panel: Any, course: Course) -> None:
    for percent, colour in zip(course.latency, (GREEN, BLUE, GREY), strict=True):
        panel.plot(course.middles, course.latency[percent], color=colour, linewidth=1.5, label=f"p{percent}")
    panel.set_yscale("log")
    panel.set_ylabel("latency of a transaction\nwith its retries, seconds")
    panel.yaxis.set_major_formatter("{x:g}")
    _name_lines(panel)


def _memory(panel: Any, course: Course, evidence: Evidence) -> None:
    ends = _moments(evidence)
    for worker in sorted({one.worker for one in evidence.memory}):
        samples = [one for one in evidence.memory if one.worker == worker]
        times = [ends[worker][one.done - 1] - course.begin for one in samples]
        panel.plot(times, [one.rss / MEBIBYTE for one in samples], linewidth=1.5, label=worker)
    panel.set_ylabel("memory of a worker\n(RSS), MiB")
    highest = max((one.rss for one in evidence.memory), default=MEBIBYTE) / MEBIBYTE
    panel.set_ylim(0, 1.2 * highest)
    _name_lines(panel)


def _name_lines(panel: Any) -> None:
    """Put the legend above the panel, where it hides nothing."""
    panel.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=8, frameon=False, borderaxespad=0.1)


def _moments(evidence: Evidence) -> dict[str, list[float]]:
    """Give when each worker had done its first operation, its second and so on."""
    ends: dict[str, list[float]] = {}
    for one in evidence.operations:
        ends.setdefault(one.worker, []).append(one.end)
    return {worker: sorted(times) for worker, times in ends.items()}


def _outages(panel: Any, course: Course, evidence: Evidence) -> None:
    for one in evidence.outages:
        panel.axvspan(
            one.begin - course.begin, one.end - course.begin, color=SHADES[one.kind], alpha=0.3, linewidth=0
        )


def _edges(course: Course) -> list[float]:
    return [number * course.width for number in range(len(course.done) + 1)]
