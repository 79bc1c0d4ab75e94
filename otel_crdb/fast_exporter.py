# SPDX-License-Identifier: Apache-2.0
"""Spans by ``fastotel``: encoded and sent by a native thread that never holds the interpreter.

It copies a span where it ends, so keys and rows of other people's errors are taken out before it sees them. A
child that was forked after its first span exports nothing, so each process gets one of its own.
"""

from __future__ import annotations

import time
from typing import Any

from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor

from . import courier, delivery, forks, hooks, otlp
from .environment import batch_limits, number
from .hooks import CarefulLogger
from .scrubbing import scrubbed_span

logger = CarefulLogger(__name__)

DISABLED = "otel_crdb: exporter='fastotel' is not to be had (%s): OpenTelemetry's own exporter is used."


def processor() -> FastSpans | None:
    """Make the processor, or None where it cannot be had, which is said."""
    if otlp.protocol("TRACES") != "http/protobuf":
        logger.warning(DISABLED, "it speaks OTLP over HTTP only")
        return None
    if otlp.has_credential_provider("TRACES"):
        logger.warning(DISABLED, "it knows no credential provider")
        return None
    try:
        return FastSpans()
    except ImportError as error:
        logger.warning(DISABLED, f"{error}; it needs Python 3.11 and pip install 'otel-crdb[fastotel]'")
    except Exception as error:  # noqa: BLE001 - it checks its variables and files when it is made
        logger.warning(DISABLED, f"{type(error).__name__}: {error}")
    return None


class FastSpans(SpanProcessor):
    """Hands scrubbed spans to fastotel, in each process to one of its own."""

    def __init__(self) -> None:
        self.spell = delivery.Spell("traces")
        self.closed = False
        #: Kept for good: their native threads are not in this process.
        self._parents: list[Any] = []
        self._processor = self._made()
        self._counted = {delivery.QUEUE_FULL: 0, delivery.EXPORT_FAILED: 0, delivery.REJECTED: 0}
        delivery.count_with(self.look)

    def _made(self) -> Any:
        from fastotel import OTLPSpanProcessor

        limits = batch_limits("OTEL_BSP", 5000)
        return OTLPSpanProcessor(
            max_queue_size=limits.queue_size,
            max_export_batch_size=limits.batch_size,
            schedule_delay_millis=limits.schedule_delay * 1000,
            export_timeout_millis=number("OTEL_BSP_EXPORT_TIMEOUT", 30_000),
        )

    def on_end(self, span: ReadableSpan) -> None:
        """Hand a sampled span on, scrubbed."""
        context = span.context
        if context is None or not context.trace_flags.sampled or forks.is_of_parent(span.resource):
            return
        forks.notice()
        if self.closed:
            self.spell.lose(delivery.AFTER_SHUTDOWN, 1, "the process is ending")
            return
        try:
            self._processor.on_end(scrubbed_span(span))
        except Exception as fault:  # noqa: BLE001 - a span that cannot be scrubbed is not sent
            hooks.report("fastotel", fault)

    def after_fork(self) -> None:
        """Leave the parent's alone, and make another."""
        self._parents.append(self._processor)
        self._processor = self._made()
        self._counted = dict.fromkeys(self._counted, 0)
        self.closed = False
        self.spell = delivery.Spell("traces")

    def look(self) -> None:
        """Count what fastotel has dropped since it was looked at last; it tells nobody itself."""
        native = getattr(self._processor, "_native", None)
        if native is None:
            return
        now = {
            delivery.QUEUE_FULL: native.dropped_spans(),
            delivery.EXPORT_FAILED: native.failed_spans(),
            delivery.REJECTED: native.rejected_spans(),
        }
        before, self._counted = self._counted, now
        lost = {reason: now[reason] - before[reason] for reason in now}
        for reason, more in lost.items():
            if more > 0:
                self.spell.lose(reason, more, f"fastotel has dropped them ({reason})")
        if not any(lost.values()):
            self.spell.well()

    def force_flush(self, timeout_millis: int | None = 30000) -> bool:
        """Send all that waits; ``timeout_millis`` in milliseconds."""
        lost = sum(self._losses())
        sent = bool(self._processor.force_flush(timeout_millis))
        return sent and sum(self._losses()) == lost

    def _losses(self) -> tuple[int, int]:
        native = getattr(self._processor, "_native", None)
        return (0, 0) if native is None else (native.failed_spans(), native.rejected_spans())

    def shutdown(self) -> None:
        """Send all that waits, in the time there is."""
        courier.close([self], courier.EXIT_SECONDS)

    def close(self, deadline: float) -> None:
        """Take in no more; what waits is sent while :meth:`join` waits."""
        self.closed = True

    def join(self, deadline: float) -> None:
        """Have all that waits sent until then, and say where it was not."""
        in_time = self._processor.force_flush(max(0.0, deadline - time.monotonic()) * 1000)
        self.look()
        if not in_time:  # how many they were it does not tell
            self.spell.trouble("the process ends and the last were not taken in time")
