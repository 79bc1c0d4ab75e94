# SPDX-License-Identifier: Apache-2.0
"""Children of the supervisor: they never outlive it, and what they wrote last is kept for error messages."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

T = TypeVar("T")

PR_SET_PDEATHSIG = 1  # linux/prctl.h
TAIL_BYTES = 4_000
STOP_PATIENCE = 10.0  # seconds a child has to obey one signal before it gets the next


class StartError(Exception):
    """The database did not start. The message says why and ends with what it wrote last."""


def die_with_parent(signum: int) -> Callable[[], None] | None:
    """Give what a child does before it executes its program, so that it gets `signum` when we are killed.

    It has to run after the change of user, which clears the setting, and counts on the forking thread, here
    the main one, to live on. Linux only: None elsewhere.
    """
    if sys.platform != "linux":
        return None
    prctl, parent = ctypes.CDLL(None).prctl, os.getpid()

    def ask_for_the_signal() -> None:
        prctl(PR_SET_PDEATHSIG, signum, 0, 0, 0)
        if os.getppid() != parent:  # we were killed before the call
            os._exit(1)

    return ask_for_the_signal


async def run(command: Sequence[str], text: str = "", **options: Any) -> str:
    """Run a command to its end on `text` and give its standard output; StartError when it fails.

    `options` go to `subprocess.Popen`, here and below.
    """
    process = await _spawn(command, signal.SIGKILL, stdin=PIPE, stdout=PIPE, **options)
    try:
        output, errors = await process.communicate(text.encode())
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        raise StartError(f"{command[0]} failed:\n{_shown(output + errors)}")
    return output.decode(errors="replace")


async def _spawn(command: Sequence[str], death_signal: int, **options: Any) -> asyncio.subprocess.Process:
    try:
        return await asyncio.create_subprocess_exec(
            *command, stderr=PIPE, preexec_fn=die_with_parent(death_signal), **options
        )
    except OSError as error:
        raise StartError(f"{command[0]} cannot be executed: {error}") from error


def _shown(output: bytes) -> str:
    return output[-TAIL_BYTES:].decode(errors="replace").strip() or "(it wrote nothing)"


class Daemon:
    """A child that runs in the foreground until it is stopped.

    `stop_signals` are sent one after the other, ten seconds apart, and SIGKILL at last; the last of them is
    also what the child gets when the supervisor is killed.
    """

    def __init__(self, process: asyncio.subprocess.Process, stop_signals: Sequence[int]) -> None:
        self._process = process
        self._stop_signals = stop_signals
        self._tail = b""
        self._news = asyncio.Event()
        self.ended = asyncio.create_task(self._read())
        self.pid = process.pid

    @classmethod
    async def start(cls, command: Sequence[str], stop_signals: Sequence[int], **options: Any) -> Daemon:
        """Start it. Raises StartError when the program cannot be executed."""
        process = await _spawn(command, stop_signals[-1], stdin=DEVNULL, stdout=DEVNULL, **options)
        return cls(process, stop_signals)

    async def _read(self) -> None:
        assert self._process.stderr is not None
        while chunk := await self._process.stderr.read(65_536):
            self._tail = (self._tail + chunk)[-65_536 - TAIL_BYTES :]
            self._news.set()
        await self._process.wait()

    async def until_it_says(self, words: bytes) -> None:
        """Wait for words on its standard error. Raises StartError when it ends without them."""
        while words not in self._tail:
            self._news.clear()
            await self.while_running(self._news.wait())

    async def while_running(self, event: Coroutine[Any, Any, T]) -> T:
        """Wait for something else. Raises StartError when the child ends first."""
        waiting = asyncio.ensure_future(event)
        try:
            await asyncio.wait({waiting, self.ended}, return_when=asyncio.FIRST_COMPLETED)
            if not waiting.done():
                raise StartError(f"the database ended while it started:\n{self.last_words()}")
            return waiting.result()
        finally:
            waiting.cancel()

    def last_words(self) -> str:
        """Give the end of what it has written to its standard error."""
        return _shown(self._tail)

    async def stop(self) -> None:
        """Stop it and wait until it has ended."""
        for signum in (*self._stop_signals, signal.SIGKILL):
            if self.ended.done():
                return
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(signum)
            await asyncio.wait({self.ended}, timeout=STOP_PATIENCE)
