# SPDX-License-Identifier: Apache-2.0
"""One transfer by ``run_transaction``, as planned, with all that was seen of it from outside."""

from __future__ import annotations

import contextlib
import importlib
from dataclasses import dataclass, field
from typing import Any

from django.db import DatabaseError, IntegrityError, OperationalError, transaction
from opentelemetry import context as context_api
from opentelemetry import trace
from opentelemetry.instrumentation.utils import suppress_instrumentation

from otel_crdb import AmbiguousCommitError, RetriesExhaustedError, hooks, retry, run_transaction
from otel_crdb.state import RequestRecord, current_request, record_of

from .bank import ALIAS
from .plans import START, When
from .strikes import Strikes

NAME = "model transfer"
APPLICATION_SPAN = trace.NonRecordingSpan(trace.SpanContext(0x5EED, 0xFEED, False, trace.TraceFlags(1)))


#: Back-offs; no plan has as many attempts.
ENDLESS = 20


class Own(Exception):  # noqa: N818 - the application's, and an error only where the plan says so
    """An exception of the application's own."""


class Interrupt(BaseException):
    """What ends the process, as SystemExit does."""


@dataclass
class Seen:
    """What was seen of one attempt."""

    #: The function was called, and how often.
    calls: int = 0
    #: It has sent something, or tried to.
    sent: bool = False
    #: It returned, and COMMIT was next; or it has tried to commit by itself.
    returned: bool = False
    tried_to_commit: bool = False
    #: What it raised of its own.
    raised: BaseException | None = None
    #: It did something after which its end is not told by the faults alone.
    odd: bool = False
    rollback_asked: bool = False
    #: Another session has written what it has read.
    rival: bool = False
    #: It has committed by itself.
    committed: bool = False
    #: Its `on_commit` functions that ran.
    hooks: list[str] = field(default_factory=list)


class Trial:
    """One run. What is found to be broken while it goes on is told in `broken`, in words."""

    def __init__(self, bank, plan, operation, *, stale=False):
        self.bank, self.plan, self.operation = bank, plan, operation
        #: The connection that it begins with is gone, and nobody has noticed yet.
        self.stale = stale
        self.strikes = Strikes(bank.proxy, plan.strikes)
        self.attempts = [Seen()]
        self.naps = 0
        #: What ended the run between two attempts.
        self.stopped: BaseException | None = None
        self.broken = []
        #: When the run is over: transactions and locks still held, and the attempts that the ledger has.
        self.held = (0, 0)
        self.rows: list[int] = []
        self.result: Any = None
        self.error: BaseException | None = None
        self.request = RequestRecord(request=None) if plan.in_request else None

    @property
    def seen(self):
        """What is seen of the attempt under way."""
        return self.attempts[-1]

    @property
    def begun(self):
        """How many attempts were begun."""
        return len(self.attempts) - (self.stopped is not None)

    @property
    def exhausted(self):
        """Whether it ended with its attempts."""
        return isinstance(self.error, RetriesExhaustedError)

    @property
    def in_doubt(self):
        """Whether it ended in doubt."""
        return isinstance(self.error, AmbiguousCommitError)

    def hold(self, kept, otherwise):
        """Note what is broken, in words: raised when the run is over, for here it would be part of it."""
        if not kept:
            self.broken.append(otherwise)

    # --- the run ---------------------------------------------------------------------------------------------

    def run(self):
        """Run it, and note what came of it and of its surroundings."""
        with self._circumstances():
            before = self._surroundings()
            self.strikes.at(START)
            try:
                self._play()
            finally:
                self.strikes.end()
            for what, value in self._surroundings().items():
                self.hold(value == before[what], f"{what} is not what it was before the run")
        self.held = self.bank.held()  # and with this the server is done with links that are gone
        self.rows = self.bank.rows_of(self.operation)

    def _play(self):
        """Run it, where the plan says so while an old 40001 is being handled."""
        if not self.plan.handling:
            self._call()
            return
        try:
            raise self._refusal()
        except OperationalError:
            self._call()

    def _call(self):
        try:
            self.result = run_transaction(self._transfer, using=ALIAS, name=NAME, **self._policy())
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is what the run came to
            self.error = error

    @contextlib.contextmanager
    def _circumstances(self):
        plan = self.plan
        sleep, retry.sleep = retry.sleep, self._nap
        token = current_request.set(self.request)
        try:
            with contextlib.ExitStack() as stack:
                if plan.traced:
                    stack.enter_context(trace.use_span(APPLICATION_SPAN, end_on_exit=False))
                if plan.suppressed:
                    stack.enter_context(suppress_instrumentation())
                yield
        finally:
            retry.sleep = sleep
            current_request.reset(token)

    def _surroundings(self):
        return {
            "the current span": trace.get_current_span(),
            "OpenTelemetry's context": dict(context_api.get_current()),
            "the current request": current_request.get(),
            "the count of faults of our own hooks": hooks.fault_counts(),
        }

    def _policy(self):
        plan = self.plan
        reset = {"look": self._look, "raise": self._raise_in_reset}.get(plan.before_retry or "")
        names = ("max_attempts", "idempotent", "deadline", "backoff_base", "retry_priority")
        return {**{name: getattr(plan, name) for name in names}, "before_retry": reset}

    def _refusal(self):
        """Make a 40001 as the driver raises it, in Django's clothes."""
        database = self.bank.wrapper.Database
        error = OperationalError("restart transaction: an old one")
        error.__cause__ = _lookup(database, "40001")("restart transaction: an old one")
        return error

    # --- between attempts ------------------------------------------------------------------------------------

    def _nap(self, _seconds):
        """Stand where a back-off is slept: nothing may be open or locked meanwhile, and the next attempt be right."""
        self.naps += 1
        if self.naps >= ENDLESS:
            self.hold(False, f"the run does not end: {self.naps} back-offs")
            raise Interrupt
        wrapper, record = self.bank.wrapper, record_of(self.bank.wrapper)
        self.hold(
            self.bank.client_is_idle() and not wrapper.in_atomic_block,
            "a back-off is slept in a transaction that is still open",
        )
        held = self.bank.held()
        self.hold(
            held == (0, 0), f"a back-off is slept with (transactions, locks) held on the server: {held}"
        )
        self.hold(record.logical is None, "an attempt that is over still waits on the connection's record")
        self.hold(
            record.transaction is None, "a transaction that is over still stands in the connection's record"
        )
        rows = self.bank.rows_of(self.operation)
        self.hold(
            self.plan.idempotent or not rows, f"a transaction whose COMMIT was applied is run again: {rows}"
        )
        self.hold(not self.seen.hooks, "a transaction whose on_commit functions have run is run again")
        self.attempts.append(Seen())
        self.strikes.attempt += 1
        self.strikes.at(When(self.strikes.attempt, -1))
        if self.plan.before_retry == "be interrupted":
            self.stopped = Interrupt()
            raise self.stopped

    def _look(self, attempt):
        self.hold(not self.bank.wrapper.in_atomic_block, "before_retry is called within a transaction")
        self.hold(
            attempt.number == len(self.attempts) - 1,
            f"before_retry is told of attempt {attempt.number}, and {len(self.attempts) - 1} is what failed",
        )

    def _raise_in_reset(self, attempt):
        self._look(attempt)
        self.stopped = Own("before_retry")
        raise self.stopped

    # --- the function ----------------------------------------------------------------------------------------

    def _transfer(self):
        seen = self.seen
        seen.calls += 1
        for number, hook in enumerate(self.plan.hooks):
            transaction.on_commit(
                lambda number=number, hook=hook: self._after_commit(seen, number, hook), using=ALIAS
            )
        for number, act in enumerate(self.plan.acts):
            self.strikes.at(When(len(self.attempts), number))
            if len(self.attempts) <= act.attempts:
                with transaction.atomic(using=ALIAS) if act.nested else contextlib.nullcontext():
                    self._do(seen, act.kind)
        seen.returned = True
        return self.operation, len(self.attempts)

    def _execute(self, seen, sql, parameters=()):
        with self.bank.wrapper.cursor() as cursor:
            seen.sent = seen.sent or not self.bank.wrapper.needs_rollback  # else Django refuses it
            cursor.execute(sql, parameters)

    def _do(self, seen, kind):
        if kind in _ODD:
            _ODD[kind](self, seen)
        else:
            getattr(self, f"_{kind}")(seen)

    def _read(self, seen):
        self._execute(seen, "SELECT balance FROM model_account WHERE name = %s", (self.plan.source,))

    def _debit(self, seen):
        self._move(seen, self.plan.source, -self.plan.amount)

    def _credit(self, seen):
        self._move(seen, self.plan.target, self.plan.amount)

    def _move(self, seen, name, amount):
        """Move money; where twice has to be as good as once, only as long as the ledger does not know of it."""
        self._execute(
            seen,
            "UPDATE model_account SET balance = balance + %s WHERE name = %s "
            "AND NOT EXISTS (SELECT 1 FROM model_ledger WHERE once = %s)",
            (amount, name, self.operation),
        )

    def _enter(self, seen):
        once = self.operation if self.plan.idempotent else None
        self._execute(
            seen,
            "INSERT INTO model_ledger (operation, attempt, once) VALUES (%s, %s, %s) ON CONFLICT (once) DO NOTHING",
            (self.operation, len(self.attempts), once),
        )

    def _audit(self, seen):
        self._execute(seen, "UPDATE model_audit SET looks = looks + 1")

    def _wrong(self, seen):
        self._execute(seen, "SELECT 1 / 0")

    def _swallow(self, seen, do):
        try:
            do(seen)
        except DatabaseError:
            seen.odd = True

    def _mend(self, seen, do):
        try:
            with transaction.atomic(using=ALIAS):
                do(seen)
        except DatabaseError:
            seen.odd = seen.odd or bool(self.strikes.in_attempt(len(self.attempts)))

    def _raise(self, seen, error, cause=None):
        seen.raised = error
        raise error from cause

    def _raise_from(self, seen, *, nested):
        try:
            with transaction.atomic(using=ALIAS) if nested else contextlib.nullcontext():
                self._wrong(seen)
        except DatabaseError as error:
            self._raise(seen, Own("from an error"), error)

    def _break_constraint(self, seen):
        try:
            self._execute(seen, "INSERT INTO model_audit VALUES (1, 0)")
        except IntegrityError as error:
            seen.raised = error
            raise

    def _close(self, seen):
        seen.odd = True
        self.bank.wrapper.close()

    def _ask_for_rollback(self, seen):
        transaction.set_rollback(True, using=ALIAS)
        if not any(self.bank.wrapper.savepoint_ids):  # else only the savepoint is gone back to
            seen.odd = seen.rollback_asked = True

    def _swallow_a_block(self, seen):
        seen.odd = True
        try:
            with transaction.atomic(using=ALIAS, savepoint=False):
                raise Own("swallowed")
        except Own:
            pass

    def _meet_a_rival(self, seen):
        seen.rival = True
        seen.odd = seen.odd or self.plan.idempotent  # it may write nothing, and then they do not meet
        self.bank.touch(self.plan.source)

    def _commit_as_text(self, seen, *, and_raise):
        failed = self.bank.client_has_failed()  # the server then answers COMMIT by rolling back
        seen.odd = seen.tried_to_commit = True
        with self.bank.wrapper.cursor() as cursor:
            cursor.execute("COMMIT")
        seen.committed = not failed
        if and_raise:
            self._raise(seen, Own("after COMMIT"))

    def _after_commit(self, seen, number, hook):
        seen.hooks.append(f"{number} {hook}")
        if hook == "run a statement":
            self._execute(seen, "SELECT 1")
        elif hook == "raise":
            raise Own("on_commit")
        elif hook == "raise a 40001":
            raise self._refusal()


_ODD = {
    "swallow a wrong statement": lambda trial, seen: trial._swallow(seen, trial._wrong),
    "mend a wrong statement": lambda trial, seen: trial._mend(seen, trial._wrong),
    "swallow what fails": lambda trial, seen: trial._swallow(seen, trial._audit),
    "mend what fails": lambda trial, seen: trial._mend(seen, trial._audit),
    "raise": lambda trial, seen: trial._raise(seen, Own("raised")),
    "raise from a mended error": lambda trial, seen: trial._raise_from(seen, nested=True),
    "raise from an error": lambda trial, seen: trial._raise_from(seen, nested=False),
    "raise an interrupt": lambda trial, seen: trial._raise(seen, Interrupt()),
    "break a constraint": lambda trial, seen: trial._break_constraint(seen),
    "close the connection": lambda trial, seen: trial._close(seen),
    "swallow a block without a savepoint": lambda trial, seen: trial._swallow_a_block(seen),
    "meet a rival": lambda trial, seen: trial._meet_a_rival(seen),
    "commit as text": lambda trial, seen: trial._commit_as_text(seen, and_raise=False),
    "commit as text and raise": lambda trial, seen: trial._commit_as_text(seen, and_raise=True),
    "ask for rollback": lambda trial, seen: trial._ask_for_rollback(seen),
}


def _lookup(database, sqlstate):
    """Give the driver's class of error for a code."""
    return importlib.import_module(f"{database.__name__}.errors").lookup(sqlstate)
