# SPDX-License-Identifier: Apache-2.0
"""Whether anything is left when all is done: connections, locks, threads, contexts, memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .check import Check
from .memory import ALLOWED, ENOUGH, MEBIBYTE, trend

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from .evidence import Evidence


def no_connections(evidence: Evidence) -> Check:
    """No session of a worker is left on the server while the workers still run."""
    return _nothing("no connection is left", evidence.truth.sessions)


def no_locks(evidence: Evidence) -> Check:
    """No lock is left on the server."""
    return _nothing("no lock is left", evidence.truth.locks)


def no_threads(evidence: Evidence) -> Check:
    """No thread is left in a worker that was not there when it began."""
    return _nothing("no thread is left", _of_endings(evidence, lambda one: one.threads))


def no_context(evidence: Evidence) -> Check:
    """No span is current and no record in force after an operation, or at a thread's end."""
    found = [f"{one.id}: {what}" for one in evidence.operations for what in one.left]
    return _nothing("no context is left", [*found, *_of_endings(evidence, lambda one: one.left)])


def no_hook_faults(evidence: Evidence) -> Check:
    """None of otel_crdb's own hooks has failed."""
    return _nothing("no hook has failed", _of_endings(evidence, lambda one: one.hook_faults))


def _of_endings(evidence: Evidence, of: Callable[..., Iterable[str]]) -> list[str]:
    return [f"{worker}: {what}" for worker, ending in evidence.endings.items() for what in of(ending)]


def _nothing(name: str, found: list[str]) -> Check:
    return Check(name, {"found": len(found)}, found)


def memory_flat(evidence: Evidence) -> Check:
    """No worker's memory grows over the second half of its operations."""
    check = Check("memory is flat over the second half")
    workers = {one.worker for one in evidence.memory}
    trends = [trend(name, [m for m in evidence.memory if m.worker == name]) for name in sorted(workers)]
    for one in trends:
        check.counted[one.worker] = f"{one.growth / MEBIBYTE:+.2f} MiB (at {one.last / MEBIBYTE:.0f})"
        if not one.flat:
            check.wrong.append(
                f"{one.worker}: {one.growth / MEBIBYTE:+.2f} MiB, and {ALLOWED / MEBIBYTE:.0f} are allowed"
            )
    check.wrong += [f"{name}: there are no samples" for name in evidence.endings if name not in workers]
    if (evidence.cut_short and not trends) or not all(one.judged for one in trends):
        check.not_judged = f"fewer than {ENOUGH} operations of a worker in the second half"
    return check
