# SPDX-License-Identifier: Apache-2.0
"""One session's transaction as CockroachDB sees it: its state, what ran in it, its savepoints."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .control_statements import Control

IDLE, OPEN, ABORTED = "I", "T", "E"  # the status bytes of ReadyForQuery
#: What begins a transaction, without the statements that may stand behind it in the same text.
_ALONE = re.compile(rb"\s*(BEGIN|START)\b[^;]*", re.IGNORECASE)


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
            alone = _ALONE.match(text)
            self.status, self.begun_by = OPEN, alone[0] if alone is not None else b"BEGIN"
        elif control.kind in ("commit", "rollback"):
            self.forget()
        elif control.kind == "savepoint":
            self._savepoints.append((control.savepoint, self.ran == 0))
        elif control.kind == "rollback_to":
            self._back_to(control.savepoint)
        elif control.kind == "release":
            del self._savepoints[self._last(control.savepoint) :]
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
        place = self._last(savepoint)
        return place < len(self._savepoints) and self._savepoints[place][1]

    def has(self, savepoint: str) -> bool:
        """Tell whether there is a savepoint of that name."""
        return self._last(savepoint) < len(self._savepoints)

    def initial_savepoints(self) -> list[str]:
        """Give the names of those, oldest first."""
        return [name for name, initial in self._savepoints if initial]

    def has_savepoints(self, *, but: str | None = None) -> bool:
        """Tell whether there is any savepoint, but those whose names begin so."""
        return any(but is None or not name.startswith(but) for name, _ in self._savepoints)

    def _last(self, savepoint: str) -> int:
        """Give the place of the last savepoint of that name; where there is none, the place after all."""
        names = [name for name, _ in self._savepoints]
        return len(names) - 1 - names[::-1].index(savepoint) if savepoint in names else len(names)

    def _back_to(self, savepoint: str) -> None:
        if self.is_initial(savepoint):
            self.ran = 0
            self.restarted = self.struck = False
        del self._savepoints[self._last(savepoint) + 1 :]
        self.status = OPEN
