# SPDX-License-Identifier: Apache-2.0
"""Which of the server's messages answers which of the client's, and which of both is only the proxy's own.

A server answers in the order it was asked (PostgreSQL documentation, "Message Flow"), so a queue of what was
sent tells what an answer is to. The proxy sends messages of its own among the client's; their answers stay
with it.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from .fault import Link
from .frames import message

if TYPE_CHECKING:
    from .fault import ErrorFields
    from .frames import Frame

#: What ends the answer to a message. Flush, Terminate and the data of a COPY have none of their own.
_ENDS = {"Q": "Z", "F": "Z", "S": "Z", "P": "1", "B": "2", "C": "3", "D": "Tn", "E": "CIs"}
#: NoticeResponse, NotificationResponse and ParameterStatus may come at any time.
_ASYNCHRONOUS = frozenset("NAS")
#: The name of the statement and of the portal that the proxy prepares for itself.
_OURS = b"otel_crdb"
#: A statement that every server refuses, in every state, and that says in its log where it comes from.
REFUSED = b"otel_crdb plays a fault"


@dataclass(eq=False)
class Injection:
    """What the client is told in place of the server's answer, and what becomes of its link then.

    `refused` says that the server is meant to refuse what it is sent. Where it refuses anything else, the
    client gets that error, and the injection is `undone`.
    """

    errors: tuple[ErrorFields, ...] = ()
    link: Link = Link.OPEN
    refused: bool = False
    undone: bool = False


@dataclass(eq=False)
class Exchange:
    """One message to the server whose answer is to come.

    `shown` says whether the answer goes to the client, and `ready` whether the ReadyForQuery at its end does.
    An `injection` goes to the client where the answer ends; what `prepares` one keeps it from coming by
    failing.
    """

    kind: str
    shown: bool = True
    ready: bool = True
    injection: Injection | None = None
    prepares: Injection | None = None


class Answer(NamedTuple):
    """A message of the server: what it answers, and whether it is the last of that answer."""

    exchange: Exchange
    ended: bool


class Exchanges:
    """What was sent and is not answered yet, oldest first."""

    def __init__(self) -> None:
        self._waiting: deque[Exchange] = deque()

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def sent(self, exchange: Exchange) -> None:
        """Take note of a message to the server; one that is never answered is forgotten at once."""
        if exchange.kind in _ENDS:
            self._waiting.append(exchange)

    def received(self, frame: Frame) -> Answer | None:
        """Tell what a message of the server answers; None: nothing that was asked."""
        if frame.kind in _ASYNCHRONOUS or not self._waiting:
            return None
        exchange = self._waiting[0]
        ends = _ENDS[exchange.kind]
        if frame.kind == "E" and ends != "Z":
            return Answer(self._skipped_to_sync(), ended=True)
        if frame.kind == "G" and exchange.kind == "E":
            # A Sync that was sent before the server asked for data is not answered: COPY swallows it.
            self._waiting = deque(each for each in self._waiting if each.kind != "S")
        ended = frame.kind in ends
        if ended:
            self._waiting.popleft()
        return Answer(exchange, ended)

    def _skipped_to_sync(self) -> Exchange:
        """Forget what the server skips after an error: all up to the next Sync. Give what was refused.

        That is the first; but if it is one of the proxy's own, then what it was sent for: the first after it
        with an injection.
        """
        first = self._waiting[0]
        refused = first
        while self._waiting and self._waiting[0].kind != "S":
            skipped = self._waiting.popleft()
            if skipped.prepares is not None and first.shown:
                skipped.prepares.undone = True
            if not refused.shown and refused.injection is None and not skipped.shown:
                refused = skipped
        return refused


def execution(text: bytes) -> list[tuple[str, bytes]]:
    """Give the messages, by kind, that run a statement of the proxy's own by the extended protocol.

    They touch neither the client's unnamed statement nor its unnamed portal.
    """
    no_values = (0).to_bytes(2, "big") * 3
    return [
        ("C", message("C", b"S" + _OURS + b"\0")),
        ("C", message("C", b"P" + _OURS + b"\0")),
        ("P", message("P", _OURS + b"\0" + text + b"\0" + (0).to_bytes(2, "big"))),
        ("B", message("B", _OURS + b"\0" + _OURS + b"\0" + no_values)),
        ("E", message("E", _OURS + b"\0" + (0).to_bytes(4, "big"))),
    ]


def refused_execution() -> list[tuple[str, bytes]]:
    """Give the message that the server refuses amid the extended protocol: there is no such portal."""
    return [("E", message("E", REFUSED + b"\0" + (0).to_bytes(4, "big")))]
