# SPDX-License-Identifier: Apache-2.0
"""The database's log, the logger ``otel_crdb.db``: how a line is made, and that it is not said too often.

What is said of a call is in :mod:`otel_crdb.call_log`, what of a retried transaction in
:mod:`otel_crdb.retry_telemetry`, and which of the two says it in :mod:`otel_crdb.run_log`.
"""

from __future__ import annotations

import threading
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, NamedTuple

from opentelemetry import context as context_api
from opentelemetry import trace
from opentelemetry.context import Context

from . import signals
from .hooks import CarefulLogger, Hook
from .repeats import Held, Repeats

if TYPE_CHECKING:
    from collections.abc import MutableMapping

    from opentelemetry.trace import Span

    from .errors import Classification

LOGGER = "otel_crdb.db"
#: On a line whose words have left over OTLP as an event of ours: the event's name.
EVENT_FIELD = "otel_crdb_event"
#: On every line: its words, without the ids that end the message.
WORDS_FIELD = "otel_crdb_words"
ID_FIELDS = ("db", "txn_id", "txn_attempt", "error_code")
#: On every line: what it tells of, one of the words below.
KIND_FIELD = "db_event"

FAILED = "failed"
SLOW = "slow"
RETRIED = "retried"
COMMITTED = "committed"
EXHAUSTED = "exhausted"
KEPT = "kept_from_retrying"
AFTER_COMMIT = "failed_after_commit"
AMBIGUOUS = "ambiguous"
SILENT_ABORT = "silent_abort"
LASTING = "lasting"
OVER = "over"
HELD_BACK = "held_back"
#: Lines a minute where nobody has said otherwise: the default of ``log_limit``.
LIMIT = 5
#: Never held back: somebody has to look into each.
EACH = frozenset({AMBIGUOUS, LASTING, OVER})


class _Waiting(threading.local):
    """Lines of a thread that wait until its connection is fit for use again; None: none has to."""

    lines: list[Line] | None = None


_waiting = _Waiting()


class _Logger(CarefulLogger):
    """Careful, and keeps the fields that a line is given."""

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        return msg, kwargs


logger = _Logger(LOGGER)

#: Whether a line is being said: what its handlers do in the database is not told, or they had no end.
_telling: ContextVar[bool] = ContextVar("otel_crdb_telling", default=False)


class Line(NamedTuple):
    """One line: words for a person, and the same as fields."""

    level: int
    template: str
    args: tuple[object, ...]
    fields: dict[str, Any]
    #: What it is counted by, beside its kind, its error and its alias.
    statement: str = ""
    #: What it tells of.
    span: Span | None = None

    @property
    def text(self) -> str:
        """The words."""
        return self.template % self.args

    @property
    def key(self) -> tuple[str, ...]:
        """What it is counted by."""
        fields = self.fields
        word = fields["error_code"] or fields["error_class"]
        return fields[KIND_FIELD], word, fields["db"], self.statement


def fields_of(kind: str, alias: str, failure: Classification | None = None, **more: Any) -> dict[str, Any]:
    """Return the fields that every line has, and more of them."""
    return {
        KIND_FIELD: kind,
        "db": alias,
        "error_code": (failure.sqlstate or "") if failure is not None else "",
        "error_class": failure.error_class if failure is not None else "",
        "txn_id": "",
        "txn_attempt": "",
        "sql": "",
        **more,
    }


# --- saying it ---------------------------------------------------------------------------------


def tell(line: Line) -> None:
    """Say a line, unless there have been enough of its kind; a failure of ours stays here."""
    GUARD.run(_tell, line)


def hold() -> None:
    """Have lines wait, until :func:`release`.

    Between COMMIT or ROLLBACK and ``set_autocommit(True)``, and while a connection is made, a handler that
    writes to the database would begin a transaction where Django is ending one, or connect twice.
    """
    if _waiting.lines is None:
        _waiting.lines = []


def release() -> None:
    """Say the lines that have waited."""
    lines, _waiting.lines = _waiting.lines, None
    if lines is None:
        return
    try:
        while lines:
            tell(lines.pop(0))
    finally:
        if lines:  # a handler has ended the process, or its greenlet's time was over
            _waiting.lines = lines
    tell_overdue()


def tell_overdue() -> None:
    """Say what was held back in windows that are over, where lines may be said now."""
    if REPEATS.held and _waiting.lines is None and not _telling.get():
        GUARD.run(REPEATS.tell_overdue)


def _tell(line: Line) -> None:
    if _telling.get():
        return
    if _waiting.lines is not None:
        _waiting.lines.append(line)
        return
    REPEATS.tell_overdue()
    if not logger.isEnabledFor(line.level):
        return
    signal = signals.current
    limit = LIMIT if signal is None else signal.config.log_limit
    if line.fields[KIND_FIELD] in EACH or REPEATS.admit(line.key, limit, line):
        _say(line, line.span)


def _say(line: Line, span: Span | None) -> None:
    telling = _telling.set(True)
    inside = None
    if span is not None and span.get_span_context().is_valid:
        inside = context_api.attach(trace.set_span_in_context(span))
    try:
        told = {**line.fields, WORDS_FIELD: line.text}
        logger.log(line.level, f"{line.template}%s", *line.args, _ids(line.fields), extra=told)
    finally:
        if inside is not None:
            context_api.detach(inside)
        _telling.reset(telling)


def _ids(fields: dict[str, Any]) -> str:
    """Return the end of a message: where no formatter shows fields, these are what it is found by."""
    return "".join(f" {name}={fields[name]}" for name in ID_FIELDS if fields[name] != "")


def _tell_held_back(over: list[Held]) -> None:
    """Say how much was held back: of many requests, so in the trace of none."""
    outside = context_api.attach(Context())
    try:
        for held in over:
            _say(_summary(held), None)
    finally:
        context_api.detach(outside)


def _summary(held: Held) -> Line:
    line: Line = held.line
    fields = {name: line.fields[name] for name in ("db", "error_code", "error_class", "sql")}
    nobodys = dict.fromkeys(("trace_id", "span_id", "trace_flags", "txn_id", "txn_attempt"), "")
    counted = {"held_back": held.number, "held_back_of": line.fields[KIND_FIELD], "seconds": held.seconds}
    return Line(
        line.level,
        "held back %d more%s in %d s, the last of them: %s",
        (held.number, " of several statements" if held.mixed else "", held.seconds, line.text),
        {**fields, **nobodys, KIND_FIELD: HELD_BACK, **counted},
    )


REPEATS = Repeats(_tell_held_back)


def flush() -> None:
    """Say what is held back now: the process may be about to end."""
    GUARD.run(REPEATS.tell_overdue, everything=True)


def begin_anew() -> None:
    """Forget, in a child process: what its parent has counted is the parent's to tell."""
    REPEATS.begin_anew()


def _call(function: Any, *args: Any, **kwargs: Any) -> Any:
    return function(*args, **kwargs)


#: Guarded by itself, within a call's hook: where a line fails, span and data point are made all the same.
GUARD = Hook("database_log", _call)
