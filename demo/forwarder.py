# SPDX-License-Identifier: Apache-2.0
"""Handing what was received on to a collector of the user's, without ever waiting for it."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
import urllib.request
from typing import TYPE_CHECKING

from opentelemetry.util.re import parse_env_headers

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

    from typing_extensions import Self

MOST_WAITING = 1000
PASSED_ON = ("content-type", "content-encoding")
END = None


class Forwarder:
    """Sends each body on in a thread of its own, as a context manager that waits for the last ones.

    `sent`, `failed` and `dropped` count bodies; `last_failure` says why. The queue is bounded: where the
    collector is slower than the demo, bodies are dropped.
    """

    def __init__(
        self, endpoint: str, *, headers: str = "", timeout: float = 5.0, patience: float = 15.0
    ) -> None:
        self.endpoint = endpoint.rstrip("/")
        self.sent = self.failed = self.dropped = 0
        self.last_failure = ""
        self._headers = parse_env_headers(headers, liberal=True)
        self._timeout = timeout
        self._patience = patience
        self._deadline = float("inf")
        self._waiting: queue.Queue[tuple[str, dict[str, str], bytes] | None] = queue.Queue(MOST_WAITING)
        # A daemon: not even a collector that never answers keeps the demo from ending.
        self._thread = threading.Thread(target=self._run, name="otlp-forwarder", daemon=True)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Forwarder | None:
        """Make one for OTEL_EXPORTER_OTLP_ENDPOINT; None where it is not set."""
        endpoint = environment.get("OTEL_EXPORTER_OTLP_ENDPOINT", "").strip()
        if not endpoint:
            return None
        return cls(endpoint, headers=environment.get("OTEL_EXPORTER_OTLP_HEADERS", ""))

    def __call__(self, path: str, headers: Mapping[str, str], body: bytes) -> None:
        """Take one body, at once."""
        passed_on = {name: headers[name] for name in PASSED_ON if name in headers}
        try:
            self._waiting.put_nowait((path, passed_on, body))
        except queue.Full:
            self.dropped += 1

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._deadline = time.monotonic() + self._patience
        with contextlib.suppress(queue.Full):
            self._waiting.put(END, timeout=self._patience)
        self._thread.join(self._patience + self._timeout)

    def _run(self) -> None:
        while (item := self._waiting.get()) is not END:
            if time.monotonic() > self._deadline:
                self.dropped += 1
            else:
                self._send(*item)

    def _send(self, path: str, headers: dict[str, str], body: bytes) -> None:
        try:
            request = urllib.request.Request(
                f"{self.endpoint}{path}", data=body, headers={**self._headers, **headers}, method="POST"
            )
            with urllib.request.urlopen(request, timeout=self._timeout):
                self.sent += 1
        except (OSError, ValueError) as error:  # HTTP errors are OSErrors, a bad address is a ValueError
            self.failed += 1
            self.last_failure = str(error)
