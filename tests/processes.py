# SPDX-License-Identifier: Apache-2.0
"""Processes that a test starts: their environment, their ports, the wait for what they do."""

import os
import socket
import time

#: Seconds that a process may take for what it is bound to do.
DEADLINE = 60.0


def environment_of(**variables):
    """Return this process's environment without what steers telemetry, and with these variables."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    driver = {name: os.environ[name] for name in ("OTEL_CRDB_TEST_DRIVER",) if name in os.environ}
    return {**clean, **driver, **variables}


def free_port():
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def until(condition, what, told):
    """Wait for something that processes are bound to bring about; else say what they have printed."""
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, f"never seen: {what}\n{told()}"
        time.sleep(0.02)
