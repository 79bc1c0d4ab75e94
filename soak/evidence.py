# SPDX-License-Identifier: Apache-2.0
"""All that is known when a soak is over: what callers saw, what the server has, what arrived."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from .arrivals import Arrivals
from .journal import Ending, Memory, Operation


@dataclass(frozen=True)
class Row:
    """A row of the ledger, as it stands on the server."""

    operation: str
    source: int
    target: int
    amount: int


@dataclass
class Truth:
    """What the server holds, read past the nodes while the workers still run, all their work done."""

    rows: list[Row] = field(default_factory=list)
    balances: dict[int, int] = field(default_factory=dict)
    #: Sessions of the workers in pg_stat_activity, as `application_name: state, query`.
    sessions: list[str] = field(default_factory=list)
    #: What these sessions, or prepared transactions, hold in pg_locks.
    locks: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Strike:
    """How many faults had struck at a moment, in seconds since the epoch."""

    at: float
    faults: int


@dataclass(frozen=True)
class Outage:
    """One outage of one node, or of one after the other, from its first step to its last."""

    kind: str
    nodes: tuple[int, ...]
    begin: float
    end: float


@dataclass
class Evidence:
    """One soak."""

    #: Operations that were ordered, by worker; fewer are done where time ran out.
    ordered: dict[str, int] = field(default_factory=dict)
    operations: list[Operation] = field(default_factory=list)
    memory: list[Memory] = field(default_factory=list)
    endings: dict[str, Ending] = field(default_factory=dict)
    #: Exit statuses of the workers.
    statuses: dict[str, int] = field(default_factory=dict)
    arrivals: Arrivals = field(default_factory=Arrivals)
    truth: Truth = field(default_factory=Truth)
    #: What struck, and what was put in force and met nothing, by the fault's name.
    struck: Counter[str] = field(default_factory=Counter)
    scheduled: Counter[str] = field(default_factory=Counter)
    strikes: list[Strike] = field(default_factory=list)
    outages: list[Outage] = field(default_factory=list)
    #: Steps of the schedule that the clock brought on, for no operation ended.
    hastened: int = 0
    #: Time was over before all operations were done.
    cut_short: bool = False
    accounts: int = 0
    opening: int = 0
    #: What it ran on, for the report.
    ground: dict[str, str] = field(default_factory=dict)
