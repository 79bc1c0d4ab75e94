# SPDX-License-Identifier: Apache-2.0
"""Any transfer, any fault at any point: what must hold of money, attempts, connection and telemetry holds.

``OTEL_CRDB_TEST_MODEL_EXAMPLES`` asks for so many examples, from a seed that is printed (``OTEL_CRDB_TEST_MODEL_SEED`` gives one);
without it a few are played, the same each time.
"""

import contextvars
import functools
import logging
import os
import random
import sys

import hypothesis
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from otel_crdb.testing import record_telemetry
from otel_crdb.testing.faults import CATALOGUE

from .model import plans, verdicts
from .model.bank import Bank
from .model.defects import DEFECTS
from .model.invariants import Broken
from .model.machine import BankMachine, Tally
from .servers import needs_postgresql

LONG = int(os.environ.get("OTEL_CRDB_TEST_MODEL_EXAMPLES") or 0)
FEW = 60
#: For a defect to be found: it is over with the first that shows it.
ENOUGH = 400
STEPS = 8


@pytest.fixture(scope="module")
def bank(crdb):
    """The bank, behind its fault proxy, on PostgreSQL, whose locks can be read."""
    needs_postgresql()
    with Bank(crdb) as running:
        yield running


@pytest.fixture(scope="module")
def told(bank):
    """The telemetry of this process; the log lines are left out of the report."""
    logger = logging.getLogger("otel_crdb")
    with record_telemetry() as recorded:
        logger.setLevel(logging.CRITICAL)
        yield recorded
        logger.setLevel(logging.NOTSET)


@pytest.fixture
def machine(bank, told):
    """The machine, with a tally of its own."""
    return type("Machine", (BankMachine,), {"bank": bank, "telemetry": told, "tally": Tally()})


def budget(examples, **options):
    """Give hypothesis's settings: the same examples each time, unless a long run is asked for."""
    return settings(
        max_examples=examples,
        stateful_step_count=STEPS,
        deadline=None,
        database=None,
        derandomize=not LONG,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
        **options,
    )


def say(capsys, words):
    """Write to the terminal, whatever pytest captures."""
    with capsys.disabled():
        sys.stdout.write(f"\n{words}\n")
        sys.stdout.flush()


def test_any_transfer_under_any_faults(machine, capsys):
    """Whatever fails and whenever, nothing is paid twice, lost, left behind, or told otherwise than it was."""
    if LONG:
        seed = int(os.environ.get("OTEL_CRDB_TEST_MODEL_SEED") or random.getrandbits(32))
        hypothesis.seed(seed)(machine)
        say(capsys, f"OTEL_CRDB_TEST_MODEL_SEED={seed}")
    try:
        run_state_machine_as_test(
            machine, settings=budget(LONG or FEW, phases=[Phase.generate, Phase.shrink])
        )
    finally:
        if LONG:
            say(capsys, machine.tally)


@pytest.mark.parametrize("fault", CATALOGUE)
def test_each_fault_alone(machine, fault):
    """Each fault of the catalogue strikes a transfer where it is at home, and at COMMIT: what must hold holds."""
    state = machine()
    for strike in plans.strikes_of_one(fault):
        for idempotent in (False, True):
            state.close()  # some strike where a connection is made
            state.transfer(plan=plans.with_a_savepoint(strikes=(strike,), idempotent=idempotent))
    state.teardown()
    met = sum(count for (name, _), count in machine.tally.struck.items() if name == fault)
    assert met >= machine.tally.steps, "it did not strike each time"


def test_a_savepoint_given_up_on_purpose_excuses_no_later_loss(machine):
    """Found by a long run: after ``set_rollback(True)`` within a savepoint a lost transaction was told as success."""
    state = machine()
    on_purpose, lost = (
        plans.Act("ask for rollback", nested=True),
        plans.Act("swallow a block without a savepoint"),
    )
    state.transfer(
        plan=plans.Plan("ann", "ben", 3, (on_purpose, *map(plans.Act, plans.CORE), lost), ("run",))
    )
    state.teardown()
    assert machine.tally.ends == {"TransactionManagementError": 1}


def test_the_documentation_speaks_of_every_fault():
    """Of each fault of the catalogue it is written down what is to follow."""
    assert verdicts.without_a_verdict() == []


@pytest.mark.parametrize("name", DEFECTS)
def test_a_defect_of_the_retry_loop_is_found(machine, monkeypatch, name):
    """A break of the retry loop is found within the few examples, and named for what it breaks."""
    defect = DEFECTS[name]
    defect.plant(monkeypatch)
    play = functools.partial(
        run_state_machine_as_test, machine, settings=budget(ENOUGH, phases=[Phase.generate])
    )
    with pytest.raises(Broken, match=defect.found_as):
        contextvars.copy_context().run(play)  # what the defect leaves behind stays there
