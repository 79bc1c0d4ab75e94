# SPDX-License-Identifier: Apache-2.0
"""What a log record is given: the ids of its trace and of its transaction, the code of its database error.

Fields are set where they are missing, are never overwritten, and are empty where there is nothing to say.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from opentelemetry import trace

from otel_crdb import errors, signals, state

if TYPE_CHECKING:
    import logging

    from opentelemetry.trace import SpanContext

TRACE_FIELDS = (
    "trace_id",
    "span_id",
    "trace_flags",
    "service",
    "txn_id",
    "txn_attempt",
    "db",
    "error_code",
    "error_class",
)
#: Those of Django's records of statements.
STATEMENT_FIELDS = ("sql", "params", "duration")
#: Of Django's loggers of statements: this one and those below it.
STATEMENTS = "django.db.backends"

_WARNING = 30
#: Characters of a message that are searched for a code.
_TEXT_LIMIT = 16 * 1024
_CODE = re.compile(r"\b(?i:sqlstate|pgcode|error[_ ]code)[\s:=(\[\"']{1,4}((?=[A-Z]{0,4}\d|XX)[0-9A-Z]{5})\b")
#: What CockroachDB says in place of a code.
_SAYINGS = {"restart transaction:": "40001", "result is ambiguous": "40003"}

#: The ``instrument()`` that the service was resolved for, and its name.
_service: tuple[signals.Signals | None, str] = (None, "")


def correlate(record: logging.LogRecord, statement_fields: bool = False) -> None:
    """Give a record those of :data:`TRACE_FIELDS` that it has not, by what goes on where it is called.

    Args:
        record: the record; what it has already is never overwritten.
        statement_fields: whether :data:`STATEMENT_FIELDS` are set too, empty.

    """
    given = record.__dict__
    if not given.keys() >= _TRACE_SET:
        _set_missing(given, _found(record, given))
    if statement_fields:
        for name in STATEMENT_FIELDS:
            given.setdefault(name, "")


_TRACE_SET = frozenset(TRACE_FIELDS)


def leave_empty(record: logging.LogRecord) -> None:
    """Set every field that is missing to nothing: a format that names them must work on every record."""
    for name in (*TRACE_FIELDS, *STATEMENT_FIELDS):
        record.__dict__.setdefault(name, "")


def is_of_statement(record: logging.LogRecord) -> bool:
    """Whether it is one of Django's records of a statement."""
    name = record.name
    return (
        isinstance(name, str)
        and name.startswith(STATEMENTS)
        and name[len(STATEMENTS) :][:1] in ("", ".")
        and "sql" in record.__dict__
    )


def is_empty(value: object) -> bool:
    """Whether a field says nothing; a foreign object is not asked, for it may answer anything."""
    return value is None or (type(value) is str and not value)


def exception_of(record: logging.LogRecord) -> BaseException | None:
    """Return the exception of a record's ``exc_info``, which may be anything."""
    told: Any = record.exc_info
    if isinstance(told, tuple) and len(told) > 1:
        told = told[1]
    return told if isinstance(told, BaseException) else None


def _set_missing(given: dict[str, Any], found: dict[str, Any]) -> None:
    if given.keys().isdisjoint(found):
        given.update(found)
        return
    if "trace_id" in given and not _is_same(given["trace_id"], found["trace_id"]):
        found["span_id"] = found["trace_flags"] = ""  # of another trace than the one that it was given
    for name, value in found.items():
        given.setdefault(name, value)


def _is_same(value: object, text: str) -> bool:
    return type(value) is str and value == text


def _found(record: logging.LogRecord, given: dict[str, Any]) -> dict[str, Any]:
    trace_id, span_id, flags = _trace_ids()
    code, error_class, alias = _error(record, trace_id)
    work_id, attempt = "", 0
    stack = state.open_work.stack
    if stack:
        work = stack[-1]
        work_id, attempt, alias = work.id, work.attempt, work.alias
    if is_of_statement(record):
        named = given.get("alias")
        alias = named if isinstance(named, str) else alias
    return {
        "trace_id": trace_id,
        "span_id": span_id,
        "trace_flags": flags,
        "service": service_name(),
        "txn_id": work_id,
        "txn_attempt": attempt or "",
        "db": alias,
        "error_code": code,
        "error_class": error_class,
    }


def _trace_ids() -> tuple[str, str, str]:
    global _written
    context: SpanContext | None = trace.get_current_span().get_span_context()
    if context is None or not context.trace_id:
        # Django and the server have lines to log when the request's span has ended already.
        late = state.late_request.get()
        context = None if late is None else late.span_context
    known, ids = _written
    if context is known:
        return ids
    if context is None or not context.trace_id:
        return "", "", ""
    ids = f"{context.trace_id:032x}", f"{context.span_id:016x}", f"{context.trace_flags:02x}"
    _written = (context, ids)
    return ids


#: The span that a record was last of, and its ids as they are written; many lines are of one span.
_written: tuple[SpanContext | None, tuple[str, str, str]] = (None, ("", "", ""))


def service_name() -> str:
    """Return the service's name by the resource in force, empty where there is none."""
    global _service
    signal = signals.current
    known, name = _service
    if known is not signal or signal is None:
        name = _name_in(signal)
        _service = (signal, name)
    return name


def _name_in(signal: signals.Signals | None) -> str:
    named = None if signal is None else signal.config.tracer_provider or signal.config.logger_provider
    resource = getattr(named or trace.get_tracer_provider(), "resource", None)
    return str(getattr(resource, "attributes", {}).get("service.name", ""))


def _error(record: logging.LogRecord, trace_id: str) -> tuple[str, str, str]:
    """Return code, class and alias of the database error that a record is about."""
    last = state.last_error.get()
    if last is not None and int(trace_id or "0", 16) not in (last.trace_id, last.own_trace_id):
        last = None  # of a task before this one
    error = exception_of(record)
    failure = None if error is None else errors.classify(error)
    if failure is not None:
        code = failure.sqlstate or ""
        return code, failure.error_class, last.alias if last is not None and last.sqlstate == code else ""
    if last is not None:
        return last.sqlstate, last.error_class, last.alias
    if error is not None or level_of(record) >= _WARNING:
        return _error_in_message(record)
    return "", "", ""


def level_of(record: logging.LogRecord) -> int:
    """Return the record's level, 0 where it is none."""
    level: Any = record.levelno
    return level if isinstance(level, int) else 0


def _error_in_message(record: logging.LogRecord) -> tuple[str, str, str]:
    try:
        text = record.getMessage()[:_TEXT_LIMIT]
    except Exception:  # noqa: BLE001 - the arguments do not fit, or cannot be written: no code is told
        return "", "", ""
    told = _CODE.search(text)
    code = told.group(1) if told else next((_SAYINGS[each] for each in _SAYINGS if each in text), "")
    return code, errors._rule_of_code(code, text).error_class if code else "", ""
