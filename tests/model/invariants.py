# SPDX-License-Identifier: Apache-2.0
"""What must hold of a run, whatever failed: of the money, the attempts, the error, the connection.

Each is a function that yields, in words, what is broken.
"""

from __future__ import annotations

from django.db import DatabaseError, Error
from django.db.transaction import TransactionManagementError

from otel_crdb.state import record_of

from .bank import ACCOUNTS
from .verdicts import Verdict, verdict_on


class Broken(AssertionError):  # noqa: N818 - what is broken, not what went wrong with the test
    """Something that must hold does not."""


# --- the money -----------------------------------------------------------------------------------------------


def ledger(trial):
    """One row of an operation that succeeded, none of one that failed, never two."""
    rows, last = trial.rows, trial.seen
    if len(rows) > 1:
        yield f"an operation was applied {len(rows)} times, by the attempts {rows}"
    elif trial.error is None:
        wanted = 0 if last.rollback_asked else 1
        if len(rows) != wanted:
            yield f"a run that succeeded has {len(rows)} rows in the ledger, and not {wanted}"
    elif trial.exhausted and rows:
        yield f"RetriesExhaustedError says that nothing was applied, and attempt {rows[0]} was"
    elif not trial.in_doubt and not _known_to_be_applied(trial) and rows and not _interrupted_in_doubt(trial):
        yield f"an error passed through as if nothing had been applied, and attempt {rows[0]} was: {trial.error!r}"
    elif _known_to_be_applied(trial) and not rows:
        yield "COMMIT was acknowledged, and the ledger has no row"


def _known_to_be_applied(trial):
    """Whether COMMIT was acknowledged, or the server has said that the data are committed."""
    at_commit = [one.fault for one in trial.strikes.in_attempt(len(trial.attempts)) if one.place == "commit"]
    return bool(trial.seen.hooks) or trial.seen.committed or at_commit == ["committed_with_ddl_failure"]


def _interrupted_in_doubt(trial):
    """Whether what ends the process came while an earlier attempt was in doubt: there is no saying so then."""
    return not isinstance(trial.error, Exception) and trial.plan.idempotent


def balances(trial, before, after):
    """The money moves by what the ledger says, and none is made or lost."""
    plan, wanted = trial.plan, dict(before)
    if trial.rows:
        wanted[plan.source] -= plan.amount
        wanted[plan.target] += plan.amount
    if sum(after.values()) != sum(before.values()):
        yield f"money was made or lost: {before} before, {after} after"
    elif after != wanted:
        yield f"the ledger and the balances do not agree: {after}, and not {wanted}"
    assert set(after) == set(ACCOUNTS)


def result(trial):
    """What is returned is what the function returned in the attempt that was committed."""
    wanted = (trial.operation, trial.begun)
    if trial.error is None and trial.result != wanted:
        yield f"what was returned is not what the last attempt returned: {trial.result}, and not {wanted}"


def hooks(trial):
    """What is registered for after COMMIT runs once, in its order, up to what raises, and only after COMMIT."""
    wanted = [f"{number} {hook}" for number, hook in enumerate(trial.plan.hooks)]
    raising = [n for n, hook in enumerate(trial.plan.hooks) if hook.startswith("raise")]
    if raising:
        wanted = wanted[: raising[0] + 1]
    ran = [hook for seen in trial.attempts for hook in seen.hooks]
    if len(ran) != len(set(ran)):
        yield f"an on_commit function ran twice: {ran}"
    if trial.error is None and not trial.seen.rollback_asked and ran != wanted:
        yield f"on_commit functions of a committed run: {ran} ran, and not {wanted}"
    if ran and (trial.exhausted or trial.in_doubt):
        yield f"on_commit functions ran, and the run ended in {type(trial.error).__name__}"


# --- the attempts --------------------------------------------------------------------------------------------


def attempts(trial):
    """The function is called once an attempt, no more often than it may, and as often as is told."""
    plan = trial.plan
    calls = [seen.calls for seen in trial.attempts]
    if sum(calls) > plan.max_attempts:
        yield f"the function was called {sum(calls)} times, and max_attempts is {plan.max_attempts}"
    if trial.begun > plan.max_attempts:
        yield f"{trial.begun} attempts were begun, and max_attempts is {plan.max_attempts}"
    if max(calls) > 1:
        yield f"the function was called more than once in an attempt: {calls}"
    for number, count in enumerate(calls[: trial.begun], 1):
        met = trial.strikes.in_attempt(number) or trial.strikes.unasked or (trial.stale and number == 1)
        if not count and not met:
            yield f"attempt {number} is told, the function was not called in it, and nothing has failed"
    told = getattr(trial.error, "attempts", None)
    if told is None:
        return
    numbers = [attempt.number for attempt in told]
    if numbers != list(range(1, len(numbers) + 1)):
        yield f"the attempts that the error tells are numbered {numbers}"
    few = trial.begun - 1 if trial.in_doubt else trial.begun  # the last may have failed by no database error
    if not few <= len(numbers) <= trial.begun:
        yield f"the error tells of {len(numbers)} attempts, and {trial.begun} were begun"
    if trial.exhausted and len(numbers) < plan.max_attempts and not _may_end_early(trial):
        yield f"the run gave up after {len(numbers)} attempts, and max_attempts is {plan.max_attempts}"


def _may_end_early(trial):
    """Whether no time was given, or memory ran out for the second time."""
    hungry = sum(one.fault.startswith("memory_exceeded") for one in trial.strikes.struck)
    return trial.plan.deadline == 0 or hungry >= 2


def verdicts(trial):
    """After each attempt follows what the documentation says, wherever one cause alone decides."""
    for number, seen in enumerate(trial.attempts, 1):
        last = number == len(trial.attempts)
        verdict = _verdict(trial, number, seen, stale=trial.stale and number == 1)
        cause = [f"{one.fault} on {one.place}" for one in trial.strikes.in_attempt(number)]
        cause += [repr(seen.raised)] if seen.raised is not None else []
        where = f"attempt {number} ({', '.join(cause) or 'nothing failed'})"
        doubted = _in_doubt_at_commit(trial, number)
        if doubted and not last and not trial.plan.idempotent:
            yield f"{where}: COMMIT was sent and its answer is unknown, and it was run again"
        elif verdict is not None and not (_followed(trial, verdict) if last else _repeated(trial, verdict)):
            end = f"ended in {trial.error!r}" if last else "was run again"
            yield f"{where}: by the documentation {verdict.value}, and it {end}"
    if trial.in_doubt and not _can_be_in_doubt(trial):
        yield f"AmbiguousCommitError, and nothing has left a COMMIT in doubt: {trial.error}"


def _verdict(trial, number, seen, *, stale):
    """Give what is to follow on an attempt; None where more than one thing decides."""
    if seen.odd or stale or trial.strikes.unasked or (number > trial.begun):
        return None
    said = [_said_of(trial, one) for one in trial.strikes.in_attempt(number)]
    struck = [verdict for verdict in said if verdict is not None] + [Verdict.AGAIN] * seen.rival
    if seen.hooks:
        return Verdict.SUCCESS if not any(hook.endswith("raise") for hook in seen.hooks) else None
    if seen.raised is not None:
        return None if struck else Verdict.NEVER
    if not struck:
        return Verdict.SUCCESS
    return struck[0] if len(struck) == 1 else None


def _said_of(trial, struck):
    return verdict_on(struck.fault, struck.place, idempotent=trial.plan.idempotent)


def _repeated(trial, verdict):
    return verdict is Verdict.AGAIN or (verdict is Verdict.DOUBT and trial.plan.idempotent)


def _followed(trial, verdict):
    """Whether a run ended as its last attempt says."""
    doubted = any(_in_doubt_at_commit(trial, number) for number in range(1, len(trial.attempts)))
    if verdict is Verdict.SUCCESS:
        raising = any(hook != "run" for hook in trial.plan.hooks)
        return trial.error is None or raising
    if verdict is Verdict.AGAIN:
        return trial.in_doubt if doubted else trial.exhausted
    if verdict is Verdict.DOUBT:
        return trial.in_doubt
    if verdict is Verdict.APPLIED:
        return isinstance(trial.error, DatabaseError) and not trial.in_doubt and not trial.exhausted
    return _passed_through(trial, doubted=doubted)


def _passed_through(trial, *, doubted):
    raised = trial.seen.raised
    if doubted and isinstance(trial.error, Exception):
        return trial.in_doubt
    if raised is not None:
        return trial.error is raised
    return isinstance(trial.error, DatabaseError) and not trial.in_doubt and not trial.exhausted


def _in_doubt_at_commit(trial, number):
    """Whether a fault has struck this attempt's COMMIT that leaves it in doubt."""
    return any(
        one.place == "commit" and _said_of(trial, one) is Verdict.DOUBT
        for one in trial.strikes.in_attempt(number)
    )


def _can_be_in_doubt(trial):
    """Whether something struck at a COMMIT and left it in doubt, or a link could be lost there unasked."""
    numbers = range(1, len(trial.attempts) + 1)
    if any(_in_doubt_at_commit(trial, number) for number in numbers):
        return True
    return trial.strikes.unasked and any(seen.returned or seen.tried_to_commit for seen in trial.attempts)


# --- what is left behind -------------------------------------------------------------------------------------


def connection(trial):
    """The connection is out of the transaction, forgets it, and can be used."""
    wrapper = trial.bank.wrapper
    record = record_of(wrapper)
    if record.logical is not None:
        yield "an attempt that is over still waits on the connection's record"
    if record.transaction is not None:
        yield "a transaction that is over still stands in the connection's record"
    broken = wrapper.needs_rollback and wrapper.connection is not None  # Django clears it when it connects
    if wrapper.in_atomic_block or wrapper.savepoint_ids or broken:
        yield "the connection is still in an atomic block"
    if wrapper.run_on_commit:
        yield "on_commit functions are left behind on the connection"
    if not trial.bank.client_is_idle():
        yield "the connection is left in a transaction"
    if trial.held != (0, 0):
        yield f"after the run (transactions, locks) are held on the server: {trial.held}"
    yield from _usable(trial, wrapper)


def _usable(trial, wrapper):
    try:
        with wrapper.cursor() as cursor:
            cursor.execute("SELECT 1")
    except (Error, TransactionManagementError) as error:
        wrapper.close()
        noticed = not trial.stale or any(seen.sent for seen in trial.attempts)
        if noticed and not trial.strikes.unasked:
            yield f"the connection cannot be used after the run: {error!r}"
