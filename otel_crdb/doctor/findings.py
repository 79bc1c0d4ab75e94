# SPDX-License-Identifier: Apache-2.0
"""What an examination comes to, as data: findings by section, and the exit status they make."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "note", "warn", "fail"]

#: Exit statuses.
FINE, WRONG, UNUSABLE = 0, 1, 2


class Unusable(Exception):  # noqa: N818 - it is an answer
    """The examination could not be made. The message says in plain words why."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    #: ``fail``: something is not told, or does not arrive; ``warn``: it may not be what was meant;
    #: ``note``: good to know.
    level: Level
    #: What it is about, in a word or two: ``traces``, an alias.
    about: str
    what: str
    #: The line that mends it; empty where nothing is to be mended.
    mend: str = ""
    #: A stable word for programs.
    code: str = ""


@dataclass(frozen=True, slots=True)
class Section:
    """Findings on one question."""

    title: str
    findings: tuple[Finding, ...]


@dataclass(frozen=True, slots=True)
class Report:
    """All that was found."""

    head: str
    sections: tuple[Section, ...]

    def count(self, level: Level) -> int:
        """Return how many findings are of that level."""
        return sum(finding.level == level for section in self.sections for finding in section.findings)

    @property
    def status(self) -> int:
        """The exit status: warnings do not change it."""
        return WRONG if self.count("fail") else FINE
