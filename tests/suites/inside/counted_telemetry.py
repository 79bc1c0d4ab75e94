# SPDX-License-Identifier: Apache-2.0
"""Instruments the process of a suite, with providers that count and keep nothing."""

import logging
import threading
import traceback
from collections import Counter

#: CLIENT spans that are no statement of the application's, by the first word of their name.
CONTROL = {"connect": "connection", "COMMIT": "COMMIT", "ROLLBACK": "ROLLBACK"}
SAVEPOINT = ("SAVEPOINT", "RELEASE SAVEPOINT", "ROLLBACK TO SAVEPOINT")
#: What set-up, teardown and migrations do.
BETWEEN_TESTS = "between the tests"
#: So many are named of whatever is wrong.
NAMED = 20


class CountedTelemetry:
    """What was told of a suite, in numbers, and what of it cannot be true."""

    def __init__(self):
        self.begun = 0
        self.spans = Counter()  # by (package of the test, kind)
        self.log_records = 0
        self.wrong = []
        self.package = self.test = BETWEEN_TESTS
        self._lock = threading.Lock()

    def instrument(self):
        """Have the package tell us, and only us."""
        from opentelemetry.sdk._logs import LoggerProvider
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import InMemoryMetricReader
        from opentelemetry.sdk.trace import TracerProvider

        import otel_crdb
        from otel_crdb import hooks

        self.metrics = InMemoryMetricReader()
        traces = TracerProvider(shutdown_on_exit=False)
        traces.add_span_processor(self)
        logs = LoggerProvider(shutdown_on_exit=False)
        logs.add_log_record_processor(_LogRecords(self))
        meters = MeterProvider([self.metrics], shutdown_on_exit=False)
        logging.getLogger(hooks.__name__).addHandler(_Faults(self))
        otel_crdb.instrument(tracer_provider=traces, meter_provider=meters, logger_provider=logs)

    def report(self):
        """Take the hooks out, and give what was seen."""
        import otel_crdb
        from otel_crdb import hooks

        data_points = self._data_points()
        otel_crdb.uninstrument()
        by_package = {}
        for (package, kind), count in self.spans.items():
            by_package.setdefault(package, {})[kind] = count
        return {
            "spans": by_package,
            "left_open": self.begun - sum(self.spans.values()),
            "log_records": self.log_records,
            "data_points": data_points,
            "faults": hooks.fault_counts(),
            "wrong": list(dict.fromkeys(self.wrong))[:NAMED],
        }

    def _data_points(self):
        """Give how many measurements each histogram and counter has seen."""
        seen = Counter()
        told = self.metrics.get_metrics_data()
        for resource in told.resource_metrics if told else ():
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    for point in metric.data.data_points:
                        seen[metric.name] += getattr(point, "count", None) or getattr(point, "value", 0)
        return dict(seen)

    def after_test(self, name):
        """See to it that a test leaves no span and no request behind for the next one."""
        from opentelemetry import context, trace

        from otel_crdb.state import current_request

        left = trace.get_current_span()
        if left.get_span_context().is_valid:
            self._complain(f"{name} left the span {getattr(left, 'name', '?')!r} in force")
            context.attach(context.Context())
        if current_request.get() is not None:
            self._complain(f"{name} left its request in force")
            current_request.set(None)

    def _complain(self, what):
        with self._lock:
            self.wrong.append(what)

    # --- a span processor, as the SDK calls it ---

    def on_start(self, span, parent_context=None):
        with self._lock:
            self.begun += 1

    def on_end(self, span):
        kind = kind_of(span)
        with self._lock:
            self.spans[self.package, kind] += 1
        if span.end_time < span.start_time:
            self._complain(f"in {self.package}: {span.name!r} ended before it began")
        if kind == "transaction" and not span.attributes.get("cockroachdb.txn.outcome"):
            self._complain(f"in {self.package}: {span.name!r} has no outcome")

    def _on_ending(self, span):
        pass

    def shutdown(self):
        pass

    def force_flush(self, timeout_millis=None):
        return True


class _Faults(logging.Handler):
    """Keeps the traceback that is logged with the first fault of each hook."""

    def __init__(self, telemetry):
        super().__init__()
        self._telemetry = telemetry

    def emit(self, record):
        error = record.exc_info and record.exc_info[1]
        said = "".join(traceback.format_exception(error)) if error else ""
        self._telemetry._complain(f"in {self._telemetry.test}: {record.getMessage()}\n{said}")


class _LogRecords:
    """A log record processor that counts."""

    def __init__(self, telemetry):
        self._telemetry = telemetry

    def on_emit(self, log_record):
        with self._telemetry._lock:
            self._telemetry.log_records += 1

    def shutdown(self):
        pass

    def force_flush(self, timeout_millis=None):
        return True


def kind_of(span):
    """Give one word for what the span tells of."""
    if span.instrumentation_scope.name != "otel_crdb":
        return "request"  # contrib's, also of a request that is made within another
    if span.kind.name != "CLIENT":
        return "transaction" if span.name.startswith("transaction ") else "retried transaction"
    if span.name.startswith(SAVEPOINT):
        return "savepoint"
    return CONTROL.get(span.name.split(" ", 1)[0], "statement")
