# SPDX-License-Identifier: Apache-2.0
"""What a worker writes down of each operation, as its caller saw it, and how it sums up at its end."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

#: What a caller sees, and how many rows the operation may then have left. Everything else leaves none.
COMMITTED, AMBIGUOUS, EXHAUSTED, CANCELLED = "committed", "ambiguous", "exhausted", "cancelled"
#: Of an exception after COMMIT: a function of `on_commit` failed; XXA00, the schema was not changed.
HOOK_FAILED, SCHEMA_FAILED = "hook_failed", "schema_failed"
#: An exception of the application's own; any other.
REFUSED, ERROR = "refused", "error"
APPLIED = frozenset({COMMITTED, HOOK_FAILED, SCHEMA_FAILED})
DOUBTFUL = frozenset({AMBIGUOUS, CANCELLED})


@dataclass(frozen=True)
class Operation:
    """One operation, as its caller saw it. Times are in seconds since the epoch."""

    id: str
    worker: str
    driver: str
    kind: str
    #: The trace that the caller's own span began: what is told of the operation is known by it.
    trace: str
    #: Ids of the transaction that the operation's own code met; none where no attempt came that far.
    ids: tuple[str, ...]
    saw: str
    #: The exception's class and SQLSTATE.
    error: str
    attempts: int
    #: Calls of its function: attempts that had a connection.
    bodies: int
    #: Statements that went to the driver, those of a connect among them.
    statements: int
    hooks: int
    begin: float
    end: float
    #: What was left in the thread that should not have been.
    left: tuple[str, ...] = ()

    def to_line(self) -> str:
        """Give it as a line of a journal."""
        return json.dumps({"operation": asdict(self)})


@dataclass(frozen=True)
class Memory:
    """What a worker's process held when it had done so many operations, in bytes."""

    worker: str
    done: int
    rss: int

    def to_line(self) -> str:
        """Give it as a line of a journal."""
        return json.dumps({"memory": asdict(self)})


@dataclass(frozen=True)
class Ending:
    """What a worker says when its operations are done and its connections closed; it still runs then."""

    worker: str
    #: Spans and log records that were handed to the SDK.
    spans: int
    logs: int
    flushed: bool
    #: Warnings of OpenTelemetry's own: an export that failed, a queue that was full.
    told: tuple[str, ...] = ()
    #: Threads that were not there when it began.
    threads: tuple[str, ...] = ()
    #: Connections that could not be closed, spans and records still in force.
    left: tuple[str, ...] = ()
    hook_faults: dict[str, int] = field(default_factory=dict)
    #: Waits that were too long, ended by `pulse`.
    waits_ended: int = 0

    def to_line(self) -> str:
        """Give it as a line of a journal."""
        return json.dumps({"ending": asdict(self)})


def read_line(line: str) -> Operation | Memory | Ending:
    """Read a line of a journal."""
    ((kind, fields),) = json.loads(line).items()
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()
    }
    made: Operation | Memory | Ending = _KINDS[kind](**values)
    return made


_KINDS: dict[str, Any] = {"operation": Operation, "memory": Memory, "ending": Ending}
