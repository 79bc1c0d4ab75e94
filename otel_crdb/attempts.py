# SPDX-License-Identifier: Apache-2.0
"""One transaction that may be run several times: its attempts, and what is to be done after each.

Whether an attempt may be repeated is read from the record that the hooks keep of it (how far it had come
on the wire, and what the server said first), not from the exception that reaches us: when the link breaks
at COMMIT, what is raised in the end is Django's failed *reconnect*. The exception only fills in what no
record knows.
"""

from __future__ import annotations

import functools
import random
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from django.db import connections, transaction

from . import errors, outcomes, recording, retry_telemetry
from .policy import AmbiguousCommitError, Attempt, Policy, RetriesExhaustedError
from .state import LogicalTransaction, Phase, new_transaction_id, record_of

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

    from .errors import Classification

#: Seconds; the deadline is measured by it.
clock = time.monotonic

#: Reasons that wait for more than a rival's transaction: their back-off starts at so many times the base.
SLOW_REASONS = {"range_unavailable": 25, "node_connection": 5, "too_many_connections": 5}
#: Reasons that a repetition is likely to meet again: so many attempts at the most.
ATTEMPT_LIMITS = {"memory": 2}


@dataclass(frozen=True, slots=True)
class Committed:
    """An attempt that was committed, and what its function returned."""

    result: Any


class Run:
    """One logical transaction: its attempts, its span, its end."""

    def __init__(self, fn: Callable[..., Any], args: tuple[Any, ...], policy: Policy) -> None:
        self.fn = fn
        self.args = args
        self.policy = policy
        self.name = policy.name or name_of(fn)
        self.id = new_transaction_id()
        self.attempts: list[Attempt] = []
        self.begun = 0
        #: The last attempt's outcome; None before there was one.
        self.outcome: str | None = None
        self._began = clock()
        self._telemetry: retry_telemetry.LogicalSpan | None = None

    def __enter__(self) -> Self:
        recording.ensure()
        self._telemetry = retry_telemetry.RUN.start(self)  # type: ignore[assignment]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._telemetry is not None:
            retry_telemetry.RUN.finish(self._telemetry, None, error)

    def attempt(self) -> Committed | float:
        """Run the function in a transaction: committed, or the seconds to wait before the next attempt."""
        wrapper = connections[self.policy.using]
        last_chance = _refuse_open_blocks(wrapper)
        if self.attempts and self.policy.before_retry is not None:
            self.policy.before_retry(self.attempts[-1])
        self.begun += 1
        logical = LogicalTransaction(self.id, self.begun, self.name)
        driver_connection = wrapper.connection
        record = record_of(wrapper)
        record.logical = logical
        handled = sys.exc_info()[1]
        phase: errors.Phase = "connect"
        try:
            with transaction.atomic(using=self.policy.using, durable=True):
                phase = "statement"
                self._raise_priority(wrapper)
                result = self.fn(*self.args)
                phase = "commit"
        except BaseException as error:
            verdict = _judge(error, logical, phase, handled)
            self.outcome = verdict.outcome
            wait = self._wait_after(error, verdict, last_chance=last_chance)
            if wait is None:
                raise
        else:
            silent = logical.transaction is not None and logical.transaction.silent_abort
            self.outcome = outcomes.ROLLED_BACK if silent else outcomes.COMMITTED
            if not silent:
                retry_telemetry.committed(self)
                return Committed(result)
            wait = self._wait_after_silent_abort(logical, last_chance=last_chance)
        finally:
            record_of(wrapper).logical = None
        if wrapper.connection is driver_connection and self.attempts[-1].failure.reconnect:
            wrapper.close()
        return wait

    def _raise_priority(self, wrapper: Any) -> None:
        if self.begun > 1 and self.policy.retry_priority is not None:
            with wrapper.cursor() as cursor:
                cursor.execute(f"SET TRANSACTION PRIORITY {self.policy.retry_priority.upper()}")

    def _wait_after_silent_abort(self, logical: LogicalTransaction, *, last_chance: bool) -> float:
        """Treat a block that ended well in a transaction given up as the error that was swallowed in it."""
        aborted = logical.transaction
        assert aborted is not None and aborted.error is not None  # noqa: PT018 - a silent abort has its error
        verdict = _Verdict(outcomes.ROLLED_BACK, aborted.failure)
        wait = self._wait_after(aborted.error, verdict, last_chance=last_chance)
        if wait is None:
            raise aborted.error
        return wait

    def _wait_after(self, error: BaseException, verdict: _Verdict, *, last_chance: bool) -> float | None:
        """Return the back-off before the next attempt, or None where the error is the caller's.

        Raises:
            AmbiguousCommitError: the attempt, or one before it, may have been applied.
            RetriesExhaustedError: this was the last attempt.

        """
        failure = verdict.failure
        if verdict.outcome == outcomes.COMMITTED:
            retry_telemetry.failed_after_commit(self, error)
            return None
        if failure is None or not isinstance(error, Exception) or not self._may_repeat(verdict):
            if verdict.outcome == outcomes.AMBIGUOUS and isinstance(error, Exception):
                self._give_up(error, verdict)
            return None
        wait = self._backoff(failure)
        over = last_chance or self.begun >= min(
            self.policy.max_attempts, ATTEMPT_LIMITS.get(failure.retry_reason or "", self.policy.max_attempts)
        )
        if over or clock() + wait > self._began + self.policy.deadline:
            self._give_up(error, verdict)
        self.attempts.append(Attempt(self.begun, verdict.outcome, error, failure, wait))
        retry_telemetry.retried(self, self.attempts[-1])
        return wait

    def _may_repeat(self, verdict: _Verdict) -> bool:
        answer = verdict.failure.retry if verdict.failure is not None else "no"
        return answer == "yes" or (answer == "if_idempotent" and self.policy.idempotent)

    def _backoff(self, failure: Classification) -> float:
        """Return a random time below an exponential bound: full jitter, so that rivals do not meet again."""
        base = self.policy.backoff_base * SLOW_REASONS.get(failure.retry_reason or "", 1)
        exponent = min(self.begun - 1, 32)
        return random.uniform(0, min(self.policy.backoff_cap, base * 2**exponent))

    def _give_up(self, error: BaseException, verdict: _Verdict) -> NoReturn:
        failure = verdict.failure
        if failure is not None:
            self.attempts.append(Attempt(self.begun, verdict.outcome, error, failure, None))
        attempts = tuple(self.attempts)
        # An earlier attempt that may have been applied is not undone by later ones that were not.
        if any(attempt.outcome == outcomes.AMBIGUOUS for attempt in attempts) or not attempts:
            self.outcome = outcomes.AMBIGUOUS
            raise AmbiguousCommitError(
                f"{self.name}: COMMIT was sent and its answer is unknown; the transaction may or may not "
                f"have been applied (txn_id={self.id}). Read whether it was, or say idempotent=True where "
                "running it twice does no harm.",
                attempts,
            ) from errors.driver_error(error)
        self.outcome = outcomes.FAILED
        retry_telemetry.exhausted(self)
        raise RetriesExhaustedError(
            f"{self.name}: refused {len(attempts)} times, last for "
            f"{attempts[-1].failure.retry_reason or attempts[-1].failure.error_class}; nothing was applied "
            f"(txn_id={self.id}).",
            attempts,
        ) from errors.driver_error(error)


@dataclass(frozen=True, slots=True)
class _Verdict:
    outcome: str
    failure: Classification | None


def _judge(
    error: BaseException, logical: LogicalTransaction, phase: errors.Phase, handled: BaseException | None
) -> _Verdict:
    """Tell how an attempt ended and why, from its record; from the exception only what no record knows."""
    attempt = logical.transaction
    if attempt is None or (phase == "commit" and not attempt.end_seen):
        return _judge_unrecorded(error, phase, handled)
    outcome = outcomes.outcome_of(attempt)
    if attempt.phase >= Phase.COMMIT_SENT:
        return _Verdict(outcome, attempt.commit_failure or attempt.failure)
    failure = attempt.failure or errors.classify(error, phase="statement", handled=attempt.handled)
    if failure is not None and outcome == outcomes.ROLLED_BACK and failure.retry == "yes":
        outcome = outcomes.RETRYABLE
    return _Verdict(outcome, failure)


def _judge_unrecorded(error: BaseException, phase: errors.Phase, handled: BaseException | None) -> _Verdict:
    """Tell it from the exception and from how far the function had come, and be cautious.

    The hooks did not run (a backend of the application's own overrides what they are on), or failed. An
    error that came after the function had returned may be COMMIT's.
    """
    failure = errors.classify(error, phase=phase, handled=handled)
    doubtful = phase == "commit" and failure is not None and failure.retry == "if_idempotent"
    return _Verdict(outcomes.AMBIGUOUS if doubtful else outcomes.ROLLED_BACK, failure)


def name_of(fn: Callable[..., Any]) -> str:
    """Return a function's qualified name; a partial's is its function's, an object's its class's."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    if not hasattr(fn, "__qualname__"):
        return f"{type(fn).__module__}.{type(fn).__qualname__}"
    return f"{fn.__module__}.{fn.__qualname__}"


def _refuse_open_blocks(wrapper: Any) -> bool:
    """Refuse to run inside a transaction; return whether a TestCase's own blocks leave only one attempt.

    Raises:
        RuntimeError: a transaction is open, of which only the whole could be run again.

    """
    if wrapper.in_atomic_block:
        if all(block._from_testcase for block in wrapper.atomic_blocks):
            return True
        raise RuntimeError(
            f"run_transaction() was called within an atomic block on {wrapper.alias!r}. CockroachDB gives up "
            "the whole transaction, so only the whole can be run again: call run_transaction() "
            "outside, with all that belongs together in its function. With ATOMIC_REQUESTS, mark the view "
            "@transaction.non_atomic_requests."
        )
    if wrapper.connection is not None and not wrapper.autocommit:
        raise RuntimeError(
            f"run_transaction() was called with autocommit off on {wrapper.alias!r}: a transaction that is "
            "not ours may be open. Call transaction.set_autocommit(True) first."
        )
    return False
