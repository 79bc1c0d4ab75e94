# SPDX-License-Identifier: Apache-2.0
"""How a call is observed, and the guard that keeps our faults out of it.

A :class:`Hook` is one place where we look at somebody else's call. Everything that we do there goes
through :meth:`Hook.start` and :meth:`Hook.finish`, and these are the only guards: whatever fails in
our code is counted, logged once a hook, and the call goes on as if we were not there.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import Counter
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from functools import wraps
from typing import Any, Protocol

#: Every hook there is, by its name: what the tests enumerate.
REGISTRY: dict[str, Hook] = {}
#: Faults of our own code, counted by hook.
faults: Counter[str] = Counter()
_faults_lock = threading.RLock()
#: Whether a function of the application's is being called back.
_called_back: ContextVar[bool] = ContextVar("otel_crdb_called_back", default=False)


class CarefulLogger(logging.LoggerAdapter):  # type: ignore[type-arg]
    """A logger for what is told within calls of the application's: a log handler that raises stays here."""

    def __init__(self, name: str) -> None:
        super().__init__(logging.getLogger(name), {})

    def log(self, level: int, msg: object, *args: Any, **options: Any) -> None:
        """Log, if that can be done."""
        with contextlib.suppress(Exception):
            super().log(level, msg, *args, **options)


logger = CarefulLogger(__name__)


class Operation(Protocol):
    """What a hook has begun."""

    def finish(self, result: Any, error: BaseException | None) -> None:
        """End it: with the call's result, or with the error that the caller is about to see."""


@dataclass(slots=True, eq=False)
class Hook:
    """One observed call: its name, and what begins when it begins (``None``: nothing to observe)."""

    name: str
    #: Mostly it returns an :class:`Operation`; a hook that is only run returns what it likes.
    begin: Callable[..., Any]

    def __post_init__(self) -> None:
        REGISTRY[self.name] = self

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Return what :attr:`begin` returns, or None where our own code fails."""
        try:
            return self.begin(*args, **kwargs)
        except Exception as fault:  # noqa: BLE001 - the guard: telemetry never breaks the call
            report(self.name, fault)
            return None

    def start(self, *args: Any, **kwargs: Any) -> Operation | None:
        """Begin, or let the call go unobserved where our own code fails."""
        operation: Operation | None = self.run(*args, **kwargs)
        return operation

    def finish(self, operation: Operation, result: Any, error: BaseException | None) -> None:
        """End what :meth:`start` began; a failure of ours stays here."""
        try:
            operation.finish(result, error)
        except Exception as fault:  # noqa: BLE001 - the guard: telemetry never breaks the call
            report(self.name, fault)

    def around(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """Return ``call`` with this hook around it."""

        @wraps(call)
        def observed(*args: Any, **kwargs: Any) -> Any:
            operation = self.start(*args, **kwargs)
            if operation is None:
                return call(*args, **kwargs)
            try:
                result = call(*args, **kwargs)
            except BaseException as error:
                self.finish(operation, None, error)
                raise
            self.finish(operation, result, None)
            return result

        observed.hook = self  # type: ignore[attr-defined]
        return observed


def call_back(function: Callable[..., Any], *args: Any) -> None:
    """Call a function of the application's that adds to what is told; run by a hook, which guards it.

    What such a function does itself is told, and calls none: it would call itself without end.
    """
    if _called_back.get():
        return
    token = _called_back.set(True)
    try:
        function(*args)
    finally:
        _called_back.reset(token)


def fault_counts() -> dict[str, int]:
    """Return the faults so far, by hook."""
    with _faults_lock:
        return dict(faults)


def forget_faults() -> None:
    """Begin anew, in a child process: another thread of the parent may have held the lock at the fork."""
    global _faults_lock
    _faults_lock = threading.RLock()
    faults.clear()


def report(name: str, fault: BaseException) -> None:
    """Count a fault of our own, and log the first of each hook."""
    with _faults_lock:
        faults[name] += 1
        first = faults[name] == 1
    if first:
        # The database's error may hang behind ours, with keys and rows in its text: cut it off.
        fault.__cause__ = fault.__context__ = None
        logger.error(
            "otel_crdb: the hook %s failed; the application's call went on without it. "
            "Further failures of this hook are only counted.",
            name,
            exc_info=fault,
        )
