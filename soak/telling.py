# SPDX-License-Identifier: Apache-2.0
"""What a worker hands to the SDK, counted beside the exporters; and what the SDK says went wrong."""

from __future__ import annotations

import logging
import threading
from typing import Any

from opentelemetry import _logs, trace
from opentelemetry.sdk._logs import LogRecordProcessor
from opentelemetry.sdk.trace import SpanProcessor

#: So many of the SDK's own words are kept.
MOST_TOLD = 20


class Sent:
    """Counts of spans and log records, from the providers that `instrument()` has set up."""

    def __init__(self) -> None:
        self.spans = 0
        self.logs = 0
        self.told: list[str] = []
        self._lock = threading.Lock()
        trace.get_tracer_provider().add_span_processor(_Spans(self))  # type: ignore[attr-defined]
        _logs.get_logger_provider().add_log_record_processor(_Logs(self))  # type: ignore[attr-defined]
        logging.getLogger("opentelemetry").addHandler(_Warnings(self))

    def count(self, spans: int = 0, logs: int = 0) -> None:
        """Count one more."""
        with self._lock:
            self.spans += spans
            self.logs += logs

    def tell(self, words: str) -> None:
        """Keep what the SDK said."""
        with self._lock:
            if len(self.told) < MOST_TOLD:
                self.told.append(words)


class _Spans(SpanProcessor):
    def __init__(self, sent: Sent) -> None:
        self._sent = sent

    def on_end(self, span: Any) -> None:
        self._sent.count(spans=span.context.trace_flags.sampled)


class _Logs(LogRecordProcessor):
    def __init__(self, sent: Sent) -> None:
        self._sent = sent

    def on_emit(self, log_record: Any) -> None:
        self._sent.count(logs=1)

    def shutdown(self) -> None:
        """Have nothing to end."""

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """Have nothing to send."""
        return True


class _Warnings(logging.Handler):
    def __init__(self, sent: Sent) -> None:
        super().__init__(logging.WARNING)
        self._sent = sent

    def emit(self, record: logging.LogRecord) -> None:
        self._sent.tell(f"{record.name}: {record.getMessage()}")
