# SPDX-License-Identifier: Apache-2.0
"""What each alias of ``DATABASES`` reaches: asked over a connection of its own that changes nothing."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from otel_crdb import facts, recording
from otel_crdb.config import Config
from otel_crdb.errors import classify, driver_error

from . import static
from .findings import Finding, Level
from .probes import Probe, side_by_side

#: How often a round trip is measured; the shortest is told.
ROUND_TRIPS = 5


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server tells of itself."""

    host: str
    port: int
    #: ``version()`` as the server has it.
    version: str
    #: ``crdb_version`` as it was announced when connecting; empty where it was not.
    announced: str
    node: int
    #: By ``SHOW node_id``; None where the server knows no such thing.
    node_of_server: int | None
    isolation: str
    #: Seconds.
    connect: float
    round_trip: float


def of_databases(
    connections: Any, aliases: Sequence[str], config: Config, timeout: float
) -> tuple[Finding, ...]:
    """Ask every alias, side by side."""
    told: list[Finding] = []
    loaded: dict[str, Any] = {}
    for alias in aliases:
        wrapper, error = _loaded(connections, alias)
        if error is None:
            loaded[alias] = wrapper
        else:
            told.append(_not_loaded(alias, error))
    asked = [alias for alias in loaded if loaded[alias].vendor in ("cockroachdb", "postgresql")]
    probes = side_by_side(
        [partial(_ask, loaded[alias], config, timeout) for alias in asked],
        time.monotonic() + timeout + 1,
    )
    answers = dict(zip(asked, probes, strict=True))
    for alias, wrapper in loaded.items():
        if alias in answers:
            told += _of_alias(alias, wrapper, answers[alias], config, timeout)
        else:
            what = f"{wrapper.settings_dict['ENGINE']}: left alone, it is not CockroachDB's backend"
            told.append(Finding("note", alias, what))
    return tuple(told)


def _loaded(connections: Any, alias: str) -> tuple[Any, Exception | None]:
    try:
        return connections[alias], None
    except Exception as error:  # noqa: BLE001 - whatever a backend raises where it is loaded
        return None, error


def _not_loaded(alias: str, error: Exception) -> Finding:
    what = f"its backend cannot be loaded: {type(error).__name__}: {' '.join(str(error).split())}"
    mend = f'DATABASES["{alias}"]["ENGINE"] = "django_cockroachdb"'
    return Finding("fail", alias, what, mend, "backend-not-loaded")


def _ask(wrapper: Any, config: Config, timeout: float) -> Answer:
    """Connect by the driver alone, past Django's state and our own hooks, and ask."""
    parameters = dict(wrapper.get_connection_params())
    parameters.setdefault("connect_timeout", max(2, math.ceil(timeout)))
    began = time.perf_counter()
    connection = wrapper.Database.connect(**parameters)
    connected = time.perf_counter() - began
    try:
        connection.autocommit = True
        info = connection.info
        announced = info.parameter_status("crdb_version") or ""
        return Answer(
            info.host or "",
            info.port,
            str(_scalar(connection, "SELECT version()")),
            announced,
            facts.node_of(info.backend_pid) if announced else 0,
            _node_of_server(connection),
            str(_scalar(connection, "SHOW transaction_isolation")),
            connected,
            min(_timed(connection) for _ in range(ROUND_TRIPS)),
        )
    finally:
        connection.close()


def _scalar(connection: Any, statement: str) -> Any:
    cursor = connection.cursor()
    try:
        cursor.execute(statement)
        return cursor.fetchone()[0]
    finally:
        cursor.close()


def _timed(connection: Any) -> float:
    began = time.perf_counter()
    _scalar(connection, "SELECT 1")
    return time.perf_counter() - began


def _node_of_server(connection: Any) -> int | None:
    try:
        return int(_scalar(connection, "SHOW node_id"))
    except Exception:  # noqa: BLE001 - PostgreSQL has no such setting
        return None


# --- what it comes to ------------------------------------------------------------------------------------


def _of_alias(
    alias: str, wrapper: Any, probe: Probe[Answer], config: Config, timeout: float
) -> Iterator[Finding]:
    ours = wrapper.vendor == "cockroachdb"
    answer = probe.result
    if answer is None:
        yield _unreached(alias, wrapper, probe, timeout) if ours else _left_alone(alias, None)
        return
    if not ours:
        yield _left_alone(alias, answer)
        return
    yield _server(alias, answer)
    if alias in config.excluded_aliases:
        yield Finding("note", alias, "left untold, as asked by excluded_aliases")
    yield from _pooler(alias, answer, config)
    yield _settings(alias, wrapper, answer, config)
    yield from _doubtful(alias, wrapper, config)


def _server(alias: str, answer: Answer) -> Finding:
    place = f"{answer.host}:{answer.port}"
    took = f"connected in {_ms(answer.connect)}, a round trip takes {_ms(answer.round_trip)}"
    if answer.announced or "CockroachDB" in answer.version:
        version = facts.VERSION_PATTERN.search(answer.announced or answer.version)
        node = answer.node or answer.node_of_server
        told = (
            f"CockroachDB {version.group() if version else ''} at {place}{f', node {node}' if node else ''}"
        )
        return Finding("ok", alias, f"{told}: {took}")
    name = " ".join(answer.version.split()[:2]) or "an unknown server"
    what = f"{place} is {name}, not CockroachDB, and ENGINE is django_cockroachdb: migrations will fail"
    mend = f'DATABASES["{alias}"]["HOST"] and ["PORT"] of a CockroachDB node (its SQL port is 26257)'
    return Finding("fail", alias, what, mend, "not-cockroachdb")


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms"


def _pooler(alias: str, answer: Answer, config: Config) -> Iterator[Finding]:
    """Tell where something stands between that answers in CockroachDB's name."""
    if "CockroachDB" in answer.version and not answer.announced:
        what = "a pooler is between: it does not pass crdb_version on, so version and node are not told"
        yield Finding("note", alias, what, "", "pooler")
    elif answer.host.endswith(facts.PROXIED_HOSTS):
        yield Finding("note", alias, "behind CockroachDB Cloud's proxy: no node is told", "", "pooler")
    elif answer.node_of_server is not None and answer.announced and answer.node != answer.node_of_server:
        what = f"a pooler is between: the node is {answer.node_of_server}, its key says {answer.node}"
        level: Level = "warn" if config.node_id else "note"
        yield Finding(level, alias, what, 'OTEL_CRDB = {"node_id": False}', "pooler-invents-node")


def _settings(alias: str, wrapper: Any, answer: Answer, config: Config) -> Finding:
    entry = wrapper.settings_dict
    age = "never closed" if entry["CONN_MAX_AGE"] is None else f"{entry['CONN_MAX_AGE']} s"
    told = [
        f"isolation {answer.isolation}",
        f"ATOMIC_REQUESTS {entry['ATOMIC_REQUESTS']}",
        f"CONN_MAX_AGE {age}",
        f"CONN_HEALTH_CHECKS {entry['CONN_HEALTH_CHECKS']}",
    ]
    if entry["ATOMIC_REQUESTS"]:
        told.append(f"retry_atomic_requests {config.retry_atomic_requests}")
    if (entry.get("OPTIONS") or {}).get("pool"):
        told.append("psycopg pool")
    return Finding("ok", alias, "; ".join(told))


def _doubtful(alias: str, wrapper: Any, config: Config) -> Iterator[Finding]:
    entry = wrapper.settings_dict
    if entry["ATOMIC_REQUESTS"] and config.retry_atomic_requests is False:
        what = "a view under ATOMIC_REQUESTS whose COMMIT is refused answers 500: it is not run again"
        yield Finding("note", alias, what, 'OTEL_CRDB = {"retry_atomic_requests": True}', "not-retried")
    if entry["CONN_MAX_AGE"] != 0 and not entry["CONN_HEALTH_CHECKS"]:
        what = "connections are kept and not checked: the next request on one that a drained node cut fails"
        mend = f'DATABASES["{alias}"]["CONN_HEALTH_CHECKS"] = True'
        yield Finding("note", alias, what, mend, "no-health-checks")
    overridden = _overridden(type(wrapper))
    if overridden:
        kind = f"{type(wrapper).__module__}.{type(wrapper).__qualname__}"
        what = f"{kind} overrides {', '.join(overridden)}: where it does not call super(), nothing is seen"
        yield Finding("note", alias, what, f"call super() in {kind}", "overridden")


def _overridden(kind: type) -> list[str]:
    """Return the hooked methods that a subclass of the backend's wrapper has of its own."""
    from django_cockroachdb.base import DatabaseWrapper

    special = [
        each for each in kind.__mro__ if issubclass(each, DatabaseWrapper) and each is not DatabaseWrapper
    ]
    return [name for name in recording.WRAPPER_HOOKS if any(name in vars(each) for each in special)]


def _left_alone(alias: str, answer: Answer | None) -> Finding:
    """Tell of an alias on Django's PostgreSQL backend."""
    mend = f'DATABASES["{alias}"]["ENGINE"] = "{static.ENGINE}"'
    if answer is not None and (answer.announced or "CockroachDB" in answer.version):
        what = "the server is CockroachDB, and the backend is Django's for PostgreSQL: nothing of it is seen"
        return Finding("fail", alias, what, mend, "backend-of-postgresql")
    what = "on Django's PostgreSQL backend: left alone"
    return Finding("note", alias, what, f"{mend}, where it is CockroachDB", "left-alone")


def _unreached(alias: str, wrapper: Any, probe: Probe[Answer], timeout: float) -> Finding:
    entry = wrapper.settings_dict
    place = f"{entry['HOST'] or 'localhost'}:{entry['PORT'] or facts.DEFAULT_PORT}"
    if probe.error is None:
        what = f"{place} does not answer within {timeout:g} s"
        return Finding("fail", alias, what, _host_mend(alias), "unreachable")
    meaning = classify(probe.error, phase="connect")
    told = (str(driver_error(probe.error)).strip() or type(probe.error).__name__).splitlines()[0]
    if "invalid" in told and "option" in told:  # libpq's word for a key of OPTIONS that it does not know
        return Finding("fail", alias, told, f'take it out of DATABASES["{alias}"]["OPTIONS"]', "unreachable")
    if meaning is None:
        return Finding("fail", alias, f"{place}: {told}", _host_mend(alias), "unreachable")
    named = f"{meaning.sqlstate or 'no SQLSTATE'}, {meaning.error_class}"
    return Finding("fail", alias, f"{place}: {told} ({named})", _connect_mend(alias, meaning), "unreachable")


def _host_mend(alias: str) -> str:
    return f'DATABASES["{alias}"]["HOST"] and ["PORT"]: of a node that is up'


def _connect_mend(alias: str, meaning: Any) -> str:
    """Return what to change, by the SQLSTATE of a connect that failed."""
    state = meaning.sqlstate or ""
    if state.startswith("28"):
        return f'DATABASES["{alias}"]["USER"] and ["PASSWORD"]: as the cluster knows them'
    if state == "3D000":
        return f'DATABASES["{alias}"]["NAME"], or CREATE DATABASE'
    if state.startswith("08") or not state:
        return _host_mend(alias)
    return str(meaning.advice)
