# SPDX-License-Identifier: Apache-2.0
"""A node: a fault proxy in a process of its own, so that neither workers nor receiver take its time.

It is told what to do by lines of JSON on its input, and answers each with one. It ends with its input.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from otel_crdb.testing import FaultProxy, Server
from otel_crdb.testing.fault import Link
from otel_crdb.testing.faults import named

from .schedule import DELAYS

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

    from otel_crdb.testing.rules import Rule

#: What of a server a node has to know.
KNOWN = (
    *("kind", "description", "host", "port", "user", "database", "password", "options"),
    *("direct_host", "direct_port", "crdb_version", "node_id"),
)


class Node:
    """A node's process, as a context manager. Raises RuntimeError when it does not start."""

    def __init__(self, server: Server, number: int) -> None:
        self.number = number
        whole = asdict(server)
        self._order = json.dumps({name: whole[name] for name in KNOWN} | {"node_id": number + 1})
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str]
        self.port = 0

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "soak.node", self._order],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.port = self._hear()["port"]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def tell(self, command: dict[str, Any]) -> dict[str, Any]:
        """Have it do something, and return its answer."""
        with self._lock:
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps(command) + "\n")
            self._process.stdin.flush()
            return self._hear()

    def struck(self) -> Counter[str]:
        """Count the faults that have struck so far, by name."""
        return Counter(self.tell({"do": "count"})["struck"])

    def _hear(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"node {self.number + 1} has ended")
        answer: dict[str, Any] = json.loads(line)
        return answer


class Rules:
    """The rules of one node by their names, and what those have struck that are no longer in force."""

    def __init__(self, proxy: FaultProxy) -> None:
        self._proxy = proxy
        self._rules: dict[str, Rule] = {}
        self._struck: Counter[str] = Counter()

    def obey(self, command: dict[str, Any]) -> dict[str, Any]:
        """Do as told."""
        if command["do"] == "inject":
            self._forget_spent()
            fault = named(command["fault"])
            if fault.name in DELAYS:
                fault = fault.after(DELAYS[fault.name])
            self._rules[command["rule"]] = self._proxy.inject(fault, nth=command["nth"])
        elif command["do"] == "lift" and command["rule"] in self._rules:
            self._take_out(command["rule"])
        return {"struck": self.struck}

    @property
    def struck(self) -> Counter[str]:
        """What has struck, by name."""
        return self._struck + self._in_force()

    def _in_force(self) -> Counter[str]:
        counted: Counter[str] = Counter()
        for rule in self._rules.values():
            counted[rule.fault.name] += rule.hits
        return counted

    def _forget_spent(self) -> None:
        """Take out what has struck. Not what fell silent: the silence would end with it."""
        for name, rule in list(self._rules.items()):
            if rule.on != "node" and rule.over and rule.fault.link is not Link.SILENT:
                self._take_out(name)

    def _take_out(self, name: str) -> None:
        rule = self._rules.pop(name)
        rule.lift()
        self._struck[rule.fault.name] += rule.hits


def main(order: dict[str, Any]) -> None:
    """Stand before the server until the input ends."""
    with FaultProxy(Server(**order), node_id=order["node_id"]) as proxy:
        rules = Rules(proxy)
        _say({"port": proxy.port})
        for line in sys.stdin:
            _say(rules.obey(json.loads(line)))


def _say(answer: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
