# SPDX-License-Identifier: Apache-2.0
"""A log record as one line, for people and for machines: masked, and safe against forged lines."""

from __future__ import annotations

import json
import logging
import re
import time
from typing import Any

from otel_crdb.hooks import Hook
from otel_crdb.secret_values import masked_text

from . import record_attributes
from .fields import correlate, is_empty

#: Bytes of the longest line, and the shortest such limit.
LINE_LIMIT = 64 * 1024
LEAST_LIMIT = 1024
#: Characters of a statement on a line.
SQL_LIMIT = 1000
#: The logger whose lines are about statements.
OF_DATABASE = "otel_crdb.db"

#: Controls, line breaks of Unicode, marks that turn the direction of what follows, lone surrogates.
_UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff]"
)
_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def one_line(text: str) -> str:
    r"""Return a text as part of one line: what could break or forge it becomes ``\n``, ``\x1b``, …."""
    return _UNSAFE.sub(_escape, text)


def _escape(found: re.Match[str]) -> str:
    character = found.group()
    number = ord(character)
    return _SHORT.get(character) or (f"\\x{number:02x}" if number < 256 else f"\\u{number:04x}")


class _LineFormatter(logging.Formatter):
    """What both formatters share: they take what ``logging.config`` hands to any formatter."""

    def __init__(
        self,
        fmt: str | None = None,
        datefmt: str | None = None,
        style: str = "%",
        validate: bool = True,
        *,
        defaults: Any = None,
        limit: int = LINE_LIMIT,
    ) -> None:
        super().__init__()
        self.limit = max(limit, LEAST_LIMIT)


class VerboseFormatter(_LineFormatter):
    r"""Writes a record as one line for people, with the ids of its trace and its transaction.

    ::

        2026-11-23T17:00:00.123Z WARNING bank.transfers [web 1234] trace_id=… span_id=… txn_id=… attempt=2
        db=default error_code=40001 the message | the stack trace, its line breaks as \n

    (one line). What is empty is left out. Secrets, and keys and rows of database errors, are masked; line
    breaks, control characters and bidirectional marks stand there as escapes.

    Args:
        limit: bytes of the longest line, at least 1024; a longer one is cut. The other arguments are those of
            :class:`logging.Formatter`, and have no effect.

    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the line; never raises."""
        line: str | None = VERBOSE.run(record)
        return _cut(line or _unwritable(record), self.limit)


class JSONFormatter(_LineFormatter):
    """Writes a record as one JSON object, by the names of OpenTelemetry's log data model.

    ``timestamp`` (RFC 3339, microseconds, UTC), ``severity_text``, ``severity_number``, ``body``,
    ``trace_id``, ``span_id``, ``trace_flags``, ``event_name``, ``resource``, ``scope``, ``attributes``. What
    is empty is left out. The line is ASCII and valid JSON whatever the record holds; masked as
    :class:`VerboseFormatter`'s.

    Args:
        limit: bytes of the longest line, at least 1024; of what is longer, texts are cut. The other arguments
            are those of :class:`logging.Formatter`, and have no effect.

    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the line; never raises."""
        line: str | None = JSON.run(record, self.limit)
        return line or _dump({"body": _unwritable(record)})


# --- for people ----------------------------------------------------------------------------------


def _verbose(record: logging.LogRecord) -> str:
    correlate(record)
    held = record.__dict__
    service, process = _word(held["service"]), _word(record.process)
    words = [
        f"{timestamp(record, 3)} {_word(record.levelname)} {_word(record.name)}",
        f"[{service} {process}]" if service else f"[{process}]",
    ]
    words += [f"{shown}={_id(held[field])}" for field, shown in _SHOWN if not is_empty(held[field])]
    words.append(one_line(record_attributes.message_of(record)))
    rest = [_statement(record), record_attributes.stack_of(record), _stack_info(record)]
    return " | ".join([" ".join(words), *(one_line(each) for each in rest if each)])


def _statement(record: logging.LogRecord) -> str:
    """Return the statement that a line of `otel_crdb.db` is about; Django's have it in their message."""
    sql = record.__dict__.get("sql")
    if record.name != OF_DATABASE or is_empty(sql):
        return ""
    return f"sql={str(record_attributes.plain('sql', sql))[:SQL_LIMIT]}"


_IDS = ("trace_id", "span_id", "trace_flags")
#: Fields in the order of the line, and their names there.
_SHOWN = (
    ("trace_id", "trace_id"),
    ("span_id", "span_id"),
    ("txn_id", "txn_id"),
    ("txn_attempt", "attempt"),
    ("db", "db"),
    ("error_code", "error_code"),
)


def _id(value: object) -> str:
    """Return a span's id as it is: one in a million would be taken for a card's number."""
    return str(value) if record_attributes.is_id(value, 16) else _word(value)


def _word(value: object) -> str:
    """Return a field as part of the line; an application may have set it to anything."""
    return one_line(str(record_attributes.well_known(value)))


def _cut(line: str, limit: int) -> str:
    if len(line) * 4 <= limit or len(line.encode("utf-8", "replace")) <= limit:
        return line
    return line.encode("utf-8", "replace")[: limit - 3].decode("utf-8", "ignore") + "…"


def _unwritable(record: logging.LogRecord) -> str:
    """Return the line of a record at which our own code has failed."""
    return one_line(f"{record.levelname} {record.name} otel_crdb could not write this record")


# --- for machines --------------------------------------------------------------------------------


def _json(record: logging.LogRecord, limit: int) -> str:
    correlate(record)
    told = _object(record)
    line = _dump(told)
    longest = limit // 8
    while len(line) > limit and longest > 16:
        told = _shortened(told, longest)
        line = _dump(told)
        longest //= 4
    if len(line) > limit:
        told["attributes"] = {}
        line = _dump(told)
    return line


def _object(record: logging.LogRecord) -> dict[str, Any]:
    held = record.__dict__
    number, text = record_attributes.severity_of(record)
    service = held["service"]
    attributes = record_attributes.attributes_of(record)
    if not is_empty(record.stack_info):
        attributes["code.stacktrace"] = _stack_info(record)
    told = {
        "timestamp": timestamp(record, 6),
        "severity_text": text,
        "severity_number": number,
        "body": record_attributes.message_of(record),
        **{name: _id(held[name]) for name in _IDS if not is_empty(held[name])},
        "event_name": record_attributes.event_name_of(record),
        "resource": {"service.name": _word(service)} if not is_empty(service) else None,
        "scope": None if is_empty(record.name) else {"name": _word(record.name)},
        "attributes": attributes,
    }
    return {name: value for name, value in told.items() if not is_empty(value) or name == "body"}


def _dump(told: dict[str, Any]) -> str:
    """Return one line of ASCII: what could break it, or turn it round, is an escape."""
    return json.dumps(_finite(told), allow_nan=False, separators=(",", ":"))


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return record_attributes.finite(value)
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    return [_finite(each) for each in value] if isinstance(value, list) else value


def _shortened(value: Any, longest: int) -> Any:
    if isinstance(value, str):
        return value if len(value) <= longest else value[: longest - 1] + "…"
    if isinstance(value, dict):
        return {name: _shortened(each, longest) for name, each in value.items()}
    return [_shortened(each, longest) for each in value] if isinstance(value, list) else value


# --- both ----------------------------------------------------------------------------------------


def _stack_info(record: logging.LogRecord) -> str:
    told: object = record.stack_info
    return masked_text(told) if isinstance(told, str) else ""


def timestamp(record: logging.LogRecord, digits: int) -> str:
    """Return when a record was made, by RFC 3339 in UTC, with so many digits of the second."""
    seconds, rest = divmod(record_attributes.nanoseconds(record) or time.time_ns(), 1_000_000_000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{rest:09d}"[: 20 + digits] + "Z"


VERBOSE = Hook("VerboseFormatter", _verbose)
JSON = Hook("JSONFormatter", _json)
