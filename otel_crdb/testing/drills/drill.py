# SPDX-License-Identifier: Apache-2.0
"""What a drill is: what is done to the database, what is asked of the bank, and what must be seen."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from otel_crdb.testing.faults import named
from otel_crdb.testing.rules import make_rule

if TYPE_CHECKING:
    from collections.abc import Mapping

    from otel_crdb.testing.fault import Place
    from otel_crdb.testing.rules import Rule

    from .expectations import Expectation


@dataclass(frozen=True)
class Inject:
    """Put a fault in force, as a rule says it (`otel_crdb.testing.rules.Rule`); `delay` is in seconds.

    A fault of the whole node lasts until it is lifted.
    """

    fault: str
    on: Place | None = None
    matching: str | None = None
    times: int | None = 1
    delay: float = 0.0

    def rule(self) -> Rule:
        """Make the rule."""
        fault = named(self.fault)
        if self.delay:
            fault = fault.after(self.delay)
        if fault.node is not None:
            return make_rule(fault)
        return make_rule(fault, on=self.on, matching=self.matching, times=self.times)

    def __str__(self) -> str:
        """Say it in words."""
        rule = self.rule()
        if rule.on == "node":
            where = ", until it is lifted"
        else:
            where = {"commit": " at COMMIT", "connect": " at connect"}.get(rule.on, f" at a {rule.on}")
            where += f" that matches {self.matching!r}" if self.matching else ""
            where += {None: ", always", 1: ", once"}.get(self.times, f", {self.times} times")
        delay = f", by {self.delay:g} s" if self.delay else ""
        return f"{self.fault}{where}{delay}"


@dataclass(frozen=True)
class Lift:
    """Lift all that is in force."""

    def __str__(self) -> str:
        """Say it in words."""
        return "all faults are lifted"


@dataclass(frozen=True)
class Ask:
    """Send the bank a request, which it has to answer with this status."""

    method: str
    path: str
    status: int
    fields: Mapping[str, Any] | None = None

    def __str__(self) -> str:
        """Say it in words."""
        return f"{self.method} {self.path}"


@dataclass(frozen=True)
class AtOnce:
    """Send several requests at the same moment. Which of them gets which of the answers is open."""

    asks: tuple[Ask, ...]

    def __str__(self) -> str:
        """Say it in words."""
        return f"at once: {', '.join(map(str, self.asks))}"


Step = Inject | Lift | Ask | AtOnce


@dataclass(frozen=True)
class Drill:
    """One failure, played against a bank, with what it must come to.

    `summary` says what CockroachDB does, `user_notices` what a user of the application notices, and
    `on_call` what the person on call sees and does. `connection` is what the bank has when it begins: one
    that was used before, or none. `bank` is the plain one, or the one with Django's pool of connections,
    which psycopg 3 and Django 5.1 have. `moved` is what the recipient has more in the end, in cents.
    `on_psycopg2` is what must be seen in place of `expects` where psycopg2 lets less be known.
    """

    name: str
    title: str
    summary: str
    user_notices: str
    on_call: str
    steps: tuple[Step, ...]
    expects: tuple[Expectation, ...] = field(repr=False)
    connection: Literal["kept", "new"] = "kept"
    bank: Literal["plain", "pooled"] = "plain"
    moved: int = 0
    on_psycopg2: tuple[Expectation, ...] = field(default=(), repr=False)

    def on(self, driver: str) -> Drill:
        """Give the drill as it is on a driver, `psycopg` or `psycopg2`."""
        if driver == "psycopg2" and self.on_psycopg2:
            return replace(self, expects=self.on_psycopg2)
        return self


SENDER, RECIPIENT, AMOUNT = "customer-01", "customer-02", 100


def transfer(status: int) -> Ask:
    """Order a transfer of `AMOUNT` cents."""
    return Ask("POST", "/transfer/", status, {"from": SENDER, "to": RECIPIENT, "amount": AMOUNT})


def deposit(status: int) -> Ask:
    """Pay in `AMOUNT` cents."""
    return Ask("POST", "/deposit/", status, {"to": RECIPIENT, "amount": AMOUNT})


def page(path: str, status: int) -> Ask:
    """Look at something."""
    return Ask("GET", path, status)
