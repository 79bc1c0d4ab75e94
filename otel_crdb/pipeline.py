# SPDX-License-Identifier: Apache-2.0
"""Providers and exporters, for applications that have set up none of their own.

Each signal by itself: an application that owns its tracing and nothing else gets metrics and logs
from here. By OpenTelemetry's standard variables; OTLP over HTTP unless ``OTEL_EXPORTER_OTLP_PROTOCOL``
says ``grpc``. Global providers can be set only once in a process, so they outlive ``uninstrument()`` and
serve the next ``instrument()``.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any
from weakref import WeakSet

from .config import Config
from .environment import batch_limits, nonsense_set_aside, number
from .hooks import CarefulLogger
from .version import __version__

with nonsense_set_aside():  # the SDK reads some variables when it is imported, and raises on them
    from opentelemetry import _logs as logs_api
    from opentelemetry import metrics as metrics_api
    from opentelemetry import trace as trace_api
    from opentelemetry.sdk._logs import LoggerProvider
    from opentelemetry.sdk._logs.export import ConsoleLogRecordExporter
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics._internal.metric_reader_storage import MetricReaderStorage
    from opentelemetry.sdk.metrics.export import ConsoleMetricExporter
    from opentelemetry.sdk.resources import SERVICE_INSTANCE_ID, SERVICE_NAME, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import ConsoleSpanExporter

    from . import courier, database_log, delivery, fast_exporter, forks, hooks, otlp, scrubbing, semconv
    from .signals import SCOPE

logger = CarefulLogger(__name__)

#: What each signal's exporter is wrapped in, and what writes it to the terminal.
SCRUBBERS: dict[str, Callable[[Any], Any]] = {
    "TRACES": scrubbing.ScrubbingSpanExporter,
    "METRICS": lambda exporter: exporter,
    "LOGS": scrubbing.ScrubbingLogRecordExporter,
}
CONSOLE_EXPORTERS = {
    "TRACES": ConsoleSpanExporter,
    "METRICS": ConsoleMetricExporter,
    "LOGS": ConsoleLogRecordExporter,
}

#: What sends for the providers that were set up here, and these providers.
_senders: list[Any] = []
_providers: list[Any] = []
#: The resource of the spans that begin in this process.
_resources: list[Resource] = []
#: Meters on which drops are told: an SDK warns of an instrument that is made twice.
_meters: WeakSet[Any] = WeakSet()


def set_up(config: Config) -> None:
    """Set the global providers that the application has not set and ``config`` neither names nor declines."""
    with nonsense_set_aside():
        resource = resource_of_process()
        first = not _providers
        if config.traces and config.tracer_provider is None and _is_unset(trace_api.get_tracer_provider()):
            _set_up_traces(resource, config)
        if config.metrics and config.meter_provider is None and _is_unset(metrics_api.get_meter_provider()):
            _set_up_metrics(resource)
        if config.logs and config.logger_provider is None and _is_unset(logs_api.get_logger_provider()):
            _set_up_logs(resource)
    if first and _providers:
        forks.in_each_child("resource", _name_child)
        forks.in_each_child("measurements", _forget_measurements)
        forks.in_each_child("counts", _forget_counts)
        forks.in_each_child("database log", database_log.begin_anew)
        forks.in_each_child("senders", _start_senders_anew)
        atexit.register(shut_down)
    if config.metrics and _senders:
        _tell_drops(config)


def flush(config: Config, timeout: float) -> bool:
    """Have every provider in use export what it holds.

    Args:
        config: the options in force.
        timeout: seconds for all of them together.

    Returns:
        Whether all of it was taken in time.

    """
    done = _flush(_in_use(config), timeout)
    # A meter provider does not hand on what its reader says.
    return done and all(getattr(sender, "taken", True) for sender in _senders)


def _in_use(config: Config) -> list[Any]:
    return [
        config.tracer_provider or trace_api.get_tracer_provider(),
        config.logger_provider or logs_api.get_logger_provider(),
        config.meter_provider or metrics_api.get_meter_provider(),
    ]


def _flush(providers: list[Any], timeout: float) -> bool:
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


def shut_down(seconds: float = courier.EXIT_SECONDS) -> None:
    """Send all that waits for the last time, all signals at once, and say what was lost when time was up."""
    courier.close(_senders, seconds)


def end(config: Config) -> None:
    """Send what waits for the last time, where ``atexit`` is not called; the application's providers too."""
    shut_down()
    _flush([provider for provider in _in_use(config) if provider not in _providers], courier.EXIT_SECONDS)


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


def _set_up_traces(resource: Resource, config: Config) -> None:
    senders = _fast_senders() if config.exporter == "fastotel" else []
    senders = senders or [
        courier.SpanBatches(each, batch_limits("OTEL_BSP", 5000)) for each in _deliveries("TRACES")
    ]
    if not senders:
        return
    provider = TracerProvider(resource=resource, id_generator=forks.Ids(), shutdown_on_exit=False)
    for sender in senders:
        provider.add_span_processor(sender)
    trace_api.set_tracer_provider(provider)
    _resources.append(provider.resource)
    _keep(provider, senders)


def _fast_senders() -> list[Any]:
    """Make what sends by fastotel, where OTLP is what spans are sent by; else none."""
    if _exporter_words("TRACES") != ["otlp"]:
        return []
    made = fast_exporter.processor()
    return [] if made is None else [made]


def _set_up_metrics(resource: Resource) -> None:
    interval = number("OTEL_METRIC_EXPORT_INTERVAL", 60_000) / 1000
    readers = [courier.Measurements(way, interval, _preferences(way)) for way in _deliveries("METRICS")]
    if readers:
        provider = MeterProvider(readers, resource=resource, shutdown_on_exit=False)
        metrics_api.set_meter_provider(provider)
        _keep(provider, readers)
        for reader in readers:
            reader.courier.start()


def _preferences(way: _Delivery) -> Any:
    """Return an exporter that knows which temporality and aggregation the variables prefer."""
    if way.otlp:
        try:
            return way._exporter or otlp.exporter("METRICS", "http/protobuf")
        except Exception as fault:  # noqa: BLE001 - the delivery has said it, or will
            logger.debug("otel_crdb: no exporter of metrics can be made: %s", type(fault).__name__)
    return ConsoleMetricExporter()


def _set_up_logs(resource: Resource) -> None:
    limits = batch_limits("OTEL_BLRP", 5000)
    senders = [courier.LogRecordBatches(each, limits) for each in _deliveries("LOGS")]
    if not senders:
        return
    provider = LoggerProvider(resource=resource, shutdown_on_exit=False)
    for sender in senders:
        provider.add_log_record_processor(sender)
    logs_api.set_logger_provider(provider)
    _keep(provider, senders)


def _keep(provider: Any, senders: list[Any]) -> None:
    _providers.append(provider)
    _senders.extend(senders)


class _Delivery(delivery.Delivery):
    """A delivery of this pipeline."""

    #: Whether it goes to a collector.
    otlp = False


def _deliveries(signal: str) -> list[_Delivery]:
    """Make the ways that ``OTEL_<SIGNAL>_EXPORTER`` names: ``otlp`` (default), ``console``, ``none``."""
    made = []
    for word in _exporter_words(signal):
        size = courier.data_points if signal == "METRICS" else len
        if word == "otlp":
            made.append(_otlp_delivery(signal, size))
        else:
            made.append(
                _Delivery(signal.lower(), lambda _: SCRUBBERS[signal](CONSOLE_EXPORTERS[signal]()), size)
            )
    return made


def _exporter_words(signal: str) -> list[str]:
    variable = f"OTEL_{signal}_EXPORTER"
    words = []
    for word in (os.environ.get(variable) or "otlp").split(","):
        kind = word.strip().lower()
        if kind in ("otlp", "console"):
            words.append(kind)
        elif kind != "none":
            logger.warning("otel_crdb: %s=%r is not one of otlp, console, none: ignored.", variable, word)
    return words


def _otlp_delivery(signal: str, size: Callable[[Any], int]) -> _Delivery:
    chosen = otlp.protocol(signal)
    made = _Delivery(signal.lower(), lambda way: SCRUBBERS[signal](otlp.exporter(signal, chosen, way)), size)
    made.otlp = True
    if chosen != "grpc":  # whose channel would not survive a fork: a server's master need have none
        made.prepare()
    return made


def _tell_drops(config: Config) -> None:
    meter = metrics_api.get_meter(SCOPE, __version__, config.meter_provider, semconv.SCHEMA_URL)
    if meter not in _meters:
        _meters.add(meter)
        delivery.observe(meter)


def _name_child() -> None:
    """Give a child an instance id of its own, or the one that the variables name; the same for every signal.

    The SDK has drawn one, where it was told of the fork; and over one that was given.
    """
    for resource in _resources:
        forks.belongs_to_parent(resource)
    _resources.clear()
    own = Resource({SERVICE_INSTANCE_ID: resource_of_process().attributes[SERVICE_INSTANCE_ID]})
    for provider in _providers:
        provider._update_resource(own)
        if isinstance(provider, TracerProvider):
            _resources.append(provider.resource)


def _forget_measurements() -> None:
    """Leave to the parent what it has measured: its totals would be told twice, under two instance ids.

    And with it the locks that the parent's threads may have held; the SDK keeps both.
    """
    for provider in _providers:
        if isinstance(provider, MeterProvider):
            consumer: Any = provider._measurement_consumer
            consumer._lock = threading.Lock()
            consumer._reader_storages = {
                reader: MetricReaderStorage(
                    consumer._sdk_config,
                    reader._instrument_class_temporality,
                    reader._instrument_class_aggregation,
                )
                for reader in consumer._reader_storages
            }


def _forget_counts() -> None:
    delivery.forget_counts()
    hooks.forget_faults()


def _start_senders_anew() -> None:
    for sender in _senders:
        sender.after_fork()


def _is_unset(provider: Any) -> bool:
    """Whether a global provider is only the API's stand-in for one that is yet to be set."""
    kind = type(provider)
    return kind.__module__.startswith("opentelemetry.") and "Proxy" in kind.__name__
