# SPDX-License-Identifier: Apache-2.0
"""Who has an operation done, and what he writes down of it: what he saw, not what telemetry tells."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from opentelemetry import trace

from otel_crdb import AmbiguousCommitError, RetriesExhaustedError
from otel_crdb.state import current_request

from . import journal
from .operations import HookFailed, Notes, Order, Refused

if TYPE_CHECKING:
    from opentelemetry.trace import Span

    from .pulse import Pulse

#: The journal's words for what is raised.
WORDS: tuple[tuple[type[BaseException], str], ...] = (
    (AmbiguousCommitError, journal.AMBIGUOUS),
    (RetriesExhaustedError, journal.EXHAUSTED),
    (HookFailed, journal.HOOK_FAILED),
    (Refused, journal.REFUSED),
    (asyncio.CancelledError, journal.CANCELLED),
)


class Caller:
    """One operation's caller.

    `error` is what he got in place of an answer, `left` what he found left that should not have been.
    """

    def __init__(self, order: Order, pulse: Pulse) -> None:
        self.order = order
        self.notes = Notes(on_beat=pulse.beat)
        self.error: BaseException | None = None
        self.left: list[str] = []
        self._pulse = pulse
        self._begin = time.time()

    def look_around(self, span: Span) -> None:
        """Look whether the caller's own span is the current one again, and no request's record in force."""
        if trace.get_current_span() is not span:
            self.left.append("another current span than the caller's")
        if current_request.get() is not None:
            self.left.append("a request's record")

    def entry(self, worker: str, driver: str, trace_id: int) -> journal.Operation:
        """Give the journal's entry, now that it is over."""
        return journal.Operation(
            id=self.order.id,
            worker=worker,
            driver=driver,
            kind=self.order.kind,
            trace=f"{trace_id:032x}",
            ids=tuple(sorted(self.notes.ids)),
            saw=_seen(self.error),
            error=_told(self.error),
            attempts=1 + self.notes.retries,
            bodies=self.notes.bodies,
            statements=self._pulse.statements.pop(trace_id, 0),
            hooks=self.notes.hooks,
            begin=self._begin,
            end=time.time(),
            left=tuple(self.left),
        )


def _seen(error: BaseException | None) -> str:
    """Give the journal's word for what a caller got."""
    if error is None:
        return journal.COMMITTED
    for kind, word in WORDS:
        if isinstance(error, kind):
            return word
    return journal.SCHEMA_FAILED if _sqlstate(error) == "XXA00" else journal.ERROR


def _sqlstate(error: BaseException | None) -> str:
    while error is not None:
        found = getattr(error, "sqlstate", None) or getattr(error, "pgcode", None)
        if found:
            return str(found)
        error = error.__cause__
    return ""


def _told(error: BaseException | None) -> str:
    return "" if error is None else f"{type(error).__name__} {_sqlstate(error)}".strip()
