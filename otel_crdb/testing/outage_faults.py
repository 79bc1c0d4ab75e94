# SPDX-License-Identifier: Apache-2.0
"""The faults of sessions, nodes and networks: drains, refused and broken connections, silence, distance."""

from __future__ import annotations

from typing import Final, Literal, get_args

from .fault import ErrorFields, Fault, Link, Node, Place, Upstream
from .restarts import unknown
from .statement_faults import query_canceled
from .transaction_faults import of_variant

_SHUTTING_DOWN: Final = ErrorFields("57P01", "server is shutting down")
_NOT_ACCEPTING: Final = ErrorFields("57P01", "server is not accepting clients, try another node")
_DRAIN_SOURCE: Final = "pkg/sql/pgwire/server.go, pkg/sql/pgwire/conn.go"
_NETWORK: Final = "TCP"


def drain() -> Fault:
    """Drain the node, as `cockroach node drain` and a rolling restart do.

    `errors` are, in this order: what a running statement gets first (57014), what every session gets before
    it is closed (57P01), and what a new connection gets (57P01).
    """
    return Fault(
        name="drain",
        summary="The node drains.",
        errors=(*query_canceled().errors, _SHUTTING_DOWN, _NOT_ACCEPTING),
        upstream=Upstream.RELEASED,
        link=Link.CLOSED,
        place="node",
        node=Node.DRAINING,
        source=_DRAIN_SOURCE,
        uncertain="Whether a new connection is refused before or after it was authenticated, by version.",
    )


def shutting_down() -> Fault:
    """Tell an idle session, which has not asked, that the server shuts down (57P01), and close it."""
    return Fault(
        name="shutting_down",
        summary="An idle session is closed by a drain.",
        errors=(_SHUTTING_DOWN,),
        upstream=Upstream.RELEASED,
        link=Link.CLOSED,
        place="idle",
        source=_DRAIN_SOURCE,
    )


def draining_statement() -> Fault:
    """Cut a running statement by a drain: 57014, then 57P01, then the session is closed."""
    return Fault(
        name="draining_statement",
        summary="A running statement is cut by a drain.",
        errors=(*query_canceled().errors, _SHUTTING_DOWN),
        upstream=Upstream.RELEASED,
        link=Link.CLOSED,
        source=_DRAIN_SOURCE,
        uncertain="Whether ReadyForQuery follows the first error.",
    )


def not_accepting_clients() -> Fault:
    """Refuse a new connection, for the node drains (57P01)."""
    return _refused_at_connect(
        "not_accepting_clients",
        "A draining node refuses a new connection.",
        _NOT_ACCEPTING,
        "Whether it comes before or after authentication, by version.",
    )


def too_many_clients(limit: int = 500) -> Fault:
    """Refuse a new connection, for the node has as many as it may (53300).

    Args:
        limit: `server.max_connections_per_gateway`, told in the hint.

    """
    hint = (
        f"the maximum number of allowed connections is {limit} and can be modified using the "
        "server.max_connections_per_gateway config key"
    )
    error = ErrorFields("53300", "sorry, too many clients already", hint=hint)
    return _refused_at_connect(
        "too_many_clients",
        "The node has too many connections.",
        error,
        "CockroachDB Cloud words it otherwise.",
    )


def _refused_at_connect(name: str, summary: str, error: ErrorFields, uncertain: str) -> Fault:
    return Fault(
        name=name,
        summary=summary,
        errors=(error,),
        link=Link.CLOSED,
        place="connect",
        source="pkg/sql/pgwire/server.go",
        uncertain=uncertain,
    )


Ending = Literal["timeout", "silent"]
ENDINGS: tuple[Ending, ...] = get_args(Ending)


def idle_in_transaction_timeout(ending: Ending = "timeout") -> Fault:
    """End a session that was idle in a transaction for longer than `idle_in_transaction_session_timeout`.

    PostgreSQL would say 25P03.

    Args:
        ending: "timeout", the gateway's own words about its socket (XXUUU), or "silent", not a word.

    """
    return _idle_timeout("idle_in_transaction_timeout", "idle_in_transaction", ending)


def idle_session_timeout(ending: Ending = "timeout") -> Fault:
    """End a session that was idle for longer than `idle_session_timeout`. PostgreSQL would say 57P05.

    Args:
        ending: "timeout", the gateway's own words about its socket (XXUUU), or "silent", not a word.

    """
    return _idle_timeout("idle_session_timeout", "idle", ending)


def _idle_timeout(name: str, place: Place, ending: Ending) -> Fault:
    if ending not in ENDINGS:
        raise unknown("ending of an idle session", ending, ENDINGS)
    error = ErrorFields("XXUUU", "read tcp 10.0.0.1:26257->10.0.0.2:54321: i/o timeout")
    return Fault(
        name=of_variant(name, ending),
        summary="A session was idle for too long.",
        errors=(error,) if ending == "timeout" else (),
        upstream=Upstream.RELEASED,
        link=Link.CLOSED,
        place=place,
        source="CockroachDB issue 173964",
        uncertain="Whether a message comes at all, and its words.",
    )


def connection_reset() -> Fault:
    """Reset the connection while a statement is under way; the statement is not run."""
    return _broken("connection_reset", "The connection is reset.", Link.RESET)


def server_closed() -> Fault:
    """Close the connection without a word; the statement is not run."""
    return _broken("server_closed", "The connection is closed without a word.", Link.CLOSED)


def black_hole() -> Fault:
    """Never answer a statement, and leave the connection open; the statement is not run."""
    return _broken("black_hole", "A statement is never answered.", Link.SILENT)


def half_open() -> Fault:
    """Take the server's side of an idle connection away unnoticed: nothing sent on it is ever answered."""
    return _broken("half_open", "The server's side is gone, the client's is not.", Link.SILENT, "idle")


def _broken(name: str, summary: str, link: Link, place: Place = "statement") -> Fault:
    return Fault(name, summary, upstream=Upstream.RELEASED, link=link, place=place, source=_NETWORK)


def connection_refused() -> Fault:
    """Refuse new connections, as an operating system does where nobody listens; those that stand go on."""
    return Fault(
        name="connection_refused",
        summary="New connections are refused.",
        upstream=Upstream.UNTOUCHED,
        place="node",
        node=Node.REFUSING,
        source=_NETWORK,
    )


def node_killed() -> Fault:
    """Kill the node: every connection is reset, new ones are refused."""
    return Fault(
        name="node_killed",
        summary="The node dies.",
        upstream=Upstream.RELEASED,
        link=Link.RESET,
        place="node",
        node=Node.DEAD,
        source=_NETWORK,
        uncertain="CockroachDB frees the locks of a dead node's transactions only after some seconds, when "
        "their records have gone without a heartbeat.",
    )


def partition() -> Fault:
    """Let nothing pass, in either direction, and tell nobody, until the network heals."""
    return Fault(
        name="partition",
        summary="The network is cut between client and node.",
        upstream=Upstream.UNTOUCHED,
        place="node",
        node=Node.PARTITIONED,
        source=_NETWORK,
    )


def latency(seconds: float = 0.1) -> Fault:
    """Put the node far away: all that clients send arrives later.

    Args:
        seconds: by which it does; 0.1 is about what lies between two continents.

    """
    return Fault(
        name="latency",
        summary=f"The node is {seconds:g} s away.",
        upstream=Upstream.UNTOUCHED,
        delay=seconds,
        place="node",
        node=Node.DISTANT,
        source=_NETWORK,
    )
