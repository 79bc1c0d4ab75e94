# SPDX-License-Identifier: Apache-2.0
"""What a forked process has to make anew, in one place and in order.

Registered after the SDK's providers are made, so that it comes after their own hooks. A process that was
forked past Python has run no hooks: the first thing that is to be sent notices.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from typing import Any

from opentelemetry.sdk.trace.id_generator import IdGenerator

from . import hooks

_steps: list[tuple[str, Callable[[], None]]] = []
_pid = os.getpid()
_registered = False
#: Resources of this process's parents: what carries one began there.
_of_parents: list[Any] = []


def in_each_child(name: str, step: Callable[[], None]) -> None:
    """Have ``step`` run in each forked child, after those that came before it."""
    global _registered
    _steps.append((name, step))
    if not _registered and hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=notice)
        _registered = True


def notice() -> None:
    """Run the steps where this process is a new one."""
    global _pid
    pid = os.getpid()
    if pid == _pid:
        return
    _pid = pid
    for name, step in _steps:
        _take(name, step)


def _take(name: str, step: Callable[[], None]) -> None:
    try:
        step()
    except Exception as fault:  # noqa: BLE001 - the guard: a fork never fails for us
        hooks.report(f"fork: {name}", fault)


def belongs_to_parent(resource: Any) -> None:
    """Remember a resource as that of the process this one was forked from."""
    _of_parents.append(resource)


def is_of_parent(resource: Any) -> bool:
    """Whether what carries this resource began in a process that this one was forked from."""
    return any(resource is each for each in _of_parents) if _of_parents else False


class Ids(IdGenerator):
    """Random ids, of a generator that is ours alone.

    The SDK draws from Python's global one: an application that seeds that would repeat its ids, and so would
    the children of a server that forks past Python.
    """

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self._random = random.Random()  # seeded by the operating system
        self._pid = os.getpid()

    def generate_span_id(self) -> int:
        """Return a span id."""
        return self._bits(64)

    def generate_trace_id(self) -> int:
        """Return a trace id."""
        return self._bits(128)

    def is_trace_id_random(self) -> bool:
        """Every bit is random."""
        return True

    def _bits(self, number: int) -> int:
        if self._pid != os.getpid():
            notice()  # before the span takes its resource
            self._begin()
        return self._random.getrandbits(number) or self._bits(number)
