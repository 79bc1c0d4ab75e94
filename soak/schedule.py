# SPDX-License-Identifier: Apache-2.0
"""What fails and when: drawn from a seed, counted in transactions and not in seconds."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from otel_crdb.testing.faults import CATALOGUE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from otel_crdb.testing.fault import Fault

#: Faults are timed for tests that wait for one; here, many do.
DELAYS = {"slow_statement": 0.2, "latency": 0.02, "drain": 0.5}
#: How long an outage lasts, as a share of the way from one to the next.
OUTAGE = (0.3, 0.5)
#: Each outage once in so many transactions; in a short soak once all the same, unless it has fewer a piece.
ONE_OF_EACH, FEWEST = 4000, 200
#: Which fault of a whole node stands for which outage. A rolling restart is two: drain, then refuse all.
OUTAGES = ("rolling_restart", "partition", "node_killed", "connection_refused", "latency")


@dataclass(frozen=True, order=True)
class Event:
    """Something the conductor does to a node once so many transactions are done.

    `rule` names the rule: "inject" puts it in force and "lift" takes it out. `outage` is what it belongs to.
    """

    at: int
    number: int
    node: int = field(compare=False)
    do: str = field(compare=False)
    rule: str = field(compare=False)
    fault: str = field(default="", compare=False)
    nth: int = field(default=1, compare=False)
    outage: str = field(default="", compare=False)

    @property
    def group(self) -> str:
        """What its steps have in common where an outage has several."""
        return self.rule.partition(".")[0]

    @property
    def command(self) -> dict[str, Any]:
        """What the node is told."""
        told = {"do": self.do, "rule": self.rule}
        return told if self.do == "lift" else {**told, "fault": self.fault, "nth": self.nth}


def passing_faults() -> list[Fault]:
    """Return the faults that strike one session: all of the catalogue but those of a whole node."""
    return [fault for fault in CATALOGUE.values() if fault.node is None]


def plan(transactions: int, share: float, nodes: int, seed: int) -> list[Event]:
    """Draw a schedule: faults in that share of the transactions, each kind as often, and outages among them.

    A fault is put in force at its point, and strikes once: the `nth` of the statements, COMMITs or connects
    that it can strike from then on.
    """
    chance = random.Random(seed)
    steps = [*_passing(transactions, share, nodes, chance), *_outages(transactions, nodes, chance)]
    return sorted(Event(at, number, *rest) for number, (at, *rest) in enumerate(steps))


def _passing(transactions: int, share: float, nodes: int, chance: random.Random) -> Iterator[tuple[Any, ...]]:
    wanted = round(transactions * share)
    names: list[str] = []
    while len(names) < wanted:
        cycle = [fault.name for fault in passing_faults()]
        chance.shuffle(cycle)
        names += cycle
    for number, name in enumerate(names[:wanted]):
        fault = CATALOGUE[name]
        amid = fault.place in ("statement", "idle_in_transaction") and fault.matching is None
        nth = chance.randint(1, 6) if amid else 1
        at = chance.randrange(1, max(2, int(transactions * 0.95)))
        yield at, chance.randrange(nodes), "inject", f"f{number}", name, nth


def _outages(transactions: int, nodes: int, chance: random.Random) -> Iterator[tuple[Any, ...]]:
    """Yield the steps of outages that never touch two nodes at once."""
    count = min(transactions // FEWEST, len(OUTAGES) * max(1, round(transactions / ONE_OF_EACH)))
    each = transactions // (count + 1)
    kinds = [OUTAGES[number % len(OUTAGES)] for number in range(count)]
    chance.shuffle(kinds)
    for number, kind in enumerate(kinds):
        begin = each * (number + 1) - chance.randrange(each // 4)
        end = begin + int(each * chance.uniform(*OUTAGE))
        node = (number + chance.randrange(2)) % nodes
        if kind == "rolling_restart":
            yield from _rolling_restart(f"o{number}", begin, end, nodes, node)
        else:
            yield begin, node, "inject", f"o{number}", kind, 1, kind
            yield end, node, "lift", f"o{number}", "", 1, kind


def _rolling_restart(name: str, begin: int, end: int, nodes: int, first: int) -> Iterator[tuple[Any, ...]]:
    """Yield the steps of one: each node in turn drains, is gone, and comes back."""
    turn = (end - begin) // nodes
    for number in range(nodes):
        node, start = (first + number) % nodes, begin + number * turn
        drain, gone = f"{name}.drain{node}", f"{name}.gone{node}"
        yield start, node, "inject", drain, "drain", 1, "rolling_restart"
        yield start + turn // 2, node, "inject", gone, "node_killed", 1, "rolling_restart"
        yield start + turn // 2, node, "lift", drain, "", 1, "rolling_restart"
        yield start + turn, node, "lift", gone, "", 1, "rolling_restart"
