# SPDX-License-Identifier: Apache-2.0
"""Whether memory is flat: a robust line through the second half of its samples."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .journal import Memory

MEBIBYTE = 2**20
#: Fewer operations of a worker in the second half than this tell nothing: caches are still being filled.
ENOUGH = 1000
#: Growth along the line, over the whole second half, that is still called flat.
ALLOWED = 6 * MEBIBYTE


@dataclass(frozen=True)
class Trend:
    """One worker's memory: what it held at the end, and how the second half grew along the line, in bytes."""

    worker: str
    operations: int
    first: int
    last: int
    growth: float

    @property
    def judged(self) -> bool:
        """Whether the second half is long enough to be judged."""
        return self.operations >= ENOUGH

    @property
    def flat(self) -> bool:
        """Whether it does not grow."""
        return self.growth <= ALLOWED


def trend(worker: str, samples: Sequence[Memory]) -> Trend:
    """Draw the line of Theil and Sen, the median of the slopes between all pairs, through the second half.

    Single samples that stand out, such as a buffer that was needed once, do not tilt it.
    """
    half = [one for one in samples if one.done * 2 >= samples[-1].done]
    slopes = [(b.rss - a.rss) / (b.done - a.done) for a, b in combinations(half, 2) if b.done != a.done]
    operations = half[-1].done - half[0].done
    slope = median(slopes) if slopes else 0.0
    return Trend(worker, operations, samples[0].rss, samples[-1].rss, slope * operations)
