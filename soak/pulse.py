# SPDX-License-Identifier: Apache-2.0
"""What ends a wait for a node that is silent.

In production TCP does (`tcp_user_timeout`, keepalives): the peer's kernel acknowledges nothing any more.
Here node and worker have the same kernel, which acknowledges always. So each thread says when it last began
or ended a call, and where that is too long ago its socket is shut down: the driver then sees what TCP would
have told it.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections import Counter
from contextlib import closing, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from django.db.transaction import TransactionManagementError
from opentelemetry import trace

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

LOOK_EVERY = 0.25


@dataclass(eq=False)
class Pulse:
    """One thread's connection, and when it last began or ended a call; 0: no operation is under way."""

    wrapper: Any
    at: float = 0.0
    #: Statements that went to the driver, by the trace of their operation.
    statements: Counter[int] = field(default_factory=Counter)

    def beat(self) -> None:
        """Say that it goes on."""
        self.at = time.monotonic()

    def rest(self) -> None:
        """Say that nothing is waited for."""
        self.at = 0.0

    def around_statement(self, execute: Any, sql: Any, params: Any, many: Any, context: Any) -> Any:
        """Be Django's execute wrapper."""
        trace_id = trace.get_current_span().get_span_context().trace_id
        self.statements[trace_id] += 1
        self.beat()
        try:
            return execute(sql, params, many, context)
        except TransactionManagementError:  # Django's own: it never went to the driver
            self.statements[trace_id] -= 1
            raise
        finally:
            self.beat()


class Watchdog:
    """A thread that ends waits which are too long, as a context manager. `ended` counts them."""

    def __init__(self, patience: float, ports: list[int]) -> None:
        self.ended = 0
        self._patience = patience
        self._ports = ports
        self._pulses: list[Pulse] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="soak-watchdog")

    def watch(self, pulse: Pulse) -> None:
        """Watch one more."""
        self._pulses.append(pulse)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(LOOK_EVERY):
            for pulse in list(self._pulses):
                if pulse.at and time.monotonic() - pulse.at > self._patience:
                    self._end(pulse)

    def _end(self, pulse: Pulse) -> None:
        # Between the look at its number and the copy the socket may have been closed, and the number be
        # another's: that one is left alone unless it leads to a node too.
        connection = pulse.wrapper.connection
        with suppress(Exception), closing(socket.socket(fileno=os.dup(connection.fileno()))) as copy:
            if copy.getpeername()[1] in self._ports:
                copy.shutdown(socket.SHUT_RDWR)
                self.ended += 1
                pulse.beat()
