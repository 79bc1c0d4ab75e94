# SPDX-License-Identifier: Apache-2.0
"""What a connection tells of itself without a round trip, as the attributes that its spans carry.

Built once for a connection and shared by all that tell the same. Both drivers keep what the server
announced at start-up: CockroachDB names its version in the parameter status ``crdb_version`` and
hides the gateway's node id in the backend key (pkg/sql/pgwire/server.go,
pkg/sql/pgwire/pgwirecancel/backend_key_data.go).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from . import neighbours, semconv

#: CockroachDB's SQL port; ``server.port`` is told only where it is another.
DEFAULT_PORT = 26257
#: Proxies that answer as CockroachDB but invent the backend key: CockroachDB Cloud's SQL proxy.
PROXIED_HOSTS = (".cockroachlabs.cloud", ".crdb.io")
VERSION_PATTERN = re.compile(r"\bv\d+\.\d+\.\d+[-.\w]*")

Attributes = Mapping[str, str | int | float]


@dataclass(frozen=True, slots=True)
class Facts:
    """The fixed attributes of a connection."""

    #: ``db.namespace``: the database.
    namespace: str
    #: On every statement, COMMIT, ROLLBACK and connect span.
    span: Attributes
    #: On every data point. Never the node: it would multiply the series.
    metric: Attributes
    #: On data points of ``db.client.connection.*``, which require a pool's name.
    pool: Attributes


def of_settings(settings: Mapping[str, Any]) -> Facts:
    """Return what an entry of ``DATABASES`` tells before there is a connection; of several hosts, none."""
    name, host = str(settings.get("NAME") or ""), str(settings.get("HOST") or "")
    return _facts(name, "", 0) if "," in host else _facts(name, host, _port(settings.get("PORT")))


def of_connection(connection: Any, *, node_id: bool = True) -> Facts:
    """Return what an open connection of either driver tells.

    Args:
        connection: psycopg's or psycopg2's connection.
        node_id: whether the backend key may be read as CockroachDB's.

    """
    info = connection.info
    announced = info.parameter_status("crdb_version") or ""
    version = VERSION_PATTERN.search(announced)
    host = info.host or ""
    trusted = (
        bool(announced)
        and node_id
        and not host.endswith(PROXIED_HOSTS)
        and not neighbours.invents_keys(host, info.port, info.backend_pid)
    )
    return _facts(
        info.dbname or "",
        host,
        info.port,
        version.group() if version else "",
        node_of(info.backend_pid) if trusted else 0,
    )


def node_of(backend_pid: int) -> int:
    """Return the SQL instance (node) id in the first half of CockroachDB's backend key.

    Top bit 0: the upper 12 bits are the id; top bit 1: the lower 31 bits are. libpq hands the
    half out as a signed integer.
    """
    pid = backend_pid & 0xFFFFFFFF
    return pid & 0x7FFFFFFF if pid >> 31 else pid >> 20


def transaction_status(connection: Any) -> int:
    """Return libpq's transaction status, which both drivers number alike; no round trip."""
    return int(connection.info.transaction_status)


#: libpq's PGTransactionStatusType.
IDLE, ACTIVE, IN_TRANSACTION, IN_ERROR, UNKNOWN = range(5)


@lru_cache(maxsize=256)
def _facts(namespace: str, address: str, port: int, version: str = "", node: int = 0) -> Facts:
    metric: dict[str, str | int | float] = {semconv.DB_SYSTEM_NAME: semconv.COCKROACHDB}
    if namespace:
        metric[semconv.DB_NAMESPACE] = namespace
    if address:
        metric[semconv.SERVER_ADDRESS] = address
    if port and port != DEFAULT_PORT:
        metric[semconv.SERVER_PORT] = port
    span = dict(metric)
    if node:
        span[semconv.NODE_ID] = node
    if version:
        span[semconv.VERSION] = version
    pool = {**metric, semconv.DB_CLIENT_CONNECTION_POOL_NAME: f"{address}:{port or DEFAULT_PORT}/{namespace}"}
    return Facts(namespace, span, metric, pool)


def _port(value: object) -> int:
    try:
        return int(str(value)) if value else 0
    except ValueError:
        return 0
