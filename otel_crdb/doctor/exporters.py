# SPDX-License-Identifier: Apache-2.0
"""The ways by which telemetry leaves: found in whatever providers the process has, described, and tried."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from opentelemetry import _logs as logs_api
from opentelemetry import metrics as metrics_api
from opentelemetry import trace as trace_api
from opentelemetry.sdk._logs import LogRecordProcessor
from opentelemetry.sdk._logs.export import LogRecordExporter
from opentelemetry.sdk.metrics.export import MetricExporter, MetricReader
from opentelemetry.sdk.trace import SpanProcessor
from opentelemetry.sdk.trace.export import SpanExporter
from opentelemetry.util.re import parse_env_headers

from otel_crdb import otlp
from otel_crdb.config import Config
from otel_crdb.delivery import Delivery
from otel_crdb.fast_exporter import FastSpans

from .collector import Target

EXPORTER_TYPES: dict[str, type] = {
    "traces": SpanExporter,
    "metrics": MetricExporter,
    "logs": LogRecordExporter,
}
CARRIERS = (SpanProcessor, LogRecordProcessor, MetricReader)
#: How deep, and how much, is looked through for an exporter.
DEEPEST, MOST = 7, 2000


@dataclass(frozen=True, slots=True)
class Way:
    """A way by which a signal leaves: an exporter of the application's, or a delivery of our pipeline."""

    carrier: Any
    signal: str

    def send(self, things: Any, timeout: float) -> tuple[bool, str]:
        """Send, and return whether it was acknowledged, and why not as far as the way itself knows."""
        if isinstance(self.carrier, Delivery):
            taken = self.carrier.send(things)
            return taken, "" if taken else self.carrier.why or ""
        if isinstance(self.carrier, FastSpans):
            for span in things:
                self.carrier.on_end(span)
            return self.carrier.force_flush(int(timeout * 1000)), ""
        return getattr(self.carrier.export(things), "name", "") == "SUCCESS", ""

    @property
    def judges(self) -> bool:
        """Whether it takes for an acknowledgement only what a collector says."""
        return isinstance(self.carrier, (Delivery, FastSpans)) or self.kind == "otlp-grpc"

    @property
    def sender(self) -> Any:
        """The innermost of exporters that wrap each other: what sends. Known once something was sent."""
        kind = EXPORTER_TYPES[self.signal]
        if isinstance(self.carrier, FastSpans):
            return otlp.exporter("TRACES", "http/protobuf")
        found = self.carrier
        if isinstance(self.carrier, Delivery):
            found = getattr(self.carrier, "_exporter", None)
        for _ in range(DEEPEST):
            inner = next(_instances(found, lambda each: isinstance(each, kind), children_only=True), None)
            if inner is None:
                break
            found = inner
        return found

    @property
    def kind(self) -> str:
        """What it is: ``otlp-http``, ``otlp-grpc``, ``console``, or empty."""
        module, name = type(self.sender).__module__, type(self.sender).__name__
        if ".otlp.proto.grpc" in module:
            return "otlp-grpc"
        if ".otlp.proto.http" in module:
            return "otlp-http"
        return "console" if name.startswith("Console") else ""

    @property
    def is_console(self) -> bool:
        """Whether it writes to the terminal: where it is a delivery, without making its exporter."""
        if isinstance(self.carrier, Delivery):
            return not getattr(self.carrier, "otlp", True)
        return self.kind == "console"

    @property
    def target(self) -> Target | None:
        """Where it sends to, as far as it tells."""
        sender, kind = self.sender, self.kind
        if not kind.startswith("otlp"):
            return None
        grpc = kind == "otlp-grpc"
        endpoint = str(getattr(sender, "_endpoint", "") or "")
        if grpc and "://" not in endpoint:
            scheme = "http" if getattr(sender, "_insecure", True) else "https"
            endpoint = f"{scheme}://{endpoint}"
        return Target(endpoint, grpc, _headers(sender, self.signal), f"/v1/{self.signal}")

    @property
    def described(self) -> str:
        """What it is and which server it sends to; whoever stands in the URL is not told."""
        target = self.target
        if target is None:
            return type(self.sender).__qualname__
        name = "fastotel" if isinstance(self.carrier, FastSpans) else "OTLP"
        return f"{name} {'grpc' if target.grpc else 'http/protobuf'} to {target.shown}"


def _headers(sender: Any, signal: str) -> Mapping[str, str]:
    """Return the headers that are sent along: they are needed to ask, and never shown."""
    for holder in (getattr(sender, "_client", None), sender):
        headers = getattr(holder, "_headers", None)
        if isinstance(headers, Mapping):
            return {str(name): str(value) for name, value in headers.items()}
    names = (f"OTEL_EXPORTER_OTLP_{signal.upper()}_HEADERS", "OTEL_EXPORTER_OTLP_HEADERS")
    text = next((os.environ[name] for name in names if os.environ.get(name)), "")
    return dict(parse_env_headers(text, liberal=True)) if text else {}


def provider_of(signal: str, config: Config) -> Any:
    """Return the provider in force of a signal."""
    own = {"traces": config.tracer_provider, "metrics": config.meter_provider, "logs": config.logger_provider}
    if own[signal] is not None:
        return own[signal]
    apis: dict[str, Callable[[], Any]] = {
        "traces": trace_api.get_tracer_provider,
        "metrics": metrics_api.get_meter_provider,
        "logs": logs_api.get_logger_provider,
    }
    return apis[signal]()


def find(signal: str, provider: Any) -> list[Way]:
    """Return the ways behind a provider, whatever they are wrapped in."""
    kinds = (EXPORTER_TYPES[signal], Delivery, FastSpans)
    return [Way(each, signal) for each in _instances(provider, lambda each: isinstance(each, kinds))]


def _instances(holder: Any, fits: Callable[[Any], bool], *, children_only: bool = False) -> Iterator[Any]:
    """Yield the outermost things that fit among all that an object holds, by looking through attributes."""
    queue = deque((child, 1) for child in _children(holder)) if children_only else deque([(holder, 0)])
    seen: set[int] = set()
    while queue and len(seen) < MOST:
        current, depth = queue.popleft()
        if id(current) in seen:
            continue
        seen.add(id(current))
        if fits(current):
            yield current
        elif depth < DEEPEST and _is_looked_through(current):
            queue.extend((child, depth + 1) for child in _children(current))


def _is_looked_through(thing: Any) -> bool:
    if isinstance(thing, (list, tuple, set, frozenset, dict, *CARRIERS)):
        return True
    return type(thing).__module__.startswith(("opentelemetry.sdk.", "otel_crdb."))


def _children(thing: Any) -> list[Any]:
    if isinstance(thing, Mapping):
        return list(thing.values())
    if isinstance(thing, (list, tuple, set, frozenset)):
        return list(thing)
    slots = [name for kind in type(thing).__mro__ for name in getattr(kind, "__slots__", ())]
    values = [getattr(thing, name, None) for name in slots if isinstance(name, str)]
    return [*getattr(thing, "__dict__", {}).values(), *values]
