# SPDX-License-Identifier: Apache-2.0
"""``instrument()`` and ``uninstrument()``: the one list of hooks, put in and taken out."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.core.signals import got_request_exception, request_finished
from django.db import connections as open_wrappers
from opentelemetry.instrumentation.django import DjangoInstrumentor
from opentelemetry.instrumentation.instrumentor import BaseInstrumentor  # type: ignore[attr-defined]

from . import (
    config,
    database_log,
    exits,
    option_sources,
    pipeline,
    recording,
    requests,
    secret_values,
    signals,
    state,
    threads,
    transactions,
)
from .hooks import CarefulLogger
from .logs import python_logging
from .stability import opt_in_to_stable_http

logger = CarefulLogger(__name__)

#: Of Django's signals.
RECEIVERS = (
    (got_request_exception, requests.receive_exception),
    (request_finished, requests.receive_finished),
)
REQUEST_MIDDLEWARE = f"{requests.__name__}.{requests.RequestMiddleware.__qualname__}"


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
        if _settings_are_being_loaded():  # Django would keep the half that it has
            raise ImproperlyConfigured(
                "otel_crdb.instrument() was called while the settings are loaded: call it in wsgi.py, "
                "asgi.py or manage.py, or in an AppConfig's ready()"
            )
        chosen = option_sources.read(options)
        self._undo = []
        off = config.switched_off()
        if off:
            logger.info("otel_crdb: %s: nothing is instrumented.", off)
            return
        before = settings.MIDDLEWARE  # raises where Django is not configured, before anything is changed
        pipeline.set_up(chosen)
        try:
            signals.use(chosen)
            self._undo.append(signals.stop)
            self._undo.append(exits.watch(flush, partial(_end, chosen)))
            recording.start()
            self._undo.append(recording.stop)
            secret_values.configure(
                enabled=chosen.mask_secrets, names=chosen.secret_names, patterns=chosen.secret_patterns
            )
            self._undo.append(python_logging.start(chosen))
            if chosen.thread_context:
                self._undo.append(threads.start())
            no_requests = config.requests_switched_off()
            if no_requests:
                logger.info("otel_crdb: %s: requests have no spans.", no_requests)
            else:
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
        database_log.flush()
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
            contrib.instrument(
                tracer_provider=signals.tracer_provider_of(chosen),
                meter_provider=signals.meter_provider_of(chosen),
            )
            self._undo.append(contrib.uninstrument)
        rest = [name for name in settings.MIDDLEWARE if name != REQUEST_MIDDLEWARE]  # of an earlier time
        ours = [REQUEST_MIDDLEWARE if name == theirs else name for name in rest]
        settings.MIDDLEWARE = ours

        def restore() -> None:
            untouched = settings.MIDDLEWARE is ours
            rest = [name for name in settings.MIDDLEWARE if name != REQUEST_MIDDLEWARE]
            settings.MIDDLEWARE = before if untouched else rest

        self._undo.append(restore)
        # Not weak: Django keeps something of each weak connection for good; the function lives on anyway.
        for signal, receiver in RECEIVERS:
            signal.connect(receiver, dispatch_uid=REQUEST_MIDDLEWARE, weak=False)
            self._undo.append(partial(signal.disconnect, dispatch_uid=REQUEST_MIDDLEWARE))


def _settings_are_being_loaded() -> bool:
    module = sys.modules.get(os.environ.get("DJANGO_SETTINGS_MODULE", ""))
    return bool(getattr(getattr(module, "__spec__", None), "_initializing", False))


def _config_in_force() -> config.Config:
    return signals.current.config if signals.current is not None else config.Config()


def instrument(**options: Any) -> None:
    """Turn requests, transactions, statements and connections of this process into telemetry.

    To be called where the process starts, before Django's handler is made (``wsgi.py``, ``asgi.py``, a
    worker's or a command's first lines), with ``DJANGO_SETTINGS_MODULE`` set. A second call does nothing.

    Providers that the application has set are used. For the signals that have none, providers with OTLP
    exporters are set up by the standard ``OTEL_*`` variables. ``OTEL_SDK_DISABLED=true``: nothing is done.

    Args:
        **options: those of :class:`otel_crdb.config.Config`, all in ``docs/options.md``. An option that
            is not given here is taken from the variable ``OTEL_CRDB_<NAME>``, else from the setting
            ``OTEL_CRDB``.

    Raises:
        TypeError: there is no such option, or its value has the wrong type.
        ValueError: the option has no such value.
        django.core.exceptions.ImproperlyConfigured: the same of a variable or of the setting.

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
    return {option.name: getattr(chosen, option.name) for option in config.options()}


def flush(timeout: float = 10.0) -> bool:
    """Export what has been recorded and not yet sent, before a process ends or a test looks.

    Args:
        timeout: seconds for all signals together, 10 by default.

    Returns:
        Whether everything was handed over in time.

    """
    database_log.flush()
    return pipeline.flush(_config_in_force(), timeout)


def _end(chosen: config.Config) -> None:
    database_log.flush()
    pipeline.end(chosen)
