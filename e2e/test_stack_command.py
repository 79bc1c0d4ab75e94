# SPDX-License-Identifier: Apache-2.0
"""`make stack`: all of it comes up, tells where it is, and goes without a trace."""

import os
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import psutil
import pytest

from stack.queries import Jaeger, Loki, Prometheus, until

ROOT = Path(__file__).resolve().parent.parent
LONGEST = 120


@pytest.fixture
def running():
    """Start the command on ports of its own; give it and what it printed until it was ready."""
    with subprocess.Popen(
        [sys.executable, "-m", "stack", "--any-ports"],
        cwd=ROOT,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as command:
        printed = ""
        try:
            for line in command.stdout:
                printed += line
                if line.startswith("Next"):
                    break
            yield command, printed
        finally:
            command.kill()


def addresses(printed):
    """Return the address that the line of each name begins with."""
    return dict(re.findall(r"^(\w+) +(http://127\.0\.0\.1:\d+)", printed, re.M))


def test_it_is_ready_when_it_says_so_and_stops_all_it_started(running):
    """The bank answers, its traffic is in every back end; after Ctrl-C no process and no folder is left."""
    command, printed = running
    where = addresses(printed)
    assert set(where) == {"Bank", "OTLP", "Jaeger", "Loki", "Prometheus", "Collector"}, printed
    with urllib.request.urlopen(f"{where['Bank']}/health/") as answer:
        assert answer.status == 200
    children = psutil.Process(command.pid).children(recursive=True)
    assert {"otelcol", "jaeger", "loki", "prometheus"} <= {child.name() for child in children}

    until(lambda: Loki(where["Loki"]).count('{service_name="bank"}'), "lines of the bank in Loki")
    until(lambda: Jaeger(where["Jaeger"]).traces("bank", limit=5), "traces of the bank in Jaeger")
    counted = 'sum(cockroachdb_client_txn_duration_seconds_count{job="bank"})'
    until(lambda: Prometheus(where["Prometheus"]).value(counted), "the bank's transactions in Prometheus")

    command.send_signal(signal.SIGINT)
    rest, _ = command.communicate(timeout=LONGEST)
    assert command.returncode == 0, rest
    assert "nothing of it runs any more" in rest
    _, alive = psutil.wait_procs(children, timeout=LONGEST)
    assert not alive
    assert not Path(re.search(r"^Logs of all +(\S+)", printed, re.M)[1]).exists()


def test_servers_go_with_a_command_that_is_killed(running):
    """SIGKILL leaves it no time: the kernel tells the servers, and the embedded database goes by itself."""
    command, _ = running
    children = psutil.Process(command.pid).children(recursive=True)
    command.kill()
    _, alive = psutil.wait_procs(children, timeout=LONGEST)
    assert not alive
