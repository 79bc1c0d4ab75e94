# SPDX-License-Identifier: Apache-2.0
"""The rig of `bench/agent.py`: what the bank sent, who sends it again, the agent, what is behind it."""

from __future__ import annotations

import contextlib
import gzip
import http.client
import itertools
import multiprocessing
import os
import random
import re
import tempfile
import threading
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

import psutil

from demo.bank_server import BankServer, environment_of
from demo.load import Load
from demo.processes import Children
from demo.receiver import PROTOBUF, SERVICES, Receiver
from demo.traffic import Client, Tally
from otel_crdb.testing import server
from stack import servers
from stack.programs import path_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from multiprocessing.connection import Connection

    from typing_extensions import Self

#: Requests a second while it is recorded: what two workers answer with ease on one core.
RECORDED_RATE = 40.0
#: Connections of the sender, which are kept open: of so many worker processes.
CONNECTIONS = 8
#: Seconds that a call may take.
PATIENCE = 30.0


ITEMS = {"spans": "spans", "records": "log_records", "points": "metric_points"}
SIGNALS = {"spans": "jaeger", "records": "loki", "points": "prometheus"}
CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
#: What stands behind the agent: it counts what comes, and drops it.
SINK = """
receivers: {{otlp: {{protocols: {{grpc: {{endpoint: "{grpc}"}}, http: {{endpoint: "{http}"}}}}}}}}
exporters: {{debug: {{verbosity: basic}}}}
extensions: {{health_check: {{endpoint: "{health}"}}}}
service:
  extensions: [health_check]
  telemetry:
    metrics: {{readers: [{{pull: {{exporter: {{prometheus: {{host: 127.0.0.1, port: {metrics}}}}}}}}}]}}
  pipelines:
    traces: {{receivers: [otlp], exporters: [debug]}}
    metrics: {{receivers: [otlp], exporters: [debug]}}
    logs: {{receivers: [otlp], exporters: [debug]}}
"""


class Body(NamedTuple):
    """One export request as it was encoded, and where in it the ids of which traces are."""

    path: str
    content: bytes
    spans: int
    records: int
    points: int
    ids: tuple[tuple[int, int], ...]


@dataclass
class Recording:
    """What the bank sent of so many requests, in its order."""

    bodies: list[Body] = field(default_factory=list)
    requests: int = 0
    traces: int = 0

    def count(self, of: str) -> int:
        """Return how many `spans`, `records` or `points` there are."""
        return sum(getattr(body, of) for body in self.bodies)


class Call(NamedTuple):
    """One export call. Times are seconds since the start; status 0: no answer. `body` is of the recording."""

    due: float
    began: float
    took: float
    status: int
    body: int


def record(seconds: float) -> Recording:
    """Serve the bank, have it called for so many seconds, and return what it sent."""
    came: list[tuple[str, bytes]] = []

    def keep(path: str, headers: dict[str, str], body: bytes) -> None:
        packed = headers.get("content-encoding") == "gzip"
        came.append((path, gzip.decompress(body) if packed else body))

    children = Children()
    with (
        tempfile.TemporaryDirectory(prefix="otel_crdb-bench-") as folder,
        Receiver(keep) as receiver,
        server() as database,
        contextlib.ExitStack() as ending,
    ):
        ending.callback(children.end_all)
        environment = environment_of(database.django_settings(), receiver.endpoint, None)
        # In batches as an application makes them: the demo is in more of a hurry.
        for name in ("OTEL_BSP_SCHEDULE_DELAY", "OTEL_BLRP_SCHEDULE_DELAY"):
            del environment[name]
        environment["OTEL_METRIC_EXPORT_INTERVAL"] = "5000"
        bank = BankServer(children, environment, Path(folder) / "bank.log")
        bank.prepare()
        bank.start()
        bank.wait_until_ready(Client(bank.address, Tally()))
        Load(bank.address, RECORDED_RATE, every=seconds * 2).run(seconds)
        bank.stop()
    return recording_of(came)


def recording_of(came: list[tuple[str, bytes]]) -> Recording:
    """Make a recording of paths and bodies, in the order in which they came."""
    made = Recording()
    numbers: dict[bytes, int] = {}
    messages = [(path, content, SERVICES[path][1].FromString(content)) for path, content in came]
    for _, _, message in messages:
        for span in _spans(message):
            numbers.setdefault(span.trace_id, len(numbers))
            made.requests += span.kind == span.SPAN_KIND_SERVER
    made.traces = len(numbers)
    for path, content, message in messages:
        ids = tuple(_places(content, numbers))
        made.bodies.append(Body(path, content, len(_spans(message)), *_counts(message), ids))
    return made


def _spans(message) -> list:
    groups = getattr(message, "resource_spans", ())
    return [span for group in groups for scope in group.scope_spans for span in scope.spans]


def _counts(message) -> tuple[int, int]:
    """Return how many log records and data points it has."""
    groups = getattr(message, "resource_logs", ())
    records = sum(len(scope.log_records) for group in groups for scope in group.scope_logs)
    groups = getattr(message, "resource_metrics", ())
    metrics = [one for group in groups for scope in group.scope_metrics for one in scope.metrics]
    return records, sum(len(getattr(one, one.WhichOneof("data")).data_points) for one in metrics)


def _places(content: bytes, numbers: dict[bytes, int]) -> Iterator[tuple[int, int]]:
    """Find the ids of the traces: of spans, records and exemplars."""
    for found in re.finditer(b"|".join(map(re.escape, numbers)), content):
        yield found.start(), numbers[found.group()]


class Sender:
    """A process that sends a recording again, over and over, as traces of their own."""

    def __init__(self, recording: Recording, endpoint: str, rate: float, seconds: float) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_send_all, args=(theirs, recording, endpoint, rate, seconds), daemon=True
        )
        self._process.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.terminate()
        self._process.join()

    def wait_until_ready(self) -> None:
        """Wait until all that is to be sent is encoded."""
        self._pipe.recv()

    def go(self) -> None:
        """Start the clock."""
        self._pipe.send(None)

    def calls(self) -> list[Call]:
        """Wait for the end, and return all calls."""
        calls: list[Call] = self._pipe.recv()
        return calls


def _send_all(parent: Connection, recording: Recording, endpoint: str, rate: float, seconds: float) -> None:
    """Run the sender: encode, wait for the word, send what is due when it is due."""
    waiting = encoded(recording, rate, seconds)
    calls: list[Call] = []
    parent.send(None)
    parent.recv()
    start = time.monotonic()
    lock = threading.Lock()
    queue = iter(waiting)

    def connection() -> None:
        with contextlib.closing(_Connection(endpoint)) as agent:
            while True:
                with lock:
                    item = next(queue, None)
                if item is None:
                    return
                due, number, packed = item
                time.sleep(max(0.0, start + due - time.monotonic()))
                began = time.monotonic() - start
                status = agent.send(recording.bodies[number].path, packed)
                calls.append(Call(due, began, time.monotonic() - start - began, status, number))

    threads = [threading.Thread(target=connection) for _ in range(CONNECTIONS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    parent.send(calls)


def encoded(recording: Recording, rate: float, seconds: float) -> list[tuple[float, int, bytes]]:
    """Encode what is sent in so many seconds: when it is due, which body it is, its bytes."""
    made: list[tuple[float, int, bytes]] = []
    each = recording.requests / rate / len(recording.bodies)
    for passed in itertools.count():
        ids = [random.randbytes(16) for _ in range(recording.traces)]
        for number, body in enumerate(recording.bodies):
            due = (passed * len(recording.bodies) + number) * each
            if due >= seconds:
                return made
            content = bytearray(body.content)
            for place, trace in body.ids:
                content[place : place + 16] = ids[trace]
            made.append((due, number, gzip.compress(content, compresslevel=6, mtime=0)))
    raise AssertionError  # count() does not end


class _Connection:
    """A connection that is kept open, and made anew where it broke."""

    def __init__(self, endpoint: str) -> None:
        host, port = urlsplit(endpoint).netloc.split(":")
        self._connection = http.client.HTTPConnection(host, int(port), timeout=PATIENCE)

    def close(self) -> None:
        self._connection.close()

    def send(self, path: str, packed: bytes) -> int:
        headers = {"Content-Type": PROTOBUF, "Content-Encoding": "gzip"}
        try:
            self._connection.request("POST", path, packed, headers)
            with self._connection.getresponse() as answer:
                answer.read()
                return answer.status
        except (OSError, http.client.HTTPException):
            self._connection.close()
            return 0


# --- agent and sink ---------------------------------------------------------------------------------------


@contextlib.contextmanager
def core_of_the_agent() -> Iterator[None]:
    """Start what is started here on the last core alone, where there is another for the rest."""
    if len(CORES) < 2:
        yield
        return
    os.sched_setaffinity(0, CORES[-1:])
    try:
        yield
    finally:
        os.sched_setaffinity(0, CORES[:-1])


class Machine:
    """The agent and the sink behind it."""

    def __init__(self, folder: Path, variables: Mapping[str, object], more: Sequence[Path]) -> None:
        self.ports, behind = servers.Ports.free(), servers.Ports.free()
        self._sink_ports = behind
        configuration = folder / "sink.yaml"
        addresses = {name: f"127.0.0.1:{getattr(behind, name)}" for name in ("otlp_grpc", "otlp_http")}
        health = f"127.0.0.1:{behind.agent_health}"
        configuration.write_text(
            SINK.format(
                grpc=addresses["otlp_grpc"],
                http=addresses["otlp_http"],
                health=health,
                metrics=behind.agent_metrics,
            )
        )
        otlp = f"http://{addresses['otlp_http']}"
        self.sink = servers.Server(
            "sink",
            [path_of("otelcol"), "--config", configuration],
            {},
            folder=folder,
            address=otlp,
            ready=f"http://{health}/",
        )
        to_sink = {"AGENT_JAEGER": addresses["otlp_grpc"], "AGENT_LOKI": otlp, "AGENT_PROMETHEUS": otlp}
        self.agent = servers.agent(folder, self.ports, variables={**to_sink, **variables}, more=more)
        self.queue_folder = folder / "agent-queue"

    def start_agent(self) -> None:
        """Start it on its core."""
        with core_of_the_agent():
            self.agent.start()
        self.agent.wait_until_ready()

    def stop(self) -> None:
        """End both: what they still have is nobody's."""
        self.agent.kill()
        self.sink.kill()

    def counted(self) -> Counted:
        """Ask the agent."""
        return Counted(self.ports.agent_metrics)

    def arrived(self) -> Counted:
        """Ask the sink."""
        return Counted(self._sink_ports.agent_metrics)


class Counted:
    """What a collector says of itself, at one moment."""

    def __init__(self, port: int) -> None:
        self._figures: list[tuple[str, str, float]] = []
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            for line in answer.read().decode().splitlines():
                found = re.match(r"otelcol_(\w+?)(?:_total)?(?:\{(.*)\})? (\S+)$", line)
                if found:
                    self._figures.append((found[1], found[2] or "", float(found[3])))

    def sum(self, name: str, *labels: str) -> float:
        """Add up all of this name, with all of these words among their labels."""
        return sum(
            value
            for each, told, value in self._figures
            if each == name and all(label in told for label in labels)
        )

    def each(self, name: str) -> dict[str, int]:
        """Return spans, records and points of a name that has one for each, like `receiver_accepted_{}`."""
        return {kind: int(self.sum(name.format(word))) for kind, word in ITEMS.items()}

    @property
    def waiting(self) -> dict[str, int]:
        """What is in the queues."""
        return {kind: int(self.sum("exporter_queue_size", name)) for kind, name in SIGNALS.items()}

    @property
    def decided(self) -> tuple[int, int]:
        """How many traces were kept, and of how many."""
        name = "processor_tail_sampling_global_count_traces_sampled"
        return int(self.sum(name, 'sampled="true"')), int(self.sum(name))


class Watch:
    """The agent, looked at again and again."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._process = psutil.Process(machine.agent.pid)
        self.resident = self.private = self.heap = 0.0

    def cpu(self) -> float:
        """Return its processor time so far."""
        times = self._process.cpu_times()
        return float(times.user + times.system)

    def kept_waiting(self) -> float:
        """Return the seconds that its threads were ready to run and others had the core; 0 where unknown."""
        waited = 0
        for each in Path(f"/proc/{self._process.pid}/task").glob("*/schedstat"):
            with contextlib.suppress(OSError):  # a thread that has ended meanwhile
                waited += int(each.read_text().split()[1])
        return waited / 1e9

    def look(self) -> Counted:
        """Look at its memory and at what it says."""
        memory = self._process.memory_info()
        counted = self._machine.counted()
        self.resident = max(self.resident, memory.rss / 2**20)
        self.private = max(self.private, (memory.rss - getattr(memory, "shared", 0)) / 2**20)
        self.heap = max(self.heap, counted.sum("process_runtime_heap_alloc_bytes") / 2**20)
        return counted

    def until(self, end: float) -> Counted:
        """Look each half second until then, and once more."""
        while (left := end - time.monotonic()) > 0:
            self.look()
            time.sleep(min(0.5, max(0.0, left)))
        return self.look()
