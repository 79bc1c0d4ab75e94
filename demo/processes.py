# SPDX-License-Identifier: Apache-2.0
"""The processes the demo starts, and the deadline after which none of them is left."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path
    from types import TracebackType

    from typing_extensions import Self

OUT_OF_TIME = 124  # what timeout(1) answers


class DemoError(Exception):
    """The demo cannot go on. The message says in plain words why."""


class Children:
    """Children in sessions of their own: Ctrl-C at the terminal reaches the demo, which then ends them."""

    def __init__(self) -> None:
        self._running: set[subprocess.Popen[bytes]] = set()

    def start(
        self, command: Sequence[str], environment: Mapping[str, str], log: Path, **options: Any
    ) -> subprocess.Popen[bytes]:
        """Start a process that writes to a log."""
        with log.open("ab") as output:
            child = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                **options,
            )
        self._running.add(child)
        return child

    def run(self, command: Sequence[str], environment: Mapping[str, str], log: Path, timeout: float) -> None:
        """Run a process to its end.

        Raises:
            DemoError: its exit status is not 0, or it took longer than `timeout` seconds.

        """
        self.wait(self.start(command, environment, log), timeout)

    def wait(self, child: subprocess.Popen[bytes], timeout: float) -> None:
        """Wait for a child that is about to end; raises like `run`."""
        try:
            status = child.wait(timeout)
            ended = f"exit status {status}"
        except subprocess.TimeoutExpired:
            status, ended = None, f"not finished after {timeout:.0f} s"
        self.end(child)
        if status != 0:
            raise DemoError(f"{' '.join(child.args)}: {ended}")

    def end(self, child: subprocess.Popen[bytes]) -> None:
        """Kill what is left of a child and its own children."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        self._running.discard(child)

    def end_all(self) -> None:
        """Kill them all."""
        for child in list(self._running):
            self.end(child)


class Deadline:
    """A context manager that ends the demo, children first, when it takes longer than it may."""

    def __init__(self, seconds: float, children: Children, log: Path) -> None:
        self._seconds = seconds
        self._log = log
        self._children = children
        self._timer = threading.Timer(seconds, self._end)
        self._timer.daemon = True

    def __enter__(self) -> Self:
        self._timer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()

    def _end(self) -> None:
        # The main thread hangs somewhere: no clean-up of its own can be counted on. The database goes by
        # itself once this process has gone.
        show_cursor = "\x1b[?25h" if sys.stderr.isatty() else ""  # the progress display hides it
        sys.stderr.write(
            f"{show_cursor}\notel_crdb demo: not finished after {self._seconds:.0f} s: ended. "
            f"What the bank wrote: {self._log}\n"
        )
        sys.stderr.flush()
        self._children.end_all()
        os._exit(OUT_OF_TIME)
