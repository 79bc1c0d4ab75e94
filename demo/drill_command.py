# SPDX-License-Identifier: Apache-2.0
"""``otel-crdb drill``: start a server and the bank, play drills on them, show what was seen."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from otel_crdb.testing import ServerError, server
from otel_crdb.testing.drills import CATALOGUE

from .__main__ import FINE, INTERRUPTED, MISSING, NOT_STARTED, _driver, _stop
from .drill_report import DrillScreen
from .drill_stage import Stage
from .forwarder import Forwarder
from .processes import DemoError

if TYPE_CHECKING:
    from otel_crdb.testing.drills import Drill


def play(chosen: list[Drill], patience: float) -> int:
    """Play these drills, or all where there is none; return the exit status.

    For telemetry that does not come it waits `patience` seconds.
    """
    screen = DrillScreen()
    # Also where the shell that started it in the background ignores them.
    before = {one: signal.signal(one, _stop) for one in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    folder = Path(tempfile.mkdtemp(prefix="otel_crdb-drill-"))
    log = folder / "bank.log"
    status = NOT_STARTED
    try:
        status = _play(screen, chosen, patience, log)
    except (ServerError, DemoError) as error:
        screen.failed(str(error))
    except KeyboardInterrupt:
        screen.failed("interrupted")
        status = INTERRUPTED
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
        if log.exists() and status not in (FINE, INTERRUPTED):
            screen.show_log(log)
        else:
            shutil.rmtree(folder)
    return status


def _play(screen: DrillScreen, chosen: list[Drill], patience: float, log: Path) -> int:
    driver = _driver()
    with contextlib.ExitStack() as stack:
        forwarder = Forwarder.from_environment(os.environ)
        if forwarder is not None:
            stack.enter_context(forwarder)
        with screen.step("Start a database server") as step:
            database = stack.enter_context(server())
            step.result = database.description
        with screen.step("Serve the bank") as step:
            stage = Stage(database, log, driver=driver, patience=patience, forwarder=forwarder)
            stack.enter_context(stage)
            step.result = f"gunicorn, on {stage.driver}, behind the fault proxy"
        if driver is not None and stage.driver != driver:
            raise DemoError(f"DRIVER={driver} was asked for, but the bank runs on {stage.driver}")
        for drill in chosen:
            if stage.lacks(drill):
                raise DemoError(f"{drill.name}: {stage.lacks(drill)}")
        failed = []
        for drill in chosen or CATALOGUE.values():
            if stage.lacks(drill):
                screen.left_out(drill, stage.lacks(drill))
                continue
            with screen.playing(drill):
                performance = stage.play(drill)
            screen.played(performance)
            if not performance.passed:
                failed.append(drill.name)
        stage.stop()
    screen.verdict(failed)
    return MISSING if failed else FINE
