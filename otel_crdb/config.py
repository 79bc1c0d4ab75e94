# SPDX-License-Identifier: Apache-2.0
"""The options of :func:`otel_crdb.instrument`: type, default, meaning, check."""

from __future__ import annotations

import dataclasses
import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

if TYPE_CHECKING:
    from opentelemetry._logs import LoggerProvider
    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import TracerProvider

StatementOwner = Literal["otel_crdb", "driver"]
ExceptionSignal = Literal["spans", "logs", "logs/dup"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """What ``instrument()`` was asked for."""

    #: Providers to use instead of the global ones. ``None``: the application's global provider,
    #: or, where it has set none, one that this package sets up with OTLP exporters.
    tracer_provider: TracerProvider | None = None
    meter_provider: MeterProvider | None = None
    logger_provider: LoggerProvider | None = None
    #: Who makes the statement span where a driver instrumentation (opentelemetry-instrumentation-psycopg
    #: and the like) is at work too: we do and it is suppressed, or it does and we stand back.
    statement_owner: StatementOwner = "otel_crdb"
    #: Whether ``cockroachdb.node.id`` is read from the backend's key. Switch it off behind a pooler
    #: that announces ``crdb_version`` but invents that key.
    node_id: bool = True
    #: Longest ``db.query.text``, in characters, at most 4096.
    query_text_limit: int = 4096

    #: Whether views that ``ATOMIC_REQUESTS`` makes atomic are run again where their transaction was refused:
    #: no, yes, or options of :func:`otel_crdb.retry_view`.
    retry_atomic_requests: bool | Mapping[str, Any] = False

    def __post_init__(self) -> None:
        """Raise :class:`TypeError` or :class:`ValueError` where a value cannot be meant."""
        owners = get_args(StatementOwner)
        if self.statement_owner not in owners:
            raise ValueError(f"statement_owner is one of {owners}, not {self.statement_owner!r}")
        if not isinstance(self.node_id, bool):
            raise TypeError(f"node_id is a bool, not {self.node_id!r}")
        if not isinstance(self.retry_atomic_requests, (bool, Mapping)):
            raise TypeError(
                "retry_atomic_requests is a bool or options of retry_view, not "
                f"{self.retry_atomic_requests!r}"
            )
        if isinstance(self.query_text_limit, bool) or not isinstance(self.query_text_limit, int):
            raise TypeError(f"query_text_limit is an int, not {self.query_text_limit!r}")
        if not 0 <= self.query_text_limit <= 4096:
            raise ValueError(f"query_text_limit is from 0 to 4096, not {self.query_text_limit}")


def read(options: dict[str, Any]) -> Config:
    """Make a :class:`Config` of keyword arguments.

    Raises:
        TypeError: an option that does not exist; the message names the nearest one that does.

    """
    names = [field.name for field in dataclasses.fields(Config)]
    for name in options:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(names)}"
            raise TypeError(f"otel_crdb.instrument() has no option {name!r}{hint}")
    return Config(**options)


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
