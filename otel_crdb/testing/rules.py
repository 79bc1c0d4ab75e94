# SPDX-License-Identifier: Apache-2.0
"""When a fault strikes: rules, as code gives them and as a file holds them."""

from __future__ import annotations

import json
import random
import re
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from .fault import PLACES, Fault, Link, Place
from .faults import named

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import TracebackType

    from typing_extensions import Self


@dataclass(eq=False)
class Rule:
    """A fault and when it strikes.

    `on` is the place; by default the fault's own. `matching` is a regular expression, searched in the
    statement without regard to case (default: the fault's own, else every statement but those that begin, end
    or set up a transaction). Of the matches the `nth` (from 1) is the first that may be struck, and from
    there on each is with the `probability` (above 0, at most 1), drawn from `seed`. `times` is how often it
    strikes (None: always), and `seconds` after how long it is lifted (None: not of itself).

    `hits` counts how often it has struck. As a context manager a rule is lifted at the end. Raises ValueError
    for a value that is none of these.
    """

    fault: Fault
    on: Place
    matching: str | None = None
    nth: int = 1
    times: int | None = 1
    probability: float = 1.0
    seed: int = 0
    seconds: float | None = None
    hits: int = field(default=0, init=False)
    lifter: Callable[[Rule], None] = field(default=lambda rule: None, repr=False)

    def __post_init__(self) -> None:
        _demand(self.on in PLACES, f"on must be one of {', '.join(PLACES)}, not {self.on!r}")
        _demand(
            (self.on == "node") == (self.fault.node is not None),
            f"{self.fault.name} cannot strike on {self.on}",
        )
        _demand(
            self.on not in ("idle", "idle_in_transaction") or self.fault.link is not Link.OPEN,
            f"{self.fault.name} cannot strike on {self.on}: unasked, a server speaks only to say goodbye",
        )
        plain = (self.matching, self.nth, self.probability) == (None, 1, 1.0) and self.times in (None, 1)
        _demand(self.on != "node" or plain, "a fault of the whole node is there or not: it has only seconds")
        _demand(_is_count(self.nth), f"nth counts from 1; {self.nth!r} is no match")
        _demand(
            self.times is None or _is_count(self.times),
            f"times must be 1 or more, or None, not {self.times!r}",
        )
        _demand(
            self.matching is None or isinstance(self.matching, str),
            f"matching must be a regular expression, not {self.matching!r}",
        )
        _demand(
            0 < self.probability <= 1, f"probability must be above 0 and at most 1, not {self.probability}"
        )
        _demand(self.seconds is None or self.seconds > 0, f"seconds must be above 0, not {self.seconds}")
        try:
            self._pattern = (
                None if self.matching is None else re.compile(self.matching.encode(), re.IGNORECASE)
            )
        except re.error as error:
            raise ValueError(f"matching is no regular expression: {error}") from error
        self._random = random.Random(self.seed)
        self._seen = 0

    @property
    def over(self) -> bool:
        """Whether it has struck as often as it may."""
        return self.times is not None and self.hits >= self.times

    def strikes(self, place: Place, text: bytes = b"", *, ordinary: bool = True) -> bool:
        """Tell whether it strikes here and now, and count.

        `ordinary` says that the statement neither begins, ends nor sets up a transaction: others are struck
        only by a rule that matches them in so many words.
        """
        if place != self.on or self.over:
            return False
        if not (ordinary if self._pattern is None else self._pattern.search(text)):
            return False
        self._seen += 1
        if self._seen < self.nth or (self.probability < 1 and self._random.random() >= self.probability):
            return False
        self.hits += 1
        return True

    def lift(self) -> None:
        """Have it strike no more. What a fault of the whole node did to it ends with this."""
        self.lifter(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.lift()


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _demand(kept: bool, otherwise: str) -> None:
    if not kept:
        raise ValueError(otherwise)


def make_rule(
    fault: Fault | str, *, on: Place | None = None, matching: str | None = None, **when: Any
) -> Rule:
    """Make a rule of a fault or its name; the rest is as `Rule` says.

    Raises ValueError for an unknown name or a wrong value.
    """
    if isinstance(fault, str):
        fault = named(fault)
    on = on or fault.place
    own = fault.matching if on == fault.place else None
    return Rule(fault, on, own if matching is None else matching, **when)


_KEYS = {"fault", "delay"} | {part.name for part in fields(Rule)} - {"hits", "lifter"}


def read_rules(path: Path) -> list[Rule]:
    """Read a file of rules: a JSON list of objects, each with `fault` (a name) and what else `Rule` takes.

    `delay`, in seconds, is how long the fault waits before it comes. Raises ValueError, with the number of
    the rule, for anything else, and OSError when the file cannot be read.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON: {error}") from error
    if not isinstance(entries, list):
        raise ValueError(f"{path}: a list of rules is wanted")
    rules = []
    for number, entry in enumerate(entries, 1):
        try:
            rules.append(_rule_of(entry))
        except (ValueError, TypeError) as error:  # noqa: PERF203 - the message needs the number
            raise ValueError(f"{path}: rule {number}: {error}") from error
    return rules


def _rule_of(entry: Any) -> Rule:
    if not isinstance(entry, dict) or not isinstance(entry.get("fault"), str):
        raise ValueError("an object with the name of a fault is wanted")
    unknown = sorted(entry.keys() - _KEYS)
    if unknown:
        raise ValueError(f"unknown: {', '.join(unknown)}; there are {', '.join(sorted(_KEYS))}")
    when = dict(entry)
    fault = named(when.pop("fault"))
    if "delay" in when:
        fault = fault.after(float(when.pop("delay")))
        _demand(fault.delay >= 0, f"delay must be 0 or more, not {fault.delay}")
    return make_rule(fault, **when)
