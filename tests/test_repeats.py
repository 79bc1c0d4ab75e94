# SPDX-License-Identifier: Apache-2.0
"""How often one thing is said: a limit for each kind, and counts that add up exactly."""

import subprocess
import sys
import threading
import time
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as some

from otel_crdb.repeats import OTHERS, Repeats

THREAD = "otel_crdb_held_back"


class Clock:
    """A clock that goes when it is told to."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


class Book:
    """What was admitted and what was said to have been held back."""

    def __init__(self, **options):
        self.clock = Clock()
        self.admitted = Counter()
        self.held = []
        self.kind = "failed"
        self.repeats = Repeats(self.held.extend, clock=self.clock, **options)

    def say(self, key, limit=5, times=1):
        for _ in range(times):
            self.admitted[key] += self.repeats.admit((self.kind, str(key)), limit, key)

    @property
    def held_back(self):
        return sum(each.number for each in self.held)

    def close(self):
        self.repeats.tell_overdue(everything=True)


@pytest.fixture
def book():
    """A book, with nothing held back in the end, and so without a thread."""
    book = Book()
    yield book
    book.close()
    until(lambda: THREAD not in threads())


def threads():
    return [thread.name for thread in threading.enumerate()]


def until(condition):
    """Wait until something is so."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        threading.Event().wait(0.005)


def test_what_is_above_the_limit_is_counted_and_the_count_said_once(book):
    """Of 10,000 in a second five are said, and one line with 9,995 after the window, and nothing more."""
    for _ in range(10_000):
        book.say("conflict")
        book.clock.now += 0.0001
    assert (book.admitted["conflict"], book.held) == (5, [])
    book.clock.now += 58
    book.repeats.tell_overdue()
    assert book.held == []
    book.clock.now += 1.1
    book.repeats.tell_overdue()
    assert book.held == [(9_995, 60, "conflict", False)]
    book.repeats.tell_overdue()
    assert book.held_back == 9_995
    assert book.repeats.held == 0


def test_next_of_its_kind_after_the_window_is_said_and_so_is_the_count(book):
    """A window that is over is no limit any more, and what it held back is not forgotten for the next one."""
    book.say("conflict", times=8)
    book.clock.now += 60
    book.say("conflict", times=6)
    assert book.admitted["conflict"] == 10
    book.repeats.tell_overdue()
    assert book.held == [(3, 60, "conflict", False)]
    book.close()
    assert book.held_back == 4


def test_kinds_do_not_share_a_limit(book):
    """One kind that floods takes nothing from another."""
    book.say("conflict", times=100)
    book.say("refused")
    assert book.admitted["refused"] == 1


def test_no_limit_admits_everything(book):
    """With a limit of 0 every line is said."""
    book.say("conflict", limit=0, times=100)
    assert (book.admitted["conflict"], book.repeats.held) == (100, 0)


def test_flush_says_what_a_window_under_way_holds_and_begins_it_anew(book):
    """At a flush the count is said at once, with the seconds that it is of."""
    book.say("conflict", times=7)
    book.clock.now += 3.2
    book.close()
    assert book.held == [(2, 4, "conflict", False)]
    book.say("conflict")
    assert book.admitted["conflict"] == 6


def test_kinds_are_bounded(book):
    """A thousand statements that are all different share one limit from some number on; nothing is miscounted."""
    book = Book(key_limit=100)
    for number in range(1_000):
        book.say(number, limit=2, times=3)
    assert len(book.repeats._windows) <= 101
    assert (*OTHERS, "failed") in book.repeats._windows
    book.close()
    assert book.admitted.total() + book.held_back == 3_000
    assert book.admitted.total() == 2 * 100 + 2
    assert {each.mixed for each in book.held} == {False, True}


def test_trouble_of_another_kind_is_said_beside_a_thousand_statements(book):
    """However many statements share one limit, what is of another kind has its own; both are bounded."""
    book = Book(key_limit=100)
    for number in range(1_000):
        book.say(number, limit=2, times=3)
    for number in range(1_000):
        book.kind = f"kind {number}"
        book.say("new", limit=2)
    assert book.admitted["new"] >= 90
    assert len(book.repeats._windows) <= 201
    book.close()
    assert book.admitted.total() + book.held_back == 4_000


MOVES = some.lists(some.tuples(some.integers(0, 6), some.floats(0, 45), some.booleans()), max_size=80)


@given(moves=MOVES, limit=some.integers(1, 4), kinds=some.integers(1, 4))
def test_what_is_said_and_what_is_said_to_be_held_back_add_up(moves, limit, kinds):
    """Whatever comes when, and whenever somebody passes by: no line is lost or counted twice."""
    book = Book(key_limit=kinds)
    for key, seconds, passing in moves:
        book.say(key, limit)
        book.clock.now += seconds
        if passing:
            book.repeats.tell_overdue()
    book.close()
    assert book.admitted.total() + book.held_back == len(moves)
    assert all(each.number > 0 and 1 <= each.seconds <= 60 for each in book.held)
    assert book.repeats.held == 0


def test_threads_together_lose_no_count(book):
    """Eight threads at once: what was admitted and what was held back is what they said."""
    together = threading.Barrier(8)

    def storm():
        together.wait()
        for _ in range(1_250):
            book.say("conflict")

    storming = [threading.Thread(target=storm) for _ in range(8)]
    for thread in storming:
        thread.start()
    for thread in storming:
        thread.join()
    book.close()
    assert book.held_back == 10_000 - 5


def test_count_is_said_by_a_thread_that_is_there_only_while_something_is_held_back():
    """Where nothing more happens, a thread says the count when the window is over, and ends."""
    said = []
    repeats = Repeats(said.extend, window=0.05)
    assert THREAD not in threads()
    for _ in range(7):
        repeats.admit(("failed", "conflict"), 5, "conflict")
    until(lambda: said)
    assert [each.number for each in said] == [2]
    until(lambda: THREAD not in threads())
    for _ in range(6):
        repeats.admit(("failed", "refused"), 5, "refused")
    until(lambda: len(said) == 2)
    until(lambda: THREAD not in threads())


def test_thread_waits_again_where_more_is_held_back_before_it_has_gone():
    """After a flush the same thread, or the next one, waits for what comes then."""
    said = []
    repeats = Repeats(said.extend, window=0.05)
    for _ in range(50):
        for _ in range(3):
            repeats.admit(("failed", "conflict"), 1, "conflict")
        repeats.tell_overdue(everything=True)
    repeats.admit(("failed", "conflict"), 1, "conflict")
    repeats.admit(("failed", "conflict"), 1, "conflict")
    until(lambda: sum(each.number for each in said) == 101)
    until(lambda: THREAD not in threads())


def test_count_that_cannot_be_said_ends_no_thread():
    """A fault while a count is said is no reason for the thread to leave the next one unsaid."""
    said = []

    def tell(over):
        said.extend(over)
        raise ValueError

    repeats = Repeats(tell, window=0.05)
    for key in ("conflict", "refused"):
        repeats.admit(("failed", key), 1, key)
        repeats.admit(("failed", key), 1, key)
        until(lambda key=key: said and said[-1].line == key)
    until(lambda: THREAD not in threads())


FORK = """
import os, sys, threading, time
from otel_crdb.repeats import Repeats
said = []
repeats = Repeats(said.extend)
for _ in range(9):
    repeats.admit(("failed", "conflict"), 5, "conflict")
holding, done = threading.Event(), threading.Event()
def hold():
    with repeats._lock:
        holding.set()
        done.wait()
threading.Thread(target=hold, daemon=True).start()
holding.wait()
child = os.fork()
if child:
    done.set()
    sys.exit(os.waitpid(child, 0)[1])
admitted = sum(repeats.admit(("failed", "conflict"), 5, "conflict") for _ in range(6))
repeats.tell_overdue(everything=True)
print(admitted, [each.number for each in said], flush=True)
os._exit(0)
"""


def test_child_counts_its_own():
    """A forked process waits for no lock of its parent's, and tells nothing that its parent held back."""
    told = subprocess.run(
        [sys.executable, "-c", FORK], capture_output=True, text=True, timeout=60, check=True
    )
    assert told.stdout == "5 [1]\n", told.stderr
