# SPDX-License-Identifier: Apache-2.0
"""Things that are tried, side by side, each until its deadline: a dead server or collector ends nothing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

from opentelemetry.instrumentation.utils import suppress_instrumentation

T = TypeVar("T")


class Probe(threading.Thread, Generic[T]):
    """One thing that is tried, in a thread that nobody has to wait for; it leaves no telemetry of its own."""

    def __init__(self, attempt: Callable[[], T]) -> None:
        super().__init__(name="otel_crdb-doctor", daemon=True)
        self._attempt = attempt
        #: In the end, unless ``error`` is there.
        self.result: T | None = None
        self.error: BaseException | None = None
        #: What it took, in seconds; None as long as it is under way.
        self.seconds: float | None = None
        self.start()

    def run(self) -> None:
        """Try."""
        began = time.perf_counter()
        try:
            with suppress_instrumentation():
                self.result = self._attempt()
        except BaseException as error:  # noqa: BLE001 - told by whoever asks for the result
            self.error = error
        self.seconds = time.perf_counter() - began

    def wait(self, deadline: float) -> bool:
        """Wait until it is over, or until that time of ``time.monotonic()``; return whether it is."""
        self.join(max(0.0, deadline - time.monotonic()))
        return self.seconds is not None


def side_by_side(attempts: Iterable[Callable[[], T]], deadline: float) -> list[Probe[T]]:
    """Try all at once, and return them when all are over or the deadline has come."""
    probes = [Probe(attempt) for attempt in attempts]
    for probe in probes:
        probe.wait(deadline)
    return probes
