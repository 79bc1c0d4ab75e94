# SPDX-License-Identifier: Apache-2.0
"""What a run left, and what a check found in it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from otel_crdb.testing.telemetry import Telemetry

    from .log_lines import Line
    from .traffic import Tally


@dataclass(frozen=True)
class Check:
    """One thing that has to be true, with the figures that show it, and where to look if it is not."""

    passed: bool
    title: str
    figures: str
    hint: str = ""


@dataclass(frozen=True)
class Run:
    """What a run left: what clients saw, the accounts before and after, what the receiver decoded."""

    tally: Tally
    before: list[dict[str, Any]]
    after: list[dict[str, Any]]
    telemetry: Telemetry
    #: The lines of the bank's log file, in their order: when each was logged, and the line.
    log_file: list[tuple[str, Line]] = field(default_factory=list)
