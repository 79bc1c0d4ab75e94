# SPDX-License-Identifier: Apache-2.0
"""One transaction that may be run several times: what is to be done after each attempt."""

from __future__ import annotations

import functools
import random
import threading
import time
from asyncio import CancelledError
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from django.db import connections

from . import errors, outcomes, recording, retry_telemetry
from .attempts import AttemptBlock, Ended
from .policy import AmbiguousCommitError, Attempt, Policy, RetriesExhaustedError
from .state import LogicalTransaction, new_transaction_id, open_work

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

    from .errors import Classification

#: Seconds; the deadline is measured by it.
clock = time.monotonic

#: Reasons that wait for more than a rival's transaction: their back-off starts at so many times the base.
SLOW_REASONS = {
    "range_unavailable": 25,
    "connect_failed": 10,
    "cannot_connect_now": 10,
    "admin_shutdown": 5,
    "node_connection": 5,
    "too_many_connections": 5,
}
#: Reasons that a repetition is likely to meet again: so many attempts that end in them at the most.
REASON_LIMITS = {"memory": 2}


@dataclass(frozen=True, slots=True)
class Committed:
    """The transaction is committed, and what its function returned."""

    result: Any


@dataclass(frozen=True, slots=True)
class Obstacle:
    """Why a transaction is not run again although its error would let it."""

    words: str
    #: A part of it may be applied: then the error passes through, and nobody says that nothing was applied.
    applied: bool


class Run:
    """One logical transaction: its attempts, its span, its end."""

    def __init__(self, fn: Callable[..., Any], args: tuple[Any, ...], policy: Policy) -> None:
        self.fn = fn
        self.args = args
        self.policy = policy
        self.name = policy.name or name_of(fn)
        self.id = new_transaction_id()
        self.attempts: list[Attempt] = []
        self.ended: Ended | None = None
        #: What this run said in the end, where that is not the function's own error.
        self.last_word: Exception | None = None
        self.begun = 0
        #: The last attempt's outcome, or the whole's once it is over; None before there was one.
        self.outcome: str | None = None
        #: Set while no attempt is under way.
        self.idle = threading.Event()
        self.idle.set()
        self._starting = threading.Lock()
        self._abandoned = False
        self._began = clock()
        self._telemetry: retry_telemetry.Telling | None = None

    def __enter__(self) -> Self:
        self._telemetry = retry_telemetry.RUN.start(self)  # type: ignore[assignment]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._telemetry is not None:
            retry_telemetry.RUN.finish(self._telemetry, None, error)

    def attempt(self) -> Committed | float:
        """Run the function in a transaction: committed, or the seconds to wait before the next attempt."""
        with self._starting:
            if self._abandoned:
                raise CancelledError
            self.idle.clear()
        work = LogicalTransaction(self.id, self.begun + 1, self.name, self.policy.using)
        open_work.begin(work)  # here: of the thread that the attempt runs in
        try:
            return self._attempt(work)
        finally:
            open_work.end(work)
            self.idle.set()

    def abandon(self) -> None:
        """Begin no attempt any more, not one that waits for its thread either; one that runs goes on."""
        with self._starting:
            self._abandoned = True

    def _attempt(self, work: LogicalTransaction) -> Committed | float:
        wrapper = connections[self.policy.using]
        recording.ensure()
        refuse_open_blocks(wrapper)
        self._before_retry()
        in_testcase = refuse_open_blocks(wrapper)
        self.begun += 1
        block = AttemptBlock(
            wrapper,
            work,
            in_testcase=in_testcase,
            insists=self._insists,
        )
        try:
            ended = block.run(functools.partial(self._call, wrapper))
            if ended.error is not None:
                raise ended.error
        except BaseException as error:
            ended = self.ended = block.failed(error)
            self.outcome = ended.outcome
            self._clean(block, ended)
            wait = self._wait_after(block, ended, last_chance=in_testcase)
            if wait is None:
                if ended.error is not None and ended.error is not error:
                    raise ended.error  # noqa: B904 - the function's own, in the place of Django's
                raise
            return wait
        self.outcome = ended.outcome
        if ended.outcome == outcomes.COMMITTED:
            retry_telemetry.committed(self)
        return Committed(ended.result)

    def _call(self, wrapper: Any) -> Any:
        if self.begun > 1 and self.policy.retry_priority is not None:
            with wrapper.cursor() as cursor:
                cursor.execute(f"SET TRANSACTION PRIORITY {self.policy.retry_priority.upper()}")
        return self.fn(*self.args)

    def _before_retry(self) -> None:
        if not self.attempts or self.policy.before_retry is None:
            return
        try:
            self.policy.before_retry(self.attempts[-1])
        except Exception as error:
            if self._may_have_been_applied():
                self._give_up_in_doubt(error)
            raise

    @staticmethod
    def _clean(block: AttemptBlock, ended: Ended) -> None:
        """Leave no connection behind that is lost, or in whose state nobody can know."""
        unknown = ended.outcome == outcomes.AMBIGUOUS
        if unknown or (ended.reconnect and block.wrapper.connection is block.connection):
            with suppress(Exception):
                block.wrapper.close()

    def _wait_after(self, block: AttemptBlock, ended: Ended, *, last_chance: bool) -> float | None:
        """Return the back-off before the next attempt, or None where the error is the caller's.

        Raises:
            AmbiguousCommitError: the attempt, or one before it, may have been applied.
            RetriesExhaustedError: this was the last attempt.

        """
        error = ended.error
        assert error is not None
        if ended.outcome == outcomes.COMMITTED:
            retry_telemetry.failed_after_commit(self, error)
            return None
        failure = self._repeatable(block, ended)
        if failure is None or not isinstance(error, Exception):
            if self._in_doubt(ended):
                self.outcome = outcomes.AMBIGUOUS
                if isinstance(error, Exception):
                    self._give_up_in_doubt(error, ended)
            return None
        wait = self._backoff(failure)
        over = last_chance or self.begun >= self.policy.max_attempts or self._met_too_often(failure)
        if over or clock() + wait > self._began + self.policy.deadline:
            self._give_up(error, failure, ended)
        self.attempts.append(Attempt(self.begun, ended.outcome, error, failure, wait))
        retry_telemetry.retried(self, self.attempts[-1])
        return wait

    def _repeatable(self, block: AttemptBlock, ended: Ended) -> Classification | None:
        """Return the failure where the transaction may be run again after it."""
        error, failure = ended.error, ended.failure
        if failure is None or not isinstance(error, Exception) or not self._may_repeat(failure):
            return None
        obstacle = self._obstacle(block)
        if obstacle is None:
            return failure
        retry_telemetry.kept_from_retrying(self, failure, obstacle.words)
        if not obstacle.applied:
            self._give_up(error, failure, ended, f", and is not run again: {obstacle.words}")
        self.outcome = outcomes.FAILED
        return None

    def _may_repeat(self, failure: Classification) -> bool:
        return failure.retry == "yes" or (failure.retry == "if_idempotent" and self.policy.idempotent)

    def _insists(self, failure: Classification | None) -> bool:
        """Whether an error that the function swallowed is raised: its caller would think that all is well."""
        return True

    def _obstacle(self, block: AttemptBlock) -> Obstacle | None:
        """Return what keeps this attempt from being repeated, whatever its error was."""
        record = block.record
        if record is not None and record.schema_change and not self.policy.idempotent:
            return Obstacle("CockroachDB commits what came before a schema change", applied=True)
        return None

    def _in_doubt(self, ended: Ended) -> bool:
        """Whether this attempt, or one before it, may have been applied."""
        return ended.outcome == outcomes.AMBIGUOUS or self._may_have_been_applied()

    def _may_have_been_applied(self) -> bool:
        """Whether an earlier attempt is in doubt: later ones that were refused do not undo it."""
        return any(attempt.outcome == outcomes.AMBIGUOUS for attempt in self.attempts)

    def _met_too_often(self, failure: Classification) -> bool:
        limit = REASON_LIMITS.get(failure.retry_reason or "")
        met = sum(attempt.failure.retry_reason == failure.retry_reason for attempt in self.attempts)
        return limit is not None and met + 1 >= limit

    def _backoff(self, failure: Classification) -> float:
        """Return a random time below an exponential bound: full jitter, so that rivals do not meet again."""
        base = self.policy.backoff_base * SLOW_REASONS.get(failure.retry_reason or "", 1)
        exponent = min(self.begun - 1, 32)
        return random.uniform(0, min(self.policy.backoff_cap, base * 2**exponent))

    def _give_up(
        self, error: Exception, failure: Classification, ended: Ended, because: str = ""
    ) -> NoReturn:
        if self._in_doubt(ended):
            self._give_up_in_doubt(error, ended)
        self.attempts.append(Attempt(self.begun, ended.outcome, error, failure, None))
        self.outcome = outcomes.FAILED
        retry_telemetry.exhausted(self)
        times = "once" if self.begun == 1 else f"{self.begun} times"
        self.last_word = RetriesExhaustedError(
            f"{self.name}: refused {times}, last for {failure.retry_reason or failure.error_class}{because}; "
            f"nothing was applied (txn_id={self.id}).",
            tuple(self.attempts),
        )
        raise self.last_word from errors.driver_error(error)

    def _give_up_in_doubt(self, error: Exception, ended: Ended | None = None) -> NoReturn:
        self.outcome = outcomes.AMBIGUOUS
        if ended is not None and ended.failure is not None:
            self.attempts.append(Attempt(self.begun, ended.outcome, error, ended.failure, None))
        self.last_word = AmbiguousCommitError(
            f"{self.name}: COMMIT was sent and its answer is unknown; the transaction may or may not have "
            f"been applied (txn_id={self.id}). Read whether it was, or say idempotent=True where running it "
            "twice does no harm.",
            tuple(self.attempts),
        )
        raise self.last_word from errors.driver_error(error)


def name_of(fn: Callable[..., Any]) -> str:
    """Return a function's qualified name; a partial's is its function's, an object's its class's."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    fn = getattr(fn, "view_class", fn)  # what as_view() has made
    if not hasattr(fn, "__qualname__"):
        return f"{type(fn).__module__}.{type(fn).__qualname__}"
    return f"{fn.__module__}.{fn.__qualname__}"


def refuse_open_blocks(wrapper: Any) -> bool:
    """Refuse to run inside a transaction; return whether a TestCase's own blocks leave only one attempt.

    Raises:
        RuntimeError: a transaction is open, of which only the whole could be run again.

    """
    if wrapper.in_atomic_block:
        if all(block._from_testcase for block in wrapper.atomic_blocks):
            return True
        raise RuntimeError(
            "run_transaction() or a view that is retried was called within an atomic block on "
            f"{wrapper.alias!r}. CockroachDB gives up the whole transaction, so only the whole can be run "
            "again: call it outside, with all that belongs together in its function. With ATOMIC_REQUESTS, "
            "mark the view @transaction.non_atomic_requests, or have it retried itself (@retry_view)."
        )
    if wrapper.connection is not None and not wrapper.autocommit:
        raise RuntimeError(
            f"run_transaction() was called with autocommit off on {wrapper.alias!r}: a transaction that is "
            "not ours may be open. Call transaction.set_autocommit(True) first."
        )
    return False
