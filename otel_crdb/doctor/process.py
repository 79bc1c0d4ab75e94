# SPDX-License-Identifier: Apache-2.0
"""What is instrumented in this process, by what it is seen to be."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from django.conf import settings
from opentelemetry.instrumentation._semconv import (
    _OpenTelemetrySemanticConventionStability as Stability,
)
from opentelemetry.instrumentation._semconv import _OpenTelemetryStabilitySignalType as StabilitySignal
from opentelemetry.instrumentation._semconv import _StabilityMode

from otel_crdb import config, instrumentor, recording, signals
from otel_crdb.stability import OPT_IN

from .findings import Finding

ZERO_CODE = "opentelemetry.instrumentation.auto_instrumentation._load"
#: Longer values of options are cut.
LONGEST_VALUE = 60


def is_instrumented() -> bool:
    """Whether telemetry is made in this process."""
    return signals.current is not None and not signals.current.silent


def was_asked() -> bool:
    """Whether somebody has called ``instrument()``, with or without effect."""
    return bool(instrumentor.CockroachDBInstrumentor().is_instrumented_by_opentelemetry)


def is_zero_code() -> bool:
    """Whether this process was started by ``opentelemetry-instrument``."""
    return ZERO_CODE in sys.modules


def options_in_force() -> config.Config:
    """Return the options in force, or the defaults."""
    return signals.current.config if signals.current is not None else config.Config()


def of_middleware() -> Iterator[Finding]:
    """Tell where the request middleware has been taken out of the settings again."""
    names = list(settings.MIDDLEWARE)
    if instrumentor.REQUEST_MIDDLEWARE in names:
        where = names.index(instrumentor.REQUEST_MIDDLEWARE) + 1
        yield Finding("ok", "requests", f"the middleware is in place, {where} of {len(names)}")
    elif not config.requests_switched_off():
        yield middleware_missing("settings.MIDDLEWARE was replaced after instrument(): no request has a span")


def middleware_missing(what: str) -> Finding:
    """No request will have a span."""
    mend = "set MIDDLEWARE in the settings module only, or change it before otel_crdb.instrument() is called"
    return Finding("fail", "requests", what, mend, "middleware-missing")


def of_hooks() -> Iterator[Finding]:
    """Tell whether all hooks on ``DatabaseWrapper`` are in place, and who overrides one."""
    from django_cockroachdb.base import DatabaseWrapper

    missing = [
        name for name in recording.WRAPPER_HOOKS if not hasattr(vars(DatabaseWrapper).get(name), "hook")
    ]
    if missing:
        what = f"DatabaseWrapper.{missing[0]} was replaced after instrument(): {len(missing)} hooks are gone"
        mend = "call otel_crdb.instrument() after whatever replaces methods of DatabaseWrapper"
        yield Finding("fail", "database", what, mend, "hooks-missing")
    else:
        count = len(recording.WRAPPER_HOOKS)
        yield Finding("ok", "database", f"{count} hooks on django_cockroachdb's DatabaseWrapper are in place")


def of_opt_in() -> Iterator[Finding]:
    """Tell where contrib had read the opt-in before ``instrument()`` could ask for the stable HTTP names."""
    mode = Stability._get_opentelemetry_stability_opt_in_mode(StabilitySignal.HTTP)
    if mode is _StabilityMode.DEFAULT:
        what = (
            f"{OPT_IN} was read by another before instrument() could set it: request spans keep "
            "the old names (http.method)"
        )
        mend = f"{OPT_IN}=http in the environment, or call otel_crdb.instrument() first"
        yield Finding("warn", "requests", what, mend, "opt-in-read-early")


def of_driver() -> Iterator[Finding]:
    """Tell which other instrumentations are at work, and where two of them sit on the same driver."""
    found = neighbours()
    drivers = [each for each in found if each.name.startswith("opentelemetry-instrumentation-psycopg")]
    for each in found:
        yield Finding("note", "beside", f"{each.name} {each.version}: {each.note}".replace(" :", ":"))
    if drivers and _datadog_on_driver(found):
        what = f"{drivers[0].name} and ddtrace both instrument the driver"
        mend = "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS=psycopg,psycopg2, or DD_TRACE_PSYCOPG_ENABLED=false"
        yield Finding("warn", "driver", what, mend, "two-instrumentations")
    elif drivers and options_in_force().statement_owner == "otel_crdb":
        what = f"{drivers[0].name} instruments the driver too; its statement spans are suppressed"
        name = drivers[0].name.removeprefix("opentelemetry-instrumentation-")
        mend = f'OTEL_PYTHON_DISABLED_INSTRUMENTATIONS={name}, or instrument(statement_owner="driver")'
        yield Finding("warn", "driver", what, mend, "two-instrumentations")


def neighbours() -> list[Any]:
    """Return what else observes this process."""
    try:
        from otel_crdb import neighbours as found_here

        return list(found_here.found())
    except Exception:  # noqa: BLE001 - others' internals; to know of them is a courtesy
        return []


def _datadog_on_driver(found: list[Any]) -> bool:
    modules = (sys.modules.get(name) for name in ("psycopg", "psycopg2"))
    return any(each.name == "ddtrace" for each in found) and any(
        getattr(module, "_datadog_patch", False) for module in modules
    )


def of_options() -> Iterator[Finding]:
    """Tell the options that have not their defaults, and where each was read."""
    chosen = options_in_force()
    given = [
        f"{name}={_shortened(getattr(chosen, name))} ({origin})" for name, origin in chosen.origins.items()
    ]
    yield Finding("ok", "options", "; ".join(given) if given else "all have their defaults")


def _shortened(value: Any) -> str:
    text = f"<{type(value).__name__}>" if hasattr(value, "__dict__") else repr(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}…"
