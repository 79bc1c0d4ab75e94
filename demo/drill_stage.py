# SPDX-License-Identifier: Apache-2.0
"""Where drills are played: the bank under gunicorn, a fault proxy before its database, an OTLP receiver."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import secrets
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from otel_crdb.testing import FaultProxy
from otel_crdb.testing.drills import Ask, AtOnce, Finding, Inject, Seen, broken_laws, judge
from otel_crdb.testing.drills.drill import RECIPIENT

from .bank_server import BankServer, environment_of
from .processes import Children, DemoError
from .receiver import Receiver
from .traffic import Client, Tally

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path
    from types import TracebackType

    from typing_extensions import Self

    from otel_crdb.testing import Server
    from otel_crdb.testing.drills import Drill

    from .forwarder import Forwarder

#: Seconds after which libpq gives up a connection that is not answered; fewer than 2 it does not take.
CONNECT_TIMEOUT = 2
#: Seconds that Django's pool lets a request wait.
POOL_TIMEOUT = 0.3
REQUEST_TIMEOUT = 30.0
PATIENCE = 10.0
#: What the bank of each kind has beside its address in DATABASES, and how many requests it serves at once.
#: One connection at the most, so that it is known which one a fault meets.
BANKS: dict[str, tuple[int, dict[str, Any]]] = {
    "plain": (1, {"CONN_MAX_AGE": None, "OPTIONS": {}}),
    "pooled": (
        2,
        {
            "CONN_MAX_AGE": 0,
            "OPTIONS": {"pool": {"min_size": 1, "max_size": 1, "timeout": POOL_TIMEOUT}},
        },
    ),
}


@dataclass(frozen=True)
class Answer:
    """What a request of a drill came to; status 0: nothing."""

    ask: Ask
    status: int
    seconds: float


@dataclass(frozen=True)
class Performance:
    """A drill that was played: the answers, what the recipient has more, what was told of it.

    `broken` tells what in it can never be right.
    """

    drill: Drill
    answers: tuple[Answer, ...]
    moved: int
    seen: Seen
    findings: list[Finding]
    broken: list[str] = field(default_factory=list)

    @property
    def answered_well(self) -> bool:
        """Whether users saw what the drill says, and the money is where it says."""
        return self.moved == self.drill.moved and all(one.status == one.ask.status for one in self.answers)

    @property
    def passed(self) -> bool:
        """Whether everything was as the drill says."""
        return self.answered_well and not self.broken and all(one.passed for one in self.findings)


class Stage:
    """A bank that drills are played on, one after the other, as a context manager.

    `log` is where the bank's processes write. `patience` is how long it waits for telemetry that does not
    come. Raises DemoError when the bank cannot be had.
    """

    def __init__(
        self,
        server: Server,
        log: Path,
        *,
        driver: str | None = None,
        patience: float = PATIENCE,
        forwarder: Forwarder | None = None,
        environment: Mapping[str, str] = os.environ,
    ) -> None:
        self._arrivals = _Arrivals(forwarder)
        self._receiver = Receiver(self._arrivals)
        self._proxy = FaultProxy(server)
        self._children = Children()
        self._driver, self._patience, self._log = driver, patience, log
        self._environment = environment
        self._bank: BankServer | None = None
        self._kind = ""
        self._versions: dict[str, str] = {}
        self._stack = contextlib.ExitStack()

    @property
    def telemetry(self) -> Any:
        """All that came since the last drill began."""
        return self._receiver.telemetry

    def __enter__(self) -> Self:
        with self._stack:
            self._stack.enter_context(self._receiver)
            self._stack.enter_context(self._proxy)
            self._stack.callback(self._children.end_all)
            self._bank_of("plain").prepare()
            self._serve("plain")
            self._stack = self._stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    # --- the bank ------------------------------------------------------------------------------------------

    def _bank_of(self, kind: str) -> BankServer:
        threads, settings = BANKS[kind]
        options = {**self._proxy.server.options, "connect_timeout": CONNECT_TIMEOUT, **settings["OPTIONS"]}
        database = self._proxy.django_settings(**{**settings, "OPTIONS": options})
        ours = {
            "GUNICORN_CMD_ARGS": f"--workers 1 --threads {threads}",
            "OTEL_BSP_SCHEDULE_DELAY": "100",
            "OTEL_BLRP_SCHEDULE_DELAY": "100",
            "OTEL_METRIC_EXPORT_INTERVAL": "100",
        }
        environment = environment_of(database, self._receiver.endpoint, self._driver, self._environment)
        return BankServer(self._children, {**environment, **ours}, self._log)

    def _serve(self, kind: str) -> None:
        if self._kind == kind:
            return
        self.stop()
        self._bank = self._bank_of(kind)
        self._bank.start()
        self._versions = self._bank.wait_until_ready(Client(self._bank.address, Tally()))
        self._kind = kind

    def stop(self) -> None:
        """Stop the bank, which sends what it still holds."""
        if self._bank is not None:
            self._bank.stop()
        self._bank, self._kind = None, ""

    @property
    def driver(self) -> str:
        """The driver that the bank runs on: `psycopg` or `psycopg2`."""
        return self._versions["driver"].split()[0]

    def lacks(self, drill: Drill) -> str:
        """Say what a drill needs that is not there; nothing where it can be played."""
        django = tuple(map(int, self._versions["django"].split(".")[:2]))
        has_pool = self.driver == "psycopg" and django >= (5, 1) and find_spec("psycopg_pool") is not None
        if drill.bank == "pooled" and not has_pool:
            return "Django's pool of connections needs Django 5.1, psycopg 3 and psycopg_pool"
        return ""

    # --- a drill -------------------------------------------------------------------------------------------

    def play(self, drill: Drill, told: Callable[[Any], None] = lambda step: None) -> Performance:
        """Play one, and judge it. `told` hears of every step before it is done, and of every answer.

        Raises DemoError for one that lacks something here, or when the bank is not well.
        """
        if self.lacks(drill):
            raise DemoError(f"{drill.name}: {self.lacks(drill)}")
        drill = drill.on(self.driver)
        before = self._prepare(drill)
        self._arrivals.settle(self._patience)
        self._receiver.telemetry.clear()
        traces: list[str] = []
        answers: list[Answer] = []
        for step in drill.steps:
            told(step)
            for answer in self._do(step, traces):
                told(answer)
                answers.append(answer)
        seen = self._await(drill, traces)
        self._proxy.clear()
        moved = self._balance() - before
        return Performance(drill, tuple(answers), moved, seen, judge(drill, seen), broken_laws(seen))

    def _prepare(self, drill: Drill) -> int:
        """Have the bank as the drill wants it, its telemetry sent; return what the recipient has."""
        self._proxy.clear()
        self._serve(drill.bank)
        balance = self._balance()
        if drill.connection == "new":
            self._proxy.inject("drain").lift()
        return balance

    def _do(self, step: Any, traces: list[str]) -> list[Answer]:
        if isinstance(step, Inject):
            self._proxy.add(step.rule())
        elif isinstance(step, Ask):
            return [self._ask(step, traces)]
        elif isinstance(step, AtOnce):
            with ThreadPoolExecutor(len(step.asks)) as pool:
                return _in_order_of(step.asks, pool.map(lambda ask: self._ask(ask, traces), step.asks))
        else:
            self._proxy.clear()
        return []

    def _await(self, drill: Drill, traces: list[str]) -> Seen:
        """Wait until all that the drill wants has come, and all metrics are newer than its last answer."""
        look = lambda: Seen.of(self._receiver.telemetry, traces)  # noqa: E731 - it is one expression
        deadline = time.monotonic() + self._patience
        self._arrivals.settle(self._patience)
        whole = lambda: all(each.holds(look()) for each in drill.expects)  # noqa: E731
        self._arrivals.wait_for(whole, deadline - time.monotonic())
        return look()

    # --- requests ------------------------------------------------------------------------------------------

    def _ask(self, ask: Ask, traces: list[str]) -> Answer:
        """Send a request in a trace of its own, by which all that is told of it will be known."""
        trace = secrets.token_hex(16)
        traces.append(trace)
        began = time.monotonic()
        status, _ = self._send(ask, {"traceparent": f"00-{trace}-{secrets.token_hex(8)}-01"})
        return Answer(ask, status, time.monotonic() - began)

    def _balance(self) -> int:
        """Return what the recipient has. The bank's connection is one that was used when it has answered."""
        status, body = self._send(Ask("GET", "/accounts/", 200), {})
        if status != 200:
            raise DemoError(f"the bank is not well: HTTP {status} without any fault")
        return next(one["balance"] for one in json.loads(body)["accounts"] if one["owner"] == RECIPIENT)

    def _send(self, ask: Ask, headers: dict[str, str]) -> tuple[int, bytes]:
        assert self._bank is not None
        connection = http.client.HTTPConnection(*self._bank.address, timeout=REQUEST_TIMEOUT)
        body = None
        if ask.fields is not None:
            body, headers = json.dumps(ask.fields), {**headers, "Content-Type": "application/json"}
        try:
            connection.request(ask.method, ask.path, body, headers)
            response = connection.getresponse()
            return response.status, response.read()
        except (OSError, http.client.HTTPException):
            return 0, b""
        finally:
            connection.close()


def _in_order_of(asks: tuple[Ask, ...], answers: Any) -> list[Answer]:
    """Give each ask the answer that it wants, if any of those that came at once is that."""
    left = list(answers)
    matched = []
    for ask in asks:
        answer = next((one for one in left if one.status == ask.status), left[0])
        left.remove(answer)
        matched.append(Answer(ask, answer.status, answer.seconds))
    return matched


class _Arrivals:
    """Hears of every export request when it has been taken in, and lets others wait for the next."""

    def __init__(self, forwarder: Forwarder | None) -> None:
        self._forwarder = forwarder
        self._arrived = threading.Condition()
        self._metrics = 0

    def __call__(self, path: str, headers: dict[str, str], body: bytes) -> None:
        """Take note of one."""
        if self._forwarder is not None:
            self._forwarder(path, headers, body)
        with self._arrived:
            self._metrics += path == "/v1/metrics"
            self._arrived.notify_all()

    def wait_for(self, whole: Callable[[], bool], seconds: float) -> bool:
        """Wait until it holds, but no longer than so many seconds."""
        with self._arrived:
            return self._arrived.wait_for(whole, max(0.0, seconds))

    def settle(self, seconds: float) -> bool:
        """Wait until all metrics are newer than this moment.

        The second export to arrive from now on was begun when the first was over.
        """
        due = self._metrics + 2
        return self.wait_for(lambda: self._metrics >= due, seconds)
