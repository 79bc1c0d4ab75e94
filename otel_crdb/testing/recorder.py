# SPDX-License-Identifier: Apache-2.0
"""The telemetry of this process, kept in memory as it would have left over OTLP."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from opentelemetry import _logs, metrics, trace
from opentelemetry.exporter.otlp.proto.common._log_encoder import encode_logs
from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk._logs import LoggerProvider, LogRecordProcessor
from opentelemetry.sdk._logs.export import LogRecordExporter, LogRecordExportResult, SimpleLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_ON

from otel_crdb import config, pipeline, signals
from otel_crdb.instrumentor import instrumented_for_a_while
from otel_crdb.scrubbing import ScrubbingLogRecordExporter, ScrubbingSpanExporter

from .telemetry import Telemetry

if TYPE_CHECKING:
    from opentelemetry.sdk._logs import ReadableLogRecord, ReadWriteLogRecord

SDK_DISABLED = "OTEL_SDK_DISABLED"


@contextmanager
def record_telemetry(**options: Any) -> Iterator[Telemetry]:
    """Give the telemetry of this process from here on; `options` are those of `otel_crdb.instrument()`.

    Whether the application is instrumented or not, and whatever sampler it has: everything is seen, and
    afterwards things are as they were. What the application tells through providers of its own is seen too.
    """
    recorder = _Recorder()
    in_force = signals.current.config if signals.current is not None else config.Config()
    with ExitStack() as until_the_end, _sdk_enabled() as disable_again:
        until_the_end.enter_context(instrumented_for_a_while(**recorder.providers(), **options))
        disable_again.close()
        until_the_end.enter_context(recorder.listening(in_force))
        recorder.telemetry.clear()  # counts of the whole process begin here
        yield recorder.telemetry


@contextmanager
def _sdk_enabled() -> Iterator[ExitStack]:
    """Switch the SDK on, which is read when providers are made, until the stack is closed."""
    with ExitStack() as stack:
        before = os.environ.pop(SDK_DISABLED, None)
        if before is not None:
            stack.callback(os.environ.__setitem__, SDK_DISABLED, before)
        yield stack


class _Recorder:
    """Providers whose exporters encode for OTLP, and decode into a `Telemetry`."""

    def __init__(self) -> None:
        self.telemetry = Telemetry(self._collect)
        self._readers = [InMemoryMetricReader()]
        self._spans = SimpleSpanProcessor(ScrubbingSpanExporter(_Spans(self.telemetry)))
        self._logs = SimpleLogRecordProcessor(ScrubbingLogRecordExporter(_LogRecords(self.telemetry)))

    def providers(self) -> dict[str, Any]:
        """Make the providers, as options of `instrument()`."""
        resource = pipeline.resource_of_process()
        tracers = TracerProvider(ALWAYS_ON, resource, shutdown_on_exit=False)
        tracers.add_span_processor(self._spans)
        loggers = LoggerProvider(resource, shutdown_on_exit=False)
        loggers.add_log_record_processor(self._logs)
        meters = MeterProvider(self._readers, resource, shutdown_on_exit=False)
        return {"tracer_provider": tracers, "logger_provider": loggers, "meter_provider": meters}

    @contextmanager
    def listening(self, in_force: config.Config) -> Iterator[None]:
        """Hear what the application tells through its own providers."""
        tracers = in_force.tracer_provider or trace.get_tracer_provider()
        loggers = in_force.logger_provider or _logs.get_logger_provider()
        meters = in_force.meter_provider or metrics.get_meter_provider()
        with ExitStack() as stack:
            if isinstance(tracers, TracerProvider):
                spans = _span_listeners.get(tracers) or _SpanListener(tracers)
                stack.callback(setattr, spans, "target", spans.target)
                spans.target = self._spans
            if isinstance(loggers, LoggerProvider):
                logs = _log_listeners.get(loggers) or _LogListener(loggers)
                stack.callback(setattr, logs, "target", logs.target)
                logs.target = self._logs
            if isinstance(meters, MeterProvider):
                reader = InMemoryMetricReader()
                meters.add_metric_reader(reader)
                stack.callback(meters.remove_metric_reader, reader)
                self._readers.append(reader)
                stack.callback(self._readers.remove, reader)
            yield

    def _collect(self) -> None:
        for reader in self._readers:
            data = reader.get_metrics_data()
            if data is not None:
                self.telemetry.add("metrics", encode_metrics(data))


class _Spans(SpanExporter):
    """Exports into a `Telemetry`."""

    def __init__(self, telemetry: Telemetry) -> None:
        self._telemetry = telemetry

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self._telemetry.add("traces", encode_spans(spans))
        return SpanExportResult.SUCCESS


class _LogRecords(LogRecordExporter):
    """Exports into a `Telemetry`."""

    def __init__(self, telemetry: Telemetry) -> None:
        self._telemetry = telemetry

    def export(self, batch: Sequence[ReadableLogRecord]) -> LogRecordExportResult:
        self._telemetry.add("logs", encode_logs(batch))
        return LogRecordExportResult.SUCCESS

    def shutdown(self) -> None:
        """Nothing is held."""

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        return True


class _SpanListener(SpanProcessor):
    """Stays with a provider, which lets nobody leave, and passes on what it hears while there is a target."""

    def __init__(self, provider: TracerProvider) -> None:
        self.target: SpanProcessor | None = None
        provider.add_span_processor(self)
        _span_listeners[provider] = self

    def on_end(self, span: ReadableSpan) -> None:
        if self.target is not None:
            self.target.on_end(span)


class _LogListener(LogRecordProcessor):
    """The same for log records."""

    def __init__(self, provider: LoggerProvider) -> None:
        self.target: LogRecordProcessor | None = None
        provider.add_log_record_processor(self)
        _log_listeners[provider] = self

    def on_emit(self, log_record: ReadWriteLogRecord) -> None:
        if self.target is not None:
            self.target.on_emit(log_record)

    def shutdown(self) -> None:
        """Nothing is held."""

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        return True


_span_listeners: WeakKeyDictionary[TracerProvider, _SpanListener] = WeakKeyDictionary()
_log_listeners: WeakKeyDictionary[LoggerProvider, _LogListener] = WeakKeyDictionary()
