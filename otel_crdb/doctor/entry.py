# SPDX-License-Identifier: Apache-2.0
"""The application as a server loads it, and what is done in which order while it is loaded."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import wraps
from types import FrameType
from typing import Any, Literal

from django.conf import settings
from django.core.handlers.base import BaseHandler

from otel_crdb import config, instrumentor

from . import process, source, static
from .findings import Finding, Unusable

#: Packages whose frames stand between a line of the application and what it calls.
BETWEEN = frozenset({"otel_crdb", "opentelemetry", "django", "importlib", "contextlib", "functools"})


@dataclass(frozen=True, slots=True)
class Step:
    """Something that was done while the application was loaded."""

    did: Literal["instrument", "handler"]
    #: Which line of the application did it: ``bank/wsgi.py:9``.
    where: str
    #: Whether telemetry was made, and our middleware stood in the settings, when it was done.
    instrumented: bool
    middleware: bool
    #: Whether that line only set Django up, and ``opentelemetry-instrument`` waited for it.
    zero_code: bool = False


@dataclass(slots=True)
class Loaded:
    """An application that was loaded."""

    #: ``bank.wsgi:application``; empty: there is none.
    name: str = ""
    #: Whether ``instrument()`` had been called before it was loaded.
    instrumented_before: bool = False
    steps: list[Step] = field(default_factory=list)
    #: What ``instrument()`` refused; the application does not start then.
    refused: Exception | None = None

    def first(self, did: str) -> Step | None:
        """Return the first step of that kind."""
        return next((step for step in self.steps if step.did == did), None)


def load(name: str) -> Loaded:
    """Load ``bank.wsgi:application`` (or ``bank.wsgi.application``, ``bank.wsgi``) and watch.

    Raises:
        Unusable: it cannot be loaded, for a reason of the application's own.

    """
    loaded = Loaded(name, instrumented_before=process.was_asked())
    with _watching(loaded):
        module = name if source.is_module(name) else source.module_of(name) or name
        attribute = name.removeprefix(module).lstrip(":.") or "application"
        try:
            found = importlib.import_module(module)
        except (Exception, SystemExit) as error:
            if loaded.refused is None:
                raise Unusable(f"{name} cannot be loaded: {_told(error)}") from error
            return loaded
        if not hasattr(found, attribute):
            raise Unusable(f"{name} cannot be loaded: {module} has no {attribute!r}")
    return loaded


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".strip().splitlines()[0]


def _watching(loaded: Loaded) -> ExitStack:
    """Note who instruments and who makes a handler, until the stack is closed."""
    stack = ExitStack()

    def instrumenting(call: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(call)
        def watched(*args: Any, **kwargs: Any) -> Any:
            _note(loaded, "instrument")
            try:
                return call(*args, **kwargs)
            except Exception as error:
                loaded.refused = error
                raise

        return watched

    def making_handler(call: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(call)
        def watched(*args: Any, **kwargs: Any) -> Any:
            _note(loaded, "handler")
            return call(*args, **kwargs)

        return watched

    _replace(stack, instrumentor, "instrument", instrumenting)
    _replace(stack, instrumentor.CockroachDBInstrumentor, "instrument", instrumenting)
    _replace(stack, BaseHandler, "load_middleware", making_handler)
    return stack


def _replace(stack: ExitStack, holder: Any, name: str, around: Callable[[Any], Any]) -> None:
    own = vars(holder)[name]
    setattr(holder, name, around(own))
    stack.callback(setattr, holder, name, own)


def _note(loaded: Loaded, did: Literal["instrument", "handler"]) -> None:
    where, zero_code = _caller()
    if any(step.did == did and step.where == where for step in loaded.steps):
        return  # the function, and the method that it calls
    middleware = instrumentor.REQUEST_MIDDLEWARE in settings.MIDDLEWARE if settings.configured else False
    loaded.steps.append(Step(did, where, process.is_instrumented(), middleware, zero_code))


def _caller() -> tuple[str, bool]:
    """Return the innermost line of the application's own, and whether ours for zero code lies within it."""
    frame: FrameType | None = sys._getframe(2)
    zero_code = False
    while frame is not None:
        module = str(frame.f_globals.get("__name__", ""))
        zero_code = zero_code or module == "otel_crdb.zero_code"
        if module.partition(".")[0] not in BETWEEN and not frame.f_code.co_filename.startswith("<frozen"):
            return f"{source.shown(frame.f_code.co_filename)}:{frame.f_lineno}", zero_code
        frame = frame.f_back
    return "?", zero_code


# --- what it comes to ------------------------------------------------------------------------------------


def of_loading(loaded: Loaded) -> Iterator[Finding]:
    """Tell who instruments, and whether that was in time."""
    if loaded.refused is not None:
        told = str(loaded.refused)
        yield Finding("fail", "options", told, static.mend_of_option(told), "option-refused")
    asked, handler = loaded.first("instrument"), loaded.first("handler")
    if asked is None:
        yield from _not_asked_by_entry(loaded, handler)
    elif config.switched_off():
        yield Finding("note", "instrument()", f"is called at {asked.where}, and does nothing")
    elif handler is None:
        yield Finding("ok", "instrument()", f"is called at {asked.where}")
    elif loaded.steps.index(handler) < loaded.steps.index(asked) and not handler.instrumented:
        yield static.called_late(asked.where, handler.where)
    elif loaded.steps.index(handler) < loaded.steps.index(asked):
        yield Finding("note", "instrument()", f"was called before {asked.where}, which now does nothing")
    else:
        who = "by opentelemetry-instrument, as Django is set up" if asked.zero_code else ""
        what = f"is called {who} at {asked.where}, before the handler is made"
        yield Finding("ok", "instrument()", " ".join(what.split()))
    yield from _middleware_at_handler(handler)


def _not_asked_by_entry(loaded: Loaded, handler: Step | None) -> Iterator[Finding]:
    if process.is_zero_code() and loaded.instrumented_before:
        yield Finding("ok", "instrument()", "was called by opentelemetry-instrument, before the application")
        return
    path, _, line = handler.where.rpartition(":") if handler else ("", "", "")
    module = source.read(source.module_of(loaded.name)) if loaded.name else None
    path = path or (module.shown if module else "where the process starts")
    if loaded.instrumented_before:
        what = f"this process is instrumented, but {path} does not call instrument(): a server is not"
        mend = f"{path}:{line}: above get_…_application(): {static.INSTRUMENT}"
        yield Finding("fail", "instrument()", what, mend, "not-instrumented")
    else:
        yield static.not_called(path, int(line or 0))


def _middleware_at_handler(handler: Step | None) -> Iterator[Finding]:
    """Tell where the handler was made without our middleware, although all was instrumented."""
    if handler is None or not handler.instrumented or handler.middleware:
        return
    if not config.requests_switched_off():
        yield process.middleware_missing(
            "settings.MIDDLEWARE was replaced between instrument() and the handler, made at "
            f"{handler.where}: no request has a span"
        )
