# SPDX-License-Identifier: Apache-2.0
"""The handler that sends records over OTLP."""

from __future__ import annotations

import logging
import time
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from opentelemetry import context as context_api
from opentelemetry._logs import LogRecord, NoOpLogger, SeverityNumber, get_logger_provider
from opentelemetry.context import _SUPPRESS_INSTRUMENTATION_KEY
from opentelemetry.trace import TraceFlags

from otel_crdb import signals
from otel_crdb.hooks import CarefulLogger, Hook

from . import record_attributes
from .fields import correlate, level_of
from .record_attributes import OWN_EVENT, SENT

if TYPE_CHECKING:
    from opentelemetry._logs import Logger, LoggerProvider

logger = CarefulLogger("otel_crdb")

#: Loggers by name that are remembered.
_MOST_LOGGERS = 1024
#: Threads that send telemetry: what they log would feed itself. Ours, and those of the SDK.
_SENDING_THREADS = ("otel_crdb-", "Otel")
#: Loggers about the sending of telemetry.
_SENDING_LOGGERS = ("opentelemetry.", "otel_crdb.courier.", "otel_crdb.delivery.", "otel_crdb.otlp.")
#: OpenTelemetry's own handlers, by module and name.
_OTHERS = frozenset(
    (
        ("opentelemetry.sdk._logs._internal", "LoggingHandler"),
        ("opentelemetry.instrumentation.logging.handler", "LoggingHandler"),
    )
)

#: Whether a record is being sent: what is logged by that is not sent.
_sending: ContextVar[bool] = ContextVar("otel_crdb_sending", default=False)


class OTLPHandler(logging.Handler):
    """Sends records over OTLP: masked, with the ids of their trace and transaction, each once.

    For a logger of any ``LOGGING``::

        "handlers": {"otlp": {"class": "otel_crdb.logs.OTLPHandler", "level": "INFO"}}

    With ``instrument()``, records that reach the root logger are sent without it; where it stands on a
    record's way, it decides. It never blocks: what waits to be sent is bounded by ``OTEL_BLRP_*``, and what
    is dropped is counted. A formatter that it is given has no effect.

    Args:
        level: the lowest level that is sent.
        logger_provider: where to send them; None: as ``instrument()`` was told, else the global provider.

    """

    def __init__(
        self, level: int | str = logging.NOTSET, logger_provider: LoggerProvider | None = None
    ) -> None:
        super().__init__(level)
        self._logger_provider = logger_provider
        self._loggers: tuple[Any, dict[str, Logger]] = (None, {})

    def createLock(self) -> None:  # noqa: N802 - logging's name
        """Make no lock: whoever logs while it is held would wait for ever, a signal handler or a fork."""
        self.lock = None

    def handle(self, record: logging.LogRecord) -> Any:
        """Send a record that the handler's filters let pass, without a lock."""
        passed: Any = self.filter(record)
        if passed:
            self.emit(passed if isinstance(passed, logging.LogRecord) else record)
        return passed

    def emit(self, record: logging.LogRecord) -> None:
        """Send a record, unless it is sent already; never raises."""
        EMIT.run(self, record)

    def _logger_of(self, name: str) -> Logger | None:
        """Return what emits for a logger; None: nothing is to be sent."""
        provider = self._provider_in_force()
        if provider is None:
            return None
        known, loggers = self._loggers
        if known is not provider or len(loggers) >= _MOST_LOGGERS:
            loggers = {}
            self._loggers = (provider, loggers)
        found = loggers.get(name)
        if found is None:
            found = loggers[name] = provider.get_logger(name)
        return None if isinstance(found, NoOpLogger) else found

    def _provider_in_force(self) -> LoggerProvider | None:
        if self._logger_provider is not None:
            return self._logger_provider
        signal = signals.current
        if signal is not None and not signal.silent:
            if not signal.config.logs:
                return None
            if signal.config.logger_provider is not None:
                return signal.config.logger_provider
        provider = get_logger_provider()
        return None if "Proxy" in type(provider).__name__ else provider  # none has been set yet


def _emit(handler: OTLPHandler, record: logging.LogRecord) -> None:
    held = record.__dict__
    if SENT in held or OWN_EVENT in held or _sending.get() or _is_about_sending(record):
        return
    context = context_api.get_current()
    if context.get(_SUPPRESS_INSTRUMENTATION_KEY):
        return  # a request that is left untold, with all it does; or somebody sends telemetry
    token = _sending.set(True)
    try:
        emitter = handler._logger_of(_scope_of(record))
        if emitter is not None:
            held[SENT] = True
            stand_before_others(logging.root)
            correlate(record)
            emitter.emit(_log_record(record, context, _limits_of(emitter)))
    finally:
        _sending.reset(token)


EMIT = Hook("OTLPHandler", _emit)


def _is_about_sending(record: logging.LogRecord) -> bool:
    thread, name = record.threadName, f"{_scope_of(record)}."
    return name.startswith(_SENDING_LOGGERS) or (
        isinstance(thread, str) and thread.startswith(_SENDING_THREADS)
    )


def _scope_of(record: logging.LogRecord) -> str:
    name: Any = record.name
    return record_attributes.valid(name) if isinstance(name, str) and name else "root"


def _log_record(record: logging.LogRecord, context: Any, limits: tuple[int, int | None]) -> LogRecord:
    number, text = record_attributes.severity_of(record)
    attributes = _within(record_attributes.attributes_of(record), *limits)
    told = LogRecord(
        timestamp=record_attributes.nanoseconds(record) or None,
        observed_timestamp=time.time_ns(),
        context=context,
        severity_number=SeverityNumber(number),
        severity_text=text or None,
        body=record_attributes.message_of(record),
        attributes=attributes,
        event_name=record_attributes.event_name_of(record) or None,
    )
    # The record's own ids: it may have been made in another thread, or its span have ended since.
    ids = _ids_of(record)
    if ids is not None:
        told.trace_id, told.span_id, told.trace_flags = ids
    return told


def _ids_of(record: logging.LogRecord) -> tuple[int, int, TraceFlags] | None:
    """Return the ids that a record has; None where an application has set them to something else."""
    held = record.__dict__
    found = []
    for name, digits in (("trace_id", 32), ("span_id", 16), ("trace_flags", 2)):
        text = held[name]
        if type(text) is str and not text:
            found.append(0)
        elif record_attributes.is_id(text, digits):
            found.append(int(text, 16))
        else:
            return None
    return found[0], found[1], TraceFlags(found[2])


def _limits_of(emitter: Logger) -> tuple[int, int | None]:
    """Return how many attributes the SDK lets a record have, and how long: it warns of each other."""
    limits = getattr(emitter, "_log_record_limits", None)
    most = getattr(limits, "max_log_record_attributes", None)
    longest = getattr(limits, "max_log_record_attribute_length", None)
    return record_attributes.MOST_ATTRIBUTES if most is None else most, longest


def _within(attributes: dict[str, Any], most: int, longest: int | None) -> dict[str, Any]:
    if len(attributes) > most:
        attributes = dict(list(attributes.items())[:most])
    if longest is None:
        return attributes
    return {name: _at_most(value, longest) for name, value in attributes.items()}


def _at_most(value: Any, longest: int) -> Any:
    if isinstance(value, str):
        return value[:longest]
    if isinstance(value, dict):
        return {name: _at_most(each, longest) for name, each in value.items()}
    return [_at_most(each, longest) for each in value] if isinstance(value, list) else value


# --- beside OpenTelemetry's own handlers -----------------------------------------------------------


class _OursFirst(logging.Filter):
    """On OpenTelemetry's own handlers: what this package sends is not sent by them too."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Let a record pass that is not ours."""
        held = record.__dict__
        return not (SENT in held or OWN_EVENT in held or _is_ours_to_send(record))


_ours_first = _OursFirst()
#: The handlers that it was put on, for :func:`stand_beside_others`.
_behind: WeakSet[logging.Handler] = WeakSet()
#: Which classes of handlers are OpenTelemetry's own.
_kinds: dict[type, bool] = {}


def _is_ours_to_send(record: logging.LogRecord) -> bool:
    """Whether a handler of ours on the root logger, behind theirs, has not come to the record yet."""
    return any(
        isinstance(each, OTLPHandler)
        and level_of(record) >= each.level
        and each._provider_in_force() is not None
        for each in logging.root.handlers
    )


def is_of_others(handler: logging.Handler) -> bool:
    """Whether a handler is OpenTelemetry's own, which sends records too."""
    kind = type(handler)
    known = _kinds.get(kind)
    if known is None:
        known = any((each.__module__, each.__name__) in _OTHERS for each in kind.__mro__)
        if len(_kinds) < _MOST_LOGGERS:
            _kinds[kind] = known
    return known


def stand_before_others(owner: logging.Logger) -> None:
    """Keep OpenTelemetry's own handlers on a logger from sending what this package sends."""
    for handler in owner.handlers:
        if is_of_others(handler) and _ours_first not in handler.filters:
            handler.addFilter(_ours_first)
            _behind.add(handler)
            logger.info(
                "otel_crdb: %s.%s is at work too: what this package sends is kept from it.",
                type(handler).__module__,
                type(handler).__name__,
            )


def stand_beside_others() -> None:
    """Let OpenTelemetry's own handlers send everything again."""
    for handler in list(_behind):
        handler.removeFilter(_ours_first)
    _behind.clear()
