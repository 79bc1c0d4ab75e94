# SPDX-License-Identifier: Apache-2.0
"""`FaultProxy`: a server that fails as CockroachDB does, on demand, for tests."""

from __future__ import annotations

import asyncio
import copy
import re
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from .fault_node import FaultNode
from .rules import Rule, make_rule
from .servers import Server, server_at
from .upstream import TLS_OPTIONS, connect
from .wire import Announcement

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterable
    from types import TracebackType

    from typing_extensions import Self

    from .fault import Fault, Place
    from .wire_log import WireLog

T = TypeVar("T")
DEFAULT_VERSION = "v25.4.0"
PATIENCE = 30.0


class FaultProxy:
    """A proxy before a server of PostgreSQL's protocol, in a thread of this process, on 127.0.0.1.

    `upstream` is a `Server` or a URL (`postgresql://user:password@host:26257/database`; `sslmode` and its
    like are obeyed towards the server). What does not announce itself as CockroachDB is introduced as such:
    as `version` (vN.N.N) and `node_id` (1 to 2047), unless the `Server` says what it plays. `rules` are in
    force from the start; `port` 0 takes a free one.

    What waits without letting other threads run can never be answered from a thread of its process, and
    hangs: `connection.cancel()` of both drivers (psycopg 3's `cancel_safe()` is fine), psycopg2's
    `lobject()`, and those calls of `psycopg.pq` that connect or describe. Tests that need them run
    `otel-crdb fault-proxy`, which is a process.

    Without rules every message passes as it is. A context manager: it listens from the beginning of the block
    to its end. Raises OSError when it cannot listen, ServerError for a URL that is none, ValueError for a
    version that is none.
    """

    def __init__(
        self,
        upstream: Server | str,
        *,
        rules: Iterable[Rule] = (),
        version: str = DEFAULT_VERSION,
        node_id: int = 1,
        port: int = 0,
    ) -> None:
        if not re.match(r"v\d+\.\d+\.\d+", version):
            raise ValueError(f"version must be like v25.4.0, not {version!r}")
        self.upstream = server_at(upstream) if isinstance(upstream, str) else upstream
        claim = self.upstream.crdb_version or (
            f"CockroachDB CCL {version} (x86_64-pc-linux-gnu, played by otel_crdb.testing)"
        )
        self._announcement = Announcement(claim, self.upstream.node_id or node_id)
        self._first_rules = list(rules)
        self._wanted_port = port
        self._node: FaultNode
        self._loop: asyncio.AbstractEventLoop
        self._thread: threading.Thread | None = None
        self._ending = threading.Lock()  # a rule may be lifted by another thread while the proxy stops

    # --- its life ------------------------------------------------------------------------------------------

    def start(self) -> Self:
        """Listen, and give the proxy itself. Raises OSError when the machine lets it not."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="otel_crdb-fault-proxy", daemon=True
        )
        self._thread.start()
        try:
            self._node = self._run(self._make_node())
        except BaseException:
            self._end_thread()
            raise
        return self

    async def _make_node(self) -> FaultNode:
        node = FaultNode(self._announcement, lambda: connect(self.upstream))
        node.port = self._wanted_port
        await node.start()
        for rule in self._first_rules:
            self._own(rule)
            await node.add(rule)
        return node

    def stop(self) -> None:
        """Listen no more, end all sessions, and end the thread."""
        with self._ending:
            if self._thread is not None:
                self._run(self._node.stop())
                self._end_thread()

    def _end_thread(self) -> None:
        assert self._thread is not None
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._thread = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(PATIENCE)

    # --- its address ---------------------------------------------------------------------------------------

    @property
    def server(self) -> Server:
        """The server as it is reached through the proxy."""
        options = {name: text for name, text in self.upstream.options.items() if name not in TLS_OPTIONS}
        described = f"{self.upstream.description}, behind the fault proxy"
        return replace(self.upstream, host=self.host, port=self.port, options=options, description=described)

    @property
    def host(self) -> str:
        """Where it listens."""
        return "127.0.0.1"

    @property
    def port(self) -> int:
        """Where it listens. It stays the same while the proxy refuses connections."""
        return self._node.port

    @property
    def url(self) -> str:
        """The address with the password, as drivers take it."""
        return self.server.url

    def django_settings(self, **overrides: Any) -> dict[str, Any]:
        """Give an entry for Django's DATABASES; `overrides` replace its keys."""
        return self.server.django_settings(**overrides)

    def wire_log(self, *, clear: bool = False) -> WireLog:
        """Give what has passed; with `clear` it begins anew in the same step.

        What the proxy says to the server on its own account is not in it: it is the client's side that is
        told.
        """

        async def taken() -> WireLog:
            log = copy.deepcopy(self._node.log)
            if clear:
                self._node.log.clear()
            return log

        return self._run(taken())

    # --- faults --------------------------------------------------------------------------------------------

    def inject(
        self,
        fault: Fault | str,
        *,
        on: Place | None = None,
        matching: str | None = None,
        nth: int = 1,
        times: int | None = 1,
        probability: float = 1.0,
        seed: int = 0,
        seconds: float | None = None,
    ) -> Rule:
        """Put a fault in force and give its rule, which counts its `hits` and can be lifted.

        `fault` is one of `otel_crdb.testing.faults`, or its name there. When it strikes is told as `Rule`
        says; a fault of the whole node strikes at once, and lasts until it is lifted. Raises ValueError for
        an unknown name or a wrong value.
        """
        when = {"nth": nth, "times": times, "probability": probability, "seed": seed, "seconds": seconds}
        rule = make_rule(fault, on=on, matching=matching, **when)
        self.add(rule)
        return rule

    def add(self, rule: Rule) -> None:
        """Put a rule in force."""
        self._own(rule)
        self._run(self._node.add(rule))

    def _own(self, rule: Rule) -> None:
        rule.lifter = self._lift

    def _lift(self, rule: Rule) -> None:
        with self._ending:
            if self._thread is not None:
                self._run(self._node.lift(rule))

    @property
    def rules(self) -> tuple[Rule, ...]:
        """The rules in force, those that have struck often enough among them."""
        return tuple(self._node.rules)

    def clear(self) -> None:
        """Lift all rules."""
        for rule in self.rules:
            self._lift(rule)
