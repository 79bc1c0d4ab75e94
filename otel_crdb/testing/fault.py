# SPDX-License-Identifier: Apache-2.0
"""What a fault is: what the client gets, what becomes of the transaction, and what of the link."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Literal, get_args

from .frames import message

#: Where a fault can strike. `statement`: when a statement is to be executed; `commit`: when it is a COMMIT,
#: or the RELEASE of `cockroach_restart`, which commits too; `connect`: when a client connects; `idle` and
#: `idle_in_transaction`: when a session has its answer and waits for the next statement; `node`: at once,
#: every session and every new connection, until it is lifted.
Place = Literal["statement", "commit", "connect", "idle", "idle_in_transaction", "node"]
PLACES: tuple[Place, ...] = get_args(Place)


class Upstream(Enum):
    """What becomes of the transaction on the server behind, as CockroachDB would leave it.

    `ABORTED`: the statement is not run, a transaction that was open is aborted, and a COMMIT rolls it back.
    An aborted transaction keeps its locks until the client ends it where it can still be gone on with: after
    a 40001, or with a savepoint open; before v25.2, in any case (pkg/sql/conn_fsm.go; pull request 140160).
    `RELEASED`: the same, but its locks are gone at once, for another transaction has pushed it aside.
    `APPLIED`: the statement or COMMIT takes effect before the answer is replaced; amid a transaction there is
    nothing to apply, and it is `ABORTED`. `UNTOUCHED`: it runs, and its own answer is passed on.
    """

    ABORTED = "aborted"
    RELEASED = "released"
    APPLIED = "applied"
    UNTOUCHED = "untouched"


class Link(Enum):
    """What becomes of the client's connection after the fault.

    `OPEN`: nothing. `CLOSED`: the server says goodbye in good order (FIN). `RESET`: it is gone (RST).
    `SILENT`: it stays open, and nothing is heard on it until the client goes or the rule is lifted, which
    ends it: half-open. The server's side ends with all but `OPEN`.
    """

    OPEN = "open"
    CLOSED = "closed"
    RESET = "reset"
    SILENT = "silent"


class Node(Enum):
    """What a fault of the whole node does to it, until it is lifted.

    `DRAINING`: idle sessions, running statements and new connections are refused as a drain does. `DEAD`:
    every session is reset and new connections are refused. `REFUSING`: only new connections are refused, by
    the operating system. `PARTITIONED`: nothing passes in either direction, and nobody is told; what was on
    its way arrives when the partition heals. `DISTANT`: what clients send arrives later.
    """

    DRAINING = "draining"
    DEAD = "dead"
    REFUSING = "refusing"
    PARTITIONED = "partitioned"
    DISTANT = "distant"


@dataclass(frozen=True)
class ErrorFields:
    """An ErrorResponse, with the fields that CockroachDB sends and in its order (pkg/sql/pgwire/conn.go).

    The severity is always ERROR: CockroachDB sends neither FATAL nor PANIC. `source` is file, line and
    function.
    """

    sqlstate: str
    message: str
    hint: str = ""
    detail: str = ""
    constraint: str = ""
    source: tuple[str, int, str] | None = None

    def to_bytes(self) -> bytes:
        """Give the whole message as it goes over the wire."""
        fields = [("S", "ERROR"), ("V", "ERROR"), ("C", self.sqlstate)]
        fields += [("D", self.detail), ("H", self.hint), ("n", self.constraint)]
        if self.source is not None:
            file, line, function = self.source
            fields += [("F", file), ("L", str(line)), ("R", function)]
        fields.append(("M", self.message))
        body = "".join(f"{tag}{text}\0" for tag, text in fields if text)
        return message("E", body.encode() + b"\0")


@dataclass(frozen=True)
class Fault:
    """One way in which CockroachDB fails.

    `name` is how rules files, the marker and the command line call it, with the variant after a dot. `errors`
    go to the client in this order (none: it hears nothing). `delay` is in seconds, before anything else
    happens. `place` and `matching` (a regular expression, searched in the statement without regard to case)
    are where it strikes unless the rule says otherwise. `planning` says that the server fails as it plans the
    statement: at Parse, where the client sends one. `node` is set for faults of the whole node. `source`
    names where the wording and the sequence come from; `uncertain` says what of them is not sure, and is
    empty where nothing is.
    """

    name: str
    summary: str
    errors: tuple[ErrorFields, ...] = ()
    upstream: Upstream = Upstream.ABORTED
    link: Link = Link.OPEN
    delay: float = 0.0
    place: Place = "statement"
    matching: str | None = None
    planning: bool = False
    node: Node | None = None
    source: str = ""
    uncertain: str = field(default="", repr=False)

    def after(self, seconds: float) -> Fault:
        """Give the same fault, that comes after so many seconds."""
        return replace(self, delay=seconds)
