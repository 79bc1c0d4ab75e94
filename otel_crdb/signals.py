# SPDX-License-Identifier: Apache-2.0
"""What the hooks emit with: the tracer, the event logger and the instruments in force.

Resolved once by ``instrument()``; the hot path reads one module attribute.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from opentelemetry import trace
from opentelemetry._logs import NoOpLogger, NoOpLoggerProvider, get_logger
from opentelemetry.metrics import NoOpMeterProvider, get_meter
from opentelemetry.semconv.attributes.service_attributes import SERVICE_NAME
from opentelemetry.trace import NoOpTracer, NoOpTracerProvider

from . import semconv
from .config import Config, ExceptionSignal, exception_signal
from .exclusions import Exclusions
from .metrics import Instruments, instruments_of
from .version import __version__

if TYPE_CHECKING:
    from opentelemetry._logs import Logger
    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import Tracer, TracerProvider

SCOPE = "otel_crdb"


@dataclass(frozen=True, slots=True)
class Signals:
    """One ``instrument()``'s means of telling."""

    tracer: Tracer
    logger: Logger
    instruments: Instruments
    config: Config
    exceptions: ExceptionSignal
    excluded: Exclusions
    #: What connections are called; empty: nothing is said.
    application_name: str = ""
    #: Transactions are recorded and nothing is told: an application that only retries.
    silent: bool = False


#: None: not instrumented; every hook stands aside.
current: Signals | None = None


def use(config: Config) -> None:
    """Resolve tracer, logger and instruments from the providers that ``config`` names."""
    global current
    logger_provider = config.logger_provider if config.logs else NoOpLoggerProvider()
    tracer = trace.get_tracer(SCOPE, __version__, tracer_provider_of(config), semconv.SCHEMA_URL)
    event_logger = get_logger(SCOPE, __version__, logger_provider, semconv.SCHEMA_URL)
    meter = get_meter(SCOPE, __version__, meter_provider_of(config), semconv.SCHEMA_URL)
    current = Signals(
        tracer,
        event_logger,
        instruments_of(meter),
        config,
        exception_signal(),
        Exclusions(config),
        _sendable(_service_name(config) if config.application_name is None else config.application_name),
    )


def tracer_provider_of(config: Config) -> TracerProvider | None:
    """Return where spans go; None: to the global provider."""
    return config.tracer_provider if config.traces else NoOpTracerProvider()


def meter_provider_of(config: Config) -> MeterProvider | None:
    """Return where data points go; None: to the global provider."""
    return config.meter_provider if config.metrics else NoOpMeterProvider()


def _service_name(config: Config) -> str:
    """Return the service's name by the resource of the spans; empty where there is none to be known."""
    provider = config.tracer_provider or trace.get_tracer_provider()
    attributes = getattr(getattr(provider, "resource", None), "attributes", {})
    name = str(attributes.get(SERVICE_NAME, ""))
    return "" if name.startswith("unknown_service") else name


def _sendable(name: str) -> str:
    """Return a name that the drivers can send: a variable may hold bytes that are no text."""
    return name.replace("\0", "").encode("utf-8", "replace").decode()


def use_silence() -> None:
    """Have transactions recorded, and nothing told."""
    global current
    instruments = Instruments(NoOpMeterProvider().get_meter(SCOPE))
    config = Config(node_id=False)  # nobody is told of nodes
    excluded = Exclusions(config)
    current = Signals(NoOpTracer(), NoOpLogger(SCOPE), instruments, config, "spans", excluded, silent=True)


def stop() -> None:
    """Let every hook stand aside."""
    global current
    current = None
