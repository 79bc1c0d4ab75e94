# SPDX-License-Identifier: Apache-2.0
"""What the database's log says of a call: that it failed, that it was slow, and what lasts or is over.

What passes by itself is a warning until it lasts.
"""

from __future__ import annotations

import logging
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from . import outcomes, signals
from .database_log import FAILED, LASTING, OVER, REPEATS, SLOW, Line, fields_of, tell, tell_overdue
from .lasting import Lasting, Spells
from .run_log import run_under_way
from .state import LogicalTransaction, open_work

if TYPE_CHECKING:
    from .errors import Classification
    from .events import ErrorWords
    from .operations import ClientOperation

#: Classes of errors that do not pass by themselves, and are none that an application reckons with.
ERRORS = frozenset(
    {
        "ambiguous",
        "committed_with_ddl_failure",
        "internal",
        "license",
        "other",
        "permission",
        "schema",
        "timeout",
    }
)

SPELLS = Spells()


def is_awaited(nanoseconds: int) -> bool:
    """Whether there is anything to be said at the success of a call that took so long."""
    if SPELLS.open or REPEATS.held:
        return True
    signal = signals.current
    return signal is not None and 0 < signal.config.slow_statement * 1e9 < nanoseconds


def failure_line(
    call: ClientOperation, seconds: float, failure: Classification | None, words: ErrorWords
) -> Line:
    """Return what is to be said of a call that failed."""
    error_class = failure.error_class if failure is not None else ""
    level = logging.ERROR if error_class in ERRORS else logging.WARNING
    fields = {**_fields_of_call(call, FAILED, failure), "duration": seconds}
    if failure is not None and failure.retry_reason:
        fields["retry_reason"] = failure.retry_reason
    what = words.message or words.error_type
    return Line(
        level,
        # The database's words last: whoever masks them again may drop what follows them.
        "%s failed after %.3f s (%s): %s",
        (call.called, seconds, error_class or "no error of the database's", what),
        fields,
        fields["sql"] or call.called,
        call.span,
    )


def call_failed(call: ClientOperation, failure: Classification | None, line: Line) -> None:
    """Say that a call failed, unless it will be said of its transaction."""
    if failure is not None:
        lasting = SPELLS.failure(line.fields["db"], failure.error_class)
        if lasting is not None:
            tell(_lasting_line(lasting))
    if _ends_in_doubt(call):
        return
    run = run_under_way(line.fields["txn_id"])
    if run is not None and (call.phase == "commit" or run.may_repeat(failure)):
        run.lines.append(line)
    else:
        tell(line)


def call_succeeded(call: ClientOperation, seconds: float) -> None:
    """Say that a call was slow, and what is over now."""
    signal = signals.current
    if signal is not None and 0 < signal.config.slow_statement < seconds:
        fields = {**_fields_of_call(call, SLOW), "duration": seconds}
        tell(
            Line(
                logging.WARNING,
                "%s took %.3f s, more than %g s.",
                (call.called, seconds, signal.config.slow_statement),
                fields,
                fields["sql"] or call.called,
                call.span,
            )
        )
    tell_overdue()
    if SPELLS.open and call.proves_health:
        for over in SPELLS.success(call.alias, committed=call.commits_work):
            tell(_over_line(over))


def _fields_of_call(
    call: ClientOperation, kind: str, failure: Classification | None = None
) -> dict[str, Any]:
    fields = fields_of(kind, call.alias, failure, sql=call.text)
    work = call.transaction or _attempt_on(call)
    if work is not None:
        fields["txn_id"], fields["txn_attempt"] = work.id, work.attempt
    return fields


def _attempt_on(call: ClientOperation) -> LogicalTransaction | None:
    """Return the attempt that a connection is made for: its transaction begins when that stands."""
    if call.phase != "connect":
        return None
    attempts = (work for work in reversed(open_work.stack) if isinstance(work, LogicalTransaction))
    return next((attempt for attempt in attempts if attempt.alias == call.alias), None)


def _ends_in_doubt(call: ClientOperation) -> bool:
    """Whether a COMMIT came to nothing that is known: its transaction will say so."""
    transaction = call.transaction
    return (
        call.phase == "commit"
        and transaction is not None
        and transaction.span is not None
        and outcomes.outcome_of(transaction) == outcomes.AMBIGUOUS
    )


def _lasting_line(lasting: Lasting) -> Line:
    fields = _fields_of_trouble(LASTING, lasting)
    return Line(
        logging.ERROR,
        "Nothing has succeeded on %s for %.0f s: %d failures of class %s since %s.",
        (lasting.alias, lasting.seconds, lasting.failures, lasting.error_class, fields["since"]),
        fields,
    )


def _over_line(over: Lasting) -> Line:
    return Line(
        logging.INFO,
        "%s works again: %s is over after %.0f s, %d failures.",
        (over.alias, over.error_class, over.seconds, over.failures),
        _fields_of_trouble(OVER, over),
    )


def _fields_of_trouble(kind: str, trouble: Lasting) -> dict[str, Any]:
    since = datetime.fromtimestamp(trouble.since, timezone.utc).isoformat(timespec="seconds")
    seconds = {"failures": trouble.failures, "seconds": round(trouble.seconds, 3), "since": since}
    return {**fields_of(kind, trouble.alias), "error_class": trouble.error_class, **seconds}
