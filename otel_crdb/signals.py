# SPDX-License-Identifier: Apache-2.0
"""What the hooks emit with: the tracer, the event logger and the instruments in force.

Resolved once by ``instrument()``; the hot path reads one module attribute.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from opentelemetry import trace
from opentelemetry._logs import NoOpLogger, get_logger
from opentelemetry.metrics import NoOpMeterProvider, get_meter
from opentelemetry.trace import NoOpTracer

from . import semconv
from .config import Config, ExceptionSignal, exception_signal
from .metrics import Instruments, instruments_of
from .version import __version__

if TYPE_CHECKING:
    from opentelemetry._logs import Logger
    from opentelemetry.trace import Tracer

SCOPE = "otel_crdb"


@dataclass(frozen=True, slots=True)
class Signals:
    """One ``instrument()``'s means of telling."""

    tracer: Tracer
    logger: Logger
    instruments: Instruments
    config: Config
    exceptions: ExceptionSignal
    #: Transactions are recorded and nothing is told: an application that only retries.
    silent: bool = False


#: None: not instrumented; every hook stands aside.
current: Signals | None = None


def use(config: Config) -> None:
    """Resolve tracer, logger and instruments from the providers that ``config`` names."""
    global current
    tracer = trace.get_tracer(SCOPE, __version__, config.tracer_provider, semconv.SCHEMA_URL)
    event_logger = get_logger(SCOPE, __version__, config.logger_provider, semconv.SCHEMA_URL)
    meter = get_meter(SCOPE, __version__, config.meter_provider, semconv.SCHEMA_URL)
    current = Signals(tracer, event_logger, instruments_of(meter), config, exception_signal())


def use_silence() -> None:
    """Have transactions recorded, and nothing told."""
    global current
    meter = NoOpMeterProvider().get_meter(SCOPE)
    current = Signals(NoOpTracer(), NoOpLogger(SCOPE), Instruments(meter), Config(), "spans", silent=True)


def stop() -> None:
    """Let every hook stand aside."""
    global current
    current = None
