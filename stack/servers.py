# SPDX-License-Identifier: Apache-2.0
"""The servers as processes on loopback: on their files of `collector/`, waited for, stopped well."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from .programs import StackError, path_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType

    from typing_extensions import Self

CONFIGURATION = Path(__file__).resolve().parent.parent / "collector"
#: Seconds. Loki joins its own ring for ten of them; the rest is for a busy machine.
READY_WITHIN = 120.0
STOPPED_WITHIN = 60.0
LINES_OF_A_LOG = 15


@dataclass(frozen=True)
class Ports:
    """Where each listens, on 127.0.0.1. What a user meets has the port that its documentation names."""

    otlp_grpc: int = 4317
    otlp_http: int = 4318
    agent_health: int = 13133
    agent_metrics: int = 8888
    jaeger: int = 16686
    jaeger_otlp: int = 14317
    jaeger_grpc: int = 16685
    jaeger_health: int = 13134
    loki: int = 3100
    loki_grpc: int = 9095
    prometheus: int = 9090
    bank: int = 8000

    @classmethod
    def free(cls) -> Self:
        """Take ports that nobody listens on."""
        with contextlib.ExitStack() as stack:
            sockets = [stack.enter_context(socket.socket()) for _ in fields(cls)]
            for each in sockets:
                each.bind(("127.0.0.1", 0))
            return cls(*(each.getsockname()[1] for each in sockets))

    def taken(self) -> list[int]:
        """Return those that somebody listens on already."""
        return [port for port in (getattr(self, each.name) for each in fields(self)) if listens(port)]


class Server:
    """One server. `log` is where it writes; `address` is what it is asked at, over HTTP."""

    def __init__(
        self,
        name: str,
        command: Sequence[str | Path],
        variables: Mapping[str, object],
        *,
        folder: Path,
        address: str,
        ready: str,
        ends_with: frozenset[int] = frozenset({0}),
    ) -> None:
        self.name = name
        self.address = address
        self.folder = folder
        self.log = folder / f"{name}.log"
        self.variables = {key: str(value) for key, value in variables.items()}
        self._command = [str(part) for part in command]
        self._ready = ready
        self._ends_with = ends_with
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        try:
            self.wait_until_ready()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.stop()
        else:
            self.kill()

    @property
    def pid(self) -> int:
        """The process it runs as. Raises StackError where it does not run."""
        if self._process is None:
            raise StackError(f"{self.name} does not run")
        return self._process.pid

    def start(self) -> None:
        """Start it, and do not wait for it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                self._command,
                env={**os.environ, **self.variables},
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C at the terminal is for who started it
                preexec_fn=go_with_the_parent,
            )

    def is_ready(self) -> bool:
        """Whether it answers that it is."""
        try:
            with urllib.request.urlopen(self._ready, timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def wait_until_ready(self) -> None:
        """Wait until it is.

        Raises:
            StackError: it ended, or it took longer than READY_WITHIN.

        """
        end = time.monotonic() + READY_WITHIN
        while not self.is_ready():
            if self._process is None or self._process.poll() is not None:
                raise StackError(f"{self.name} did not start:\n{last_lines(self.log)}")
            if time.monotonic() > end:
                raise StackError(
                    f"{self.name} is not ready after {READY_WITHIN:.0f} s:\n{last_lines(self.log)}"
                )
            time.sleep(0.1)

    def stop(self) -> None:
        """Ask it to end, and wait.

        Raises:
            StackError: it did not, or not well.

        """
        if self._process is None:
            return
        process, self._process = self._process, None
        process.terminate()
        try:
            status = process.wait(STOPPED_WITHIN)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise StackError(f"{self.name} did not stop in {STOPPED_WITHIN:.0f} s: killed") from None
        if status not in self._ends_with:
            raise StackError(f"{self.name} stopped with status {status}:\n{last_lines(self.log)}")

    def kill(self) -> None:
        """End it at once, as a crash would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


def agent(
    folder: Path,
    ports: Ports,
    *,
    variables: Mapping[str, object] = {},
    more: Sequence[Path] = (),
) -> Server:
    """Make the collector on `agent.yaml`, and on what is given besides.

    Args:
        folder: where its queues and its log are.
        ports: its own, and those of the back ends that it sends to.
        variables: of agent.yaml, beside the addresses.
        more: further files, which the collector merges.

    """
    files = [option for path in (CONFIGURATION / "agent.yaml", *more) for option in ("--config", path)]
    return Server(
        "agent",
        [path_of("otelcol"), *files],
        {
            "AGENT_OTLP_GRPC": f"127.0.0.1:{ports.otlp_grpc}",
            "AGENT_OTLP_HTTP": f"127.0.0.1:{ports.otlp_http}",
            "AGENT_HEALTH": f"127.0.0.1:{ports.agent_health}",
            "AGENT_METRICS_HOST": "127.0.0.1",
            "AGENT_METRICS_PORT": ports.agent_metrics,
            "AGENT_JAEGER": f"127.0.0.1:{ports.jaeger_otlp}",
            "AGENT_LOKI": f"http://127.0.0.1:{ports.loki}/otlp",
            "AGENT_PROMETHEUS": f"http://127.0.0.1:{ports.prometheus}/api/v1/otlp",
            "AGENT_QUEUE_DIRECTORY": folder / "agent-queue",
            **variables,
        },
        folder=folder,
        address=f"http://127.0.0.1:{ports.otlp_http}",
        ready=f"http://127.0.0.1:{ports.agent_health}/",
        # 1: all is well, but its own last metrics found no Prometheus.
        ends_with=frozenset({0, 1}),
    )


def jaeger(folder: Path, ports: Ports) -> Server:
    """Make Jaeger on `jaeger.yaml`."""
    address = f"http://127.0.0.1:{ports.jaeger}"
    return Server(
        "jaeger",
        [path_of("jaeger"), "--config", CONFIGURATION / "jaeger.yaml"],
        {
            "JAEGER_OTLP_GRPC": f"127.0.0.1:{ports.jaeger_otlp}",
            "JAEGER_QUERY_HTTP": f"127.0.0.1:{ports.jaeger}",
            "JAEGER_QUERY_GRPC": f"127.0.0.1:{ports.jaeger_grpc}",
            "JAEGER_HEALTH": f"127.0.0.1:{ports.jaeger_health}",
            "JAEGER_DATA": folder / "jaeger-data",
        },
        folder=folder,
        address=address,
        ready=f"{address}/api/services",
    )


def loki(folder: Path, ports: Ports) -> Server:
    """Make Loki on `loki.yaml`."""
    address = f"http://127.0.0.1:{ports.loki}"
    return Server(
        "loki",
        [path_of("loki"), f"-config.file={CONFIGURATION / 'loki.yaml'}", "-config.expand-env=true"],
        {
            "LOKI_HOST": "127.0.0.1",
            "LOKI_HTTP_PORT": ports.loki,
            "LOKI_GRPC_PORT": ports.loki_grpc,
            "LOKI_DATA": folder / "loki-data",
        },
        folder=folder,
        address=address,
        ready=f"{address}/ready",
    )


def prometheus(folder: Path, ports: Ports) -> Server:
    """Make Prometheus on `prometheus.yaml`."""
    address = f"http://127.0.0.1:{ports.prometheus}"
    return Server(
        "prometheus",
        [
            path_of("prometheus"),
            f"--config.file={CONFIGURATION / 'prometheus.yaml'}",
            "--web.enable-otlp-receiver",
            "--enable-feature=exemplar-storage",
            f"--web.listen-address=127.0.0.1:{ports.prometheus}",
            f"--storage.tsdb.path={folder / 'prometheus-data'}",
        ],
        {},
        folder=folder,
        address=address,
        ready=f"{address}/-/ready",
    )


class Stack:
    """All four, as a context manager. The back ends start first and stop last: what is queued is sent."""

    def __init__(
        self,
        folder: Path,
        ports: Ports,
        *,
        variables: Mapping[str, object] = {},
        more: Sequence[Path] = (),
    ) -> None:
        self.jaeger = jaeger(folder, ports)
        self.loki = loki(folder, ports)
        self.prometheus = prometheus(folder, ports)
        self.agent = agent(folder, ports, variables=variables, more=more)
        self.ports = ports
        self._running: contextlib.ExitStack

    @property
    def backends(self) -> tuple[Server, Server, Server]:
        """Where telemetry comes to rest."""
        return self.jaeger, self.loki, self.prometheus

    @property
    def own_metrics(self) -> str:
        """Where the agent tells of itself."""
        return f"http://127.0.0.1:{self.ports.agent_metrics}/metrics"

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as starting:
            for server in self.backends:
                starting.callback(server.kill)
                server.start()
            for server in self.backends:
                server.wait_until_ready()
                # In the place of the kill, which finds nothing left to do.
                starting.callback(server.stop)
            starting.enter_context(self.agent)
            self._running = starting.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._running.__exit__(kind, error, trace)


def last_lines(log: Path) -> str:
    """Return the end of a log; nothing where there is none."""
    if not log.exists():
        return ""
    return "\n".join(log.read_text(errors="replace").splitlines()[-LINES_OF_A_LOG:])


def listens(port: int) -> bool:
    """Whether somebody listens at this port of 127.0.0.1."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
_PR_SET_PDEATHSIG = 1


def go_with_the_parent() -> None:
    """Have the kernel end this process when its parent is gone, also by SIGKILL: nothing is left running."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
