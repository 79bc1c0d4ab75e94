# SPDX-License-Identifier: Apache-2.0
"""The hook on Python's logging: records are correlated, and sent, with no edit of ``LOGGING``.

It is on the class, ``logging.Logger.callHandlers``, so it survives ``dictConfig`` and sees what the loggers
let through: not what a level, a logger's filter or ``disable_existing_loggers`` has kept back.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any

from otel_crdb.hooks import Hook

from . import otlp_handler, record_attributes
from .fields import correlate, level_of
from .otlp_handler import OTLPHandler

if TYPE_CHECKING:
    from otel_crdb.config import Config


def start(config: Config) -> Callable[[], None]:
    """Have every record correlated and, where the options say so, sent; return what undoes it."""
    record_attributes.forget()
    sender = OTLPHandler() if config.logs and config.python_logs else None
    outer = logging.Logger.callHandlers
    at_work = True

    @wraps(outer)
    def call_handlers(self: logging.Logger, record: logging.LogRecord) -> Any:
        if at_work:
            CALL_HANDLERS.run(self, record, sender)
        return outer(self, record)

    def undo() -> None:
        nonlocal at_work
        at_work = False
        # Where somebody has wrapped it since, it stands in their chain and does nothing.
        if logging.Logger.callHandlers is call_handlers:
            logging.Logger.callHandlers = outer  # type: ignore[method-assign]
        otlp_handler.stand_beside_others()
        record_attributes.forget()

    logging.Logger.callHandlers = call_handlers  # type: ignore[method-assign]
    return undo


def _correlate_and_send(owner: logging.Logger, record: logging.LogRecord, sender: OTLPHandler | None) -> None:
    correlate(record)
    if sender is not None:
        found = _sender_on_the_way(owner, sender)
        # Before the other handlers: one that hands records on to a thread takes along that it was sent.
        if found is not None and (found is sender or level_of(record) >= found.level):
            found.handle(record)


CALL_HANDLERS = Hook("Logger.callHandlers", _correlate_and_send)


def _sender_on_the_way(owner: logging.Logger, sender: OTLPHandler) -> OTLPHandler | None:
    """Return what sends the records of a logger; None where they do not reach the root logger.

    That is the handler which the application has put on their way, whose level and filters decide, else ours.
    """
    node: logging.Logger | None = owner
    while node is not None:
        for handler in node.handlers:
            if isinstance(handler, OTLPHandler):
                return handler
            if otlp_handler.is_of_others(handler):
                otlp_handler.stand_before_others(node)
        if node is logging.root:
            return sender
        node = node.parent if node.propagate else None
    return None
