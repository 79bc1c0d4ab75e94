# SPDX-License-Identifier: Apache-2.0
"""What a test sees of the telemetry: spans as a tree, data points and log records."""

from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import otel_crdb


class Telemetry:
    """An instrumented process whose telemetry stays in memory."""

    def __init__(self, **options):
        self.options = options
        self.span_exporter = InMemorySpanExporter()
        self.log_exporter = InMemoryLogRecordExporter()
        self.metric_reader = InMemoryMetricReader()
        self.tracer_provider = TracerProvider(shutdown_on_exit=False)
        self.tracer_provider.add_span_processor(SimpleSpanProcessor(self.span_exporter))
        self.logger_provider = LoggerProvider(shutdown_on_exit=False)
        self.logger_provider.add_log_record_processor(SimpleLogRecordProcessor(self.log_exporter))
        self.meter_provider = MeterProvider([self.metric_reader], shutdown_on_exit=False)

    def __enter__(self):
        self.instrument()
        return self

    def __exit__(self, *_):
        otel_crdb.uninstrument()

    def instrument(self, **options):
        """Instrument with these providers."""
        # What Python's logging says is left out unless it is asked for: tests count the records of events.
        options.setdefault("python_logs", self.options.get("python_logs", False))
        options.setdefault("log_limit", self.options.get("log_limit", 0))
        otel_crdb.instrument(
            tracer_provider=self.tracer_provider,
            meter_provider=self.meter_provider,
            logger_provider=self.logger_provider,
            **{**self.options, **options},
        )

    def clear(self):
        """Forget the spans and log records so far."""
        self.span_exporter.clear()
        self.log_exporter.clear()

    @property
    def spans(self):
        """The ended spans, by start."""
        return sorted(self.span_exporter.get_finished_spans(), key=lambda span: span.start_time)

    def named(self, name):
        """Return the spans with that name."""
        return [span for span in self.spans if span.name == name]

    def one(self, name):
        """Return the only span with that name."""
        (span,) = self.named(name)
        return span

    def children(self, parent):
        """Return the spans directly below another, by start."""
        return [span for span in self.spans if span.parent and span.parent.span_id == parent.context.span_id]

    def names(self):
        """Return the names of all spans, by start."""
        return [span.name for span in self.spans]

    def tree(self):
        """Return the spans as nested ``(name, [children])``, by start."""
        known = {span.context.span_id for span in self.spans}
        roots = [span for span in self.spans if span.parent is None or span.parent.span_id not in known]
        return [self._branch(span) for span in roots]

    def _branch(self, span):
        return (span.name, [self._branch(child) for child in self.children(span)])

    @property
    def log_records(self):
        """The log records so far."""
        return [record.log_record for record in self.log_exporter.get_finished_logs()]

    def points(self, metric):
        """Return the data points of a metric so far."""
        data = self.metric_reader.get_metrics_data()
        return [
            point
            for resource in (data.resource_metrics if data else ())
            for scope in resource.scope_metrics
            for found in scope.metrics
            if found.name == metric
            for point in found.data.data_points
        ]

    def everything(self):
        """Return all that left, as one text: what no secret may be in."""
        parts = [span.to_json() for span in self.spans]
        parts += [
            str(record.__dict__ if hasattr(record, "__dict__") else record) for record in self.log_records
        ]
        data = self.metric_reader.get_metrics_data()
        parts.append(data.to_json() if data else "")
        return "\n".join(parts)
