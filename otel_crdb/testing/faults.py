# SPDX-License-Identifier: Apache-2.0
"""The catalogue of faults: every way in which CockroachDB fails that can be played, by name and by family.

Each function gives a `Fault`; `docs/faults.md` has them all in tables. Numbers, keys and names inside the
messages are examples throughout, of a table `accounts` whose id is 106.
"""

from __future__ import annotations

from itertools import chain
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from .outage_faults import (
    ENDINGS,
    black_hole,
    connection_refused,
    connection_reset,
    drain,
    draining_statement,
    half_open,
    idle_in_transaction_timeout,
    idle_session_timeout,
    latency,
    node_killed,
    not_accepting_clients,
    partition,
    server_closed,
    shutting_down,
    too_many_clients,
)
from .restarts import DEFAULT_VERSION, RESTARTS, VERSIONS, at_least, unknown
from .statement_faults import (
    DISKS,
    LICENCES,
    MONITORS,
    UNAVAILABLE,
    bounded_staleness_unsatisfied,
    disk_exceeded,
    full_scan_refused,
    internal_error,
    license_throttled,
    lock_not_available,
    lock_timeout,
    memory_exceeded,
    prepared_statement_missing,
    query_canceled,
    range_unavailable,
    read_only,
    restricted_internals,
    rows_limit_exceeded,
    schema_locked,
    slow_statement,
    statement_timeout,
    too_many_transactions,
    transaction_timeout,
)
from .transaction_faults import (
    DOUBTS,
    aborted,
    ambiguous_commit,
    committed,
    committed_with_ddl_failure,
    lost_commit,
    restart_savepoint_nested,
    restart_savepoint_not_first,
    rollback_to_refused,
    savepoint_not_after_ddl,
    savepoint_not_after_error,
    serialization_failure,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from .fault import Fault

__all__ = [
    "CATALOGUE",
    "FAMILIES",
    "aborted",
    "ambiguous_commit",
    "black_hole",
    "bounded_staleness_unsatisfied",
    "committed",
    "committed_with_ddl_failure",
    "connection_refused",
    "connection_reset",
    "disk_exceeded",
    "drain",
    "draining_statement",
    "full_scan_refused",
    "half_open",
    "idle_in_transaction_timeout",
    "idle_session_timeout",
    "internal_error",
    "latency",
    "license_throttled",
    "lock_not_available",
    "lock_timeout",
    "lost_commit",
    "memory_exceeded",
    "named",
    "node_killed",
    "not_accepting_clients",
    "partition",
    "prepared_statement_missing",
    "query_canceled",
    "range_unavailable",
    "read_only",
    "restart_savepoint_nested",
    "restart_savepoint_not_first",
    "restricted_internals",
    "rollback_to_refused",
    "rows_limit_exceeded",
    "savepoint_not_after_ddl",
    "savepoint_not_after_error",
    "schema_locked",
    "serialization_failure",
    "server_closed",
    "shutting_down",
    "slow_statement",
    "statement_timeout",
    "too_many_clients",
    "too_many_transactions",
    "transaction_timeout",
]


def _serialization_failures() -> Iterator[Fault]:
    """Give every reason in the words of today, else of the last version that has it; old words; wrappings."""
    for reason, row in RESTARTS.items():
        if reason == "savepoint_rollback_refused":
            continue  # told as rollback_to_refused
        version = DEFAULT_VERSION if at_least(row.until, DEFAULT_VERSION) else row.until
        yield serialization_failure(reason, version=version)
    told = {serialization_failure().errors[0].message}
    for version in VERSIONS:
        fault = serialization_failure(version=version)
        if fault.errors[0].message not in told:
            told.add(fault.errors[0].message)
            yield fault
    yield serialization_failure("WriteTooOld", wrapping="read_committed_limit")
    yield serialization_failure("WriteTooOld", wrapping="streamed")


#: By what they are about. Of a function with variants the first is what it gives when nothing is asked for.
FAMILIES: Final[Mapping[str, tuple[Fault, ...]]] = MappingProxyType(
    {
        "Serialization failures": tuple(_serialization_failures()),
        "Savepoints and transaction states": (
            rollback_to_refused(),
            savepoint_not_after_error(),
            savepoint_not_after_ddl(),
            restart_savepoint_not_first(),
            restart_savepoint_nested(),
            aborted(),
            committed(),
            read_only(),
        ),
        "COMMIT in doubt": (
            *(ambiguous_commit(cause, applied=applied) for cause in DOUBTS for applied in (False, True)),
            lost_commit(),
            lost_commit(applied=True),
            committed_with_ddl_failure(),
        ),
        "Timeouts and cancellations": (
            statement_timeout(),
            transaction_timeout(),
            query_canceled(),
            *map(idle_in_transaction_timeout, ENDINGS),
            *map(idle_session_timeout, ENDINGS),
        ),
        "Drains": (drain(), draining_statement(), shutting_down(), not_accepting_clients()),
        "Limits": (
            too_many_clients(),
            too_many_transactions(),
            *map(memory_exceeded, MONITORS),
            *map(disk_exceeded, DISKS),
            *map(license_throttled, LICENCES),
            rows_limit_exceeded(),
            full_scan_refused(),
        ),
        "Locks and ranges": (
            lock_not_available(),
            lock_timeout(),
            *map(range_unavailable, UNAVAILABLE),
            bounded_staleness_unsatisfied(),
        ),
        "Refused statements": (
            restricted_internals(),
            prepared_statement_missing(),
            schema_locked(),
            internal_error(),
        ),
        "Networks and nodes": (
            slow_statement(),
            latency(),
            connection_reset(),
            server_closed(),
            black_hole(),
            half_open(),
            partition(),
            connection_refused(),
            node_killed(),
        ),
    }
)
#: Every fault of `FAMILIES` by its name.
CATALOGUE: Final[Mapping[str, Fault]] = MappingProxyType(
    {fault.name: fault for fault in chain.from_iterable(FAMILIES.values())}
)


def named(name: str) -> Fault:
    """Give the fault of a name.

    Beside the names of `CATALOGUE` there are those of the functions alone, for the variant they give when
    nothing is asked for, and `serialization_failure.<reason>@<version>` for every reason and version.

    Raises:
        ValueError: there is none; the message names the nearest.

    """
    if name in CATALOGUE:
        return CATALOGUE[name]
    variants = (fault for fault in CATALOGUE.values() if fault.name.startswith(f"{name}."))
    if first := next(variants, None):
        return first
    function, _, variant = name.partition(".")
    reason, _, version = variant.partition("@")
    if function == "serialization_failure" and version:
        return serialization_failure(reason, version=version)
    raise unknown("fault", name, CATALOGUE)
