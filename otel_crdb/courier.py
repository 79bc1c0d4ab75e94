# SPDX-License-Identifier: Apache-2.0
"""What waits to be sent, and the threads that send it.

In place of the SDK's batch processors and periodic reader, for what those cannot do: count each thing that is
dropped, end within a given time, all of them at once and without new threads (which Python refuses while it
exits), and begin anew in a forked process with no lock that a thread of the parent held.

A thread is started by the first thing that is to be sent: a server's master process has none.
"""

from __future__ import annotations

import copy
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from opentelemetry.context import Context
from opentelemetry.sdk._logs import LogRecordProcessor, ReadableLogRecord
from opentelemetry.sdk.metrics.export import MetricReader, MetricsData
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor

from . import forks, hooks
from .delivery import AFTER_SHUTDOWN, AT_EXIT, QUEUE_FULL, Delivery
from .environment import BatchLimits

if TYPE_CHECKING:
    from opentelemetry.sdk._logs import ReadWriteLogRecord


class _Request:
    """Somebody waits until all that there is has been sent."""

    def __init__(self) -> None:
        self.done = threading.Event()
        self.sent = False


class Courier:
    """A daemon thread that calls ``send``: each ``interval`` seconds, when woken, when asked, and at the end.

    ``send`` is told whether all is to go or full batches only, and tells whether what went was taken.
    """

    def __init__(self, name: str, interval: float, send: Callable[[bool], bool]) -> None:
        self.closing = False
        self._name = name
        self._interval = interval
        self._send = send
        self._begin()

    def _begin(self) -> None:
        self._wake = threading.Event()
        self._starting = threading.Lock()
        self._requests: deque[_Request] = deque()
        self._thread: threading.Thread | None = None

    def after_fork(self) -> None:
        """Forget the parent's thread and locks."""
        self.closing = False
        self._begin()

    def start(self) -> bool:
        """Start the thread where there is none; False: Python starts no more."""
        if self._thread is not None:
            return True
        with self._starting:
            if self._thread is None:
                thread = threading.Thread(target=self._work, name=f"otel_crdb-{self._name}", daemon=True)
                try:
                    thread.start()
                except RuntimeError:  # the interpreter is ending
                    return False
                self._thread = thread
        return True

    def wake(self) -> None:
        """Have full batches sent now."""
        if not self._wake.is_set():
            self._wake.set()

    def flush(self, seconds: float) -> bool:
        """Have everything sent, and tell whether it was taken in time."""
        if self.closing or self._thread is threading.current_thread():
            return False
        if not self.start():
            return self._sent(everything=True)
        request = _Request()
        self._requests.append(request)
        self._wake.set()
        return request.done.wait(seconds) and request.sent

    def close(self) -> None:
        """Have everything sent for the last time, without waiting for it."""
        self.closing = True
        self._wake.set()

    def join(self, seconds: float) -> bool:
        """Wait for what :meth:`close` began; False: it is not over."""
        if self._thread is None:
            return self._sent(everything=True)
        self._thread.join(max(0.0, seconds))
        return not self._thread.is_alive()

    def _work(self) -> None:
        while True:
            timely = not self._wake.wait(self._interval)
            self._wake.clear()
            closing = self.closing
            requests = [self._requests.popleft() for _ in range(len(self._requests))]
            sent = self._sent(everything=bool(timely or closing or requests))
            for request in requests:
                request.sent = sent
                request.done.set()
            if closing:
                return

    def _sent(self, *, everything: bool) -> bool:
        try:
            return self._send(everything)
        except Exception as fault:  # noqa: BLE001 - the guard: the thread goes on
            hooks.report(f"courier of {self._name}", fault)
            return False


class _Sender:
    """What has a courier, and a delivery at the end of its way."""

    delivery: Delivery
    courier: Courier
    _under_way = 0

    @property
    def waiting(self) -> int:
        """How much has not been taken yet."""
        return self._under_way

    @property
    def closed(self) -> bool:
        """Whether nothing is taken in any more."""
        return self.courier.closing

    def close(self, deadline: float) -> None:
        """Have all that waits sent until then, for the last time."""
        self.delivery.deadline = deadline
        self.courier.close()

    def join(self, deadline: float) -> None:
        """Wait for that, and count what is left when time is up."""
        if self.courier.join(deadline - time.monotonic()):
            return
        self.delivery.given_up = True
        if self.waiting:
            self.delivery.spell.lose(
                AT_EXIT, self.waiting, "the process ends and they were not taken in time"
            )


class Batches(_Sender):
    """What waits for one exporter: at most ``limits.queue_size``; what is more is dropped and counted."""

    def __init__(self, delivery: Delivery, limits: BatchLimits) -> None:
        self.delivery = delivery
        self.courier = Courier(delivery.signal, limits.schedule_delay, self._send)
        self._limits = limits
        self._begin()

    def _begin(self) -> None:
        self._queue: deque[Any] = deque()
        self._under_way = 0

    @property
    def waiting(self) -> int:
        """How much has not been taken yet."""
        return len(self._queue) + self._under_way

    def add(self, item: Any) -> None:
        """Take in one thing; never waits."""
        forks.notice()
        queue = self._queue
        if self.courier.closing:
            self.delivery.spell.lose(AFTER_SHUTDOWN, 1, "the process is ending")
        elif len(queue) >= self._limits.queue_size:
            why = f"{self._limits.queue_size} wait to be sent already"
            self.delivery.spell.lose(QUEUE_FULL, 1, why)
            self.courier.wake()
        else:
            queue.append(item)
            self.courier.start()
            if len(queue) >= self._limits.batch_size:
                self.courier.wake()

    def after_fork(self) -> None:
        """Leave what waits to the parent."""
        self._begin()
        self.delivery.after_fork()
        self.courier.after_fork()

    def force_flush(self, timeout_millis: int | None = 30000) -> bool:
        """Send all that waits; ``timeout_millis`` in milliseconds."""
        return self.courier.flush((30000 if timeout_millis is None else timeout_millis) / 1000)

    def shutdown(self) -> None:
        """Send all that waits, in the time there is, and take in no more."""
        close([self], EXIT_SECONDS)

    def _send(self, everything: bool) -> bool:
        queue, size = self._queue, self._limits.batch_size
        left, taken = len(queue), True
        while left > 0 and (everything or left >= size):
            batch = [queue.popleft() for _ in range(min(size, left))]
            left -= len(batch)
            self._under_way = len(batch)
            try:
                taken = self.delivery.send(batch) and taken
            finally:
                self._under_way = 0
        return taken


class SpanBatches(Batches, SpanProcessor):
    """Sends ended spans."""

    def on_end(self, span: ReadableSpan) -> None:
        """Take in a sampled span; one that was open at a fork is the parent's to send."""
        context = span.context
        if context is not None and context.trace_flags.sampled and not forks.is_of_parent(span.resource):
            self.add(span)


class LogRecordBatches(Batches, LogRecordProcessor):
    """Sends log records."""

    def on_emit(self, log_record: ReadWriteLogRecord) -> None:
        """Take in a record, without the context it was emitted in: that may hold a lot alive."""
        kept = copy.copy(log_record.log_record)
        kept.context = Context()
        self.add(
            ReadableLogRecord(
                log_record=kept,
                resource=log_record.resource or Resource.get_empty(),
                instrumentation_scope=log_record.instrumentation_scope,
                limits=log_record.limits,
            )
        )


class Measurements(_Sender, MetricReader):
    """Collects and sends data points, every ``interval`` seconds."""

    def __init__(self, delivery: Delivery, interval: float, preferred: Any) -> None:
        super().__init__(
            preferred_temporality=preferred._preferred_temporality,
            preferred_aggregation=preferred._preferred_aggregation,
        )
        self.delivery = delivery
        self.courier = Courier(delivery.signal, interval, self._collect_and_send)
        #: Whether what was collected last has been taken.
        self.taken = True

    def after_fork(self) -> None:
        """Begin anew; the thread at once, for nothing comes by that could start it."""
        self._under_way = 0
        self.delivery.after_fork()
        self.courier.after_fork()
        self.courier.start()

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        """Collect and send; ``timeout_millis`` in milliseconds."""
        self.taken = self.courier.flush(timeout_millis / 1000)
        return self.taken

    def shutdown(self, timeout_millis: float = 30_000, **_: Any) -> None:
        """Collect and send for the last time."""
        close([self], min(EXIT_SECONDS, timeout_millis / 1000))

    def _collect_and_send(self, _: bool) -> bool:
        self.taken = True  # there may be nothing to send
        self.collect()
        return self.taken

    def _receive_metrics(self, metrics_data: MetricsData, timeout_millis: float = 10_000, **_: Any) -> None:
        self._under_way = data_points(metrics_data)
        try:
            self.taken = self.delivery.send(metrics_data)
        finally:
            self._under_way = 0


#: Seconds that the end of the process waits for all signals together.
EXIT_SECONDS = 3.0


def close(senders: Iterable[Any], seconds: float) -> None:
    """Send everything for the last time, all at once, and count what was left when time was up."""
    deadline = time.monotonic() + seconds
    open_ones = [each for each in senders if not each.closed]
    for each in open_ones:
        # A little before: what gives up by itself has counted what it lost, and once.
        each.close(deadline - seconds / 6)
    for each in open_ones:
        each.join(deadline)


def data_points(data: MetricsData) -> int:
    """Count the data points of a collection."""
    return sum(
        len(metric.data.data_points)
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
    )
