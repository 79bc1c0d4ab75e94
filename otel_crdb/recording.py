# SPDX-License-Identifier: Apache-2.0
"""The hooks on ``DatabaseWrapper``, put in and taken out.

They keep the record of each transaction, from which it is read what may be retried; so they are there
where ``instrument()`` has put them in, and also where an application only retries.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial, wraps
from typing import Any

from . import connections, cursors, endings, signals, transactions
from .hooks import Hook

#: The methods of ``django_cockroachdb.base.DatabaseWrapper`` that are observed, on the class: so open
#: connections of every thread are reached, and other backends are not.
WRAPPER_HOOKS: dict[str, Hook] = {
    "get_connection_params": connections.PARAMETERS,
    "get_new_connection": connections.CONNECT,
    "set_autocommit": transactions.SET_AUTOCOMMIT,
    "set_rollback": transactions.SET_ROLLBACK,
    "_commit": endings.COMMIT,
    "_rollback": endings.ROLLBACK,
    "close": transactions.CLOSE,
    "make_cursor": cursors.MAKE_CURSOR,
    "make_debug_cursor": cursors.MAKE_DEBUG_CURSOR,
}

_lock = threading.Lock()
_undo: list[Callable[[], None]] = []


def ensure() -> None:
    """See to it that transactions are recorded, with or without telemetry."""
    if signals.current is not None:
        return
    with _lock:
        if signals.current is None:
            _put_in()
            signals.use_silence()  # last: whoever sees it goes on without the lock


def start() -> None:
    """Put the hooks in, where they are not."""
    with _lock:
        _put_in()


def stop() -> None:
    """Take the hooks out; every attribute of Django's class is again the very object that it was."""
    with _lock:
        while _undo:
            _undo.pop()()


def _put_in() -> None:
    if _undo:
        return
    from django_cockroachdb.base import DatabaseWrapper

    for name, hook in WRAPPER_HOOKS.items():
        own = vars(DatabaseWrapper).get(name)
        setattr(DatabaseWrapper, name, hook.around(own or _inherited(DatabaseWrapper, name)))
        _undo.append(
            partial(delattr, DatabaseWrapper, name)
            if own is None
            else partial(setattr, DatabaseWrapper, name, own)
        )


def _inherited(owner: type, name: str) -> Callable[..., Any]:
    """Return what calls the method that a class inherits, looked up anew: Sentry replaces it later."""

    @wraps(getattr(owner, name))
    def call(wrapper: Any, *args: Any, **kwargs: Any) -> Any:
        return getattr(super(owner, wrapper), name)(*args, **kwargs)

    return call
