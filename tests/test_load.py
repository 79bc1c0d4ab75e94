# SPDX-License-Identifier: Apache-2.0
"""The load on the bank: steady, colliding now and then, there before the bank and after it, and well ended."""

import itertools
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from demo.bank_server import BankServer, environment_of
from demo.load import rounds
from demo.processes import Children
from demo.traffic import CLIENTS, Client, Tally

from .processes import free_port

ROOT = Path(__file__).resolve().parent.parent
DRIVER = os.environ.get("OTEL_CRDB_TEST_DRIVER") or "psycopg"
WITHIN = 60.0
ACCOUNTS = [f"customer-{number:02}" for number in range(1, 2 * CLIENTS + 1)]


@pytest.fixture
def bank(crdb, tmp_path):
    """A bank with its accounts that is not served yet."""
    children = Children()
    environment = {
        **environment_of(crdb.django_settings(), "http://127.0.0.1:9", DRIVER),
        "OTEL_SDK_DISABLED": "true",
    }
    served = BankServer(children, environment, tmp_path / "bank.log")
    served.prepare()
    yield served
    children.end_all()


@pytest.fixture
def start():
    """A function that starts a load; what a test leaves running is ended, and what says nothing for too long."""
    started = []
    deadlines = []

    def start(*arguments):
        command = [sys.executable, "-m", "demo.load", *map(str, arguments)]
        load = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, encoding="utf-8")
        started.append(load)
        deadlines.append(threading.Timer(WITHIN, load.kill))
        deadlines[-1].start()
        return load

    yield start
    for deadline in deadlines:
        deadline.cancel()
    for load in started:
        load.kill()
        load.wait()
        load.stdout.close()


def address(port):
    return "--address", f"http://127.0.0.1:{port}"


def line(load, pattern):
    """The next line that a load says which is like this."""
    for told in load.stdout:
        if found := re.search(pattern, told):
            return found
    pytest.fail(f"it ended with status {load.wait()}, and did not say {pattern}")


def repeated(told):
    """Whether it says twice running that the bank is gone, or that it is back."""
    changes = re.findall(r"no answer: |bank at \S+ answers", told)
    return any(one.startswith("no") == next_.startswith("no") for one, next_ in itertools.pairwise(changes))


def ended(load):
    """How a load ended: its status, the transfers it made in all, and what became of how many."""
    rest = load.stdout.read()
    outcomes = re.search(r"in all: (\d+) transfers(.*)", rest)
    assert outcomes, f"status {load.wait(WITHIN)}: {rest}"
    assert not repeated(rest)
    return (
        load.wait(WITHIN),
        int(outcomes[1]),
        {word: int(count) for count, word in re.findall(r", (\d+) ([^,]+)", outcomes[2])},
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_waits_for_the_bank_outlives_it_and_ends_well(bank, start, number):
    """It is there before the bank, goes on without it, greets it again, and on a signal ends with status 0."""
    port = free_port()
    load = start(*address(port), "--rate", 40, "--every", 0.5)
    line(load, r"no answer: .*refused")
    for _ in range(2):
        bank.start(port)
        line(load, f"the bank at 127.0.0.1:{port} answers")
        line(load, r"\d+ transfers.* [1-9]\d* made")
        bank.stop()
        line(load, "no answer: ")
    line(load, r"\d+ transfers, [1-9]\d* not answered$")
    load.send_signal(number)
    status, total, outcomes = ended(load)
    assert status == 0
    assert outcomes["made"] > 0
    assert total == sum(outcomes.values())


def test_transfers_collide_and_the_bank_answers_what_it_can(bank, start):
    """Some are refused with 40001, most are made; nothing else happens, and no money is lost."""
    bank.start()
    client = Client(bank.address, Tally())
    before = client.get("/accounts/").body["accounts"]
    load = start(*address(bank.address[1]), "--rate", 60, "--every", 0.2)
    line(load, "[1-9]\\d* refused with 40001")
    load.terminate()
    status, total, outcomes = ended(load)
    assert status == 0
    assert set(outcomes) <= {
        "made",
        "refused with 40001",
        "without the money",
        "not sent: the bank is behind",
    }
    assert min(outcomes["made"], outcomes["refused with 40001"]) > 0
    assert total == sum(outcomes.values())
    after = client.get("/accounts/").body["accounts"]
    assert sum(one["balance"] for one in after) == sum(one["balance"] for one in before)
    assert all(one["balance"] == one["ledger"] for one in after)
    assert client.get("/report/").body["transfers"] == outcomes["made"]


def test_it_ends_by_itself_after_its_time_and_keeps_its_rate(bank, start):
    """With --seconds it ends with status 0; it has sent something, and no more than its rate gives in that time."""
    bank.start()
    bank.wait_until_ready(Client(bank.address, Tally()))
    began = time.monotonic()
    status, total, _ = ended(start(*address(bank.address[1]), "--rate", 20, "--seconds", 3))
    took = time.monotonic() - began
    assert status == 0
    assert 0 < total <= 20 * took + CLIENTS


def test_without_a_bank_it_ends_well_too_and_says_so_once(start):
    """Where no bank ever answers it asks again and again, complains once, and its time or a signal ends it well."""
    assert ended(start(*address(free_port()), "--seconds", 2.5)) == (0, 0, {})
    load = start(*address(free_port()))
    line(load, "no answer: ")
    load.terminate()
    assert ended(load) == (0, 0, {})


def test_what_is_ordered_is_spread_evenly_but_for_every_fourth_round():
    """Customers order one by one, and in every fourth round all at once on the same two accounts."""
    orders = list(itertools.islice(rounds(ACCOUNTS), 10 * (3 * CLIENTS + 1)))
    crowds = [each for each in orders if len(each) > 1]
    assert len(crowds) == 10
    for crowd in crowds:
        assert len(crowd) == CLIENTS
        assert len({frozenset((order.sender, order.recipient)) for order in crowd}) == 1
    assert {len(each) for each in orders} == {1, CLIENTS}
    assert {order.attempts for each in orders for order in each} == {None, 1}


def test_in_the_long_run_no_account_runs_dry():
    """What the calm rounds take from an account they give back: after four eights of rounds nothing is missing."""
    moved = Counter()
    for orders in itertools.islice(rounds(ACCOUNTS), 4 * 2 * (3 * CLIENTS + 1)):
        for order in orders:
            if order.amount < 10**9:
                moved[order.sender] -= order.amount
                moved[order.recipient] += order.amount
    assert set(moved) == set(ACCOUNTS)
    assert max(map(abs, moved.values())) < 1_000


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--address", "127.0.0.1:8000"], "is not like http://"),
        (["--address", "https://127.0.0.1:8000"], "is not like http://"),
        (["--address", "http://127.0.0.1:many"], "Port"),
        (["--rate", "0"], "'0' is not a number above 0"),
        (["--rate", "nan"], "'nan' is not a number above 0"),
        (["--seconds", "-1"], "'-1' is not a number above 0"),
    ],
)
def test_wrong_arguments_are_refused_in_plain_words(arguments, said):
    """It ends with status 2 and says what is wrong, and sends nothing."""
    command = [sys.executable, "-m", "demo.load", *arguments]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8", timeout=WITHIN)
    assert ended.returncode == 2
    assert said in ended.stderr
