# SPDX-License-Identifier: Apache-2.0
"""Runs a soak: server, nodes, receiver, workers; the schedule as operations end; the evidence at the end."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from demo.receiver import Receiver
from otel_crdb.testing import server

from . import settings, truth
from .arrivals import Arrivals
from .evidence import Evidence, Outage, Strike
from .journal import Ending, Memory, Operation, read_line
from .node import Node
from .schedule import Event, plan

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

NODES = 2
#: Seconds without the end of any operation after which the schedule's next step is taken all the same.
STALLED = 6.0
#: Seconds from one count of what has struck to the next, and from one line of progress to the next.
TICK, TELL = 1.0, 5.0
#: Seconds that workers have for what is under way when time is over, and for their last export.
GRACE = 120.0


@dataclass(frozen=True)
class Options:
    """What was asked for."""

    transactions: int
    seed: int
    minutes: float
    workers: int
    threads: int
    tasks: int
    share: float
    report: Path


class Worker:
    """A worker's process and the thread that reads its journal."""

    def __init__(
        self, order: dict[str, Any], environment: dict[str, str], report: Path, heard: Callable[..., None]
    ):
        self.name: str = order["name"]
        self.ended = threading.Event()
        self._heard = heard
        self._journal = (report / f"{self.name}.jsonl").open("w", encoding="utf-8")
        with (report / f"{self.name}.log").open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "soak.worker", json.dumps(order)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment | {"OTEL_RESOURCE_ATTRIBUTES": f"service.instance.id={self.name}"},
                text=True,
                start_new_session=True,
            )
        self._thread = threading.Thread(target=self._read, name=f"journal of {self.name}")
        self._thread.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._journal.write(line)
            if not (line.startswith("{") and line.endswith("}\n")):
                continue  # somebody prints, or was killed amid a line
            entry = read_line(line)
            self._heard(entry)
            if isinstance(entry, Ending):
                self.ended.set()
        self.ended.set()

    def stop(self) -> None:
        """Have it take on no more."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write("stop\n")
            self._process.stdin.flush()

    def kill(self) -> None:
        """Wait for it no longer."""
        self._process.kill()

    def end(self, seconds: float) -> int:
        """Have it end, and return its exit status."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            status = self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            status = self._process.wait()
        self._thread.join()
        self._process.stdout.close()
        self._journal.close()
        return status


class Conductor:
    """One soak, from its begin to its evidence."""

    def __init__(self, options: Options, say: Callable[[str], None]) -> None:
        self._options = options
        self._say = say
        self._lock = threading.Lock()
        self._progress = threading.Condition(self._lock)
        self._evidence = Evidence()
        self._plan = plan(options.transactions, options.share, NODES, options.seed)
        self._next = 0
        self._nodes: list[Node] = []
        self._open: dict[str, tuple[str, set[int], float]] = {}
        self._retries = 0

    def run(self) -> Evidence:
        """Run it all, and return what is known at the end."""
        with contextlib.ExitStack() as stack:
            target = stack.enter_context(server("embedded"))
            truth.open_bank(target)
            receiver = stack.enter_context(Receiver())
            receiver.telemetry = self._evidence.arrivals = Arrivals()  # type: ignore[assignment]
            self._nodes = [stack.enter_context(Node(target, number)) for number in range(NODES)]
            self._describe(target.description)
            workers = self._start_workers(target, receiver.endpoint, stack)
            self._conduct(workers)
            self._heal()
            for worker in workers:
                worker.ended.wait(GRACE)
            self._evidence.truth = truth.read()
            self._evidence.statuses = {worker.name: worker.end(10) for worker in workers}
            self._count_strikes()
        return self._evidence

    def _describe(self, ground: str) -> None:
        from .operations import ACCOUNTS, OPENING

        evidence, options = self._evidence, self._options
        evidence.accounts, evidence.opening = ACCOUNTS, OPENING
        evidence.ground = {
            "server": ground,
            "machine": f"{os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}",
            "options": f"--transactions {options.transactions} --seed {options.seed}",
            "workers": f"{options.workers} processes, each of {options.threads} threads and an event loop of "
            f"{options.tasks} tasks; every second one on psycopg2",
            "nodes": f"{NODES} fault proxies, each a process",
        }
        evidence.scheduled = Counter(event.fault for event in self._plan if event.do == "inject")

    def _start_workers(self, target: Any, endpoint: str, stack: contextlib.ExitStack) -> list[Worker]:
        options = self._options
        environment = _environment(endpoint)
        ports = [node.port for node in self._nodes]
        workers = []
        for number in range(options.workers):
            name = f"soak-{number}"
            operations = options.transactions // options.workers
            operations += number < options.transactions % options.workers
            self._evidence.ordered[name] = operations
            own = ports[number // 2 % NODES :] + ports[: number // 2 % NODES]
            database = settings.of_worker(name, target.django_settings(), own)
            order = {
                "name": name,
                "number": number,
                "driver": ("psycopg", "psycopg2")[number % 2],
                "database": database,
                "ports": ports,
                "operations": operations,
                "threads": options.threads,
                "tasks": options.tasks,
                "seed": options.seed,
            }
            worker = Worker(order, environment, options.report, self._hear)
            stack.callback(worker.end, 0)
            workers.append(worker)
        return workers

    # --- while it runs -------------------------------------------------------------------------------------

    def _hear(self, entry: Operation | Memory | Ending) -> None:
        """Take in a line of a journal."""
        with self._lock:
            if isinstance(entry, Operation):
                self._evidence.operations.append(entry)
                self._retries += entry.attempts - 1
                self._progress.notify_all()
            elif isinstance(entry, Memory):
                self._evidence.memory.append(entry)
            else:
                self._evidence.endings[entry.worker] = entry

    def _conduct(self, workers: list[Worker]) -> None:
        """Take the schedule's steps as operations end, until the workers are done or time is over."""
        over = time.monotonic() + self._options.minutes * 60
        told = looked = moved = time.monotonic()
        done = 0
        while not all(worker.ended.is_set() for worker in workers):
            with self._lock:
                self._progress.wait(0.2)
                seen = len(self._evidence.operations)
            now = time.monotonic()
            if seen != done or self._hasten(now - moved):
                done, moved = seen, now
            while self._next < len(self._plan) and self._plan[self._next].at <= done:
                self._take(self._plan[self._next])
            if now - looked > TICK:
                looked = now
                self._count_strikes()
            if now - told > TELL:
                told = now
                self._tell(done)
            if now > over:
                self._end(workers, kill=now > over + GRACE)
        self._tell(len(self._evidence.operations))

    def _hasten(self, still: float) -> bool:
        """Take the next step of an outage in which nothing has ended for too long."""
        due = still > STALLED and bool(self._open) and self._next < len(self._plan)
        if due:
            self._evidence.hastened += 1
            self._take(self._plan[self._next])
        return due

    def _end(self, workers: list[Worker], *, kill: bool) -> None:
        """Have no more begun, for time is over; wait no longer for what has not ended in its grace."""
        if not self._evidence.cut_short:
            self._evidence.cut_short = True
            self._say(f"{self._options.minutes:g} minutes are over: what is under way is ended")
            for worker in workers:
                worker.stop()
        if kill:
            for worker in workers:
                if not worker.ended.is_set():
                    self._say(f"{worker.name} has not ended {GRACE:.0f} s later: killed")
                    worker.kill()
                    worker.ended.wait()

    def _take(self, event: Event) -> None:
        self._next += 1
        self._nodes[event.node].tell(event.command)
        if not event.outage:
            return
        kind, nodes, begin = self._open.pop(event.group, (event.outage, set(), time.time()))
        nodes.add(event.node + 1)
        if any(later.group == event.group for later in self._plan[self._next :]):
            self._open[event.group] = (kind, nodes, begin)
        else:
            self._evidence.outages.append(Outage(kind, tuple(sorted(nodes)), begin, time.time()))

    def _heal(self) -> None:
        """Take what is left of outages out of force, so that what is under way can end."""
        for event in self._plan[self._next :]:
            if event.do == "lift" and event.group in self._open:
                with contextlib.suppress(KeyError, RuntimeError):  # not in force, or the node has ended
                    self._nodes[event.node].tell(event.command)

    def _count_strikes(self) -> None:
        struck: Counter[str] = Counter()
        for node in self._nodes:
            struck += node.struck()
        self._evidence.struck = struck
        self._evidence.strikes.append(Strike(time.time(), sum(struck.values())))

    def _tell(self, done: int) -> None:
        evidence = self._evidence
        outage = ", ".join(kind for kind, _, _ in self._open.values()) or "none"
        self._say(
            f"{done:6} of {self._options.transactions} transactions, {self._retries} retries, "
            f"{sum(evidence.struck.values())} faults struck, {sum(evidence.arrivals.spans.values())} spans, "
            f"outage: {outage}"
        )


def _environment(endpoint: str) -> dict[str, str]:
    """Give the workers' environment: telemetry goes to the receiver, and queues are large enough for it."""
    outer = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    return {
        **outer,
        "DJANGO_SETTINGS_MODULE": "soak.settings",
        "OTEL_SERVICE_NAME": "soak",
        "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
        "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
        "OTEL_BSP_SCHEDULE_DELAY": "500",
        "OTEL_BSP_MAX_QUEUE_SIZE": "32768",
        "OTEL_BLRP_SCHEDULE_DELAY": "500",
        "OTEL_BLRP_MAX_QUEUE_SIZE": "32768",
        "OTEL_METRIC_EXPORT_INTERVAL": "5000",
        "OTEL_SEMCONV_EXCEPTION_SIGNAL_OPT_IN": "logs/dup",
    }
