# SPDX-License-Identifier: Apache-2.0
"""One session's transaction as CockroachDB sees it: its state, what ran in it, its savepoints."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .control_statements import Control

IDLE, OPEN, ABORTED = "I", "T", "E"  # the status bytes of ReadyForQuery


@dataclass
class SqlTransaction:
    """What is known of a session's transaction.

    `status` is the server's last word, carried on by what has been sent since: a pipeline tells nothing
    before its end. `begun_by` is the text that began the transaction. `ran` counts the statements that
    touched data. `restarted`: it met a 40001 of the proxy's, and only a new start helps. `struck`: a fault
    has met it.
    """

    status: str = IDLE
    begun_by: bytes = b"BEGIN"
    ran: int = 0
    restarted: bool = False
    struck: bool = False
    _savepoints: list[tuple[str, bool]] = field(
        default_factory=list
    )  # name, made before any data was touched

    def sent(self, control: Control, text: bytes) -> None:
        """Carry on with a statement that goes to the server."""
        if self.status == ABORTED and control.kind not in ("rollback", "commit", "rollback_to"):
            return
        if control.kind == "begin" and self.status == IDLE:
            self.forget()
            self.status, self.begun_by = OPEN, text
        elif control.kind in ("commit", "rollback"):
            self.forget()
        elif control.kind == "savepoint":
            self._savepoints.append((control.savepoint, self.ran == 0))
        elif control.kind == "rollback_to":
            self._back_to(control.savepoint)
        elif control.kind == "other":
            self.ran += 1

    def answered(self, status: str) -> None:
        """Take the server's word for it, which ReadyForQuery brings."""
        if status == IDLE and self.status != IDLE:
            self.forget()
        self.status = status

    def forget(self) -> None:
        """Let the next one begin."""
        self.__init__()  # type: ignore[misc]

    def is_initial(self, savepoint: str) -> bool:
        """Tell whether a savepoint was made before the transaction touched any data.

        To go back to such a one restarts the transaction, which a 40001 does not forbid
        (pkg/sql/conn_executor_savepoints.go).
        """
        return (savepoint, True) in self._savepoints

    def initial_savepoints(self) -> list[str]:
        """Give the names of those, oldest first."""
        return [name for name, initial in self._savepoints if initial]

    def has_savepoints(self, *, but: str | None = None) -> bool:
        """Tell whether there is any savepoint, but those whose names begin so."""
        return any(but is None or not name.startswith(but) for name, _ in self._savepoints)

    def _back_to(self, savepoint: str) -> None:
        names = [name for name, _ in self._savepoints]
        if savepoint in names:
            last = len(names) - names[::-1].index(savepoint)
            if self._savepoints[last - 1][1]:
                self.ran = 0
                self.restarted = self.struck = False
            del self._savepoints[last:]
        self.status = OPEN
