# SPDX-License-Identifier: Apache-2.0
"""Handing one signal to its exporter: what is lost is counted, and said once a spell of trouble.

The SDK's exporters log a line for every attempt that fails, and nobody counts what was in it. Here an
exporter's own log lines are kept while it works for us; a warning says when trouble begins, a line when
it is over and what it cost, and ``otel_crdb.telemetry.dropped`` counts all along.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.metrics import CallbackOptions, Meter, Observation

from . import semconv
from .hooks import CarefulLogger

logger = CarefulLogger(__name__)

#: Why something was dropped: the values of ``otel_crdb.telemetry.drop_reason``.
QUEUE_FULL = "queue_full"
EXPORT_FAILED = "export_failed"
REJECTED = "rejected"
AFTER_SHUTDOWN = "after_shutdown"
AT_EXIT = "exit"

#: What is lost is called, by signal.
NOUNS = {"traces": "spans", "metrics": "data points", "logs": "log records"}

#: Seconds without trouble before a spell is over: a collector that fails every other time is one spell.
CALM_SECONDS = 10.0

#: Loggers of exporters, whose lines about an export of ours are kept.
EXPORTER_LOGGERS = (
    "opentelemetry.exporter.otlp.common.http",
    "opentelemetry.exporter.otlp.proto.common._internal",
    "opentelemetry.exporter.otlp.proto.grpc.exporter",
    "opentelemetry.exporter.otlp.proto.http._common",
    "opentelemetry.exporter.otlp.proto.http._log_exporter",
    "opentelemetry.exporter.otlp.proto.http.metric_exporter",
    "opentelemetry.exporter.otlp.proto.http.trace_exporter",
)

_dropped: Counter[tuple[str, str]] = Counter()
# Reentrant: a signal handler may end a span while its own thread is counting.
_dropped_lock = threading.RLock()
_counted_by: list[Callable[[], None]] = []


def drop_counts() -> dict[tuple[str, str], int]:
    """Return what this process has dropped so far, by signal and reason."""
    for look in _counted_by:
        look()
    with _dropped_lock:
        return dict(_dropped)


def count_with(look: Callable[[], None]) -> None:
    """Have ``look`` called before counts are read: for what counts by itself and has to be asked."""
    _counted_by.append(look)


def observe(meter: Meter) -> None:
    """Tell the counts on this meter."""
    meter.create_observable_counter(
        semconv.TELEMETRY_DROPPED,
        callbacks=[_observations],
        unit="{item}",
        description="Spans, log records and data points that did not reach the collector, by reason.",
    )


def _observations(_: CallbackOptions) -> Iterable[Observation]:
    return [
        Observation(count, {semconv.TELEMETRY_SIGNAL: signal, semconv.TELEMETRY_DROP_REASON: reason})
        for (signal, reason), count in drop_counts().items()
    ]


def forget_counts() -> None:
    """Begin anew, in a child process: what its parent lost is the parent's to tell."""
    global _dropped_lock
    _dropped_lock = threading.RLock()
    _dropped.clear()


class Spell:
    """A time of trouble with one signal: a warning when it begins, a line when it is over."""

    def __init__(self, signal: str) -> None:
        self.signal = signal
        #: What has been dropped since it began.
        self.lost = 0
        self._began: float | None = None
        self._last_trouble = 0.0

    def trouble(self, why: str) -> None:
        """Note trouble, and say the first of a spell."""
        now = time.monotonic()
        with _dropped_lock:
            first = self._began is None
            if first:
                self._began = now
            self._last_trouble = now
        if first:
            logger.warning(
                "otel_crdb: %s are being lost: %s. The application is not affected. What is lost is counted "
                "(%s) and told when this is over; until then nothing more is said of it.",
                NOUNS[self.signal],
                why,
                semconv.TELEMETRY_DROPPED,
            )

    def well(self) -> None:
        """Note that something was delivered, and say that a spell is over where it has been calm since."""
        now = time.monotonic()
        with _dropped_lock:
            if self._began is None or now - self._last_trouble < CALM_SECONDS:
                return
            seconds, lost = now - self._began, self.lost
            self._began, self.lost = None, 0
        logger.info(
            "otel_crdb: %s are delivered again, after %.0f s; %d were lost.",
            NOUNS[self.signal],
            seconds,
            lost,
        )

    def lose(self, reason: str, number: int, why: str) -> None:
        """Count what is lost, and say so if it is the first."""
        with _dropped_lock:
            _dropped[self.signal, reason] += number
            self.lost += number
        self.trouble(why)


class Delivery:
    """The way of one signal to one exporter, which is made anew in each process.

    A forked process must not use its parent's: two of them would write on one connection, and a gRPC channel
    does not survive at all. Whatever an exporter raises stays here.
    """

    def __init__(
        self, signal: str, make: Callable[[Delivery], Any], size: Callable[[Any], int] = len
    ) -> None:
        self.signal = signal
        self.spell = Spell(signal)
        #: Monotonic time by which everything has to be sent, because the process ends.
        self.deadline: float | None = None
        #: Set where what is left has been counted by somebody else, who waits no longer.
        self.given_up = False
        #: What the way itself saw of the last export: why it failed, how much was refused of what was taken.
        self.why: str | None = None
        self.rejected = 0
        #: Whether anything was sent at all; and whether that is known, because what sends tells.
        self.asked = False
        self.looks = False
        self._make = make
        self._size = size
        self._exporter: Any = None
        #: Whether the last batch failed before it was sent.
        self._unfit = False
        #: Kept for good: closing or collecting a parent's gRPC channel in a child may hang it.
        self._parents: list[Any] = []

    def prepare(self) -> None:
        """Make the exporter now, so that what is wrong with its variables is told at the start."""
        try:
            self._exporter = self._make(self)
        except Exception as error:  # noqa: BLE001 - whatever an exporter's constructor raises
            self.spell.trouble(f"the exporter cannot be made: {error}")

    def send(self, batch: Any) -> bool:
        """Export a batch, and tell whether all of it has been taken."""
        if not batch:
            return True
        self.why, self.rejected, self.asked, self._unfit = None, 0, False, False
        taken = self.time_left() != 0 and self._export(batch)
        if not taken and self._unfit and isinstance(batch, list) and len(batch) > 1:
            # One span that cannot be encoded, or all together too large: the others shall not go with it.
            half = len(batch) // 2
            first, second = self.send(batch[:half]), self.send(batch[half:])
            return first and second
        if self.given_up:
            return False
        if not taken:
            reason = EXPORT_FAILED if self.time_left() != 0 else AT_EXIT
            self.spell.lose(reason, self._size(batch), self.why or "the exporter failed")
        elif self.rejected:
            self.spell.lose(REJECTED, self.rejected, self.why or "the collector rejected them")
        else:
            self.spell.well()
        return taken and not self.rejected

    def time_left(self) -> float | None:
        """Return the seconds that are left where the process ends, else None."""
        return None if self.deadline is None else max(0.0, self.deadline - time.monotonic())

    def after_fork(self) -> None:
        """Leave the parent's exporter alone, in its child."""
        self._parents.append(self._exporter)
        self._exporter = None
        self.spell = Spell(self.signal)
        self.deadline = None
        self.given_up = False

    def _export(self, batch: Any) -> bool:
        with _kept_lines() as lines:
            try:
                with suppress_instrumentation():
                    if self._exporter is None:
                        self._exporter = self._make(self)
                    result = self._exporter.export(batch)
            except (UnicodeError, ValueError, TypeError) as error:
                self.why, self._unfit = f"{type(error).__name__}: {error}", self._exporter is not None
                return False
            except Exception as error:  # noqa: BLE001 - whatever an exporter raises
                self.why = self.why or f"{type(error).__name__}: {error}"
                return False
        if self.why is None and lines:
            self.why = lines[-1]
        taken = bool(getattr(result, "name", None) == "SUCCESS")
        self._unfit = not taken and self.looks and not self.asked
        return taken


class _Keeper(logging.Filter):
    """Keeps an exporter's lines while it works for us, and lets all others pass."""

    def __init__(self) -> None:
        super().__init__()
        self.here = threading.local()

    def filter(self, record: logging.LogRecord) -> bool:
        lines: list[str] | None = getattr(self.here, "lines", None)
        if lines is None:
            return True
        lines.append(record.getMessage())
        return False


_keeper = _Keeper()
for _name in EXPORTER_LOGGERS:
    # First of all: the SDK's filter against repetitions remembers what it has seen.
    logging.getLogger(_name).filters.insert(0, _keeper)


@contextmanager
def _kept_lines() -> Iterator[list[str]]:
    lines: list[str] = []
    _keeper.here.lines = lines
    try:
        yield lines
    finally:
        _keeper.here.lines = None
        for line in lines:
            logger.debug("otel_crdb: an exporter said: %s", line)
