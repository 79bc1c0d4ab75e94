# SPDX-License-Identifier: Apache-2.0
"""OpenTelemetry's variables, read as its specification asks: what cannot be meant is said and passed over.

The SDK raises on some of it, a few times already when it is imported, and the application would not start.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import entry_points

from .hooks import CarefulLogger

logger = CarefulLogger(__name__)

#: Counts: a whole number from 0, or nothing.
LIMITS = (
    "OTEL_ATTRIBUTE_COUNT_LIMIT",
    "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT",
    "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT",
    "OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT",
    "OTEL_SPAN_EVENT_COUNT_LIMIT",
    "OTEL_SPAN_LINK_COUNT_LIMIT",
    "OTEL_EVENT_ATTRIBUTE_COUNT_LIMIT",
    "OTEL_LINK_ATTRIBUTE_COUNT_LIMIT",
    "OTEL_LOGRECORD_ATTRIBUTE_COUNT_LIMIT",
    "OTEL_LOGRECORD_ATTRIBUTE_VALUE_LENGTH_LIMIT",
)
PROPAGATORS = "OTEL_PROPAGATORS"
#: The group of entry points that a variable names one of.
PROVIDERS = {
    "OTEL_PYTHON_TRACER_PROVIDER": "opentelemetry_tracer_provider",
    "OTEL_PYTHON_METER_PROVIDER": "opentelemetry_meter_provider",
    "OTEL_PYTHON_LOGGER_PROVIDER": "opentelemetry_logger_provider",
}
#: Regular expressions with commas between them.
PATTERNS = ("OTEL_PYTHON_EXCLUDED_URLS", "OTEL_PYTHON_DJANGO_EXCLUDED_URLS")
EXEMPLAR_FILTERS = ("always_on", "always_off", "trace_based")
#: Seconds, for each signal and for all.
TIMEOUTS = ("", "TRACES_", "METRICS_", "LOGS_")


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """How much waits, and how it leaves: ``OTEL_BSP_*`` for spans, ``OTEL_BLRP_*`` for log records."""

    queue_size: int = 2048
    batch_size: int = 512
    #: Seconds.
    schedule_delay: float = 5.0


def batch_limits(prefix: str, delay_millis: int) -> BatchLimits:
    """Read the variables of ``OTEL_BSP`` or ``OTEL_BLRP``, whose default delay is ``delay_millis``."""
    queue_size = int(number(f"{prefix}_MAX_QUEUE_SIZE", 2048, least=1))
    batch_size = int(number(f"{prefix}_MAX_EXPORT_BATCH_SIZE", min(512, queue_size), least=1))
    if batch_size > queue_size:
        logger.warning(
            "otel_crdb: %s_MAX_EXPORT_BATCH_SIZE is more than %s_MAX_QUEUE_SIZE: %d is used.",
            prefix,
            prefix,
            queue_size,
        )
        batch_size = queue_size
    delay = number(f"{prefix}_SCHEDULE_DELAY", delay_millis) / 1000
    return BatchLimits(queue_size, batch_size, delay)


def number(variable: str, default: float, *, least: float = 0) -> float:
    """Read a number above 0, and not below ``least``; anything else is said, and the default taken."""
    text = os.environ.get(variable, "").strip()
    if not text:
        return default
    try:
        value = float(text)
    except ValueError:
        value = 0
    if not 0 < value < 2**31 or value < least:
        kind = f"of at least {least}" if least else "above 0"
        logger.warning("otel_crdb: %s=%r is not a number %s: %s is used.", variable, text, kind, default)
        return default
    return value


@contextmanager
def nonsense_set_aside() -> Iterator[None]:
    """Take out, for a while, what the SDK would raise on."""
    better = _better_values()
    before = {name: os.environ[name] for name in better}
    for name, value in better.items():
        if name not in _said:
            _said.add(name)
            logger.warning("otel_crdb: %s=%r cannot be meant: %s.", name, before[name], value or "ignored")
        os.environ.pop(name)
        if value:
            os.environ[name] = value
    try:
        yield
    finally:
        os.environ.update(before)


_said: set[str] = set()


def _better_values() -> dict[str, str]:
    """Return what the variables that cannot be meant had better be; empty: not set."""
    checks: dict[str, Callable[[str], bool]] = dict.fromkeys(LIMITS, _is_limit)
    checks["OTEL_METRICS_EXEMPLAR_FILTER"] = EXEMPLAR_FILTERS.__contains__
    checks.update({f"OTEL_EXPORTER_OTLP_{signal}TIMEOUT": _is_seconds for signal in TIMEOUTS})
    checks.update(dict.fromkeys(PATTERNS, _are_patterns))
    checks.update({variable: partial(_is_entry_point, group) for variable, group in PROVIDERS.items()})
    better = {name: "" for name, fits in checks.items() if name in os.environ and not fits(os.environ[name])}
    words = [word.strip() for word in os.environ.get(PROPAGATORS, "").split(",") if word.strip()]
    if words:
        known = {"none", *(each.name for each in entry_points(group="opentelemetry_propagator"))}
        if not known.issuperset(words):
            better[PROPAGATORS] = ",".join(word for word in words if word in known)
    return better


def _is_limit(text: str) -> bool:
    return not text.strip() or text.strip().isdecimal()


def _are_patterns(text: str) -> bool:
    try:
        return all(re.compile(pattern.strip()) for pattern in text.split(","))
    except re.error:
        return False


def _is_entry_point(group: str, name: str) -> bool:
    return not name.strip() or any(each.name == name for each in entry_points(group=group))


def _is_seconds(text: str) -> bool:
    try:
        return not text.strip() or 0 < float(text) < 2**31
    except ValueError:
        return False
