# SPDX-License-Identifier: Apache-2.0
"""The fault proxy as a process of its own: it stands until it is told to end, and says what it does."""

from __future__ import annotations

import contextlib
import queue
import signal
import sys
import time
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from otel_crdb.statements import describe

from .fault_proxy import FaultProxy
from .rules import Rule, read_rules
from .servers import server
from .supervisor import _allow_many_files

if TYPE_CHECKING:
    from pathlib import Path

    from .fault import Place
    from .servers import Server

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class ToldRule(Rule):
    """A rule that says each time that it strikes."""

    def strikes(self, place: Place, text: bytes = b"", *, ordinary: bool = True) -> bool:
        """Tell whether it strikes here and now, and count."""
        struck = super().strikes(place, text, ordinary=ordinary)
        if struck:
            where = f"{place} {describe(text.decode(errors='replace')).summary}" if text else place
            _say(f"struck: {self.fault.name} on {where}, {self.hits} so far")
        return struck


def run(upstream: str, *, port: int, rules_file: Path | None, version: str, node_id: int) -> None:
    """Stand before a server, by its URL, until SIGINT or SIGTERM; on SIGHUP read the rules again.

    `embedded` starts a server of its own. Raises OSError where it cannot listen or read the rules,
    ServerError where there is no such server, ValueError for wrong rules.
    """
    rules = _rules_of(rules_file)
    _allow_many_files()
    with contextlib.ExitStack() as stack:
        target: Server | str = upstream
        if upstream == "embedded":
            target = stack.enter_context(server("embedded", version=version, node_id=node_id))
        heard = stack.enter_context(_signals())
        proxy = FaultProxy(target, rules=rules, version=version, node_id=node_id, port=port)
        stack.enter_context(proxy)
        address = replace(proxy.server, password="").url
        _say(f"listening: {address}, before {proxy.upstream.description}, {_counted(rules)}")
        while heard.get() == signal.SIGHUP:
            _read_again(proxy, rules_file)


def _read_again(proxy: FaultProxy, rules_file: Path | None) -> None:
    try:
        rules = _rules_of(rules_file)
    except (OSError, ValueError) as error:
        _say(f"the rules stay as they were: {error}")
        return
    proxy.clear()
    for rule in rules:
        proxy.add(rule)
    _say(f"the rules were read again, {_counted(rules)}")


def _rules_of(path: Path | None) -> list[ToldRule]:
    if path is None:
        return []
    return [
        ToldRule(**{part.name: getattr(rule, part.name) for part in fields(rule) if part.init})
        for rule in read_rules(path)
    ]


def _counted(rules: list[ToldRule]) -> str:
    return f"{len(rules)} rule{'s' if len(rules) != 1 else ''} in force"


@contextlib.contextmanager
def _signals() -> Any:
    """Give a queue in which the signals that end it, or have it read, are put as they come."""
    heard: queue.SimpleQueue[int] = queue.SimpleQueue()
    before = {one: signal.signal(one, lambda number, frame: heard.put(number)) for one in SIGNALS}
    try:
        yield heard
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


def _say(line: str) -> None:
    # Whoever reads this may be gone, which is no reason to fail the sessions.
    with contextlib.suppress(OSError):
        sys.stdout.write(f"{time.strftime('%H:%M:%S')} {line}\n")
        sys.stdout.flush()
