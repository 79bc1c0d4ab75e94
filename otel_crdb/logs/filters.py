# SPDX-License-Identifier: Apache-2.0
"""The filter that gives every record its fields, and takes the secrets out of it."""

from __future__ import annotations

import logging
from typing import Any

from otel_crdb.hooks import Hook
from otel_crdb.secret_values import masked_text

from . import record_attributes
from .fields import correlate, exception_of, is_of_statement, leave_empty


class CockroachTxnFilter(logging.Filter):
    """Gives records the ids of their trace and transaction, and masks what they must not tell.

    For a handler or a logger of any ``LOGGING``::

        "filters": {"ids": {"()": "otel_crdb.logs.CockroachTxnFilter"}}

    A record has then ``trace_id``, ``span_id``, ``trace_flags``, ``service``, ``txn_id``, ``txn_attempt``,
    ``db`` (the alias), ``error_code`` (SQLSTATE), ``error_class``, and Django's ``sql``, ``params`` and
    ``duration``: each empty where there is nothing to say, and never in the place of what the record has
    already. Only masking changes that: literals and parameters of Django's records of statements; secrets,
    and keys and rows of database errors, in message, arguments and stack trace.

    Args:
        name: of the logger whose records, and those of the loggers below it, pass; empty: all records pass.

    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Prepare a record, and let it pass."""
        if self.nlen and not f"{record.name}.".startswith(f"{self.name}."):
            return False
        if FILTER.run(record) is None:
            leave_empty(record)
        return True


def _prepare(record: logging.LogRecord) -> bool:
    correlate(record, statement_fields=True)
    mask(record)
    return True


FILTER = Hook("CockroachTxnFilter", _prepare)


def mask(record: logging.LogRecord) -> None:
    """Mask a record in place; what has nothing to hide stays the very object that it is."""
    _mask_message(record)
    if is_of_statement(record):
        held = record.__dict__
        held["sql"], held["params"] = record_attributes.shown_statement(record)
    if not (record.exc_info is None and record.exc_text is None):
        _mask_stack(record)
    if record.stack_info is not None:
        record.stack_info = masked_text(record.stack_info)


def _mask_message(record: logging.LogRecord) -> None:
    template, args = record_attributes.shown_arguments(record)
    written = record_attributes.written_message(template, args)
    if written is None:  # what formats it would fail, and the line be lost
        record.msg, record.args = record_attributes.message_of(record), None
        return
    shown = masked_text(written)
    if args is record.args and shown == written:
        return
    record.msg, record.args = _masked_parts(template, args, shown)


def _masked_parts(template: Any, args: Any, shown: str) -> tuple[Any, Any]:
    """Return template and arguments that write nothing secret; or the message ``shown``, and none.

    The arguments stay arguments where they can: uvicorn's formatter of access lines counts on them.
    """
    candidates = [args]
    if isinstance(args, tuple):
        candidates.append(tuple(_masked_argument(each) for each in args))
    for candidate in candidates:
        written = record_attributes.written_message(template, candidate)
        if written is not None and masked_text(written) == written:
            return template, candidate
    return shown, None


def _masked_argument(argument: Any) -> Any:
    """Return an argument of which a message can be written; the very object where it has nothing to hide."""
    if isinstance(argument, float):
        return argument
    written = record_attributes.written_message(argument, None)
    shown = "" if written is None else masked_text(written)
    return argument if shown == written else shown


def _mask_stack(record: logging.LogRecord) -> None:
    error = exception_of(record)
    cached: Any = record.exc_text
    if isinstance(cached, str) and cached:
        written = cached
    else:
        written = "" if error is None else record_attributes.raw_stack(error)
    shown = masked_text(written)
    if shown != written:
        record.exc_text = shown
    elif not _is_writable(record.exc_info):
        record.exc_text = shown or record_attributes.kind_of(record.exc_info)


def _is_writable(exc_info: Any) -> bool:
    """Whether logging's own formatter can write it; a record that is made by hand may have anything there."""
    return exc_info is None or exc_info is False or (type(exc_info) is tuple and len(exc_info) == 3)
