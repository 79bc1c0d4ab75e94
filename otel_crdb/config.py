# SPDX-License-Identifier: Apache-2.0
"""The options of :func:`otel_crdb.instrument`: type, default, meaning, check.

Where they are read from is in :mod:`otel_crdb.option_sources`; ``docs/options.md`` is made from this page.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from . import option_kinds
from .option_kinds import (
    BOOL,
    FUNCTION,
    NAMES,
    PATTERNS,
    RETRIES,
    SECONDS,
    TAGS,
    TEXT,
    Kind,
    one_of,
    provider,
    whole_number,
)

if TYPE_CHECKING:
    from opentelemetry._logs import LoggerProvider
    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import TracerProvider

StatementOwner = Literal["otel_crdb", "driver"]
Exporter = Literal["otlp", "fastotel"]
ExceptionSignal = Literal["spans", "logs", "logs/dup"]
Function = Callable[..., Any]


def _option(default: Any, kind: Kind, meaning: str) -> Any:
    return field(default=default, metadata={"kind": kind, "meaning": meaning})


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """What ``instrument()`` was asked for."""

    tracer_provider: TracerProvider | None = _option(
        None,
        provider("get_tracer"),
        "Provider of spans to use instead of the global one. `None`: the application's global provider or, "
        "where it has set none, one with an OTLP exporter that this package sets up.",
    )
    meter_provider: MeterProvider | None = _option(None, provider("get_meter"), "The same for metrics.")
    logger_provider: LoggerProvider | None = _option(
        None, provider("get_logger"), "The same for log records."
    )
    traces: bool = _option(True, BOOL, "Whether spans are made.")
    metrics: bool = _option(True, BOOL, "Whether data points are recorded.")
    logs: bool = _option(True, BOOL, "Whether log records are emitted.")
    python_logs: bool = _option(
        True, BOOL, "Whether the records of Python's logging leave over OTLP as well."
    )
    exporter: Exporter = _option(
        "otlp",
        one_of("otlp", "fastotel"),
        "What sends the spans of a provider that this package sets up: OpenTelemetry's own exporter, "
        "or fastotel's (extra `fastotel`), which encodes and sends in a thread that never holds the GIL.",
    )
    exclude_health_checks: bool = _option(
        True, BOOL, "Whether requests to the usual paths of health checks are left untold, with all they do."
    )
    excluded_urls: tuple[str, ...] = _option(
        (),
        PATTERNS,
        "Requests that are left untold, with all they do: regular expressions, searched in the path. What "
        "`OTEL_PYTHON_DJANGO_EXCLUDED_URLS` and `OTEL_PYTHON_EXCLUDED_URLS` exclude is left untold too.",
    )
    excluded_statements: tuple[str, ...] = _option(
        (),
        PATTERNS,
        "Statements that have neither span nor data point: regular expressions, searched in the text as "
        "`db.query.text` would have it. Their transaction counts them, and fails where they fail.",
    )
    excluded_aliases: tuple[str, ...] = _option(
        (), NAMES, "Aliases of `DATABASES` whose transactions, statements and connections are left untold."
    )
    request_hook: Function | None = _option(
        None, FUNCTION, "Called with each request's span and the request, before it is answered."
    )
    response_hook: Function | None = _option(
        None, FUNCTION, "Called with each request's span, the request and the response, before the span ends."
    )
    transaction_hook: Function | None = _option(
        None, FUNCTION, "Called with each transaction's span and Django's `DatabaseWrapper`, as it begins."
    )
    statement_hook: Function | None = _option(
        None,
        FUNCTION,
        "Called with each statement's span, Django's `DatabaseWrapper` and the SQL as given, as it begins.",
    )
    application_name: str | None = _option(
        None,
        TEXT,
        "What connections are called in CockroachDB's console, where neither `OPTIONS` nor `PGAPPNAME` says "
        "so (libpq's `fallback_application_name`). `None`: the service's name. Empty: nothing is said.",
    )
    statement_owner: StatementOwner = _option(
        "otel_crdb",
        one_of("otel_crdb", "driver"),
        "Who makes the statement span where a driver instrumentation (opentelemetry-instrumentation-psycopg "
        "and the like) is at work too: this package does and that is suppressed, or that does and this "
        "package stands back.",
    )
    node_id: bool = _option(
        True,
        BOOL,
        "Whether `cockroachdb.node.id` is read from the backend's key. Switch it off behind a pooler that "
        "announces `crdb_version` but invents that key.",
    )
    query_text_limit: int = _option(
        4096, whole_number(0, 4096), "Longest `db.query.text`, in characters; 0: none is told."
    )
    query_parameters: bool = _option(
        False,
        BOOL,
        "Whether statement spans, and Django's own log lines of statements, tell the statements' parameters, "
        "masked by the name of their column and by their type.",
    )
    mask_secrets: bool = _option(
        True,
        BOOL,
        "Whether passwords, tokens, card numbers, session keys and e-mail addresses are masked wherever a "
        "text leaves: spans, events, log records. Rows and keys in error texts are masked in any case.",
    )
    secret_names: tuple[str, ...] = _option(
        (),
        PATTERNS,
        "Further names of fields whose values are masked: regular expressions, matched against the whole "
        "name in small letters.",
    )
    secret_patterns: tuple[str, ...] = _option(
        (),
        PATTERNS,
        "Further texts that are masked: regular expressions, searched in every text that leaves.",
    )
    slow_statement: float = _option(
        1.0,
        SECONDS,
        "A call to the database that takes longer, in seconds, is logged by `otel_crdb.db`; 0: none is.",
    )
    log_limit: int = _option(
        5,
        whole_number(0, 1_000_000),
        "Lines a minute that `otel_crdb.db` logs of one kind of happening and one statement; what is more is "
        "counted, and the count logged. 0: no limit.",
    )
    sql_comments: bool = _option(
        False,
        BOOL,
        "Whether sampled statements carry a comment with the `traceparent` of their span, as CockroachDB's "
        "`sql.sqlcommenter.enabled` reads it.",
    )
    sql_comment_tags: Mapping[str, str] | None = _option(
        None, TAGS, "Further tags of these comments, such as the application's name."
    )
    thread_context: bool = _option(
        True,
        BOOL,
        "Whether what a request starts in threads and thread pools has the request's trace.",
    )
    retry_atomic_requests: bool | Mapping[str, Any] = _option(
        False,
        RETRIES,
        "Whether views that `ATOMIC_REQUESTS` makes atomic are run again where their transaction was "
        "refused: no, yes, or options of `otel_crdb.retry_view`.",
    )
    #: Where each option was read that has not its default.
    origins: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        """Raise :class:`TypeError` or :class:`ValueError` where a value cannot be meant."""
        for option in options():
            value = option_kinds.checked(option.metadata["kind"], option.name, getattr(self, option.name))
            object.__setattr__(self, option.name, value)


def options() -> tuple[dataclasses.Field[Any], ...]:
    """Return the options: a field each, with ``kind`` and ``meaning`` in its metadata."""
    return tuple(each for each in dataclasses.fields(Config) if "kind" in each.metadata)


def exception_signal() -> ExceptionSignal:
    """Where an exception is recorded, by ``OTEL_SEMCONV_EXCEPTION_SIGNAL_OPT_IN``.

    ``logs``: as a log record; ``logs/dup``: as a log record and a span event; anything else, or
    unset: as a span event.
    """
    chosen = {word.strip() for word in os.environ.get("OTEL_SEMCONV_EXCEPTION_SIGNAL_OPT_IN", "").split(",")}
    if "logs/dup" in chosen:
        return "logs/dup"
    return "logs" if "logs" in chosen else "spans"


def sdk_disabled() -> bool:
    """Whether ``OTEL_SDK_DISABLED`` switches all telemetry off."""
    return os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"


def switched_off() -> str:
    """Return the variable by which all of this is switched off, as it is set; empty where none has it so."""
    if sdk_disabled():
        return "OTEL_SDK_DISABLED is true"
    if {"otel_crdb", "*"} & disabled_instrumentations():
        return "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS names otel_crdb"
    return ""


def requests_switched_off() -> str:
    """Return the variable by which requests have no span, as it is set; empty where none has it so."""
    if "django" in disabled_instrumentations():
        return "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS names django"
    if os.environ.get("OTEL_PYTHON_DJANGO_INSTRUMENT") == "False":  # as contrib reads it
        return "OTEL_PYTHON_DJANGO_INSTRUMENT is False"
    return ""


def disabled_instrumentations() -> frozenset[str]:
    """Return what ``OTEL_PYTHON_DISABLED_INSTRUMENTATIONS`` names; ``*`` is all of them."""
    words = os.environ.get("OTEL_PYTHON_DISABLED_INSTRUMENTATIONS", "").split(",")
    return frozenset(word.strip() for word in words if word.strip())
