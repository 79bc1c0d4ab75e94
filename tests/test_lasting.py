# SPDX-License-Identifier: Apache-2.0
"""Troubles that pass by themselves: nothing is said of them, unless they last."""

import pytest

from otel_crdb.lasting import Spells

CONNECTION, CONFLICT = "connection", "retryable"


class Clock:
    """A clock that goes when it is told to."""

    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def spells(clock):
    return Spells(clock=clock)


def fail(spells, clock, times, *, every, alias="default", error_class=CONNECTION):
    """Fail so many times; return what was said."""
    said = []
    for _ in range(times):
        said.append(spells.failure(alias, error_class))
        clock.now += every
    return [each for each in said if each is not None]


def test_trouble_that_lasts_is_said_once(spells, clock):
    """Without a success for half a minute there is one error, with when it began and how often it failed."""
    (lasting,) = fail(spells, clock, 200, every=1)
    assert (lasting.alias, lasting.error_class) == ("default", CONNECTION)
    assert (lasting.seconds, lasting.failures) == (30, 31)


def test_trouble_that_passes_is_not_said(spells, clock):
    """A success in time, and neither the trouble nor its end is said."""
    assert fail(spells, clock, 29, every=1) == []
    assert spells.success("default", committed=True) == []
    assert fail(spells, clock, 29, every=1) == []


def test_end_of_a_lasting_trouble_is_said_once(spells, clock):
    """The first success after it tells how long it was and how many failed."""
    fail(spells, clock, 61, every=1)
    (over,) = spells.success("default", committed=False)
    assert (over.error_class, over.seconds, over.failures) == (CONNECTION, 61, 61)
    assert spells.success("default", committed=False) == []
    assert not spells.open


def test_conflicts_are_over_with_a_commit(spells, clock):
    """Statements that succeed amid refused transactions do not end it; a commit does."""
    for _ in range(40):
        said = fail(spells, clock, 1, every=1, error_class=CONFLICT)
        spells.success("default", committed=False)
        if said:
            break
    assert said
    assert [each.error_class for each in spells.success("default", committed=True)] == [CONFLICT]


def test_aliases_are_apart(spells, clock):
    """What works on one database says nothing of another."""
    fail(spells, clock, 20, every=1, alias="other")
    spells.success("default", committed=True)
    assert fail(spells, clock, 20, every=1, alias="other")


@pytest.mark.parametrize(
    "error_class", ["constraint", "data", "schema", "permission", "timeout", "internal", ""]
)
def test_what_does_not_pass_by_itself_is_no_spell(spells, clock, error_class):
    """A constraint that is violated all day is no outage."""
    assert fail(spells, clock, 100, every=1, error_class=error_class) == []
    assert not spells.open
