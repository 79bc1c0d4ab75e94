# SPDX-License-Identifier: Apache-2.0
"""``instrument()`` and ``uninstrument()``: the one list of hooks, put in and taken out."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from django.conf import settings
from django.core.signals import got_request_exception
from django.db import connections as open_wrappers
from opentelemetry.instrumentation._semconv import _OpenTelemetrySemanticConventionStability
from opentelemetry.instrumentation.django import DjangoInstrumentor
from opentelemetry.instrumentation.instrumentor import BaseInstrumentor  # type: ignore[attr-defined]

from . import config, pipeline, recording, requests, signals, state, transactions

logger = logging.getLogger(__name__)

REQUEST_MIDDLEWARE = f"{requests.__name__}.{requests.RequestMiddleware.__qualname__}"
OPT_IN = "OTEL_SEMCONV_STABILITY_OPT_IN"


class CockroachDBInstrumentor(BaseInstrumentor):  # type: ignore[misc]
    """OpenTelemetry's form of :func:`otel_crdb.instrument`, for ``opentelemetry-instrument``."""

    #: What :meth:`_uninstrument` undoes, last first.
    _undo: list[Callable[[], None]]

    def instrumentation_dependencies(self) -> Collection[str]:
        """Return what is instrumented."""
        return ("django >= 4.2", "django-cockroachdb >= 4.2")

    def instrument(self, **options: Any) -> None:
        """Instrument; see :func:`otel_crdb.instrument` for the options."""
        if not self.is_instrumented_by_opentelemetry:
            opt_in_to_stable_http()
        super().instrument(**options)

    def _instrument(self, **options: Any) -> None:
        # The loader of opentelemetry-instrument hands these to every instrumentor.
        options.pop("skip_dep_check", None)
        options.pop("raise_exception_on_conflict", None)
        chosen = config.read(options)
        self._undo = []
        if config.sdk_disabled():
            logger.info("otel_crdb: OTEL_SDK_DISABLED is true: nothing is instrumented.")
            return
        before = settings.MIDDLEWARE  # raises where Django is not configured, before anything is changed
        pipeline.set_up(chosen)
        try:
            signals.use(chosen)
            self._undo.append(signals.stop)
            recording.start()
            self._undo.append(recording.stop)
            self._hook_requests(chosen, before)
            if chosen.retry_atomic_requests is not False:
                self._retry_views(chosen.retry_atomic_requests)
        except BaseException:
            self._take_out()
            raise

    def _retry_views(self, option: bool | Mapping[str, Any]) -> None:
        from . import view_retry  # what a session or a message is, only those need that ask for it

        policy = view_retry.policy_of(option)
        if policy is not None:
            self._undo.append(view_retry.start(policy))

    def _uninstrument(self, *, flush: bool = True, **_: Any) -> None:
        for wrapper in open_wrappers.all(initialized_only=True):  # this thread's; others are out of reach
            record = vars(wrapper).get(state.RECORD)
            if record is not None:
                transactions.forget(record)
        if flush:
            pipeline.flush(_config_in_force(), timeout=5)
        self._take_out()

    def _take_out(self) -> None:
        while self._undo:
            self._undo.pop()()

    def _hook_requests(self, chosen: config.Config, before: Any) -> None:
        """Have contrib put in its middleware, and ours stand where it stood."""
        contrib = DjangoInstrumentor()
        theirs = contrib._opentelemetry_middleware
        if not contrib.is_instrumented_by_opentelemetry:
            settings.MIDDLEWARE = list(before)
            contrib.instrument(tracer_provider=chosen.tracer_provider, meter_provider=chosen.meter_provider)
            self._undo.append(contrib.uninstrument)
        rest = [name for name in settings.MIDDLEWARE if name != REQUEST_MIDDLEWARE]  # of an earlier time
        ours = [REQUEST_MIDDLEWARE if name == theirs else name for name in rest]
        settings.MIDDLEWARE = ours

        def restore() -> None:
            untouched = settings.MIDDLEWARE is ours
            rest = [name for name in settings.MIDDLEWARE if name != REQUEST_MIDDLEWARE]
            settings.MIDDLEWARE = before if untouched else rest

        self._undo.append(restore)
        got_request_exception.connect(requests.receive_exception, dispatch_uid=REQUEST_MIDDLEWARE)
        self._undo.append(lambda: got_request_exception.disconnect(dispatch_uid=REQUEST_MIDDLEWARE))


def _config_in_force() -> config.Config:
    return signals.current.config if signals.current is not None else config.Config()


def opt_in_to_stable_http() -> None:
    """Ask contrib for the stable HTTP names, beside whatever else the process has opted in to.

    The variable is read once in a process: where contrib has read it before us, a note says so.
    """
    words = [word.strip() for word in os.environ.get(OPT_IN, "").split(",") if word.strip()]
    if {"http", "http/dup"} & set(words):
        return
    os.environ[OPT_IN] = ",".join([*words, "http"])
    if _OpenTelemetrySemanticConventionStability._initialized:
        logger.warning(
            "otel_crdb: %s was read before instrument() could ask for 'http': request spans keep the old "
            "attribute names. Call otel_crdb.instrument() first, or set the variable yourself.",
            OPT_IN,
        )


def instrument(**options: Any) -> None:
    """Turn requests, transactions, statements and connections of this process into telemetry.

    To be called where the process starts, before Django's handler is made (``wsgi.py``, ``asgi.py``, a
    worker's or a command's first lines), with ``DJANGO_SETTINGS_MODULE`` set. A second call does nothing.

    Providers that the application has set are used. For the signals that have none, providers with OTLP
    exporters are set up by the standard ``OTEL_*`` variables. ``OTEL_SDK_DISABLED=true``: nothing is done.

    Args:
        **options: fields of :class:`otel_crdb.config.Config`:
            ``tracer_provider``, ``meter_provider``, ``logger_provider`` (default: the global ones);
            ``statement_owner``, ``"otel_crdb"`` (default) or ``"driver"``: who makes the statement span
            where a driver instrumentation is at work too;
            ``node_id`` (bool, default True): whether the gateway's node id is told;
            ``query_text_limit`` (int, default 4096): longest ``db.query.text``, in characters;
            ``retry_atomic_requests`` (bool or options of :func:`retry_view`, default False): whether views
            that ``ATOMIC_REQUESTS`` makes atomic are run again where their transaction was refused.

    Raises:
        TypeError: there is no such option, or its value has the wrong type.
        ValueError: the option has no such value.

    """
    instrumentor = CockroachDBInstrumentor()
    if not instrumentor.is_instrumented_by_opentelemetry:
        instrumentor.instrument(**options)


def uninstrument() -> None:
    """Take every hook out again, after a flush of at most 5 s. Does nothing where there is none."""
    instrumentor = CockroachDBInstrumentor()
    if instrumentor.is_instrumented_by_opentelemetry:
        instrumentor.uninstrument()


@contextmanager
def instrumented_for_a_while(**options: Any) -> Iterator[None]:
    """Instrument with these options in place of those in force, and put back at the end what was in force.

    Nothing is flushed: what has been recorded leaves when it would have left.
    """
    instrumentor = CockroachDBInstrumentor()
    outer = _config_in_force() if instrumentor.is_instrumented_by_opentelemetry else None
    if outer is not None:
        instrumentor.uninstrument(flush=False)
    try:
        instrumentor.instrument(**{**_options_of(outer or config.Config()), **options})
        yield
    finally:
        if instrumentor.is_instrumented_by_opentelemetry:
            instrumentor.uninstrument(flush=False)
        if outer is not None:
            instrumentor.instrument(**_options_of(outer))


def _options_of(chosen: config.Config) -> dict[str, Any]:
    return {field.name: getattr(chosen, field.name) for field in dataclasses.fields(chosen)}


def flush(timeout: float = 10.0) -> bool:
    """Export what has been recorded and not yet sent, before a process ends or a test looks.

    Args:
        timeout: seconds for all signals together, 10 by default.

    Returns:
        Whether everything was handed over in time.

    """
    return pipeline.flush(_config_in_force(), timeout)
