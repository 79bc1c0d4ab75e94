# SPDX-License-Identifier: Apache-2.0
"""A worker's work: who does how many operations, what is written of each, what is left at the end."""

from __future__ import annotations

import asyncio
import gc
import itertools
import os
import sys
import threading
from collections import Counter
from typing import Any

import psutil
from asgiref.sync import ThreadSensitiveContext, sync_to_async
from django.db import connections
from opentelemetry import trace

import otel_crdb
from otel_crdb.hooks import fault_counts
from otel_crdb.state import current_request, record_of

from . import journal, operations, telling
from .caller import Caller
from .operations import ASYNC_KINDS, KINDS, Order
from .pulse import Pulse, Watchdog
from .settings import PATIENCE

#: Operations after which a thread gives its connection back, so that connects are always among the calls.
CONNECTION_LASTS = 40
MEMORY_EVERY = 25
#: The threads that send telemetry: each is begun by what it sends first, and stays until the process ends.
SENDERS = Counter(f"otel_crdb-{signal}" for signal in ("traces", "metrics", "logs"))
FLUSH_TIMEOUT = 60.0


class Work:
    """One worker's whole work."""

    def __init__(self, order: dict[str, Any]) -> None:
        self._order = order
        self._name: str = order["name"]
        self._numbers = itertools.count()
        self._done = 0
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._tracer = trace.get_tracer("soak")
        self._watchdog = Watchdog(PATIENCE, order["ports"])
        self._sent = telling.Sent()
        self._left: list[str] = []

    def do(self) -> None:
        """Do all operations, say how it ended, and stay until the input ends."""
        ear = threading.Thread(target=self._listen, name="soak-ear", daemon=True)
        ear.start()
        before = set(threading.enumerate())
        with self._watchdog:
            threads = [
                threading.Thread(target=self._as_thread, name=f"soak-{number}")
                for number in range(self._order["threads"])
            ]
            threads.append(threading.Thread(target=self._as_loop, name="soak-loop"))
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        gc.collect()
        self._end(before)
        ear.join()

    def _end(self, before: set[threading.Thread]) -> None:
        self._left += self._left_here("main thread")
        flushed = otel_crdb.flush(FLUSH_TIMEOUT)
        threads = Counter(thread.name for thread in threading.enumerate() if thread not in before)
        ending = journal.Ending(
            self._name,
            spans=self._sent.spans,
            logs=self._sent.logs,
            flushed=flushed,
            told=tuple(self._sent.told),
            threads=tuple((threads - SENDERS).elements()),
            left=tuple(self._left),
            hook_faults=fault_counts(),
            waits_ended=self._watchdog.ended,
        )
        self._write(ending.to_line())

    # --- who does what -------------------------------------------------------------------------------------

    def _listen(self) -> None:
        for line in sys.stdin:
            if line.strip() == "stop":
                self._stopped.set()
        self._stopped.set()

    def _take(self) -> int | None:
        with self._lock:
            number = next(self._numbers)
        return None if self._stopped.is_set() or number >= self._order["operations"] else number

    def _drawn(self, number: int, kinds: dict[str, Any]) -> Order:
        return operations.draw(self._order["seed"], self._order["number"], number, kinds)

    def _as_thread(self) -> None:
        pulse = self._pulse()
        with pulse.wrapper.execute_wrapper(pulse.around_statement):
            for turn in itertools.count(1):
                number = self._take()
                if number is None:
                    break
                self._operate(self._drawn(number, KINDS), pulse)
                if turn % CONNECTION_LASTS == 0:
                    pulse.wrapper.close()
        self._close()

    def _pulse(self) -> Pulse:
        pulse = Pulse(connections["default"])
        self._watchdog.watch(pulse)
        return pulse

    def _close(self) -> None:
        connections.close_all()
        if connections["default"].connection is not None:
            self._left.append(f"a connection of {threading.current_thread().name}")
        self._left += self._left_here(threading.current_thread().name)

    def _as_loop(self) -> None:
        asyncio.run(self._loop())

    async def _loop(self) -> None:
        async with ThreadSensitiveContext():  # its thread ends with it
            pulse = await sync_to_async(self._pulse)()
            pulse.wrapper.execute_wrappers.append(pulse.around_statement)
            await asyncio.gather(*(self._as_task(pulse) for _ in range(self._order["tasks"])))
            await sync_to_async(self._close)()

    async def _as_task(self, pulse: Pulse) -> None:
        for turn in itertools.count(1):
            number = self._take()
            if number is None:
                return
            await self._aoperate(self._drawn(number, ASYNC_KINDS), pulse)
            if turn % CONNECTION_LASTS == 0:
                await sync_to_async(pulse.wrapper.close)()

    # --- one operation -------------------------------------------------------------------------------------

    def _operate(self, order: Order, pulse: Pulse) -> None:
        caller = Caller(order, pulse)
        pulse.beat()
        with self._tracer.start_as_current_span(f"operation {order.kind}") as span:
            try:
                operations.run(order, caller.notes)
            except Exception as caught:  # noqa: BLE001 - whatever the caller gets is written down
                caller.error = caught
            caller.look_around(span)
        pulse.rest()
        caller.left += self._left_here("")
        self._note(caller, span)

    async def _aoperate(self, order: Order, pulse: Pulse) -> None:
        caller = Caller(order, pulse)
        with self._tracer.start_as_current_span(f"operation {order.kind}") as span:
            task = asyncio.ensure_future(self._as_coroutine(caller, span))
            if order.kind == "cancelled":
                asyncio.get_running_loop().call_later(order.patience, task.cancel)
            try:
                await task
            except (Exception, asyncio.CancelledError) as caught:  # noqa: BLE001 - as above
                caller.error = caught
        self._note(caller, span)

    @staticmethod
    async def _as_coroutine(caller: Caller, span: Any) -> None:
        try:
            await operations.arun(caller.order, caller.notes)
        finally:
            caller.look_around(span)  # here: the task has a context of its own

    def _note(self, caller: Caller, span: Any) -> None:
        trace_id = span.get_span_context().trace_id
        self._write(caller.entry(self._name, self._order["driver"], trace_id).to_line())
        with self._lock:
            self._done += 1
            done = self._done
        if done % MEMORY_EVERY == 0:
            held = psutil.Process(os.getpid()).memory_info().rss
            self._write(journal.Memory(self._name, done, held).to_line())

    def _write(self, line: str) -> None:
        with self._lock:
            sys.stdout.write(line + "\n")
            sys.stdout.flush()

    def _left_here(self, where: str) -> list[str]:
        """Name what an operation has left in this thread: a span, a request, a transaction's record."""
        record = record_of(connections["default"])
        found = {
            "a current span": trace.get_current_span().get_span_context().is_valid,
            "a request's record": current_request.get() is not None,
            "a logical transaction's record": record.logical is not None,
            "a transaction's record": record.transaction is not None,
            "an open block": connections["default"].in_atomic_block,
        }
        return [f"{what} {where}".strip() for what, is_there in found.items() if is_there]
