# SPDX-License-Identifier: Apache-2.0
"""The user's side of a test server's life: to start its supervisor, and to take leave of it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

# The supervisor needs nothing but the standard library and this folder. It is spared the package's own
# imports (Django, OpenTelemetry), the user's site configuration and any automatic instrumentation.
BOOT = """
import sys, types
package = types.ModuleType("otel_crdb")
package.__path__ = [sys.argv[2]]
sys.modules["otel_crdb"] = package
from otel_crdb.testing.supervisor import main
main()
"""
HELD = b"held"  # what the supervisor says of a lease that others hold
LEAVE_TIMEOUT = 60.0  # seconds; the supervisor itself gives the database 30


class ServerError(RuntimeError):
    """There is no test server: none can be found, or it did not start. The message says what to do."""


class Lease:
    """A hold on a running server, which ends when every process that has it is gone or has left.

    `fd` is what holds. Forked children inherit it; one that is executed has to be passed it
    (`subprocess.Popen(..., pass_fds=[fd])`). `facts` are the fields of `Server` the supervisor found out.
    """

    def __init__(self, order: dict[str, Any]) -> None:
        self._starter = os.getpid()
        read_end, self.fd = os.pipe()
        self._link, far_link = socket.socketpair()
        try:
            with far_link:
                self._supervisor = _spawn(order, read_end, far_link.fileno())
        finally:
            os.close(read_end)
        self.facts: dict[str, Any] = {}
        try:
            self._await_ready()
        except BaseException:
            self.leave()
            raise

    def _await_ready(self) -> None:
        with self._link.makefile("rb") as lines:
            for line in lines:
                message: dict[str, Any] = json.loads(line)
                if "error" in message:
                    raise ServerError(message["error"])
                self.facts.update(message)
                if "pids" in message:
                    return
        raise ServerError("the test server's supervisor ended before the server was ready")

    def leave(self) -> None:
        """Give up this process's hold. In the starter, when it was the last, wait until all is gone.

        Raises TimeoutError when the supervisor is not gone after 60 s.
        """
        os.close(self.fd)
        with self._link:
            if os.getpid() == self._starter and self._gone():
                with contextlib.suppress(ChildProcessError):  # the application reaps all children itself
                    os.waitpid(self._supervisor, 0)
                self._remove_leftovers()

    def _gone(self) -> bool:
        self._link.settimeout(LEAVE_TIMEOUT)
        try:
            self._link.send(b"?")
            while answer := self._link.recv(4096):
                if answer.endswith(HELD):
                    return False
        except ConnectionError:
            pass  # gone before it was asked
        return True

    def _remove_leftovers(self) -> None:
        """Do what a killed supervisor could not."""
        directory = self.facts.get("directory")
        if directory is not None and Path(directory).exists():
            shutil.rmtree(directory)


def _spawn(order: dict[str, Any], lease: int, asker: int) -> int:
    here = Path(__file__).resolve().parent
    arguments = json.dumps(order | {"lease": lease, "asker": asker})
    process = subprocess.Popen(  # noqa: S603 - our own interpreter and code
        [sys.executable, "-I", "-S", "-c", BOOT, arguments, str(here.parent)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        pass_fds=(lease, asker),
        start_new_session=True,  # Ctrl-C at the terminal is for the users, not for it
    )
    # It is waited for by its id. The object would warn in every process that forgets it, forked ones too.
    process.returncode = 0
    return process.pid
