# SPDX-License-Identifier: Apache-2.0
"""A node that fails as it is told to: the rules in force, its sessions, and what concerns them all."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

from .fault import Link, Node
from .fault_session import FaultSession
from .wire import WireProxy

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from .fault import Fault, Place
    from .rules import Rule
    from .wire import Announcement, Connection


class FaultNode(WireProxy):
    """A wire proxy whose sessions ask the rules. All of it runs in one event loop."""

    session = FaultSession

    def __init__(
        self, announcement: Announcement, connect_upstream: Callable[[], Awaitable[Connection]]
    ) -> None:
        super().__init__(announcement, connect_upstream)
        self.rules: list[Rule] = []
        self.serving: set[FaultSession] = set()
        self._by_key: dict[bytes, FaultSession] = {}
        self._expiries: dict[Rule, asyncio.Task[None]] = {}
        self.silence_broken = asyncio.Event()  # set when a rule is lifted that made sessions fall silent
        self._stopped = False
        self._joined = asyncio.Event()  # not partitioned
        self._joined.set()

    # --- rules ---------------------------------------------------------------------------------------------

    async def add(self, rule: Rule) -> None:
        """Put a rule in force; one of the whole node strikes at once."""
        self.rules.append(rule)
        if rule.seconds is not None:
            self._expiries[rule] = asyncio.create_task(self._lift_after(rule.seconds, rule))
        if rule.on == "node":
            rule.hits += 1
            await self._become_as_told()
            self._strike_all(rule)
        for session in list(self.serving):
            if session.waits == rule.on and rule.strikes(rule.on):
                session.interrupt(rule.fault)

    async def lift(self, rule: Rule) -> None:
        """Take a rule out of force, if it is in."""
        if rule in self.rules:
            self.rules.remove(rule)
            if rule.fault.link is Link.SILENT:
                self.silence_broken.set()
                self.silence_broken = asyncio.Event()
            await self._become_as_told()
            expiry = self._expiries.pop(rule, None)
            if expiry is not None:
                expiry.cancel()

    async def _lift_after(self, seconds: float, rule: Rule) -> None:
        await asyncio.sleep(seconds)
        del self._expiries[rule]
        await self.lift(rule)

    async def stop(self) -> None:
        """Listen no more, end all sessions, and let no rule expire."""
        self._stopped = True
        for expiry in self._expiries.values():
            expiry.cancel()
        await asyncio.gather(*self._expiries.values(), return_exceptions=True)
        await super().stop()

    def strike(
        self, place: Place, text: bytes = b"", *, ordinary: bool = True, planning: bool = False
    ) -> Fault | None:
        """Give the fault that strikes here and now, if one does: that of the first rule.

        `planning` asks for those only that strike when a statement is planned.
        """
        for rule in self.rules:
            if (rule.fault.planning or not planning) and rule.strikes(place, text, ordinary=ordinary):
                return rule.fault
        return None

    # --- the whole node ------------------------------------------------------------------------------------

    def _told(self, *kinds: Node) -> list[Fault]:
        return [rule.fault for rule in self.rules if rule.fault.node in kinds]

    async def _become_as_told(self) -> None:
        if self._told(Node.PARTITIONED):
            self._joined.clear()
        else:
            self._joined.set()
        if self._stopped or self._told(Node.DEAD, Node.REFUSING):
            self.stop_listening()
        else:
            await self.listen()

    @property
    def dead(self) -> bool:
        """Whether it answers nobody."""
        return bool(self._told(Node.DEAD))

    def _strike_all(self, rule: Rule) -> None:
        fault = rule.fault
        if fault.node is Node.DEAD:
            for session in list(self.serving):
                session.interrupt(replace(fault, errors=(), link=Link.RESET))
        elif fault.node is Node.DRAINING:
            self._say_goodbye(idle_only=True)
            asyncio.get_running_loop().call_later(fault.delay, self._end_grace, rule)

    def _end_grace(self, rule: Rule) -> None:
        if rule in self.rules:
            self._say_goodbye()

    def _say_goodbye(self, *, idle_only: bool = False) -> None:
        """Close what is idle; when the time given to open transactions is over, also what is under way."""
        cut, goodbye = self._while_draining(slice(0, 2)), self.farewell
        if cut is None or goodbye is None:
            return
        for session in list(self.serving):
            if session.waits == "idle" or (session.waits is not None and not idle_only):
                session.interrupt(goodbye)
            elif not idle_only:
                session.interrupt(cut)

    @property
    def farewell(self) -> Fault | None:
        """What a session hears that has become idle: goodbye, while the node drains."""
        return self._while_draining(slice(1, 2))

    @property
    def refusal_of_new(self) -> Fault | None:
        """What a new session hears: that the node takes none, while it drains."""
        return self._while_draining(slice(2, 3))

    def _while_draining(self, told: slice) -> Fault | None:
        """Give a drain's fault with those of its errors that are to be told; None where nothing drains."""
        for fault in self._told(Node.DRAINING):
            return replace(fault, errors=fault.errors[told], link=Link.CLOSED, delay=0.0)
        return None

    async def passage(self, *, delayed: bool = False) -> None:
        """Wait until messages pass: no partition, and, where it is `delayed`, the distance crossed."""
        distance = sum(fault.delay for fault in self._told(Node.DISTANT)) if delayed else 0
        if distance:
            await asyncio.sleep(distance)
        await self._joined.wait()

    # --- cancel requests -----------------------------------------------------------------------------------

    def keep_session(self, session: FaultSession, key: bytes) -> None:
        """Remember whose key this is."""
        self._by_key[key] = session

    def keep_key(self, key: bytes) -> None:
        """Have a key of the server's own stand for itself."""
        self._server_keys[key] = key

    def forget(self, key: bytes | None) -> None:
        """Cancel nothing by this key any more."""
        super().forget(key)
        if key is not None:
            self._by_key.pop(key, None)

    async def cancel(self, key: bytes) -> None:
        """End a delay of ours, or pass the request on."""
        await self.passage()
        session = self._by_key.get(key)
        if session is None or not session.cancel():
            await super().cancel(key)
