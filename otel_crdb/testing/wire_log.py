# SPDX-License-Identifier: Apache-2.0
"""What passed through the wire proxy: the truth that spans and metrics are held against.

The proxy writes a message down before it sends it on. A client that has its answer therefore finds the
statement and the answer in the log.
"""

from __future__ import annotations

import socket
from collections import Counter, deque
from dataclasses import dataclass, field
from json import dumps, loads
from typing import Any, Literal, NamedTuple

# A start-up packet with this code asks the proxy itself: a JSON object follows, and a JSON object comes back.
# PostgreSQL keeps 1234 as the upper half of its own special codes, whose lower halves are 5678 to 5680.
CONTROL_REQUEST = 1234 << 16 | 9999
TEXT_LIMIT = 2_000
EVENT_LIMIT = 50_000

EventKind = Literal["statement", "tag", "error"]


class WireEvent(NamedTuple):
    """One thing said on the wire.

    `session` counts connections from 1. `kind` is `statement` (a Query, or an Execute with the text that was
    parsed; the first 2,000 bytes), `tag` (of CommandComplete: `COMMIT`, `INSERT 0 1`) or `error` (SQLSTATE).
    """

    session: int
    kind: EventKind
    text: str


@dataclass
class WireLog:
    """Counts since the start or the last clearing, and the latest 50,000 events in the order they passed.

    `sessions` counts connections that became sessions, `open_sessions` those still open, `cancels` the cancel
    requests. `to_server` and `to_client` count messages by the names PostgreSQL's documentation gives them.
    """

    sessions: int = 0
    open_sessions: int = 0
    cancels: int = 0
    to_server: Counter[str] = field(default_factory=Counter)
    to_client: Counter[str] = field(default_factory=Counter)
    events: deque[WireEvent] = field(default_factory=lambda: deque(maxlen=EVENT_LIMIT))

    def add(self, session: int, kind: EventKind, text: bytes) -> None:
        """Write one event down; text that is not UTF-8 is shown with replacement characters."""
        self.events.append(WireEvent(session, kind, text[:TEXT_LIMIT].decode(errors="replace")))

    def clear(self) -> None:
        """Forget everything but the sessions now open."""
        self.sessions = self.cancels = 0
        self.to_server.clear()
        self.to_client.clear()
        self.events.clear()

    def texts(self, kind: EventKind) -> list[str]:
        """Give the texts of all events of one kind, oldest first."""
        return [event.text for event in self.events if event.kind == kind]

    def as_dict(self) -> dict[str, Any]:
        """Give the log as JSON can hold it."""
        counts = {"sessions": self.sessions, "open_sessions": self.open_sessions, "cancels": self.cancels}
        return {
            **counts,
            "to_server": dict(self.to_server),
            "to_client": dict(self.to_client),
            "events": list(self.events),
        }


def read_wire_log(host: str, port: int, *, clear: bool = False, timeout: float = 10.0) -> WireLog:
    """Ask the proxy at `host`:`port` for its log, and with `clear` let it begin anew in the same step.

    `timeout` is in seconds. Raises OSError when nobody answers there, ValueError when it is not the proxy.
    """
    body = dumps({"command": "log", "clear": clear}).encode()
    with socket.create_connection((host, port), timeout) as link:
        link.sendall((len(body) + 8).to_bytes(4, "big") + CONTROL_REQUEST.to_bytes(4, "big") + body)
        with link.makefile("rb") as answer:
            log = loads(answer.read())
    counters = {name: Counter(log[name]) for name in ("to_server", "to_client")}
    events = deque((WireEvent(*event) for event in log["events"]), maxlen=EVENT_LIMIT)
    return WireLog(**log | counters | {"events": events})
