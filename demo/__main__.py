# SPDX-License-Identifier: Apache-2.0
"""``python -m demo``: start a server, serve the bank, have transfers collide, show what was seen."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from otel_crdb.testing import ServerError, server

from . import figures, log_lines, report
from .back_ends import BackEnds
from .bank_server import BankServer, environment_of
from .checks import check
from .forwarder import Forwarder
from .processes import Children, Deadline, DemoError
from .receiver import Receiver
from .run import Run
from .traffic import CLIENTS as CUSTOMERS
from .traffic import FEWEST_ROUNDS, MADE, REFUSED, Client, Rush, Tally

if TYPE_CHECKING:
    from otel_crdb.testing.telemetry import Telemetry

LONGEST = 110.0
FINE, MISSING, NOT_STARTED, INTERRUPTED = 0, 1, 2, 130
DRIVERS = ("psycopg", "psycopg2")


def main() -> int:
    """Run the demo and return its exit status."""
    screen = report.Screen()
    signal.signal(signal.SIGINT, _stop)  # also where the shell that started it in the background ignores it
    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGHUP, _stop)
    children = Children()
    folder = Path(tempfile.mkdtemp(prefix="otel_crdb-demo-"))
    log = folder / "bank.log"
    status = NOT_STARTED
    try:
        with Deadline(LONGEST, children, log):
            status = _run(screen, children, log)
    except (ServerError, DemoError) as error:
        screen.failed(str(error))
    except KeyboardInterrupt:
        screen.failed("interrupted")
        status = INTERRUPTED
    finally:
        children.end_all()
        if log.exists() and status not in (FINE, INTERRUPTED):
            screen.show_log(log)
        else:
            shutil.rmtree(folder)
    return status


def _stop(signum: int, _: Any) -> None:
    raise KeyboardInterrupt


def _run(screen: report.Screen, children: Children, log: Path) -> int:
    driver = _driver()
    began = time.monotonic()
    screen.title()
    with contextlib.ExitStack() as stack:
        back_ends = BackEnds.from_environment(os.environ)
        forwarder = Forwarder(back_ends.otlp) if back_ends else Forwarder.from_environment(os.environ)
        if forwarder is not None:
            stack.enter_context(forwarder)
        receiver = stack.enter_context(Receiver(forwarder))
        with screen.step("Start a database server") as step:
            database = stack.enter_context(server())
            step.result = database.description
        stack.callback(children.end_all)  # before the server they are connected to
        environment = environment_of(database.django_settings(), receiver.endpoint, driver)
        environment["BANK_LOG_FILE"] = str(log.with_name("bank.jsonl"))
        bank = BankServer(children, environment, log)
        with screen.step("Make the tables, open the accounts"):
            bank.prepare()
        run, versions = _serve_and_drive(screen, bank, receiver, driver)
    checks = check(run)
    if back_ends is not None:
        with screen.step("Wait for the collector, Jaeger and Loki"):
            checks.append(back_ends.check(run))
    facts = report.Facts(
        database.description, versions, receiver, forwarder, back_ends, time.monotonic() - began
    )
    screen.show(run, checks, facts)
    return FINE if all(one.passed for one in checks) else MISSING


def _serve_and_drive(
    screen: report.Screen, bank: BankServer, receiver: Receiver, driver: str | None
) -> tuple[Run, dict[str, str]]:
    """Serve the bank, drive it, stop it; return what all sides saw, and what the bank said it runs on."""
    tally = Tally()
    bank.start()
    client = Client(bank.address, tally)
    with screen.step("Serve the bank under gunicorn") as step:
        versions = bank.wait_until_ready(client)
        if driver and versions["driver"].split()[0] != driver:
            raise DemoError(f"DRIVER={driver} was asked for, but the bank runs on {versions['driver']}")
        before = client.get("/accounts/").body["accounts"]
        step.result = f"Django {versions['django']}, {versions['driver']}"
    with screen.step("Make transfers that collide", total=FEWEST_ROUNDS * CUSTOMERS) as step:
        owners = [account["owner"] for account in before]
        rush = Rush(client, tally, owners, seen_enough=lambda: _has_all(receiver.telemetry))
        rush.run(lambda: step.advance(tally.transfers, f"{tally.count(REFUSED)} refused"))
        step.result = (
            f"{tally.transfers} ordered, {tally.count(MADE)} made, {tally.count(REFUSED)} refused with 40001"
        )
    with screen.step("Stop the workers, which send what they still hold") as step:
        after = client.get("/accounts/").body["accounts"]
        bank.stop()
        step.result = f"{len(receiver.telemetry.spans)} spans received"
    lines = log_lines.of_file(bank.log.with_name("bank.jsonl"))
    return Run(tally, before, after, receiver.telemetry, lines), versions


def _has_all(telemetry: Telemetry) -> bool:
    """Whether what chance decides has come: two processes, and a transfer that was retried and made."""
    return len(telemetry.processes()) >= 2 and bool(figures.committed_after_retries(telemetry))


def _driver() -> str | None:
    """Read which driver is asked for; None: Django's choice."""
    driver = os.environ.get("DRIVER") or None
    if driver is not None and driver not in DRIVERS:
        raise DemoError(f"DRIVER={driver}: there are {' and '.join(DRIVERS)}")
    if driver is not None and importlib.util.find_spec(driver) is None:
        raise DemoError(f"DRIVER={driver} is not installed")
    return driver


if __name__ == "__main__":
    sys.exit(main())
