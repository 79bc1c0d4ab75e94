# SPDX-License-Identifier: Apache-2.0
"""What has arrived of what an application sent: asked of the back ends, and of the agent for what came by it."""

from __future__ import annotations

import contextlib
import threading
import urllib.error
import urllib.request
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, TypeVar

from stack.programs import StackError
from stack.queries import ARRIVES_WITHIN, Agent, Jaeger, Loki, Prometheus, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from typing_extensions import Self

    from stack.servers import Stack

    from .sending import Journal

T = TypeVar("T")
#: Seconds. Queues are empty in a few, or after the next attempt of the agent; the rest is for a busy machine.
DRAINED_WITHIN = 180.0


class Arrived:
    """What the back ends of a stack answer about a service."""

    def __init__(self, stack: Stack, service: str) -> None:
        self._jaeger = Jaeger(stack.jaeger.address)
        self._loki = Loki(stack.loki.address)
        self._prometheus = Prometheus(stack.prometheus.address)
        self.service = service

    def spans(self) -> Counter[str]:
        """Count the spans in Jaeger by name, each as often as Jaeger tells it."""
        traces = self._jaeger.traces(self.service).values()
        return Counter(_short(span.name) for trace in traces for span in trace)

    def attempts_of_traces(self) -> Counter[int]:
        """Count the traces in Jaeger by their transaction's attempts; -1: not whole."""
        traces = self._jaeger.traces(self.service).values()
        names = [Counter(_short(span.name) for span in trace) for trace in traces]
        return Counter(
            each["transaction"] if each.total() - each["connect"] == 1 + 5 * each["transaction"] else -1
            for each in names
        )

    def records(self) -> Counter[str]:
        """Count the records in Loki by what they are."""
        of_service = f'{{service_name="{self.service}"}}'
        found = {
            "moved": self._loki.count(f'{of_service} |= "moved"'),
            "cockroachdb.txn.retry": self._loki.count(f'{of_service} |= "is run again"'),
            "others": self._loki.count(f'{of_service} !~ "moved|is run again"'),
        }
        return +Counter(found)

    def sums(self, names: Iterable[str]) -> dict[str, float]:
        """Return what the series of these metrics add up to in Prometheus."""
        return {name: self._prometheus.value(f'sum({name}{{job="{self.service}"}})') for name in names}

    def points(self) -> float:
        """Count the points in Prometheus of the series that is there from the first collection on."""
        return self._prometheus.value(
            f'count_over_time(sending_collections_total{{job="{self.service}"}}[6h])'
        )


def _short(name: str) -> str:
    """Leave out which function and which database it was."""
    word = name.partition(" ")[0]
    return word if word in ("run_transaction", "transaction", "connect") else name


def comes_to(ask: Callable[[], T], expected: T) -> T:
    """Ask until the answer is the expected one, and return the last: the test compares, and shows both."""
    answers: list[T] = []

    def is_expected() -> bool:
        answers[:] = [ask()]
        return answers[0] == expected

    with contextlib.suppress(StackError):
        until(is_expected, "the expected answer", seconds=ARRIVES_WITHIN)
    return answers[0]


def expect(what: str, ask: Callable[[], Any], expected: Any) -> None:
    """Demand that an answer comes to what is expected."""
    answer = comes_to(ask, expected)
    if answer != expected:
        raise AssertionError(f"{what}: {answer} is there, and {expected} was to come")


class Wire:
    """What the agent says of itself: what it took in, what it handed on, what waits, what it lost."""

    SIGNALS = ("spans", "log_records", "metric_points")
    COUNTERS = (
        "receiver_accepted",
        "receiver_refused",
        "exporter_sent",
        "exporter_send_failed",
        "exporter_enqueue_failed",
    )

    def __init__(self, stack: Stack) -> None:
        self._agent = Agent(stack.own_metrics)

    def total(self, counter: str, items: str = "", **labels: str) -> float:
        """Return a counter's sum, since the agent was started."""
        return self._agent.total(f"otelcol_{counter}_{items}" if items else f"otelcol_{counter}", **labels)

    def all(self) -> Counter[str]:
        """Return all counters of all signals."""
        return Counter(
            {
                f"{counter} {items}": int(self.total(counter, items))
                for items in self.SIGNALS
                for counter in self.COUNTERS
            }
        )

    def waiting(self, data_type: str) -> float:
        """Return how much of a signal (traces, logs, metrics) waits in its queue."""
        return self.total("exporter_queue_size", data_type=data_type)

    def overflows(self) -> bool:
        """Whether of each signal something did not fit into its queue."""
        return all(self.total("exporter_enqueue_failed", items) for items in self.SIGNALS)


def wait_until_drained(stack: Stack) -> None:
    """Wait until nothing waits in the agent's queues."""
    until(lambda: Wire(stack).total("exporter_queue_size") == 0, "empty queues", seconds=DRAINED_WITHIN)


def assert_all_arrived(stack: Stack, journal: Journal, *, spans: bool = True) -> None:
    """Each record and each point of this application is there, each span too, and nothing twice."""
    arrived = Arrived(stack, journal.service)
    wait_until_drained(stack)
    expect("not sent", lambda: journal.dropped, {})
    if spans:
        expect("spans", arrived.spans, journal.spans)
    expect("records", arrived.records, journal.records)
    expect("sums", lambda: arrived.sums(journal.sums), journal.sums)
    expect("points", arrived.points, journal.collections)


# --- a back end that refuses --------------------------------------------------------------------------------------


class Front:
    """Stands before a back end's HTTP address, as a context manager: hands on, or refuses while it is told to."""

    def __init__(self) -> None:
        #: Where to; known only once the back end has a port.
        self.target = ""
        #: The status to refuse with; None: what comes is handed on.
        self.refuse_with: int | None = None
        #: Requests by the status that they were answered with.
        self.answered: Counter[int] = Counter()
        self._server = _FrontServer(self)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})

    @property
    def address(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def answer(self, path: str, headers: Mapping[str, str], body: bytes) -> tuple[int, bytes]:
        """Hand on or refuse one request, and return status and body of the answer."""
        if self.refuse_with is not None:
            return self.refuse_with, b""
        passed_on = {name: headers[name] for name in ("Content-Type", "Content-Encoding") if name in headers}
        try:
            with urllib.request.urlopen(
                urllib.request.Request(f"{self.target}{path}", body, passed_on), timeout=30
            ) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()
        except OSError:
            return 502, b""


class _FrontServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, front: Front) -> None:
        super().__init__(("127.0.0.1", 0), _FrontHandler)
        self.front = front


class _FrontHandler(BaseHTTPRequestHandler):
    server: _FrontServer

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        front = self.server.front
        status, said = front.answer(self.path, dict(self.headers), body)
        front.answered[status] += 1
        self.send_response(status)
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - http.server's name for it
        """Say nothing."""
