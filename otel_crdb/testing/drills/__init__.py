# SPDX-License-Identifier: Apache-2.0
"""The drills: what CockroachDB does to an application, what users notice, what telemetry has to tell."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from otel_crdb.testing.restarts import unknown

from .commits import COMMITS
from .conflicts import CONFLICTS
from .drill import Ask, AtOnce, Drill, Inject, Lift
from .expectations import Finding, Seen, judge
from .laws import broken_laws
from .limits import LIMITS
from .outages import OUTAGES

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "CATALOGUE",
    "FAMILIES",
    "Ask",
    "AtOnce",
    "Drill",
    "Finding",
    "Inject",
    "Lift",
    "Seen",
    "broken_laws",
    "judge",
    "named",
]

#: By what they are about.
FAMILIES: Final[Mapping[str, tuple[Drill, ...]]] = MappingProxyType(
    {
        "Transactions that conflict": CONFLICTS,
        "COMMIT in doubt": COMMITS,
        "Nodes and networks": OUTAGES,
        "Limits and refusals": LIMITS,
    }
)
#: Every drill of `FAMILIES` by its name.
CATALOGUE: Final[Mapping[str, Drill]] = MappingProxyType(
    {drill.name: drill for family in FAMILIES.values() for drill in family}
)


def named(name: str) -> Drill:
    """Give the drill of a name. Raises ValueError where there is none; the message names the nearest."""
    if name not in CATALOGUE:
        raise unknown("drill", name, CATALOGUE)
    return CATALOGUE[name]
