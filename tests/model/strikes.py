# SPDX-License-Identifier: Apache-2.0
"""Faults put in force at the moments that a plan says, each strike noted with the attempt that it met."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from otel_crdb.testing.fault import Link
from otel_crdb.testing.faults import CATALOGUE
from otel_crdb.testing.rules import Rule

#: Seconds that silence lasts: drivers wait for ever, so it is the rule that ends it, and the link with it.
SILENCE = 0.005
#: Seconds instead of the catalogue's: what is slow need not be slow here.
DELAY = 0.003
PARTITION = 0.02
_COMMIT = re.compile(rb"\A\s*COMMIT\b", re.IGNORECASE)


class Struck(NamedTuple):
    """A fault that struck."""

    attempt: int
    fault: str
    place: str
    text: str


@dataclass(eq=False)
class NotedRule(Rule):
    """A rule that tells of each strike, before the client hears of it."""

    note: Callable[[Any, str, bytes], None] = field(default=lambda rule, place, text: None, repr=False)

    def strikes(self, place, text=b"", *, ordinary=True):
        """Tell whether it strikes here and now."""
        struck = super().strikes(place, text, ordinary=ordinary)
        if struck:
            self.note(self, place, text)
        return struck


class Strikes:
    """The faults of one run."""

    def __init__(self, proxy, planned):
        self._proxy = proxy
        self._planned = planned
        self._helpers = []
        self._to_heal = []
        #: The attempt that is under way.
        self.attempt = 1
        self.struck = []

    def at(self, when):
        """Lift what heals at this moment, and put in force what is planned for it."""
        for moment, rule in self._to_heal:
            if moment == when:
                rule.lift()
        for strike in self._planned:
            if strike.when == when:
                self._begin(strike)

    def _begin(self, strike):
        rule = self._rule_of(strike)
        if strike.heals is not None and strike.during is None:
            self._to_heal.append((strike.heals, rule))
        if rule.on == "node":
            self.struck.append(Struck(self.attempt, rule.fault.name, "node", ""))
        self._proxy.add(rule)

    def _rule_of(self, strike, fault=None):
        fault = CATALOGUE[fault or strike.fault]
        if fault.delay:
            fault = fault.after(DELAY)
        if fault.node is not None:
            lasting = PARTITION if fault.name == "partition" else None
            return NotedRule(fault, "node", seconds=lasting, note=self._note)
        on = strike.on or fault.place
        matching = fault.matching if strike.matching is None and on == fault.place else strike.matching
        rule = NotedRule(fault, on, matching, strike.nth, strike.times, note=self._note)
        rule.meanwhile = strike
        return rule

    def _note(self, rule, place, text):
        """Note a strike: in the proxy's thread, which must not be kept waiting."""
        where = "commit" if place == "statement" and _COMMIT.search(text) else place
        self.struck.append(Struck(self.attempt, rule.fault.name, where, text[:40].decode(errors="replace")))
        strike = rule.meanwhile
        if rule.fault.link is Link.SILENT:
            self._help(threading.Timer(SILENCE, rule.lift))
        elif strike.during is not None:
            node = self._rule_of(strike, strike.during)
            self.struck.append(Struck(self.attempt, node.fault.name, "node", ""))
            if strike.heals is not None:
                self._to_heal.append((strike.heals, node))
            self._help(threading.Thread(target=self._proxy.add, args=(node,)))

    def _help(self, thread):
        self._helpers.append(thread)
        thread.start()

    def end(self):
        """Lift all faults, and have none come after."""
        for helper in self._helpers:
            helper.join()
        self._proxy.clear()

    # --- what struck -----------------------------------------------------------------------------------------

    def in_attempt(self, number):
        """Give what struck in an attempt."""
        return [one for one in self.struck if one.attempt == number]

    @property
    def unasked(self):
        """Whether anything struck that waits for no statement: it may be felt in this attempt, the next, or never."""
        return any(one.place in ("node", "idle", "idle_in_transaction") for one in self.struck)
