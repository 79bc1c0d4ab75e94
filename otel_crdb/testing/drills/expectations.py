# SPDX-License-Identifier: Apache-2.0
"""What telemetry a drill wants: each expectation says it in words, and finds it among what was seen."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

from otel_crdb.testing.otlp import Event, LogRecord, Point, Span

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from otel_crdb.testing.telemetry import Telemetry

    from .drill import Drill

Item = Span | Event | LogRecord | Point


# --- values ----------------------------------------------------------------------------------------------


class Fitting(ABC):
    """A value that is not wanted to the letter."""

    @abstractmethod
    def fits(self, value: Any) -> bool:
        """Whether this one will do."""


@dataclass(frozen=True)
class AtLeast(Fitting):
    """A number that is not below another one."""

    number: float

    def fits(self, value: Any) -> bool:
        """Whether this one will do."""
        return isinstance(value, (int, float)) and value >= self.number

    def __str__(self) -> str:
        return f"≥ {self.number:g}"


@dataclass(frozen=True)
class OneOf(Fitting):
    """One of several, for the drivers call the same by different names."""

    values: tuple[str, ...]

    def fits(self, value: Any) -> bool:
        """Whether this one will do."""
        return value in self.values

    def __str__(self) -> str:
        return " or ".join(self.values)


@dataclass(frozen=True)
class Any_(Fitting):  # noqa: N801 - `Any` is taken
    """Whatever it is, it has to be there."""

    def fits(self, value: Any) -> bool:
        """Whether this one will do."""
        return value is not None

    def __str__(self) -> str:
        return "any"


ANY = Any_()


def _fits(wanted: Any, value: Any) -> bool:
    if isinstance(wanted, Fitting):
        return wanted.fits(value)
    return bool(wanted == value)


# --- what was seen ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Seen:
    """What came of some traces, and of all metrics: events stand beside the spans that they are on."""

    spans: tuple[Span, ...] = ()
    events: tuple[Event, ...] = ()
    logs: tuple[LogRecord, ...] = ()
    points: tuple[Point, ...] = ()

    @classmethod
    def of(cls, telemetry: Telemetry, traces: Collection[str]) -> Seen:
        """Take the spans and log records of these traces, and the points as they have grown."""
        spans = tuple(span for span in telemetry.spans if span.trace_id in traces)
        return cls(
            spans,
            tuple(event for span in spans for event in span.events),
            tuple(record for record in telemetry.logs if record.trace_id in traces),
            tuple(telemetry.points),
        )

    def without(self, expectation: Expectation) -> Seen:
        """Give the same less what meets an expectation."""
        kind = expectation.among
        found = {id(item) for item in expectation.found(self)}
        return replace(self, **{kind: tuple(item for item in getattr(self, kind) if id(item) not in found)})


# --- what is wanted --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Expectation(ABC):
    """Something of this name with these attributes among its own.

    The name of a span may stop short at a blank: `connect` is also `connect defaultdb`.
    """

    name: str
    attributes: Mapping[str, Any] = field(default_factory=dict)

    #: What it is, and where among what was seen it is to be found.
    kind: ClassVar[str]
    among: ClassVar[str]

    def found(self, seen: Seen) -> list[Item]:
        """Give what meets it."""
        return [item for item in self.near(seen) if self._fits(item)]

    def near(self, seen: Seen) -> list[Item]:
        """Give what has its name, and may be otherwise."""
        return [item for item in getattr(seen, self.among) if self._is_named(item)]

    def holds(self, seen: Seen) -> bool:
        """Whether there is what is wanted, as often as it is wanted."""
        return self._suffices(self.found(seen))

    @abstractmethod
    def _is_named(self, item: Any) -> bool:
        """Whether the name is right."""

    @abstractmethod
    def _suffices(self, found: Sequence[Any]) -> bool:
        """Whether this is all that is wanted."""

    def _fits(self, item: Any) -> bool:
        """Whether the rest is right."""
        own = item.attributes
        return all(name in own and _fits(wanted, own[name]) for name, wanted in self.attributes.items())

    @property
    def details(self) -> list[str]:
        """What it wants beside the name, each in words."""
        return [f"{name}={value}" for name, value in self.attributes.items()]

    @property
    def often(self) -> str:
        """How often, in words, where that is not once."""
        return ""

    def __str__(self) -> str:
        """Say it in words."""
        often = f" ({self.often})" if self.often else ""
        return f"{self.kind} {self.name}{often}: {', '.join(self.details)}"


@dataclass(frozen=True)
class _Counted(Expectation):
    """Something that is there so many times."""

    times: int = 1

    def _suffices(self, found: Sequence[Any]) -> bool:
        return len(found) == self.times

    @property
    def often(self) -> str:
        """How often, in words, where that is not once."""
        return f"{self.times} times" if self.times != 1 else ""


@dataclass(frozen=True)
class WantedSpan(_Counted):
    """A span; `seconds` is how long it took at least."""

    span_kind: str = "CLIENT"
    status: str = "UNSET"
    seconds: float = 0.0
    kind: ClassVar[str] = "span"
    among: ClassVar[str] = "spans"

    def _is_named(self, item: Any) -> bool:
        return f"{item.name} ".startswith(f"{self.name} ")

    def _fits(self, item: Any) -> bool:
        told = (item.kind, item.status) == (self.span_kind, self.status)
        return told and item.seconds >= self.seconds and super()._fits(item)

    @property
    def details(self) -> list[str]:
        """What it wants beside the name, each in words."""
        told = [self.span_kind, f"status {self.status}"]
        return told + ([f"≥ {self.seconds:g} s"] if self.seconds else []) + super().details


@dataclass(frozen=True)
class WantedEvent(_Counted):
    """An event, on any of the spans."""

    kind: ClassVar[str] = "event"
    among: ClassVar[str] = "events"

    def _is_named(self, item: Any) -> bool:
        return bool(item.name == self.name)


@dataclass(frozen=True)
class WantedLog(_Counted):
    """A log record, by its event name."""

    severity: str = "WARNING"
    kind: ClassVar[str] = "log record"
    among: ClassVar[str] = "logs"

    def _is_named(self, item: Any) -> bool:
        return bool(item.event == self.name)

    def _fits(self, item: Any) -> bool:
        return item.severity == self.severity and super()._fits(item)

    @property
    def details(self) -> list[str]:
        """What it wants beside the name, each in words."""
        return [self.severity, *super().details]


@dataclass(frozen=True)
class WantedPoint(Expectation):
    """A metric that has grown `by` so much: a counter's value, how often a histogram was recorded.

    `total` is what the histogram's new values come to.
    """

    by: float = 1
    total: float | Fitting = ANY
    kind: ClassVar[str] = "metric"
    among: ClassVar[str] = "points"

    def _is_named(self, item: Any) -> bool:
        return bool(item.metric == self.name)

    def _suffices(self, found: Sequence[Any]) -> bool:
        grown = sum(point.value for point in found)
        return grown == self.by and _fits(self.total, sum(point.total for point in found))

    @property
    def details(self) -> list[str]:
        """What it wants beside the name, each in words."""
        total = [] if self.total is ANY else [f"in total {self.total}"]
        return [f"+{self.by:g}", *total, *super().details]


# --- the verdict -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Finding:
    """An expectation, what met it, and what had its name; whether that is what was wanted."""

    expectation: Expectation
    passed: bool
    found: list[Item] = field(repr=False)
    near: list[Item] = field(repr=False)


def judge(drill: Drill, seen: Seen) -> list[Finding]:
    """Hold what was seen against everything that a drill wants."""
    return [Finding(each, each.holds(seen), each.found(seen), each.near(seen)) for each in drill.expects]
