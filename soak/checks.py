# SPDX-License-Identifier: Apache-2.0
"""What a soak has to prove, one named check each. Every check can fail."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import leftover_checks, money_checks, telemetry_checks

if TYPE_CHECKING:
    from collections.abc import Callable

    from .check import Check
    from .evidence import Evidence

CHECKS: tuple[Callable[[Evidence], Check], ...] = (
    money_checks.all_done,
    money_checks.every_fault,
    money_checks.nothing_lost_or_doubled,
    money_checks.balanced,
    money_checks.hooks_once,
    telemetry_checks.spans_match,
    telemetry_checks.retries_match,
    telemetry_checks.outcomes_match,
    telemetry_checks.metrics_match,
    telemetry_checks.all_arrived,
    leftover_checks.no_connections,
    leftover_checks.no_locks,
    leftover_checks.no_threads,
    leftover_checks.no_context,
    leftover_checks.no_hook_faults,
    leftover_checks.memory_flat,
)


def judge(evidence: Evidence) -> list[Check]:
    """Make all checks."""
    return [check(evidence) for check in CHECKS]
