# SPDX-License-Identifier: Apache-2.0
"""How often one thing is said: so many lines in a window, the rest is counted, and the count said once.

What was told and what is said to have been held back add up to what happened, exactly.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

#: Seconds in which lines of one kind are counted together.
WINDOW = 60.0
#: Kinds that are told apart at a time. What comes on top is told apart by all but the last part of its key,
#: and where there are as many of these, not at all: it shares the last.
KEY_LIMIT = 512
OTHERS = ("others",)


class Held(NamedTuple):
    """Lines of one kind that were held back."""

    #: How many.
    number: int
    #: Seconds in which they would have been said, rounded up.
    seconds: int
    #: The last of them.
    line: Any
    #: Whether others of another key may be among them.
    mixed: bool = False


class _Window:
    """What was said and held back of one kind since its first line."""

    __slots__ = ("began", "held", "line", "mixed", "told")

    def __init__(self, began: float, *, mixed: bool) -> None:
        self.began = began
        self.mixed = mixed
        self.told = 0
        self.held = 0
        self.line: Any = None


class Repeats:
    """Admits lines up to a limit, and hands what it held back to ``tell`` when a window is over.

    Whoever has something to say, or passes by, calls :meth:`tell_overdue`; and while something is held back
    there is a thread that waits for the window's end: a storm may be the last thing that a process does for
    an hour. ``tell`` is never called under the lock.
    """

    def __init__(
        self,
        tell: Callable[[list[Held]], None],
        *,
        window: float = WINDOW,
        key_limit: int = KEY_LIMIT,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tell = tell
        self._window = window
        self._key_limit = key_limit
        self._clock = clock
        self._told_at_exit = False
        self.begin_anew()

    def begin_anew(self) -> None:
        """Forget everything, in a child process."""
        # Reentrant: a signal handler may log while its own thread is counting.
        self._lock = threading.RLock()
        self._pid = os.getpid()
        self._windows: dict[tuple[str, ...], _Window] = {}
        #: Held back in windows that are over.
        self._over: list[Held] = []
        #: Lines held back and not yet told of: read without the lock.
        self.held = 0
        #: When the next of them are to be told.
        self._due = float("inf")
        self._thread: threading.Thread | None = None
        self._wake = threading.Event()

    def admit(self, key: tuple[str, ...], limit: int, line: Any) -> bool:
        """Whether a line may be said now; else it is counted. A limit of 0 admits every line."""
        if not limit:
            return True
        if self._pid != os.getpid():
            self.begin_anew()  # a child: what its parent held back is the parent's to tell
        now = self._clock()
        with self._lock:
            window = self._window_of(key, now)
            if window.told < limit:
                window.told += 1
                return True
            window.held += 1
            window.line = line
            self.held += 1
            self._due = min(self._due, window.began + self._window)
            unwatched = self._thread is None
        if unwatched:
            self._watch()
        return False

    def _window_of(self, key: tuple[str, ...], now: float) -> _Window:
        shared = (*OTHERS, *key[:-1])
        for each, limit in ((key, 1), (shared, 2), (OTHERS, None)):
            window = self._windows.get(each)
            if window is not None and now < window.began + self._window:
                return window
            if window is not None:
                self._close(window, now)
            elif limit is not None and len(self._windows) >= limit * self._key_limit:
                self._close_windows(now, everything=False)
                if len(self._windows) >= limit * self._key_limit:
                    continue
            break
        window = self._windows[each] = _Window(now, mixed=each is not key)
        return window

    def _close_windows(self, now: float, *, everything: bool) -> None:
        """Take away the windows that are over; what they held back waits to be told."""
        for key, window in list(self._windows.items()):
            if everything or now >= window.began + self._window:
                del self._windows[key]
                self._close(window, now)

    def _close(self, window: _Window, now: float) -> None:
        if window.held:
            seconds = min(now - window.began, self._window)
            self._over.append(Held(window.held, max(1, -int(-seconds // 1)), window.line, window.mixed))

    def tell_overdue(self, *, everything: bool = False) -> None:
        """Tell what was held back in windows that are over, or all of it."""
        if not self.held or (not everything and self._clock() < self._due) or self._pid != os.getpid():
            return
        with self._lock:
            now = self._clock()
            self._close_windows(now, everything=everything)
            over, self._over = self._over, []
            self.held -= sum(held.number for held in over)
            begun = [window.began for window in self._windows.values() if window.held]
            self._due = min(begun) + self._window if begun else float("inf")
            if not self.held:
                self._wake.set()
        if over:
            self._tell(over)

    # --- the thread ----------------------------------------------------------------------------

    def _watch(self) -> None:
        """Have a thread wait for the windows' ends, if one can be had: else the next line tells."""
        # Not named as threads that send telemetry are: what those log is not sent.
        thread = threading.Thread(target=self._wait, name="otel_crdb_held_back", daemon=True)
        with self._lock:
            if self._thread is not None:
                return
            self._thread = thread
            self._wake.clear()
        if not self._told_at_exit:
            self._told_at_exit = True
            # Now, and not at the import: what sends telemetry is asked to end later by whoever came first.
            atexit.register(self.tell_overdue, everything=True)
        try:
            thread.start()
        except RuntimeError:  # no more threads, or the interpreter is ending
            self._thread = None

    def _wait(self) -> None:
        while True:
            with self._lock:
                if not self.held:
                    self._thread = None
                    return
                self._wake.clear()
                seconds = self._due - self._clock()
            if not self._wake.wait(max(0.0, min(seconds, self._window))):
                with contextlib.suppress(Exception):  # of the log's: the thread has more to wait for
                    self.tell_overdue()
