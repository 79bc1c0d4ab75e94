# SPDX-License-Identifier: Apache-2.0
"""A check: one thing that a soak has to prove, what was counted for it, and what is wrong."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

#: So many of what is wrong are shown.
SHOWN = 8


@dataclass
class Check:
    """One thing to be proved: what was counted, and what is wrong with it."""

    name: str
    counted: dict[str, object] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    #: It was told and not judged, and why.
    not_judged: str = ""

    @property
    def held(self) -> bool:
        """Whether it holds."""
        return bool(self.not_judged) or not self.wrong

    def __str__(self) -> str:
        word = "told" if self.not_judged else "held" if self.held else "FAILED"
        counts = ", ".join(f"{name} {count}" for name, count in self.counted.items())
        lines = [f"{word:6} {self.name}: {counts}"]
        if self.not_judged:
            lines.append(f"         not judged: {self.not_judged}")
        lines += [f"         {one}" for one in self.wrong[:SHOWN]]
        if len(self.wrong) > SHOWN:
            lines.append(f"         and {len(self.wrong) - SHOWN} more")
        return "\n".join(lines)


def verdict(checks: Sequence[Check]) -> str:
    """Say in one line how many held."""
    told = sum(bool(check.not_judged) for check in checks)
    held = sum(check.held for check in checks) - told
    return f"{held} of {len(checks)} checks held" + (f", {told} were told and not judged" if told else "")
