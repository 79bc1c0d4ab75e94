# SPDX-License-Identifier: Apache-2.0
"""`python -m stack`: the whole stack on loopback until Ctrl-C; with `--build-only`, only its programs."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from demo.bank_server import BankServer, environment_of
from demo.processes import Children, DemoError
from demo.traffic import Client, Tally
from otel_crdb.testing import ServerError, server

from . import programs
from .programs import StackError
from .servers import Ports, Stack, go_with_the_parent, last_lines

if TYPE_CHECKING:
    from collections.abc import Iterator

    from typing_extensions import Self

FINE, NOT_STARTED, INTERRUPTED = 0, 1, 130
#: A line that often where nobody looks at a terminal.
PACKAGES_A_LINE = 250


def main() -> int:
    """Run what is asked for and return its exit status."""
    console = Console(highlight=False)
    options = _options()
    for each in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(each, _stop)
    try:
        _build(console)
        if not options.build_only:
            _run(console, Ports.free() if options.any_ports else Ports())
    except KeyboardInterrupt:
        console.print("Interrupted")
        return INTERRUPTED
    except (StackError, ServerError, DemoError) as error:
        console.print(str(error), style="red", markup=False, soft_wrap=True)
        return NOT_STARTED
    return FINE


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m stack", description=__doc__)
    parser.add_argument("--build-only", action="store_true", help="build what is missing, and start nothing")
    parser.add_argument(
        "--any-ports", action="store_true", help="take ports that are free, not the usual ones"
    )
    return parser.parse_args()


def _stop(signum: int, _: Any) -> None:
    raise KeyboardInterrupt


def _build(console: Console) -> None:
    wanted = programs.missing()
    if not wanted:
        return
    names = ", ".join(f"{program.name} {program.version}" for program in wanted)
    console.print(f"To be built once, from Go modules: {names}", soft_wrap=True)
    console.print(f"Kept in {programs.cache()}; some 20 minutes on two cores", soft_wrap=True)
    began = time.monotonic()
    with _Shown(console) as shown:
        programs.build(shown)
    console.print(f"Built in {time.monotonic() - began:.0f} s")


class _Shown:
    """How far a build is: a bar on a terminal, a line now and then elsewhere."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._title, self._packages, self._done, self._began = "", 0, 0, time.monotonic()
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._progress = Progress(*columns, console=console, transient=True)
        self._task = self._progress.add_task("")

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()
        self._end()

    def begin(self, title: str, packages: int) -> None:
        """Something of so many packages is begun; 0: how many is being found out."""
        if title != self._title:
            self._end()
            self._began = time.monotonic()
        self._title, self._packages, self._done = title, packages, 0
        told = title if packages else f"{title}: modules"
        self._progress.reset(self._task, total=packages or None, description=told)

    def advance(self) -> None:
        """One more package is compiled."""
        self._done += 1
        self._progress.update(self._task, completed=self._done)
        if not self._console.is_terminal and self._done % PACKAGES_A_LINE == 0:
            self._console.print(f"  {self._title}: {self._done} of {self._packages} packages")

    def _end(self) -> None:
        if self._title:
            self._console.print(f"  {self._title}: {time.monotonic() - self._began:.0f} s")


def _run(console: Console, ports: Ports) -> None:
    taken = ports.taken()
    if taken:
        listed = ", ".join(map(str, taken))
        raise StackError(f"Somebody listens on 127.0.0.1 already, at {listed}: another stack has to go first")
    with tempfile.TemporaryDirectory(prefix="otel_crdb-stack-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        with contextlib.ExitStack() as running:
            console.print("Starting the collector, Jaeger, Loki, Prometheus …")
            stack = running.enter_context(Stack(folder, ports))
            console.print("Starting a database server and the bank …")
            bank, description = running.enter_context(_bank(folder, stack.agent.address, ports.bank))
            _tell(console, stack, bank, description)
            # Left as if all was done: what is queued is sent, and nothing is cut off.
            with contextlib.suppress(KeyboardInterrupt):
                threading.Event().wait()
            console.print("Stopping …")
    console.print("Stopped: nothing of it runs any more")


@contextlib.contextmanager
def _bank(folder: Path, otlp: str, port: int) -> Iterator[tuple[str, str]]:
    """Serve the bank with a little traffic, its telemetry to the agent; give its address, its database."""
    children = Children()
    with server() as database, contextlib.ExitStack() as ending:
        ending.callback(children.end_all)
        environment = environment_of(database.django_settings(), otlp, None)
        # As often as an application would: the demo is in more of a hurry.
        for name in ("OTEL_BSP_SCHEDULE_DELAY", "OTEL_BLRP_SCHEDULE_DELAY", "OTEL_METRIC_EXPORT_INTERVAL"):
            del environment[name]
        environment["OTEL_METRIC_EXPORT_INTERVAL"] = "5000"
        bank = BankServer(children, environment, folder / "bank.log")
        try:
            bank.prepare()
            bank.start(port)
            bank.wait_until_ready(Client(bank.address, Tally()))
        except DemoError as error:
            # Its log goes with the folder.
            raise StackError(f"{error}\n{last_lines(bank.log)}") from error
        ending.callback(bank.stop)
        address = f"http://127.0.0.1:{port}"
        load = [sys.executable, "-m", "demo.load", "--address", address]
        root = Path(__file__).resolve().parent.parent
        caller = children.start(
            load, dict(os.environ), folder / "load.log", cwd=root, preexec_fn=go_with_the_parent
        )
        ending.callback(children.end, caller)
        yield address, database.description


def _tell(console: Console, stack: Stack, bank: str, description: str) -> None:
    jaeger, loki, prometheus = (each.address for each in stack.backends)
    lines = (
        ("", "Ready. Ctrl-C stops all of it."),
        ("Bank", f"{bank}, a few transfers a second, on {description}"),
        ("OTLP", f"{stack.agent.address} (http/protobuf), http://127.0.0.1:{stack.ports.otlp_grpc} (gRPC)"),
        ("Jaeger", f"{jaeger}/api/traces?service=bank (the page itself is only in Jaeger's image)"),
        ("Loki", f"{loki}/loki/api/v1/query_range?query=%7Bservice_name=%22bank%22%7D"),
        ("Prometheus", f"{prometheus}/api/v1/query?query=cockroachdb_client_txn_retries_total"),
        ("Collector", f"{stack.own_metrics}"),
        ("Logs of all", str(stack.agent.folder)),
        ("Next", _next(stack)),
    )
    for name, told in lines:
        console.print(f"{name:12}{told}", soft_wrap=True, markup=False)


def _next(stack: Stack) -> str:
    if stack.ports == Ports():
        return "make demo STACK=1, in another terminal; docs/stack.md"
    jaeger, loki, prometheus = (each.address for each in stack.backends)
    return (
        f"make demo STACK=1 OTEL_EXPORTER_OTLP_ENDPOINT={stack.agent.address} "
        f"JAEGER_URL={jaeger} LOKI_URL={loki} PROMETHEUS_URL={prometheus}"
    )


if __name__ == "__main__":
    sys.exit(main())
