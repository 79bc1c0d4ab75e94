# SPDX-License-Identifier: Apache-2.0
"""Transactions that are run again where that is safe: ``run_transaction`` and its kin."""

from __future__ import annotations

import asyncio
import functools
import inspect
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn, TypeVar, overload

from asgiref.sync import iscoroutinefunction, sync_to_async

from .policy import AmbiguousCommitError, Attempt, Policy, RetriesExhaustedError
from .runs import Committed, Run, name_of

__all__ = [
    "AmbiguousCommitError",
    "Attempt",
    "Policy",
    "RetriesExhaustedError",
    "arun_transaction",
    "retry_transaction",
    "run_transaction",
]

T = TypeVar("T")

#: How a back-off is slept through.
sleep = time.sleep
#: The same in asynchronous code.
asleep = asyncio.sleep


def run_transaction(fn: Callable[..., T], /, *args: Any, **options: Any) -> T:
    """Call ``fn(*args)`` in a transaction of its own, and again where it was refused and that is safe.

    Every attempt is an ``atomic(durable=True)`` block. A refused one is rolled back first, so that nothing
    is locked while we wait. ``fn`` may run several times: what it does outside the database is repeated
    with it, so e-mails and the like belong into ``transaction.on_commit``, which runs once, after COMMIT.

    Args:
        fn: a function; no coroutine function (see :func:`arun_transaction`) and no generator function.
        *args: its arguments.
        **options: fields of :class:`Policy`: ``using="default"``, ``max_attempts=5``, ``deadline=30.0`` s,
            ``idempotent=False``, ``name=None``, ``backoff_base=0.02`` s, ``backoff_cap=2.0`` s,
            ``retry_priority=None``, ``before_retry=None``.

    Returns:
        What ``fn`` returned in the attempt that was committed.

    Raises:
        AmbiguousCommitError: COMMIT was sent, its answer is unknown, and ``idempotent`` is not set.
        RetriesExhaustedError: every attempt was refused, or the deadline would pass during the next back-off.
        RuntimeError: an atomic block is open on the connection, or autocommit is off.
        Exception: whatever else ``fn`` raised; the transaction was rolled back.

    """
    _refuse_what_cannot_run_twice(fn)
    return drive(Run(fn, args, Policy(**options)))  # type: ignore[no-any-return]


def drive(run: Run) -> Any:
    """Make attempts until one is the last, and sleep between them."""
    with run:
        while True:
            step = run.attempt()
            if isinstance(step, Committed):
                return step.result
            sleep(step)


async def arun_transaction(fn: Callable[..., T], /, *args: Any, **options: Any) -> T:
    """Do as :func:`run_transaction` does, from asynchronous code.

    ``fn`` is a plain function. Each attempt runs in Django's thread for synchronous code, back-off is
    ``asyncio.sleep``. A caller that is cancelled waits for the running attempt, whose true outcome is
    recorded, and starts no further one.
    """
    _refuse_what_cannot_run_twice(fn)
    return await adrive(Run(fn, args, Policy(**options)))  # type: ignore[no-any-return]


async def adrive(run: Run) -> Any:
    """Do as :func:`drive` does; attempts run in Django's thread for synchronous code."""
    with run:
        while True:
            step = await _to_its_end(run)
            if isinstance(step, Committed):
                return step.result
            await asleep(step)


async def _to_its_end(run: Run) -> Committed | float:
    """Run one attempt in the thread for synchronous code; not even a cancellation leaves it behind."""
    attempt = asyncio.ensure_future(sync_to_async(run.attempt, thread_sensitive=True)())
    try:
        return await asyncio.shield(attempt)
    except asyncio.CancelledError:
        run.abandon()
        # Not for the task: a loop that shuts down has cancelled that too, and its thread works on.
        while not run.idle.is_set():
            with suppress(asyncio.CancelledError):
                await asyncio.to_thread(run.idle.wait)
        attempt.cancel()  # out of the queue, where its thread has not come to it
        attempt.add_done_callback(_look_at)
        raise


def _look_at(attempt: asyncio.Future[Any]) -> None:
    """See how an attempt ended that nobody waits for: the cancellation is what its caller gets."""
    if not attempt.cancelled():
        attempt.exception()


@overload
def retry_transaction(fn: Callable[..., T], /) -> Callable[..., T]: ...


@overload
def retry_transaction(**options: Any) -> RetryDecorator: ...


def retry_transaction(fn: Callable[..., Any] | None = None, /, **options: Any) -> Any:
    """Decorate a function so that each call is a :func:`run_transaction`, with the same options.

    ::

        @retry_transaction
        def transfer(source, target, amount): ...

        @retry_transaction(max_attempts=10, idempotent=True)
        def set_limit(account, limit): ...
    """
    Policy(**options)
    decorator = RetryDecorator(options)
    return decorator if fn is None else decorator(fn)


class RetryDecorator:
    """What ``retry_transaction(…)`` decorates with."""

    def __init__(self, options: dict[str, Any]) -> None:
        self._options = options

    def __call__(self, fn: Callable[..., T]) -> Callable[..., T]:
        """Return ``fn``, each call of it a transaction that is retried."""
        _refuse_what_cannot_run_twice(fn)
        options = {**self._options, "name": self._options.get("name") or name_of(fn)}

        @functools.wraps(fn)
        def retried(*args: Any, **kwargs: Any) -> T:
            return run_transaction(functools.partial(fn, *args, **kwargs), **options)

        return retried

    def __enter__(self) -> NoReturn:
        raise TypeError(
            "retry_transaction is no context manager: the body of a with block cannot be run twice. "
            "Put it into a function and call run_transaction(function)."
        )

    def __exit__(self, *_: object) -> None:
        """Do nothing: there was no entering."""


def _refuse_what_cannot_run_twice(fn: Callable[..., Any]) -> None:
    if not callable(fn):
        raise TypeError(f"run_transaction() takes a function, not {type(fn).__name__}")
    call = getattr(fn, "__call__", None)  # noqa: B004 - an object's own, which may be a coroutine function
    if any(iscoroutinefunction(each) or inspect.isasyncgenfunction(each) for each in (fn, call)):
        raise TypeError(
            f"{name_of(fn)} is a coroutine function: Django's transactions are synchronous. Make it a plain "
            "function and await arun_transaction(function)."
        )
    if inspect.isgeneratorfunction(fn):
        raise TypeError(
            f"{name_of(fn)} is a generator function: its body would run when the transaction is over."
        )
