# SPDX-License-Identifier: Apache-2.0
"""What was told in a run, by the headings of docs/attributes.md."""

from collections import defaultdict

from opentelemetry.sdk.metrics.export import Histogram


def attributes_by_kind(telemetry):
    """Return the attributes of every span, event, log record and data point, by kind."""
    told = defaultdict(list)
    for span in telemetry.spans:
        told[kind_of(span)].append(span.attributes)
        for event in span.events:
            told[f"Event `{event.name}`"].append(event.attributes)
    for record in telemetry.log_records:
        # The name that an exception of a request has as a log record.
        name = "exception" if record.event_name == "http.server.request.exception" else record.event_name
        told[f"Event `{name}`"].append(record.attributes)
    for metric in metrics(telemetry):
        told[f"Points of `{metric.name}`"].extend(point.attributes for point in metric.data.data_points)
    return dict(told)


def kind_of(span):
    """Return the heading below which the page has this kind of span."""
    first = span.name.partition(" ")[0]
    if span.kind.name == "SERVER":
        return "Request span"
    if span.kind.name == "INTERNAL":
        return {"run_transaction": "Run span", "transaction": "Transaction span"}[first]
    if first in ("connect", "pool"):
        return "Connect span"
    if span.attributes.get("db.operation.name") in ("COMMIT", "ROLLBACK"):
        return "COMMIT or ROLLBACK span"
    return "Statement span"


def metrics(telemetry):
    """Return the metrics, whichever instrumentation they come from."""
    data = telemetry.metric_reader.get_metrics_data()
    return [
        metric
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
    ]


def described(metric):
    """Return a metric's instrument, unit and bounds."""
    if isinstance(metric.data, Histogram):
        return "histogram", metric.unit, list(metric.data.data_points[0].explicit_bounds)
    return "counter" if metric.data.is_monotonic else "up-down counter", metric.unit, []


def type_of(value):
    """Return the name that OpenTelemetry has for a value's type."""
    if isinstance(value, (tuple, list)):
        return f"{type_of(value[0])}[]"
    return {str: "string", bool: "boolean", int: "int", float: "double"}[type(value)]
