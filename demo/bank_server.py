# SPDX-License-Identifier: Apache-2.0
"""The bank under gunicorn: migrated, seeded, served, and stopped so that nothing it recorded is lost."""

from __future__ import annotations

import http.client
import json
import os
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .processes import Children, DemoError

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Mapping

    from .traffic import Client

HERE = Path(__file__).resolve().parent
START_TIMEOUT = 40.0
STOP_TIMEOUT = 30.0


class BankServer:
    """One bank. `log` is where all its processes write; `address` is where it is served."""

    def __init__(self, children: Children, environment: Mapping[str, str], log: Path) -> None:
        self._children = children
        self._environment = environment
        self.log = log
        self.address: tuple[str, int] = ("", 0)
        self._gunicorn: subprocess.Popen[bytes]

    def prepare(self) -> None:
        """Make the tables and open the accounts. Raises DemoError."""
        for arguments in (["migrate", "--no-input"], ["seed", "--fresh"]):
            command = [sys.executable, str(HERE / "manage.py"), *arguments]
            self._children.run(command, self._environment, self.log, START_TIMEOUT)

    def start(self, port: int = 0) -> None:
        """Start gunicorn on a socket that listens already: what is sent before it is ready waits there."""
        with socket.create_server(("127.0.0.1", port), backlog=128) as listener:
            self.address = listener.getsockname()
            command = [
                *(sys.executable, "-m", "gunicorn", "bank.wsgi"),
                *("--config", str(HERE / "gunicorn_settings.py")),
                *("--chdir", str(HERE)),
                *("--bind", f"fd://{listener.fileno()}"),
            ]
            self._gunicorn = self._children.start(
                command, self._environment, self.log, pass_fds=[listener.fileno()], cwd=HERE
            )

    def stop(self) -> None:
        """Have the workers finish, send what they recorded, and end.

        Raises:
            DemoError: they did not end well.

        """
        self._gunicorn.terminate()
        self._children.wait(self._gunicorn, STOP_TIMEOUT)

    def wait_until_ready(self, client: Client) -> dict[str, Any]:
        """Wait for the first answer, and return what the bank says it runs on.

        Raises:
            DemoError: there is none, or not the right one.

        """
        try:
            answer = client.get("/health/", timeout=START_TIMEOUT)
        except (OSError, http.client.HTTPException) as error:
            raise DemoError(f"the bank did not start: {error}") from error
        if answer.status != 200:
            raise DemoError(f"the bank is not well: HTTP {answer.status}")
        return answer.body


def environment_of(
    database: Mapping[str, Any], endpoint: str, driver: str | None, outer: Mapping[str, str] = os.environ
) -> dict[str, str]:
    """Make the environment of the bank's processes.

    Everything of `outer` but where telemetry goes: that is the demo's receiver, soon rather than seldom.
    """
    ours = {
        "DJANGO_SETTINGS_MODULE": "bank.settings",
        "BANK_DATABASE": json.dumps(database),
        "BANK_DRIVER": driver or "",
        "DEMO_PID": str(os.getpid()),
        "OTEL_SERVICE_NAME": "bank",
        "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
        "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
        "OTEL_EXPORTER_OTLP_COMPRESSION": "gzip",
        "OTEL_BSP_SCHEDULE_DELAY": "200",
        "OTEL_BLRP_SCHEDULE_DELAY": "200",
        "OTEL_METRIC_EXPORT_INTERVAL": "1000",
        # Errors as log records too, beside the events on the spans: all three signals tell of them.
        "OTEL_SEMCONV_EXCEPTION_SIGNAL_OPT_IN": "logs/dup",
        # Every line, also of a storm: the file and OTLP are compared.
        "OTEL_CRDB_LOG_LIMIT": "0",
    }
    kept = {name: value for name, value in outer.items() if not name.startswith("OTEL_EXPORTER_")}
    return {**kept, **ours}
