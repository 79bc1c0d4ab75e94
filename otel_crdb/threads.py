# SPDX-License-Identifier: Apache-2.0
"""What a thread does belongs to the trace of who started it.

Python's threads begin with an empty context: their log lines have no ids, and their statements begin traces
of their own. So a thread that is started while a span is current runs in the OpenTelemetry context of who
started it, and so does each call that is submitted to a ``ThreadPoolExecutor`` (``map``, ``run_in_executor``
and ``to_thread`` submit too). Only that context is handed on: the totals of a request are those of its own
thread.

Some threads outlive the request that happened to start them: its ids would be wrong in all that they do
later. They get nothing: the workers of an executor (only each submitted call has a context), the threads of
libraries that serve the whole process (``LASTING``, by where the function that runs is defined), and a timer
that a timer starts anew. A loop of the application's own, if its first request starts it, cannot be told from
work for that request: start it in ``AppConfig.ready()``.
"""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import MethodType
from typing import TYPE_CHECKING, Any

from opentelemetry import context as context_api
from opentelemetry import trace

from .hooks import Hook

if TYPE_CHECKING:
    from opentelemetry.context import Context

#: Packages that keep threads for the whole process, started by whoever needs them first.
LASTING = frozenset(
    {
        "amqp",
        "apscheduler",
        "asyncio",
        "celery",
        "concurrent",
        "datadog",
        "ddtrace",
        "elasticapm",
        "google",
        "grpc",
        "kafka",
        "kombu",
        "ldclient",
        "logging",
        "multiprocessing",
        "newrelic",
        "opentelemetry",
        "otel_crdb",
        "posthog",
        "prometheus_client",
        "psycopg_pool",
        "pymongo",
        "redis",
        "rollbar",
        "sentry_sdk",
        "statsd",
        "watchdog",
    }
)
CONTRIBS = "opentelemetry.instrumentation.threading"

_at_work = False
#: What is put in: ours and theirs, by name. What somebody else has wrapped since cannot be taken out: it
#: stays, does nothing, and is not put in twice.
_put: dict[str, tuple[Callable[..., Any], Callable[..., Any] | None]] = {}


def start() -> Callable[[], None]:
    """Hand contexts on to threads and executors; return what ends it."""
    global _at_work
    _put_in(threading.Thread, "start", THREAD_START.around)
    _put_in(ThreadPoolExecutor, "submit", _submitting)
    _at_work = True
    return _stop


def _stop() -> None:
    global _at_work
    _at_work = False
    _take_out(threading.Thread, "start")
    _take_out(ThreadPoolExecutor, "submit")


def _put_in(owner: type, name: str, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    if name not in _put:
        theirs = vars(owner).get(name)  # None: inherited, as by gevent's threads
        # Called as the class hands it out: what others have put there (wrapt's) finds its instance so.
        _put[name] = wrap(getattr(owner, name)), theirs
        setattr(owner, name, _put[name][0])


def _take_out(owner: type, name: str) -> None:
    ours, theirs = _put.get(name, (None, None))
    if ours is None or vars(owner).get(name) is not ours:
        return
    if theirs is None:
        delattr(owner, name)
    else:
        setattr(owner, name, theirs)
    del _put[name]


def _context_to_hand_on() -> Context | None:
    """Return the context that is to be current elsewhere too; None where there is nothing to hand on."""
    if not _at_work:
        return None
    context = context_api.get_current()
    if not trace.get_current_span(context).get_span_context().is_valid:
        return None
    return None if _does_contrib() else context


def _is_lasting(function: Any) -> bool:
    while isinstance(function, functools.partial):
        function = function.func
    module = getattr(function, "__module__", None)
    return isinstance(module, str) and module.partition(".")[0] in LASTING


def _does_contrib() -> bool:
    """Whether OpenTelemetry's own instrumentation of threads is at work: nothing is imported to find out."""
    contrib = sys.modules.get(CONTRIBS)
    return contrib is not None and bool(contrib.ThreadingInstrumentor().is_instrumented_by_opentelemetry)


# --- threads -------------------------------------------------------------------------------------


class _Carried:
    """A thread that is about to be started: its ``run``, on the instance, begins with the context.

    On the instance, so that a subclass with a ``run`` of its own is reached. Before that runs, it is gone.
    """

    def __init__(self, thread: threading.Thread, context: Context) -> None:
        self._thread = thread
        self._own: Callable[[], None] | None = vars(thread).get("run")
        run: Callable[[], None] = thread.run

        def carried_run(_: threading.Thread) -> None:
            self._put_back()
            token = context_api.attach(context)
            try:
                run()
            finally:
                context_api.detach(token)

        # A method, as what it stands in for: Sentry wraps the function beneath, and hands the thread in.
        self._method = MethodType(carried_run, thread)
        vars(thread)["run"] = self._method

    def finish(self, _result: Any, error: BaseException | None) -> None:
        """Leave nothing on a thread that could not be started."""
        if error is not None:
            self._put_back()

    def _put_back(self) -> None:
        attributes = vars(self._thread)
        if attributes.get("run") is not self._method:
            return  # somebody has wrapped it since
        if self._own is None:
            del attributes["run"]
        else:
            attributes["run"] = self._own


def _begin_thread(thread: threading.Thread) -> _Carried | None:
    if not getattr(thread, "_initialized", True):
        return None  # Python is about to refuse it
    if isinstance(thread, threading.Timer) and isinstance(threading.current_thread(), threading.Timer):
        return None  # started anew by itself, perhaps for ever
    context = _context_to_hand_on()
    return None if context is None or _is_lasting(_function_of(thread)) else _Carried(thread, context)


def _function_of(thread: threading.Thread) -> Any:
    """Return what a thread will run."""
    if isinstance(thread, threading.Timer):
        return getattr(thread, "function", None)
    run = type(thread).run
    return run if run is not threading.Thread.run else getattr(thread, "_target", None)


THREAD_START = Hook("Thread.start", _begin_thread)


# --- executors -----------------------------------------------------------------------------------


def _begin_submit(function: Any) -> Callable[..., Any] | None:
    # By whomever: where the function is defined tells nothing, for others (Sentry, ddtrace) wrap it.
    context = _context_to_hand_on()
    return None if context is None else functools.partial(_call_in, context, function)


def _call_in(context: Context, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    token = context_api.attach(context)
    try:
        return function(*args, **kwargs)
    finally:
        context_api.detach(token)


SUBMIT = Hook("ThreadPoolExecutor.submit", _begin_submit)


def _submitting(submit: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(submit)
    def submit_in_context(*args: Any, **kwargs: Any) -> Any:
        if len(args) > 1:
            executor, function, *rest = args
            carried = SUBMIT.run(function)
            if carried is not None:
                return submit(executor, carried, *rest, **kwargs)
        return submit(*args, **kwargs)

    return submit_in_context
