# SPDX-License-Identifier: Apache-2.0
"""What ``opentelemetry-instrument`` calls first: the entry point ``opentelemetry_pre_instrument``.

Its loader runs where the interpreter starts, in every Python process below it: before ``manage.py`` and
``wsgi.py`` have set ``DJANGO_SETTINGS_MODULE``, before gunicorn's ``--chdir``, in a server's master, before
gevent has patched. Django is not to be touched there. Contrib's instrumentor asks for the settings, gets
none, and calls ``settings.configure()``: the application's own are gone. Django's connections, once imported,
are shared by all greenlets that gevent makes later. So the two instrumentors of Django, contrib's and ours,
are kept back until ``django.setup()``, which every Django program calls when it knows its settings.
"""

from __future__ import annotations

import functools
import logging
import os
import sys
from collections.abc import Callable
from typing import Any

logger = logging.getLogger(__name__)

#: This package's name among the entry points, by which the loader can be told to leave it out.
OURS = "otel_crdb"
#: Those that are kept back, in the order in which they are let go: ours brings contrib's with it.
KEPT_BACK = (OURS, "django")


def prepare() -> None:
    """Get the process ready for the loader. Never raises: that would end all instrumentation."""
    try:
        _prepare()
    except Exception:
        logger.exception("otel_crdb: could not prepare for opentelemetry-instrument")


def _prepare() -> None:
    # Here, and not above: a failed import would be the loader's trouble.
    from .config import disabled_instrumentations

    if {OURS, "*"} & disabled_instrumentations():
        return
    from opentelemetry.instrumentation.distro import BaseDistro  # type: ignore[attr-defined]

    from .stability import opt_in_to_stable_http

    opt_in_to_stable_http()  # contrib reads the variable once, with the first instrumentor that is loaded
    if _has_settings():  # the application has called the loader itself
        return
    if not os.environ.get("DJANGO_SETTINGS_MODULE"):
        logger.info("otel_crdb: no DJANGO_SETTINGS_MODULE yet: Django is instrumented by django.setup()")
    kept: dict[str, Callable[[], object]] = {}
    stop_keeping = _keep_back(BaseDistro, kept)
    _call_at_setup(kept, stop_keeping)


def _has_settings() -> bool:
    conf = sys.modules.get("django.conf")
    return conf is not None and bool(conf.settings.configured)


def _keep_back(distro: Any, kept: dict[str, Callable[[], object]]) -> Callable[[], None]:
    """Have every distro put what it would load of Django into ``kept``; return what ends that."""
    original = distro.load_instrumentor

    @functools.wraps(original)
    def load_instrumentor(self: Any, entry_point: Any, **options: Any) -> None:
        load = functools.partial(original, self, entry_point, **options)
        if entry_point.name in KEPT_BACK:
            kept[entry_point.name] = load
        else:
            load()

    def stop() -> None:
        if distro.load_instrumentor is load_instrumentor:
            distro.load_instrumentor = original

    distro.load_instrumentor = load_instrumentor
    return stop


def _call_at_setup(kept: dict[str, Callable[[], object]], stop_keeping: Callable[[], None]) -> None:
    """Have ``django.setup()`` first let go what was kept back."""
    import django  # its version and this function; neither settings nor connections

    original = django.setup

    @functools.wraps(original)
    def setup(*args: Any, **kwargs: Any) -> Any:
        # Settings that cannot be loaded are django.setup()'s own to tell; it may be called once more.
        if kept and _settings_can_be_loaded():
            stop_keeping()
            for name in KEPT_BACK:
                _let_go(name, kept.pop(name, None))
            if django.setup is setup:
                django.setup = original
        return original(*args, **kwargs)

    django.setup = setup


def _settings_can_be_loaded() -> bool:
    from django.conf import settings

    try:
        return settings.MIDDLEWARE is not None
    except Exception:  # noqa: BLE001 - a settings module may raise whatever it likes
        return False


def _let_go(name: str, load: Callable[[], object] | None) -> None:
    try:
        if load is not None and not _is_instrumented(name):
            load()
    except Exception:
        logger.exception("otel_crdb: instrumenting by %r failed; the application goes on without", name)


def _is_instrumented(name: str) -> bool:
    """Whether it has been done since: by the application's own call, or by ours in contrib's case."""
    from opentelemetry.instrumentation.django import DjangoInstrumentor

    from .instrumentor import CockroachDBInstrumentor

    instrumentor: Any = CockroachDBInstrumentor() if name == OURS else DjangoInstrumentor()
    return bool(instrumentor.is_instrumented_by_opentelemetry)
