# SPDX-License-Identifier: Apache-2.0
"""What a test sees of the database's log."""

import contextlib
import logging

from opentelemetry import trace

from otel_crdb import call_log, database_log


class Lines(logging.Handler):
    """The lines of the database's log, and the span that each was said in."""

    def __init__(self):
        super().__init__()
        self.records = []
        self.spans = []

    def emit(self, record):
        self.records.append(record)
        self.spans.append(trace.get_current_span().get_span_context().span_id)

    def __iter__(self):
        return iter(self.records)

    @property
    def brief(self):
        """Level, kind and SQLSTATE of each."""
        return [(record.levelname, record.db_event, record.error_code) for record in self.records]

    @property
    def only(self):
        (record,) = self.records
        return record

    @property
    def counted(self):
        """What the lines tell of: each one happening, or those that were held back."""
        return sum(getattr(record, "held_back", 1) for record in self.records)


@contextlib.contextmanager
def database_lines():
    """Give the lines of a block, with all limits fresh."""
    _begin_anew()
    lines = Lines()
    logger = logging.getLogger(database_log.LOGGER)
    level = logger.level
    logger.addHandler(lines)
    logger.setLevel(logging.INFO)
    try:
        yield lines
    finally:
        logger.removeHandler(lines)
        logger.setLevel(level)
        _begin_anew()


def _begin_anew():
    database_log.REPEATS.tell_overdue(everything=True)
    database_log.begin_anew()
    call_log.SPELLS.begin_anew()
