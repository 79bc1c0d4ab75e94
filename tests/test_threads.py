# SPDX-License-Identifier: Apache-2.0
"""Threads and executors: what runs there has the context of who started it, and nothing else changes."""

import asyncio
import functools
import gc
import logging.handlers
import queue
import subprocess
import sys
import threading
import weakref
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing.pool import ThreadPool

import pytest
from opentelemetry import baggage, trace
from opentelemetry import context as context_api
from opentelemetry.context import Context
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

from otel_crdb import hooks, threads
from otel_crdb.state import current_request

DEADLINE = 30


@pytest.fixture
def carried():
    """Contexts are handed on for one test; afterwards nothing of it is left."""
    before = threading.Thread.start, ThreadPoolExecutor.submit, hooks.fault_counts()
    stop = threads.start()
    yield stop
    stop()
    assert (threading.Thread.start, ThreadPoolExecutor.submit, hooks.fault_counts()) == before


@pytest.fixture
def span():
    """A current span: its trace id."""
    tracer = TracerProvider(shutdown_on_exit=False).get_tracer("tests")
    with tracer.start_as_current_span("request") as current:
        yield current.get_span_context().trace_id


def trace_id():
    """Return the trace that is current here; 0 for none."""
    return trace.get_current_span().get_span_context().trace_id


class Worker(threading.Thread):
    """A thread with a ``run`` of its own."""

    def run(self):
        """Look."""
        self.seen = trace_id()


# --- the places ----------------------------------------------------------------------------------


def in_thread():
    seen = []
    thread = threading.Thread(target=lambda: seen.append(trace_id()))
    thread.start()
    thread.join(DEADLINE)
    return seen


def in_subclass():
    thread = Worker()
    thread.start()
    thread.join(DEADLINE)
    return [thread.seen]


def in_replaced_run():
    seen = []
    thread = threading.Thread()
    thread.run = lambda: seen.append(trace_id())
    thread.start()
    thread.join(DEADLINE)
    return seen


def in_timer():
    seen = []
    timer = threading.Timer(0, lambda: seen.append(trace_id()))
    timer.start()
    timer.join(DEADLINE)
    return seen


def in_submitted():
    with ThreadPoolExecutor(1) as pool:
        return [pool.submit(trace_id).result(DEADLINE)]


def in_mapped():
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda _: trace_id(), range(8)))


def in_loops_executor():
    async def ask():
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(1) as pool:
            return [
                await loop.run_in_executor(None, trace_id),
                await loop.run_in_executor(pool, trace_id),
                await asyncio.to_thread(trace_id),
            ]

    return asyncio.run(ask())


def in_thread_of_a_thread():
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(in_thread).result(DEADLINE)


PLACES = [
    in_thread,
    in_subclass,
    in_replaced_run,
    in_timer,
    in_submitted,
    in_mapped,
    in_loops_executor,
    in_thread_of_a_thread,
]
by_place = pytest.mark.parametrize("place", PLACES, ids=lambda place: place.__name__)


@by_place
def test_what_runs_elsewhere_has_the_trace_of_who_started_it(carried, span, place):
    """Threads of every kind, and calls of an executor, run in the context of who started them."""
    assert set(place()) == {span}


@by_place
def test_where_no_span_is_current_nothing_is_handed_on(carried, place):
    """Without a span there is nothing to hand on."""
    assert set(place()) == {0}


@pytest.mark.parametrize("place", [place for place in PLACES if place is not in_loops_executor])
def test_after_the_end_nothing_is_handed_on(carried, span, place):
    """What ``start`` returned ends it, also when it is called once more. Python's ``to_thread`` is not ours."""
    carried()
    carried()
    assert set(place()) == {0}


def test_unsampled_span_is_handed_on_too(carried):
    """The ids of a span that nobody records are ids too."""
    tracer = TracerProvider(sampler=ALWAYS_OFF, shutdown_on_exit=False).get_tracer("tests")
    with tracer.start_as_current_span("unsampled") as unsampled:
        assert in_thread() == in_submitted() == [unsampled.get_span_context().trace_id]


def test_baggage_goes_along_and_the_totals_do_not(carried, span):
    """The whole OpenTelemetry context is handed on, and the request's totals are not counted into."""
    token = context_api.attach(baggage.set_baggage("tenant", "7"))
    request = current_request.set(object())
    try:
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(lambda: baggage.get_baggage("tenant")).result(DEADLINE) == "7"
            assert pool.submit(lambda: current_request.get()).result(DEADLINE) is None
    finally:
        current_request.reset(request)
        context_api.detach(token)


def test_context_without_a_span_is_not_handed_on(carried):
    """Baggage alone is nobody's trace, and stays where it is."""
    token = context_api.attach(baggage.set_baggage("tenant", "7"))
    try:
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(lambda: baggage.get_baggage("tenant")).result(DEADLINE) is None
    finally:
        context_api.detach(token)


def test_each_submitted_call_has_the_context_of_its_own_caller(carried):
    """One worker serves many requests: each call has its caller's trace, and between them there is none."""
    tracer = TracerProvider(shutdown_on_exit=False).get_tracer("tests")
    with ThreadPoolExecutor(1) as pool:
        for _ in range(3):
            with tracer.start_as_current_span("request") as current:
                assert pool.submit(trace_id).result(DEADLINE) == current.get_span_context().trace_id
            assert pool.submit(trace_id).result(DEADLINE) == 0


# --- threads that outlive requests ---------------------------------------------------------------


def test_psycopg_pool_keeps_its_threads_to_itself(carried, span, crdb):
    """A pool that a request opens connects in threads of its own, which do not have that request's ids."""
    psycopg_pool = pytest.importorskip("psycopg_pool")
    seen = []
    with psycopg_pool.ConnectionPool(
        crdb.url, min_size=2, open=False, configure=lambda _: seen.append(trace_id())
    ) as pool:
        pool.wait(DEADLINE)
    assert seen == [0, 0]


def test_batches_of_opentelemetry_are_not_a_requests(carried, span):
    """A processor that a request makes exports in a thread without that request's ids."""
    seen = queue.Queue()

    class Exporter(InMemorySpanExporter):
        def export(self, spans):
            seen.put((threading.current_thread().name, trace_id()))
            return super().export(spans)

    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(Exporter(), schedule_delay_millis=1))
    provider.get_tracer("tests").start_span("other", Context()).end()
    name, current = seen.get(timeout=DEADLINE)
    provider.shutdown()
    assert name != threading.current_thread().name
    assert current == 0


def test_queue_listener_is_not_a_requests(carried, span):
    """The thread that takes log records from a queue has no ids of who started it."""
    seen = queue.Queue()

    class Looking(logging.Handler):
        def emit(self, record):
            seen.put(trace_id())

    records = queue.Queue()
    listener = logging.handlers.QueueListener(records, Looking())
    listener.start()
    records.put(logging.makeLogRecord({}))
    assert seen.get(timeout=DEADLINE) == 0
    listener.stop()


def test_workers_of_pools_have_nothing_of_the_first_call(carried, span):
    """An executor's worker begins without a context, also where its first call made it."""
    seen = []
    with ThreadPoolExecutor(1, initializer=lambda: seen.append(trace_id())) as pool:
        assert pool.submit(trace_id).result(DEADLINE) == span
    with ThreadPool(1, lambda: seen.append(trace_id())) as pool:
        seen.append(pool.apply(trace_id))
    assert seen == [0, 0, 0]


def test_timer_that_starts_itself_anew_loses_the_trace(carried, span):
    """The first beat of a heart that a request starts is the request's; the others are not."""
    seen, done = [], threading.Event()

    def beat():
        seen.append(trace_id())
        if len(seen) == 3:
            done.set()
        else:
            threading.Timer(0, beat).start()

    threading.Timer(0, beat).start()
    assert done.wait(DEADLINE)
    assert seen == [span, 0, 0]


@pytest.mark.parametrize("package", ["sentry_sdk", "ddtrace", "otel_crdb"])
def test_function_of_a_lasting_package_gets_nothing(carried, span, package):
    """By where the function is defined, also behind a partial, or as a method or a class's own ``run``."""

    def look(seen):
        seen.append(trace_id())

    look.__module__ = f"{package}.worker"
    seen = []
    thread = threading.Thread(target=functools.partial(look, seen))
    own = type("Own", (threading.Thread,), {"run": lambda self: look(seen)})
    own.run.__module__ = package
    for started in (thread, own(), threading.Timer(0, look, (seen,))):
        started.start()
        started.join(DEADLINE)
    assert seen == [0, 0, 0]


# --- nothing else changes --------------------------------------------------------------------------


def test_nothing_is_left_on_a_thread(carried, span):
    """A thread that has run has the attributes of any other, and is not kept alive."""
    seen = []
    own = threading.Thread()
    own.run = run = lambda: seen.append(vars(own)["run"] is run)
    own.start()
    thread = threading.Thread(target=lambda: seen.append("run" not in vars(threading.current_thread())))
    thread.start()
    thread.join(DEADLINE)
    own.join(DEADLINE)
    assert seen == [True, True]
    assert "run" not in vars(thread)
    reference = weakref.ref(thread)
    del thread
    gc.collect()
    assert reference() is None


def test_exception_of_a_thread_goes_where_it_went(carried, span, monkeypatch):
    """``threading.excepthook`` gets the very exception, and the thread."""
    got = queue.Queue()
    monkeypatch.setattr(threading, "excepthook", got.put)
    error = ValueError("broken")

    def fail():
        raise error

    thread = threading.Thread(target=fail, daemon=True)
    thread.start()
    hooked = got.get(timeout=DEADLINE)
    thread.join(DEADLINE)
    assert hooked.exc_value is error
    assert hooked.thread is thread
    assert thread.daemon


def test_exception_of_a_submitted_call_is_the_futures(carried, span):
    """A future has the result and the very exception of its call, with positional and named arguments."""
    error = ValueError("broken")

    def fail(fn, *, executor):
        raise error

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(fail, 1, executor=2).exception(DEADLINE) is error
        assert pool.submit(divmod, 7, 2).result(DEADLINE) == (3, 1)
        assert isinstance(pool.submit(None).exception(DEADLINE), TypeError)
        with pytest.raises(TypeError, match="fn"):
            pool.submit()
    with pytest.raises(RuntimeError, match="after shutdown"):
        pool.submit(trace_id)


def test_thread_that_python_refuses_is_refused_as_before(carried, span):
    """A second start, and a thread without ``__init__``, raise what they raised, and leave nothing behind."""
    thread = threading.Thread()
    thread.start()
    with pytest.raises(RuntimeError, match="only be started once"):
        thread.start()
    thread.join(DEADLINE)
    assert "run" not in vars(thread)

    class Uninitialised(threading.Thread):
        def __init__(self):
            pass

    with pytest.raises(RuntimeError, match="not called"):
        Uninitialised().start()


def test_thread_that_cannot_be_started_is_as_it_was(span, monkeypatch):
    """Where the system has no thread left, the error is the system's, and the thread's ``run`` its own."""

    def refuse(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    stop = threads.start()
    thread = Worker()
    try:
        with pytest.raises(RuntimeError, match="can't start new thread"):
            thread.start()
    finally:
        stop()
    assert "run" not in vars(thread)


def test_timer_can_be_cancelled(carried, span):
    """A timer that is cancelled does not fire."""
    fired = []
    timer = threading.Timer(DEADLINE, fired.append, (1,))
    timer.start()
    timer.cancel()
    timer.join(DEADLINE)
    assert not timer.is_alive()
    assert fired == []


def test_processes_are_none_of_it(carried, span):
    """What is handed to another process is what it was."""
    with ProcessPoolExecutor(1) as pool:
        assert pool.submit(divmod, 7, 2).result(DEADLINE) == (3, 1)


@pytest.mark.parametrize("place", [in_thread, in_subclass, in_timer, in_submitted])
def test_fault_of_ours_starts_the_thread_all_the_same(span, monkeypatch, caplog, place):
    """Where our own code fails, the thread runs without a context, and that is counted."""
    monkeypatch.setattr(hooks, "faults", type(hooks.faults)())

    def boom():
        raise ZeroDivisionError

    monkeypatch.setattr(threads, "_context_to_hand_on", boom)
    stop = threads.start()
    try:
        assert place() == [0]
    finally:
        stop()
    assert hooks.fault_counts()["ThreadPoolExecutor.submit" if place is in_submitted else "Thread.start"] == 1


# --- beside others -------------------------------------------------------------------------------


def test_others_who_wrap_afterwards_are_left_in_place(span):
    """What somebody has wrapped around ours stays when ours ends, does nothing, and is not put in twice."""
    original = threading.Thread.start
    stop = threads.start()
    ours = threading.Thread.start

    @functools.wraps(ours)
    def theirs(self):
        return ours(self)

    threading.Thread.start = theirs
    try:
        stop()
        assert threading.Thread.start is theirs
        assert in_thread() == [0]
        again = threads.start()
        assert threading.Thread.start is theirs
        assert in_thread() == [span]
    finally:
        threading.Thread.start = ours
        again()
    assert threading.Thread.start is original


#: A process with Sentry in it, whose wrapping stays for good.
WITH_SENTRY = """
import sys
import sentry_sdk
from sentry_sdk.integrations.threading import ThreadingIntegration
from otel_crdb import hooks, threads
from tests import test_threads

order = sys.argv[1]
if order == "before":
    threads.start()
sentry_sdk.init(
    "http://key@127.0.0.1:9/1",
    integrations=[ThreadingIntegration()],
    default_integrations=False,
    auto_enabling_integrations=False,
)
if order == "after":
    threads.start()
tracer = test_threads.TracerProvider(shutdown_on_exit=False).get_tracer("tests")
with tracer.start_as_current_span("request") as span:
    for place in test_threads.PLACES:
        if place is test_threads.in_replaced_run:
            continue  # Sentry itself hands such a function an argument that it does not take
        assert set(place()) == {span.get_span_context().trace_id}, place
assert not hooks.fault_counts(), hooks.fault_counts()
"""


def test_what_others_leave_on_a_thread_stays_there(span, monkeypatch):
    """Where somebody beneath puts a ``run`` of their own onto the thread, around ours, it is theirs to take away."""
    start = threading.Thread.start

    def wrapping_start(thread):
        within = thread.run
        thread.run = lambda: within()
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", wrapping_start)
    stop = threads.start()
    thread = Worker()
    try:
        thread.start()
        thread.join(DEADLINE)
    finally:
        stop()
    assert thread.seen == span
    assert "run" in vars(thread)


@pytest.mark.parametrize("order", ["before", "after"])
def test_beside_sentry(order):
    """Sentry's wrapping of ``run``, around ours or within, leaves the trace and the result."""
    pytest.importorskip("sentry_sdk")
    ended = subprocess.run(
        [sys.executable, "-c", WITH_SENTRY, order], capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == ""


def test_opentelemetrys_own_instrumentation_is_left_to_do_it(carried, span, monkeypatch):
    """Beside OpenTelemetry's instrumentation of threads we stand aside."""
    monkeypatch.setenv("OTEL_SEMCONV_STABILITY_OPT_IN", "http")  # the first instrumentor of all reads it
    contrib = pytest.importorskip("opentelemetry.instrumentation.threading").ThreadingInstrumentor()
    contrib.instrument()
    try:
        assert threads._context_to_hand_on() is None
        assert in_thread() == in_submitted() == [span]
    finally:
        contrib.uninstrument()
    assert threads._context_to_hand_on() is not None
