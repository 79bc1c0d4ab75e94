# SPDX-License-Identifier: Apache-2.0
"""What else observes this process or stands before its server, and who makes a statement's span then.

Nothing is imported to find out: a neighbour that is at work has been imported already. On the hot path
it is one look at the class of the driver's cursor.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from .signals import Signals

logger = logging.getLogger(__name__)

#: OpenTelemetry's instrumentations of drivers, whose spans can be suppressed.
OPENTELEMETRY = "opentelemetry.instrumentation."
#: Datadog's, which knows none.
DATADOG = "ddtrace."
DRIVERS = ("psycopg", "psycopg2")
#: One around the other, before it is given up to look into them.
MOST_PROXIES = 8
#: Of poolers that are remembered.
MOST_ADDRESSES = 64
#: Ids of nodes below it stand in the short form of the backend key, the others in the long one.
LEAST_LONG_ID = 1 << 11
#: Ids are given from 1 upwards: no cluster has got so far.
UNLIKELY_ID = 1 << 20


@dataclass(frozen=True, slots=True)
class Finding:
    """A neighbour that is at work in this process."""

    #: What it is called: the distribution, or a word for what has none.
    name: str
    #: Of the distribution; empty where there is none.
    version: str
    #: What becomes of the spans beside it, and what to set.
    note: str


def found() -> list[Finding]:
    """Return what is at work in this process, and the poolers that have shown themselves to it."""
    from . import signals

    apps = [
        Finding(neighbour.name, _version(neighbour.name), neighbour.note(signals.current))
        for neighbour in NEIGHBOURS
        if _is_at_work(neighbour)
    ]
    poolers = [
        Finding(f"pooler at {host}:{port}", "", "it invents backend keys: no node is told of its connections")
        for host, port in sorted(_inventive)
    ]
    return apps + poolers


@dataclass(frozen=True, slots=True)
class _Neighbour:
    """A row of the table."""

    name: str
    #: Whether it is at work.
    seen: Callable[[], bool]
    #: What is told of it, by what is in force.
    note: Callable[[Signals | None], str]


def _is_at_work(neighbour: _Neighbour) -> bool:
    try:
        return neighbour.seen()
    except Exception:  # its internals may be others in its next release
        logger.debug("otel_crdb: whether %s is at work cannot be told", neighbour.name, exc_info=True)
        return False


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""


# --- who makes the span of a call of the driver ------------------------------------------------


class Watchers:
    """Who else makes a span of what goes through one cursor or connection of the driver."""

    __slots__ = ("datadog", "opentelemetry")

    def __init__(self, *, opentelemetry: bool, datadog: bool) -> None:
        self.opentelemetry = opentelemetry
        self.datadog = datadog

    def own(self, signal: Signals) -> bool:
        """Whether the span of the call is theirs, and ours is left out.

        Datadog's cannot be suppressed: where both would go to Datadog, it keeps its own.
        """
        if signal.silent:
            return True  # we make none
        if self.datadog and to_datadog(signal):
            _say_datadog_owns()
            return True
        if not self.opentelemetry:
            return False
        theirs = signal.config.statement_owner == "driver"
        _say_driver_instrumented(theirs=theirs)
        return theirs


#: Nobody: nearly always.
NOBODY = Watchers(opentelemetry=False, datadog=False)


def watchers_of(thing: Any) -> Watchers:
    """Return who has put a class of its own into the place of the driver's cursor or connection."""
    watchers, proxy = _seen_of_class(cast("Hashable", type(thing)))
    return _watchers_within(thing, watchers) if proxy else watchers


# contrib makes a class for each connection: few are kept.
@lru_cache(maxsize=32)
def _seen_of_class(kind: type) -> tuple[Watchers, bool]:
    """Return who has made the class, and whether it is that of proxies, which may hold others."""
    modules = [base.__module__ or "" for base in kind.__mro__]
    opentelemetry = any(module.startswith(OPENTELEMETRY) for module in modules)
    datadog = any(module.startswith(DATADOG) for module in modules)
    return _watchers(opentelemetry=opentelemetry, datadog=datadog), hasattr(kind, "__wrapped__")


def _watchers_within(proxy: Any, seen: Watchers) -> Watchers:
    opentelemetry, datadog = seen.opentelemetry, seen.datadog
    thing = proxy
    for _ in range(MOST_PROXIES):
        thing = thing.__wrapped__
        inner, more = _seen_of_class(cast("Hashable", type(thing)))
        opentelemetry, datadog = opentelemetry or inner.opentelemetry, datadog or inner.datadog
        if not more:
            break
    return _watchers(opentelemetry=opentelemetry, datadog=datadog)


def _watchers(*, opentelemetry: bool, datadog: bool) -> Watchers:
    return Watchers(opentelemetry=opentelemetry, datadog=datadog) if opentelemetry or datadog else NOBODY


def to_datadog(signal: Signals) -> bool:
    """Whether our spans become Datadog's: its tracer provider is in force (``DD_TRACE_OTEL_ENABLED``)."""
    return type(signal.tracer).__module__.startswith(DATADOG)


@lru_cache(maxsize=2)
def _say_driver_instrumented(*, theirs: bool) -> None:
    """Say once what was found and what is done about it."""
    done = (
        "Statement spans are left to it; those of COMMIT, ROLLBACK, COPY and of cursors that it does not "
        "see stay ours."
        if theirs
        else "The statement span stays ours and theirs is suppressed; "
        'instrument(statement_owner="driver") does it the other way round.'
    )
    logger.warning("otel_crdb: another instrumentation of the driver is at work. %s", done)


@lru_cache(maxsize=1)
def _say_datadog_owns() -> None:
    """Say once what was found and what is done about it."""
    logger.warning(
        "otel_crdb: ddtrace is OpenTelemetry's tracer provider (DD_TRACE_OTEL_ENABLED) and makes a span of "
        "its own for each call of the driver, which cannot be suppressed: ours are left out. "
        "DD_TRACE_PSYCOPG_ENABLED=false and DD_DJANGO_INSTRUMENT_DATABASES=false do it the other way round."
    )


def forget_what_was_said() -> None:
    """Have everything said anew: a process that is instrumented again, or a test."""
    for said in (_say_driver_instrumented, _say_datadog_owns, _say_pooler):
        said.cache_clear()
    _inventive.clear()


# --- what stands between the process and the server --------------------------------------------

#: Addresses where a backend key has been seen that CockroachDB does not give.
_inventive: set[tuple[str, int]] = set()


def invents_keys(host: str, port: int, backend_pid: int) -> bool:
    """Whether somebody at this address makes backend keys of his own: a pooler, and no node is to be read.

    A random key looks like one of CockroachDB's every other time. One that does not is enough for all
    that come from the same address.
    """
    address = (host, port)
    if address not in _inventive and not _may_be_cockroachdbs(backend_pid & 0xFFFFFFFF):
        if len(_inventive) < MOST_ADDRESSES:
            _inventive.add(address)
        _say_pooler(host, port)
        return True
    return address in _inventive


def _may_be_cockroachdbs(key: int) -> bool:
    """Whether the upper half of a backend key holds a node's id in the form that its size asks for."""
    if key >> 31:
        return LEAST_LONG_ID <= key & 0x7FFFFFFF < UNLIKELY_ID
    return key >> 20 > 0


@lru_cache(maxsize=MOST_ADDRESSES)
def _say_pooler(host: str, port: int) -> None:
    """Say once an address what was found and what is done about it."""
    logger.warning(
        "otel_crdb: the backend keys of %s:%s are not CockroachDB's: a pooler stands before it. No node is "
        "told of its connections any more; instrument(node_id=False) tells none from the first on.",
        host,
        port,
    )


# --- the table ---------------------------------------------------------------------------------


def _module(name: str) -> Any:
    return sys.modules.get(name)


def _instrumented_by(module: str, instrumentor: str) -> Callable[[], bool]:
    def seen() -> bool:
        kind = getattr(_module(module), instrumentor, None)
        return kind is not None and bool(kind().is_instrumented_by_opentelemetry)

    return seen


def _datadog() -> bool:
    return any(getattr(_module(name), "_datadog_patch", False) for name in (*DRIVERS, "django"))


def _sentry() -> bool:
    sentry = _module("sentry_sdk")
    return sentry is not None and bool(sentry.get_client().is_active())


def _dbapi() -> bool:
    """Whether connections are made through the generic instrumentation, and by none of the two above."""
    wrappers = (getattr(getattr(_module(name), "connect", None), "_self_wrapper", None) for name in DRIVERS)
    generic = any(getattr(wrapper, "__module__", "").startswith(OPENTELEMETRY) for wrapper in wrappers)
    return generic and not any(neighbour.seen() for neighbour in NEIGHBOURS[:2])


def _app(label: str) -> Callable[[], bool]:
    def seen() -> bool:
        from django.apps import apps

        return apps.ready and any(config.name == label for config in apps.get_app_configs())

    return seen


def _aliases() -> Iterator[dict[str, Any]]:
    from django.db import connections

    return iter(connections.settings.values())


def _pool() -> bool:
    return any((alias.get("OPTIONS") or {}).get("pool") for alias in _aliases())


def _owner_note(signal: Signals | None) -> str:
    if signal is not None and signal.config.statement_owner == "driver":
        return "statement spans are left to it; those of COMMIT, ROLLBACK, COPY and server cursors stay ours"
    return 'statement spans are ours, its own are suppressed; statement_owner="driver": the other way round'


def _datadog_note(signal: Signals | None) -> str:
    if signal is not None and to_datadog(signal):
        return (
            "it is the tracer provider: where it makes spans of the driver's calls, ours are left out; "
            "DD_TRACE_PSYCOPG_ENABLED=false and DD_DJANGO_INSTRUMENT_DATABASES=false: the other way round"
        )
    return "its spans go to its own agent, beside ours"


def _always(note: str) -> Callable[[Signals | None], str]:
    return lambda _: note


NEIGHBOURS = (
    _Neighbour(
        "opentelemetry-instrumentation-psycopg",
        _instrumented_by("opentelemetry.instrumentation.psycopg", "PsycopgInstrumentor"),
        _owner_note,
    ),
    _Neighbour(
        "opentelemetry-instrumentation-psycopg2",
        _instrumented_by("opentelemetry.instrumentation.psycopg2", "Psycopg2Instrumentor"),
        _owner_note,
    ),
    _Neighbour("opentelemetry-instrumentation-dbapi", _dbapi, _owner_note),
    _Neighbour("ddtrace", _datadog, _datadog_note),
    _Neighbour("sentry-sdk", _sentry, _always("its spans go to Sentry in a format of its own, beside ours")),
    _Neighbour("django-debug-toolbar", _app("debug_toolbar"), _always("its SQL panel goes on beside ours")),
    _Neighbour("django-silk", _app("silk"), _always("what it writes to the database is told as spans too")),
    _Neighbour("django-prometheus", _app("django_prometheus"), _always("its counters go on beside ours")),
    _Neighbour("psycopg-pool", _pool, _always("waiting for a connection is a span 'pool acquire'")),
)
