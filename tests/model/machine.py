# SPDX-License-Identifier: Apache-2.0
"""The machine: one application's connection, any transfer with any faults on it, and what befalls it between two."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass, field

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from otel_crdb.testing.faults import CATALOGUE

from . import invariants, plans, told
from .invariants import Broken
from .strikes import Strikes
from .trial import Trial

_operations = itertools.count(1)
IDLE_ENDS = tuple(name for name, fault in CATALOGUE.items() if fault.place == "idle")


@dataclass
class Tally:
    """What was played."""

    examples: int = 0
    steps: int = 0
    attempts: int = 0
    ends: Counter = field(default_factory=Counter)
    struck: Counter = field(default_factory=Counter)

    def __str__(self):
        met = sorted(name for name in CATALOGUE if any(fault == name for fault, _ in self.struck))
        lines = [
            f"{self.examples} examples, {self.steps} runs, {self.attempts} attempts",
            "ends: " + ", ".join(f"{end} {count}" for end, count in self.ends.most_common()),
            f"faults met: {len(met)} of {len(CATALOGUE)}; never: {', '.join(sorted(set(CATALOGUE) - set(met))) or 'none'}",
            *(f"  {count:7} {fault} on {place}" for (fault, place), count in sorted(self.struck.items())),
        ]
        return "\n".join(lines)


class BankMachine(RuleBasedStateMachine):
    """Transfers, one after another, on one connection. Subclasses name the `bank`, its `telemetry` and the `tally`."""

    bank = telemetry = tally = None

    def __init__(self):
        super().__init__()
        self.bank.proxy.clear()
        self.bank.proxy.wire_log(clear=True)  # else it holds every message of a long run
        self.bank.wrapper.close()
        self.bank.open_anew()
        self.stale = False
        self.tally.examples += 1

    @rule(plan=plans.transfers)
    def transfer(self, plan):
        """Run a transfer under any faults."""
        self._run(plan)

    @rule(plan=plans.struck_at_commit)
    def transfer_struck_at_commit(self, plan):
        """Run a plain transfer that is struck when it is to be committed."""
        self._run(plan)

    @rule(plan=plans.struck_once)
    def transfer_struck_once(self, plan):
        """Run a transfer under one fault."""
        self._run(plan)

    def _run(self, plan):
        """Run a transfer, and hold what came of it against what must hold."""
        bank = self.bank
        before = bank.balances()
        trial = Trial(bank, plan, f"operation {next(_operations)}", stale=self.stale)
        self.telemetry.clear()
        trial.run()
        broken = broken_by(trial, before, self.telemetry)
        self.stale = False
        self._count(trial)
        if broken:
            raise Broken("\n".join([*broken, *_circumstances(trial), self.telemetry.tree()]))

    def _count(self, trial):
        tally = self.tally
        tally.steps += 1
        tally.attempts += trial.begun
        tally.ends["committed" if trial.error is None else type(trial.error).__name__] += 1
        tally.struck.update((one.fault, one.place) for one in trial.strikes.struck)

    @rule()
    def close(self):
        """Close the connection, as Django does between requests."""
        self.bank.wrapper.close()
        self.stale = False

    @rule(fault=st.sampled_from((*IDLE_ENDS, "node_killed", "drain", "killed by an administrator")))
    def go_stale(self, fault):
        """End the idle connection from the other side, unnoticed by the application."""
        self.bank.wrapper.ensure_connection()
        self.stale = True
        if fault == "killed by an administrator":
            self.bank.kill_sessions()
            return
        strikes = Strikes(self.bank.proxy, [plans.Strike(fault)])
        strikes.at(plans.START)
        strikes.end()
        self.tally.struck.update((one.fault, one.place) for one in strikes.struck)

    def teardown(self):
        """Leave nothing in force."""
        self.bank.proxy.clear()
        self.bank.wrapper.close()


def broken_by(trial, before, telemetry):
    """Give, in words, what a run has broken."""
    return [
        *trial.broken,
        *told.telemetry(trial, telemetry),  # first: what is asked below is telemetry too
        *invariants.connection(trial),
        *invariants.ledger(trial),
        *invariants.balances(trial, before, trial.bank.balances()),
        *invariants.result(trial),
        *invariants.hooks(trial),
        *invariants.attempts(trial),
        *invariants.verdicts(trial),
    ]


def _circumstances(trial):
    yield f"plan: {trial.plan}"
    yield f"struck: {[tuple(one) for one in trial.strikes.struck]}"
    yield f"attempts: {trial.attempts}"
    yield f"error: {trial.error!r}"
