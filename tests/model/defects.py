# SPDX-License-Identifier: Apache-2.0
"""Breaks of the retry loop, each as it could be made, to prove that the model finds them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from django.db import OperationalError
from opentelemetry import context as context_api

from otel_crdb import errors, outcomes, retry, retry_telemetry, state
from otel_crdb.attempts import AttemptBlock, Ended
from otel_crdb.runs import Run


@dataclass(frozen=True)
class Defect:
    """One break: `plant` puts it in until the test is over, `found_as` is what the model says of it."""

    plant: Callable[[Any], None]
    found_as: str


def _lost_commit_is_repeated(monkeypatch):
    """Whether it may be repeated is no longer asked of `idempotent`."""
    monkeypatch.setattr(Run, "_may_repeat", lambda run, failure: failure.retry in ("yes", "if_idempotent"))


def _error_after_commit_is_repeated(monkeypatch):
    """An error is judged by what it is, also where COMMIT has returned before it."""
    failed = AttemptBlock.failed

    def judged_by_the_error(block, error):
        failure = errors.classify(error, phase="statement")
        if block._committed and failure is not None:
            return Ended(outcomes.RETRYABLE, error=error, failure=failure)
        return failed(block, error)

    monkeypatch.setattr(AttemptBlock, "failed", judged_by_the_error)


def _back_off_within_the_block(monkeypatch):
    """The back-off is slept where the error is seen: within the block, and before its rollback."""
    call = Run._call

    def sleeping(run, wrapper):
        try:
            return call(run, wrapper)
        except Exception as error:
            failure = errors.classify(error, phase="statement")
            if failure is not None and failure.retry == "yes":
                retry.sleep(run.policy.backoff_base)
            raise

    monkeypatch.setattr(Run, "_call", sleeping)


def _one_attempt_too_many(monkeypatch):
    """`begun > max_attempts` in place of `begun >= max_attempts`."""
    wait_after = Run._wait_after

    def later(run, *args, **kwargs):
        policy = run.policy
        run.policy = replace(policy, max_attempts=policy.max_attempts + 1)
        try:
            return wait_after(run, *args, **kwargs)
        finally:
            run.policy = policy

    monkeypatch.setattr(Run, "_wait_after", later)


def _one_attempt_too_few(monkeypatch):
    """The attempts are counted from the second one on, as retries."""
    wait_after = Run._wait_after

    def sooner(run, *args, last_chance, **kwargs):
        over = run.begun + 1 >= run.policy.max_attempts > 1
        return wait_after(run, *args, last_chance=last_chance or over, **kwargs)

    monkeypatch.setattr(Run, "_wait_after", sooner)


def _reconnect_hides_a_lost_commit(monkeypatch):
    """What is raised decides, without what it came from: where no connection is left, Django's failed reconnect."""
    failed = AttemptBlock.failed

    def judged_by_what_is_raised(block, error):
        failure = errors.classify(OperationalError(*error.args), phase="connect")
        if block.wrapper.connection is None and failure is not None and failure.retry == "yes":
            return Ended(outcomes.RETRYABLE, error=error, failure=failure, reconnect=True)
        return failed(block, error)

    monkeypatch.setattr(AttemptBlock, "failed", judged_by_what_is_raised)


def _span_stays_current(monkeypatch):
    """The context is put back only where the run succeeded."""
    detach = context_api.detach

    def finish(telemetry, result, error):
        if error is None:
            detach(telemetry._token)
        try:
            telemetry._describe_end(error)
        finally:
            telemetry.span.end()

    monkeypatch.setattr(retry_telemetry.LogicalSpan, "finish", finish)


def _attempt_stays_on_the_record(monkeypatch):
    """The attempt is taken off the connection's record only where Django has opened its transaction."""
    run = AttemptBlock.run

    def left_waiting(block, function):
        try:
            return run(block, function)
        finally:
            if block.logical.transaction is None:
                state.record_of(block.wrapper).logical = block.logical

    monkeypatch.setattr(AttemptBlock, "run", left_waiting)


DEFECTS = {
    "an unknown COMMIT is run again": Defect(
        _lost_commit_is_repeated, "its answer is unknown, and it was run again"
    ),
    "an error after COMMIT is run again": Defect(
        _error_after_commit_is_repeated,
        "a transaction whose on_commit functions have run is run again|on_commit functions ran, and the run ended",
    ),
    "the back-off is slept before the rollback": Defect(
        _back_off_within_the_block, "a back-off is slept in a transaction that is still open"
    ),
    "one attempt too many": Defect(_one_attempt_too_many, r"attempts were begun, and max_attempts is"),
    "one attempt too few": Defect(
        _one_attempt_too_few, r"the run gave up after \d attempts, and max_attempts is"
    ),
    "a failed reconnect hides a lost COMMIT": Defect(
        _reconnect_hides_a_lost_commit, "its answer is unknown, and it was run again"
    ),
    "the span stays current": Defect(
        _span_stays_current, "the current span is not what it was before the run"
    ),
    "an attempt stays on the connection's record": Defect(
        _attempt_stays_on_the_record, "an attempt that is over still waits on the connection's record"
    ),
}
