# SPDX-License-Identifier: Apache-2.0
"""Providers and exporters, for applications that have set up none of their own.

Each signal by itself: an application that owns its tracing and nothing else gets metrics and logs
from here. By OpenTelemetry's standard variables; OTLP over HTTP unless ``OTEL_EXPORTER_OTLP_PROTOCOL``
says ``grpc`` (whose channels do not survive a fork). Global providers can be set only once in a
process, so they outlive ``uninstrument()`` and serve the next ``instrument()``.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import uuid
from importlib import import_module
from typing import Any

from opentelemetry import _logs as logs_api
from opentelemetry import metrics as metrics_api
from opentelemetry import trace as trace_api
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor, ConsoleLogRecordExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import ConsoleMetricExporter, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import SERVICE_INSTANCE_ID, SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter

from .config import Config
from .scrubbing import ScrubbingLogRecordExporter, ScrubbingSpanExporter

logger = logging.getLogger(__name__)

#: Exporter classes by signal and by word of ``OTEL_<SIGNAL>_EXPORTER`` and ``OTEL_EXPORTER_OTLP_PROTOCOL``.
OTLP_EXPORTERS = {
    ("TRACES", "http/protobuf"): "opentelemetry.exporter.otlp.proto.http.trace_exporter:OTLPSpanExporter",
    ("TRACES", "grpc"): "opentelemetry.exporter.otlp.proto.grpc.trace_exporter:OTLPSpanExporter",
    ("METRICS", "http/protobuf"): "opentelemetry.exporter.otlp.proto.http.metric_exporter:OTLPMetricExporter",
    ("METRICS", "grpc"): "opentelemetry.exporter.otlp.proto.grpc.metric_exporter:OTLPMetricExporter",
    ("LOGS", "http/protobuf"): "opentelemetry.exporter.otlp.proto.http._log_exporter:OTLPLogExporter",
    ("LOGS", "grpc"): "opentelemetry.exporter.otlp.proto.grpc._log_exporter:OTLPLogExporter",
}
CONSOLE_EXPORTERS = {
    "TRACES": ConsoleSpanExporter,
    "METRICS": ConsoleMetricExporter,
    "LOGS": ConsoleLogRecordExporter,
}


def set_up(config: Config) -> None:
    """Set the global providers that the application has not set, and that ``config`` does not name."""
    resource = resource_of_process()
    if config.tracer_provider is None and _is_unset(trace_api.get_tracer_provider()):
        _set_up_traces(resource)
    if config.meter_provider is None and _is_unset(metrics_api.get_meter_provider()):
        _set_up_metrics(resource)
    if config.logger_provider is None and _is_unset(logs_api.get_logger_provider()):
        _set_up_logs(resource)


def flush(config: Config, timeout: float) -> bool:
    """Have every provider in use export what it holds.

    Args:
        config: the options in force.
        timeout: seconds for all of them together.

    Returns:
        Whether all did so in time.

    """
    providers = (
        config.tracer_provider or trace_api.get_tracer_provider(),
        config.logger_provider or logs_api.get_logger_provider(),
        config.meter_provider or metrics_api.get_meter_provider(),
    )
    deadline = time.monotonic() + timeout
    flushes = [_Flush(provider, timeout) for provider in providers if hasattr(provider, "force_flush")]
    for each in flushes:
        each.start()
    for each in flushes:
        each.join(max(0.0, deadline - time.monotonic()))
    return all(each.done for each in flushes)


class _Flush(threading.Thread):
    """One provider's flush, in a thread of its own: exporters keep to no time but their own."""

    def __init__(self, provider: Any, timeout: float) -> None:
        super().__init__(name="otel_crdb-flush", daemon=True)
        self.done = False
        self._provider = provider
        self._milliseconds = int(timeout * 1000)

    def run(self) -> None:
        """Flush; what goes wrong is told, and is not the application's trouble."""
        try:
            self.done = self._provider.force_flush(self._milliseconds) is not False
        except Exception as error:  # noqa: BLE001 - whatever an exporter raises
            logger.warning("otel_crdb: %s could not be flushed: %s", type(self._provider).__name__, error)


def resource_of_process() -> Resource:
    """Return what names this process: the standard variables, else the Django project and a random id."""
    resource = Resource.create()
    defaults: dict[str, str] = {}
    if str(resource.attributes.get(SERVICE_NAME, "")).startswith("unknown_service"):
        project = os.environ.get("DJANGO_SETTINGS_MODULE", "").partition(".")[0]
        if project:
            defaults[SERVICE_NAME] = project
    if SERVICE_INSTANCE_ID not in resource.attributes:
        # Without it, the workers of one server overwrite each other's series.
        defaults[SERVICE_INSTANCE_ID] = str(uuid.uuid4())
    return resource.merge(Resource(defaults))


def _set_up_traces(resource: Resource) -> None:
    exporters = _exporters("TRACES")
    if not exporters:
        return
    provider = TracerProvider(resource=resource)
    for exporter in exporters:
        provider.add_span_processor(BatchSpanProcessor(ScrubbingSpanExporter(exporter)))
    trace_api.set_tracer_provider(provider)


def _set_up_metrics(resource: Resource) -> None:
    exporters = _exporters("METRICS")
    if exporters:
        readers = [PeriodicExportingMetricReader(exporter) for exporter in exporters]
        metrics_api.set_meter_provider(MeterProvider(readers, resource=resource))


def _set_up_logs(resource: Resource) -> None:
    exporters = _exporters("LOGS")
    if not exporters:
        return
    provider = LoggerProvider(resource=resource)
    for exporter in exporters:
        provider.add_log_record_processor(BatchLogRecordProcessor(ScrubbingLogRecordExporter(exporter)))
    logs_api.set_logger_provider(provider)


def _exporters(signal: str) -> list[Any]:
    """Make the exporters that ``OTEL_<SIGNAL>_EXPORTER`` names: ``otlp`` (default), ``console``, ``none``."""
    variable = f"OTEL_{signal}_EXPORTER"
    made = []
    for word in (os.environ.get(variable) or "otlp").split(","):
        kind = word.strip().lower()
        if kind == "otlp":
            made.append(_otlp_exporter(signal))
        elif kind == "console":
            made.append(CONSOLE_EXPORTERS[signal]())
        elif kind != "none":
            logger.warning("otel_crdb: %s=%r is not one of otlp, console, none: ignored.", variable, word)
    return made


def _otlp_exporter(signal: str) -> Any:
    protocol = (
        os.environ.get(f"OTEL_EXPORTER_OTLP_{signal}_PROTOCOL")
        or os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL")
        or "http/protobuf"
    ).strip()
    path = OTLP_EXPORTERS.get((signal, protocol))
    if path is None:
        logger.warning("otel_crdb: OTLP protocol %r is not to be had: http/protobuf is used.", protocol)
        path = OTLP_EXPORTERS[signal, "http/protobuf"]
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)()


def _is_unset(provider: Any) -> bool:
    """Whether a global provider is only the API's stand-in for one that is yet to be set."""
    kind = type(provider)
    return kind.__module__.startswith("opentelemetry.") and "Proxy" in kind.__name__
