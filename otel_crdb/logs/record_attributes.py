# SPDX-License-Identifier: Apache-2.0
"""What leaves of a log record, over OTLP and in lines: message, stack, attributes; masked and bounded.

Nothing here raises for what a record holds, and no foreign object's ``__str__`` is called but where
the application asked for it: in its message, and of its exception.
"""

from __future__ import annotations

import math
import re
import sys
import traceback
from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from otel_crdb import errors, redaction, semconv, signals, statements
from otel_crdb.secret_values import MASK, is_secret_name, mask_secrets, masked_text, masked_value

from .fields import STATEMENT_FIELDS, TRACE_FIELDS, exception_of, is_empty, is_of_statement, level_of

if TYPE_CHECKING:
    import logging

DB_QUERY_PARAMETER = "db.query.parameter"
#: In ``extra``: the record is an event of that name. The second is the older word for it.
EVENT_NAMES = ("otel.event.name", "event.name")

#: In a record: it has an event of its own over OTLP already.
OWN_EVENT = "otel_crdb_event"
#: In a record of ours: its message without the ids at its end, which are fields here.
OWN_WORDS = "otel_crdb_words"
#: In a record: it has been sent.
SENT = "_otel_crdb_sent"

#: What every record has (Python's ``LogRecord`` attributes), and what we put there.
_NOT_EXTRA = frozenset(
    (
        *("args", "asctime", "created", "exc_info", "exc_text", "filename", "funcName", "levelname"),
        *("levelno", "lineno", "message", "module", "msecs", "msg", "name", "pathname", "process"),
        *("processName", "relativeCreated", "stack_info", "taskName", "thread", "threadName"),
        *(TRACE_FIELDS + EVENT_NAMES),
        *(SENT, OWN_EVENT, OWN_WORDS),
    )
)
#: What is told by other names.
_FIELDS = (
    ("pathname", semconv.CODE_FILE_PATH),
    ("funcName", semconv.CODE_FUNCTION_NAME),
    ("lineno", semconv.CODE_LINE_NUMBER),
    ("thread", semconv.THREAD_ID),
    ("threadName", semconv.THREAD_NAME),
    ("db", semconv.ALIAS),
    ("txn_id", semconv.TXN_ID),
    ("txn_attempt", semconv.TXN_ATTEMPT),
    ("error_code", semconv.DB_RESPONSE_STATUS_CODE),
    ("error_class", semconv.ERROR_CLASS),
)
#: Of our own lines: where in this package they were logged says nothing.
_OUR_FIELDS = tuple(pair for pair in _FIELDS if not pair[1].startswith("code."))
#: Fields of `otel_crdb.db`, by the words of spans.
_SPANS_WORDS = {
    "sql": semconv.DB_QUERY_TEXT,
    "txn_name": semconv.TXN_NAME,
    "retry_reason": semconv.RETRY_REASON,
    "db_event": semconv.LOG_KIND,
}
_METHODS = frozenset(
    ("CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "QUERY", "TRACE"),
)

#: How many attributes a record has at most, and how long a name and a value is.
MOST_ATTRIBUTES = 64
NAME_LIMIT = 256
VALUE_LIMIT = 4096
#: How much of a long text is looked at.
_LOOKED_AT = 4 * VALUE_LIMIT
#: How deep and how wide a container is told.
_DEPTH = 4
_WIDTH = 50
#: Values that one attribute is made of at most.
_PARTS = 200
_INT64 = 1 << 63
#: Parameters of a statement that are told one by one.
_MOST_PARAMETERS = 16


# --- the message ---------------------------------------------------------------------------------


def message_of(record: logging.LogRecord) -> str:
    """Return the message, masked; where the arguments do not fit, the template and what they are."""
    own = record.__dict__.get(OWN_WORDS)
    if type(own) is str:
        return masked_text(own)
    template, args = shown_arguments(record)
    written = written_message(template, args)
    if written is None:
        # logging's own answer is a traceback on stderr, and the line is lost.
        alone = written_message(template, None)
        text = kind_of(template) if alone is None else alone
        return masked_text(text) + (
            "" if args is None else f" [arguments that do not fit: {plain('args', args)}]"
        )
    return masked_text(written)


def written_message(template: Any, args: Any) -> str | None:
    """Return a message as logging would write it; None where that fails."""
    try:
        text = template if type(template) is str else str(template)
        return str(text % args) if args else text
    except Exception:  # noqa: BLE001 - arguments that do not fit, a foreign __str__ that raises
        return None


def shown_arguments(record: logging.LogRecord) -> tuple[Any, Any]:
    """Return template and arguments, a statement's own values and the values of secret names masked.

    Where nothing is masked the arguments are the very object.
    """
    if is_of_statement(record):
        return _shown_statement_line(record)
    template, args = record.msg, record.args
    if type(args) is dict:
        secret = {name: MASK for name in args if isinstance(name, str) and is_secret_name(name)}
        return template, ({**args, **secret} if secret else args)
    return template, args


def _shown_statement_line(record: logging.LogRecord) -> tuple[str, tuple[Any, ...]]:
    """Return a statement's line made anew, in Django's words: a queue may have written its values out."""
    text, params = shown_statement(record)
    duration = record.__dict__.get("duration")
    if isinstance(duration, (int, float)):
        return "(%.3f) %s; args=%s; alias=%s", (duration, text, params, record.__dict__.get("alias"))
    return "%s; (params %s)", (text, params)  # of a schema editor


def shown_statement(record: logging.LogRecord) -> tuple[str, Any]:
    """Return text and parameters of one of Django's records of a statement, as far as they may be told."""
    sql, params = record.__dict__["sql"], record.__dict__.get("params")
    text = statements.describe(sql).text
    if params is None or (type(params) in _SIZED and not params) or (type(params) is str and MASK in params):
        return text, params  # nothing to hide, or hidden already
    signal = signals.current
    if signal is not None and signal.config.query_parameters and not _names_a_secret(text):
        if type(params) is dict:
            return text, {_name(name): masked_value(str(name), each) for name, each in params.items()}
        if type(params) in _SIZED:
            return text, tuple(masked_value("", each) for each in params)
    count = len(params) if type(params) in _SIZED else 1
    return text, f"({', '.join([MASK] * count)})" if count <= _MOST_PARAMETERS else f"({MASK} × {count})"


def _names_a_secret(text: str) -> bool:
    """Whether a parameter may be one: Django's text has values where placeholders told columns apart."""
    return len(text) >= statements.TEXT_LIMIT or any(is_secret_name(word) for word in _WORD.findall(text))


_SIZED = (dict, list, tuple, str)
_WORD = re.compile(r"[^\W\d]\w*")


# --- the exception -------------------------------------------------------------------------------


def stack_of(record: logging.LogRecord) -> str:
    """Return the stack trace of a record's exception, masked; empty where it has none."""
    written: Any = record.exc_text
    if isinstance(written, str) and written:
        return masked_text(written)
    error = exception_of(record)
    return "" if error is None else masked_text(raw_stack(error))


def raw_stack(error: BaseException) -> str:
    """Return an exception's stack trace as Python writes it, or its class where that cannot be written."""
    try:
        return "".join(traceback.format_exception(error)).rstrip("\n")
    except Exception:  # noqa: BLE001 - a chain too deep, a class that lies about itself
        return kind_of(error)


def exception_attributes(record: logging.LogRecord) -> dict[str, Any]:
    """Return type, message and stack of a record's exception."""
    error = exception_of(record)
    stack = stack_of(record)
    told: dict[str, Any] = {}
    if error is not None:
        told[semconv.EXCEPTION_TYPE] = kind_of(error)
        failure = errors.classify(error)
        told[semconv.EXCEPTION_MESSAGE] = (
            masked_text(error) if failure is None else redaction.mask_error_text(error, failure.sqlstate)
        )
    if stack:
        told[semconv.EXCEPTION_STACKTRACE] = stack
    return told


def kind_of(value: object) -> str:
    """Return a class's qualified name; builtins go by their bare name."""
    kind = type(value)
    try:
        module = str(kind.__module__)
        return kind.__qualname__ if module == "builtins" else f"{module}.{kind.__qualname__}"
    except Exception:  # noqa: BLE001 - a metaclass may say what it likes
        return "object"


# --- attributes ----------------------------------------------------------------------------------


def attributes_of(record: logging.LogRecord) -> dict[str, Any]:
    """Return a record's attributes: at most :data:`MOST_ATTRIBUTES`, of plain values of bounded size.

    Ours come first, so that no number of extra fields drives them out.
    """
    held = record.__dict__
    told: dict[str, Any] = {}
    ours = isinstance(record.name, str) and record.name.startswith("otel_crdb")
    for field, name in _OUR_FIELDS if ours else _FIELDS:
        value = held.get(field)
        if not is_empty(value):
            told[name] = well_known(value)
    if not (record.exc_info is None and record.exc_text is None):
        told.update(exception_attributes(record))
    for name, value in _extra(record, held):
        if len(told) >= MOST_ATTRIBUTES:
            break
        told.setdefault(name, value)
    return told


def event_name_of(record: logging.LogRecord) -> str:
    """Return the name of the event that a record is; empty where it is none."""
    held = record.__dict__
    name = next((held[each] for each in EVENT_NAMES if not is_empty(held.get(each))), None)
    return mask_secrets(valid(name[:NAME_LIMIT])) if isinstance(name, str) else ""


def _extra(record: logging.LogRecord, held: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the fields that the application has given, by name and value as they leave."""
    of_statement = is_of_statement(record)
    if of_statement:
        yield from _statement(record)
    request = held.get("request")
    of_request = _is_django_request(request)
    if of_request:
        yield from _request(request, held.get("status_code"))
    for name, value in list(held.items()):
        if name in _NOT_EXTRA or (name in STATEMENT_FIELDS and (of_statement or is_empty(value))):
            continue
        if of_request and name in ("request", "status_code"):
            continue
        shown = _SPANS_WORDS.get(name) or _name(name)
        if shown and value is not None:
            yield shown, plain(shown, value)


def _statement(record: logging.LogRecord) -> Iterator[tuple[str, Any]]:
    text, params = shown_statement(record)
    yield semconv.DB_QUERY_TEXT, text
    duration: Any = record.__dict__.get("duration")
    if isinstance(duration, (int, float)):
        yield "duration", plain("duration", duration)
    if type(params) not in (dict, tuple):
        return
    pairs = params.items() if isinstance(params, dict) else enumerate(params)
    for number, (name, value) in enumerate(pairs):
        if number >= _MOST_PARAMETERS:
            return
        yield f"{DB_QUERY_PARAMETER}.{_name(name)}", str(plain(str(name), value))


def _is_django_request(value: object) -> bool:
    module = sys.modules.get("django.http.request")  # where nobody has imported it, it is none
    return module is not None and isinstance(value, module.HttpRequest)


def _request(request: Any, status: object) -> Iterator[tuple[str, Any]]:
    method = request.method
    if method:
        yield semconv.HTTP_REQUEST_METHOD, method if method in _METHODS else "_OTHER"
    if isinstance(request.path, str):
        yield semconv.URL_PATH, mask_secrets(redaction.mask_url_path(request.path))[:VALUE_LIMIT]
    route = getattr(request.resolver_match, "route", None)
    if isinstance(route, str) and route:
        yield semconv.HTTP_ROUTE, plain(semconv.HTTP_ROUTE, route)
    if isinstance(status, int):
        yield semconv.HTTP_RESPONSE_STATUS_CODE, plain(semconv.HTTP_RESPONSE_STATUS_CODE, status)


# --- plain values --------------------------------------------------------------------------------


def plain(name: str, value: object) -> Any:
    """Return a value as it may leave: masked, of plain types, bounded in depth, width and length."""
    if type(value) is str and len(value) > _LOOKED_AT:
        # A secret that the cut goes through is not known for one any more: what is near it goes too.
        return valid(str(masked_value(name, value[:_LOOKED_AT]))[:-VALUE_LIMIT][:VALUE_LIMIT]) or MASK
    return _Plain().of(masked_value(name, value), _DEPTH)


def well_known(value: object) -> Any:
    """Return a field that has few values, such as a logger's name, or is an id: as :func:`plain` would."""
    if type(value) is str:
        if is_id(value, 32):
            return value
        return _remembered(value) if len(value) <= NAME_LIMIT else plain("", value)
    return _whole(value) if type(value) is int else plain("", value)


def is_id(value: object, digits: int) -> bool:
    """Whether it is an id in lower hex."""
    return type(value) is str and len(value) == digits and set(value) <= _HEX


def forget() -> None:
    """Forget what was masked by other options."""
    _remembered.cache_clear()


_HEX = frozenset("0123456789abcdef")


@lru_cache(maxsize=1024)
def _remembered(text: str) -> Any:
    return plain("", text)


class _Plain:
    """One value on its way to plain types, and how many parts it may still have."""

    def __init__(self) -> None:
        self._left = _PARTS

    def of(self, value: Any, depth: int) -> Any:
        kind = type(value)
        if value is None or kind is bool:
            return value
        if isinstance(value, str):
            return valid(str.__getitem__(value, slice(VALUE_LIMIT)))
        if isinstance(value, int):
            return _whole(int(value))
        if isinstance(value, float):
            return float(value)
        if kind in (list, tuple, set, frozenset, dict):
            return self._container(value, depth)
        return masked_text(value)[:VALUE_LIMIT]  # a date and the like: others are names of classes already

    def _container(self, value: Any, depth: int) -> Any:
        if depth <= 0:
            return MASK
        items = list(value.items() if type(value) is dict else value)[: min(_WIDTH, max(self._left, 0))]
        self._left -= len(items)
        if type(value) is not dict:
            return [self.of(each, depth - 1) for each in items]
        return {_name(name): self.of(each, depth - 1) for name, each in items if _name(name)}


def _whole(number: int) -> int | str:
    """Return a number that OTLP can hold; of others only how long they are, for writing them takes long."""
    return number if -_INT64 <= number < _INT64 else f"<int of {number.bit_length()} bits>"


def _name(name: object) -> str:
    """Return a field's name as it may leave; empty where it has none."""
    return mask_secrets(valid(name[:NAME_LIMIT])) if isinstance(name, str) else valid(str(plain("", name)))


def valid(text: str) -> str:
    """Return valid Unicode: a lone surrogate would cost the whole batch its export."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace").decode()
    return str(text)


def finite(number: float) -> float | str:
    """Return a number as JSON knows it, or its name."""
    if math.isfinite(number):
        return number
    return "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"


def nanoseconds(record: logging.LogRecord) -> int:
    """Return when a record was made, since the epoch; 0 where it does not say so."""
    created: Any = record.created
    if not isinstance(created, (int, float)) or not math.isfinite(created) or not 0 <= created < 1 << 33:
        return 0
    return int(created * 1_000_000) * 1000  # what a float can tell


def severity_of(record: logging.LogRecord) -> tuple[int, str]:
    """Return number and text of a record's level, by OpenTelemetry's table."""
    level = level_of(record)
    name = record.levelname
    number = 0 if level < 10 else min(5 + (level // 10 - 1) * 4 + min(level % 10, 3), 24)
    return number, valid(name[:NAME_LIMIT]) if isinstance(name, str) else ""
