# SPDX-License-Identifier: Apache-2.0
"""Troubles that pass by themselves, and those that last: one error when one does, one line when it is over.

A drain, a lease that moves, a refused connect or a conflict is over in seconds, and a retry is its cure.
Where nothing has succeeded for longer, somebody has to look.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

#: Seconds without a success after which a trouble lasts.
PATIENCE = 30.0
#: The classes of errors that pass by themselves.
TRANSIENT = frozenset({"retryable", "unavailable", "connection", "overload"})
#: Of those, what only a commit proves to be over: statements succeed amid conflicts.
UNTIL_COMMIT = frozenset({"retryable"})


class Lasting(NamedTuple):
    """A trouble that lasts, or has lasted."""

    alias: str
    error_class: str
    #: Seconds from its first failure.
    seconds: float
    failures: int
    #: When it began; seconds since the epoch.
    since: float


class _Spell:
    __slots__ = ("began", "failures", "since", "told")

    def __init__(self, began: float) -> None:
        self.began = began
        self.since = time.time()
        self.failures = 0
        self.told = False


class Spells:
    """The troubles under way: an alias of ``DATABASES`` and a class of errors each."""

    def __init__(self, *, patience: float = PATIENCE, clock: Callable[[], float] = time.monotonic) -> None:
        self._patience = patience
        self._clock = clock
        self.begin_anew()

    def begin_anew(self) -> None:
        """Forget everything, in a child process."""
        self._lock = threading.RLock()
        self._pid = os.getpid()
        #: Empty where all is well: read without the lock.
        self.open: dict[tuple[str, str], _Spell] = {}

    def failure(self, alias: str, error_class: str) -> Lasting | None:
        """Note a failure; return the trouble where it has just come to last."""
        if error_class not in TRANSIENT:
            return None
        if self._pid != os.getpid():
            self.begin_anew()
        now = self._clock()
        with self._lock:
            spell = self.open.get((alias, error_class))
            if spell is None:
                spell = self.open[alias, error_class] = _Spell(now)
            spell.failures += 1
            if spell.told or now - spell.began < self._patience:
                return None
            spell.told = True
            return Lasting(alias, error_class, now - spell.began, spell.failures, spell.since)

    def success(self, alias: str, *, committed: bool) -> list[Lasting]:
        """Note that something on this alias succeeded; return the lasting troubles that are over."""
        if self._pid != os.getpid():
            self.begin_anew()
        over = []
        with self._lock:
            for key, spell in list(self.open.items()):
                if key[0] == alias and (committed or key[1] not in UNTIL_COMMIT):
                    del self.open[key]
                    if spell.told:
                        seconds = self._clock() - spell.began
                        over.append(Lasting(*key, seconds, spell.failures, spell.since))
        return over
