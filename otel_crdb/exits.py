# SPDX-License-Identifier: Apache-2.0
"""The ends of processes that Python's own exit does not see, where the rest has to be sent before.

The SDK's providers send what they hold ``atexit``. That is not called in a child of ``multiprocessing`` and
in a prefork worker of Celery, which end by ``os._exit()``, nor under uvicorn, which ends by raising once more
the signal that stopped it. SIGTERM itself is left alone: a handler of Python's would wait for a driver that
waits for the database, and so keep the process from ending.
"""

from __future__ import annotations

import functools
import logging
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

logger = logging.getLogger(__name__)

#: How long the rest may take, in seconds, where the process goes on to end by itself.
TIMEOUT = 3.0
UID = "otel_crdb.exits"

#: Sends what is held, within so many seconds; None where nothing is instrumented.
_flush: Callable[[float], object] | None = None
#: The same for the last time: nobody is asked twice.
_end: Callable[[], object] | None = None


def watch(flush: Callable[[float], object], end: Callable[[], object]) -> Callable[[], None]:
    """Have ``flush(timeout)`` or ``end()`` called where a process ends unseen, and return what stops that."""
    global _flush, _end
    _flush, _end = flush, end
    _Forks.watch()
    _guarded(_watch_uvicorn)
    _guarded(_watch_this_child)
    return _stop


def _stop() -> None:
    global _flush, _end
    _flush = _end = None


def _send_the_rest() -> None:
    flush = _flush
    if flush is not None:
        _guarded(functools.partial(flush, TIMEOUT))


def _send_the_last(*_: Any, **__: Any) -> None:
    end = _end
    if end is not None:
        _guarded(end)


def _guarded(call: Callable[[], object]) -> None:
    try:
        call()
    except Exception:
        logger.exception("otel_crdb: what is held at this process's end may be lost")


class _Forks:
    """Gets children ready, before the fork: only then is it known what forks."""

    #: ``multiprocessing`` calls back as long as this object lives.
    _token: _Forks | None = None
    _watched = False

    @classmethod
    def watch(cls) -> None:
        if not cls._watched and hasattr(os, "register_at_fork"):
            cls._watched = True
            os.register_at_fork(before=functools.partial(_guarded, cls._before))

    @classmethod
    def _before(cls) -> None:
        util = sys.modules.get("multiprocessing.util")  # billiard, Celery's own, shares its registry
        if util is not None and cls._token is None:
            cls._token = cls()
            util.register_after_fork(cls._token, lambda _: _send_at_the_end_of_this_child())
        _watch_celery()


def _send_at_the_end_of_this_child() -> None:
    from multiprocessing.util import Finalize

    Finalize(None, _send_the_last, exitpriority=-10)  # after the child's own finalizers


def _watch_this_child() -> None:
    """Instrumented in a child: what is set up at its fork has been passed already."""
    process = sys.modules.get("multiprocessing.process")
    if process is not None and process.parent_process() is not None:
        _send_at_the_end_of_this_child()
    _watch_celery()


def _watch_celery() -> None:
    signals = sys.modules.get("celery.signals")
    if signals is not None:  # the workers of Celery's pool run no finalizer
        signals.worker_process_shutdown.connect(_send_the_last, weak=False, dispatch_uid=UID)


def _watch_uvicorn() -> None:
    server = getattr(sys.modules.get("uvicorn.server"), "Server", None)
    if server is None or getattr(server.shutdown, "otel_crdb", False):
        return
    original = server.shutdown

    @functools.wraps(original)
    async def shutdown(self: Any, *args: Any, **kwargs: Any) -> None:
        await original(self, *args, **kwargs)
        # In the loop's thread: nobody is left to serve. Without that signal the program itself may go on.
        if signal.SIGTERM in getattr(self, "_captured_signals", ()):
            _send_the_last()
        else:
            _send_the_rest()

    shutdown.otel_crdb = True  # type: ignore[attr-defined]
    server.shutdown = shutdown
