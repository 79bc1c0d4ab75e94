# SPDX-License-Identifier: Apache-2.0
"""What a statement does to the transaction it stands in: BEGIN, COMMIT, ROLLBACK and the savepoints."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Literal, NamedTuple

Kind = Literal["begin", "commit", "rollback", "savepoint", "rollback_to", "release", "setting", "other"]

_BLANK = r"(?:\s|--[^\n]*(?:\n|$)|/\*.*?\*/)"
_NAME = rf'{_BLANK}+(?:SAVEPOINT{_BLANK}+)?(?P<%s>"(?:[^"]|"")+"|\w+)'
_CONTROL = re.compile(
    rf"""{_BLANK}*(?:
        (?P<begin>BEGIN|START{_BLANK}+TRANSACTION)\b
      | (?P<rollback_to>(?:ROLLBACK|ABORT)(?:{_BLANK}+(?:WORK|TRANSACTION))?{_BLANK}+TO){_NAME % "back"}
      | (?P<commit>COMMIT|END)\b (?!{_BLANK}+PREPARED)
      | (?P<rollback>ROLLBACK|ABORT)\b (?!{_BLANK}+PREPARED)
      | (?P<release>RELEASE){_NAME % "released"}
      | (?P<savepoint>SAVEPOINT){_NAME % "made"}
      | (?P<setting>SET|SHOW|RESET|DISCARD)\b
    )""",
    re.VERBOSE | re.IGNORECASE | re.DOTALL,
)
_LOOKED_AT = 4_096  # bytes of a text: what it is for the transaction stands at its beginning


class Control(NamedTuple):
    """What a statement is, and the savepoint it names, folded as SQL folds names."""

    kind: Kind
    savepoint: str = ""

    @property
    def is_restart(self) -> bool:
        """Whether it names `cockroach_restart`.

        Any name that begins so has its meaning (pkg/sql/conn_executor_savepoints.go,
        isCommitOnReleaseSavepoint).
        """
        return self.savepoint.startswith("cockroach_restart")

    @property
    def commits(self) -> bool:
        """Whether the transaction is committed by it."""
        return self.kind == "commit" or (self.kind == "release" and self.is_restart)


@lru_cache(maxsize=1_024)
def _read(beginning: bytes) -> Control:
    found = _CONTROL.match(beginning.decode(errors="replace"))
    if found is None:
        return Control("other")
    groups = {name: text for name, text in found.groupdict().items() if text is not None}
    name = groups.pop("back", "") or groups.pop("released", "") or groups.pop("made", "")
    (kind,) = groups
    folded = name[1:-1].replace('""', '"') if name.startswith('"') else name.lower()
    return Control(kind, folded)  # type: ignore[arg-type]


def control_of(text: bytes) -> Control:
    """Tell what a statement is. A text of several statements is told by its first."""
    return _read(text[:_LOOKED_AT])
