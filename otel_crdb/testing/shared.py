# SPDX-License-Identifier: Apache-2.0
"""One server for the whole process: what a settings module and the fixtures of a test run have in common."""

from __future__ import annotations

import atexit
import threading
from contextlib import ExitStack

from .servers import Server, server

_lock = threading.Lock()
_running: Server | None = None


def shared_server() -> Server:
    """Give this process's server, started at the first call and gone with the process.

    For settings of tests: `DATABASES = {"default": shared_server().django_settings(NAME="bank")}`. `server`
    says which one it is. Raises ServerError when there is none to be had or it does not start.
    """
    global _running
    with _lock:
        if _running is None:
            stack = ExitStack()
            _running = stack.enter_context(server())
            atexit.register(stack.close)
        return _running


def shared_server_at(host: str, port: int) -> Server | None:
    """Give this process's server where it is the one at this address."""
    return _running if _running is not None and (_running.host, _running.port) == (host, port) else None
