# SPDX-License-Identifier: Apache-2.0
"""The wire proxy: what it says at the start, that all else passes, that no session outlives its client."""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import psycopg2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_crdb.testing import Server, server
from otel_crdb.testing.frames import FrameReader, ProtocolError, message

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PATIENCE = 20.0  # seconds: a deadline for events, far beyond what they take
NODE = 7
MEGABYTE = 1024 * 1024
needs_pidfd = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="needs Linux' process descriptors")


@pytest.fixture(scope="module")
def proxied() -> Iterator[Server]:
    """Give an embedded server that claims to be node 7."""
    with server("embedded", node_id=NODE) as running:
        yield running


@pytest.fixture
def watcher(proxied: Server) -> Iterator[psycopg.Connection[Any]]:
    """Give a connection past the proxy, to look at the server's sessions."""
    address = {"host": proxied.direct_host, "port": proxied.direct_port}
    with psycopg.connect(**address, user="root", dbname=proxied.database, autocommit=True) as connection:
        yield connection


def backend_waiting(watcher: psycopg.Connection[Any], name: str, event: str) -> int:
    """Ask until the session of that application name waits for `event`; give its real process id."""
    query = "SELECT pid FROM pg_stat_activity WHERE application_name = %s AND wait_event = %s"
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if row := watcher.execute(query, (name, event)).fetchone():
            return int(row[0])
    raise AssertionError(f"no session {name} came to wait for {event}")


def gone(pid: int) -> bool:
    """Wait until a process has ended."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:  # it was quick
        return True
    try:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        return bool(poll.poll(PATIENCE * 1000))
    finally:
        os.close(descriptor)


def sessions_close(proxied: Server) -> bool:
    """Ask until the proxy has no session open."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if proxied.wire_log().open_sessions == 0:
            return True
    return False


# --- what it says at the start -----------------------------------------------------------------------------


def facts_by_psycopg(url: str) -> tuple[str | None, int, int, str | None, str]:
    """Give what psycopg 3 learned at the start, and the answer of version()."""
    with psycopg.connect(url) as connection:
        info = connection.info
        connection.execute("SET search_path = public")  # PostgreSQL 18 reports it again
        version = connection.execute("SELECT cockroachdb.version()").fetchone()[0]
        announced = info.parameter_status("crdb_version")
        return announced, info.server_version, info.backend_pid, info.parameter_status("search_path"), version


def facts_by_psycopg2(url: str) -> tuple[str | None, int, int, str | None, str]:
    """Give what psycopg2 learned at the start, and the answer of version()."""
    with closing(psycopg2.connect(url)) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT version()")
        announced, path = map(connection.get_parameter_status, ("crdb_version", "search_path"))
        pid = connection.info.backend_pid
        return announced, connection.server_version, pid, path, cursor.fetchone()[0]


@pytest.mark.parametrize("facts", [facts_by_psycopg, facts_by_psycopg2])
def test_drivers_see_a_cockroachdb_node(proxied: Server, facts: Callable[..., Any]) -> None:
    """Both drivers see CockroachDB's version, PostgreSQL 13 and the node's id, with no query."""
    announced, postgres, pid, search_path, version = facts(proxied.url)
    assert announced.startswith("CockroachDB CCL v25.4.0 (")
    assert version == announced
    assert postgres == 130000
    assert pid >> 20 == NODE
    assert search_path is None


def test_the_statuses_are_those_of_cockroachdb(proxied: Server) -> None:
    """The start-up reports just what CockroachDB reports, and asks for no encryption."""
    with (
        socket.create_connection((proxied.host, proxied.port), PATIENCE) as link,
        link.makefile("rb") as answers,
    ):
        for code in (80877104, 80877103):  # GSSENCRequest, SSLRequest
            link.sendall((8).to_bytes(4, "big") + code.to_bytes(4, "big"))
            assert answers.read(1) == b"N"
        body = (3 << 16).to_bytes(4, "big") + b"user\0root\0database\0defaultdb\0\0"
        link.sendall((len(body) + 4).to_bytes(4, "big") + body)
        names = set()
        while (kind := answers.read(1)) != b"Z":
            content = answers.read(int.from_bytes(answers.read(4), "big") - 4)
            if kind == b"S":
                names.add(content.split(b"\0")[0].decode())
    assert names == {
        *("server_version", "server_encoding", "client_encoding", "application_name", "DateStyle"),
        *("IntervalStyle", "is_superuser", "TimeZone", "integer_datetimes", "standard_conforming_strings"),
        *("crdb_version", "session_authorization"),
    }


# --- that all else passes ----------------------------------------------------------------------------------


def test_a_cancel_request_finds_its_query(proxied: Server, watcher: psycopg.Connection[Any]) -> None:
    """A cancel by the announced key ends the running query of psycopg 3."""
    with psycopg.connect(proxied.url, application_name="cancel3") as connection:
        connection.pgconn.send_query(b"SELECT pg_sleep(20)")
        backend_waiting(watcher, "cancel3", "PgSleep")
        connection.cancel_safe()
        assert connection.pgconn.get_result().error_field(psycopg.pq.DiagnosticField.SQLSTATE) == b"57014"
        assert connection.pgconn.get_result() is None
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_a_cancel_request_of_psycopg2_finds_its_query(
    proxied: Server, watcher: psycopg.Connection[Any]
) -> None:
    """A cancel by the announced key ends the running query of psycopg2."""
    with (
        closing(psycopg2.connect(proxied.url, application_name="cancel2")) as connection,
        connection.cursor() as cursor,
        ThreadPoolExecutor(1) as thread,
    ):
        running = thread.submit(cursor.execute, "SELECT pg_sleep(20)")
        backend_waiting(watcher, "cancel2", "PgSleep")
        connection.cancel()
        with pytest.raises(psycopg2.errors.QueryCanceled):
            running.result(PATIENCE)


def test_a_cancel_request_with_another_key_cancels_nothing(
    proxied: Server, watcher: psycopg.Connection[Any]
) -> None:
    """A cancel request with a wrong secret is taken without an answer and without effect."""
    with psycopg.connect(proxied.url, application_name="unharmed") as connection:
        connection.pgconn.send_query(b"SELECT pg_sleep(0.3)")
        backend_waiting(watcher, "unharmed", "PgSleep")
        with socket.create_connection((proxied.host, proxied.port), PATIENCE) as link:
            key = connection.info.backend_pid.to_bytes(4, "big") + bytes(4)
            link.sendall((16).to_bytes(4, "big") + (80877102).to_bytes(4, "big") + key)
            assert link.recv(1) == b""
        assert connection.pgconn.get_result().status == psycopg.pq.ExecStatus.TUPLES_OK
        assert connection.pgconn.get_result() is None


def lines(count: int) -> bytes:
    """Give `count` lines of COPY data."""
    return b"".join(b"%d\t%s\n" % (number, b"x" * 50) for number in range(count))


def copy_by_psycopg(url: str, data: bytes) -> bytes:
    """Take the data to a table and back with psycopg 3."""
    with psycopg.connect(url) as connection, connection.cursor() as cursor:
        cursor.execute("CREATE TEMPORARY TABLE t (id int, text text)")
        with cursor.copy("COPY t FROM STDIN") as copy:
            copy.write(data)
        with cursor.copy("COPY t TO STDOUT") as copy:
            return b"".join(bytes(block) for block in copy)


def copy_by_psycopg2(url: str, data: bytes) -> bytes:
    """Take the data to a table and back with psycopg2."""
    with closing(psycopg2.connect(url)) as connection, connection.cursor() as cursor:
        cursor.execute("CREATE TEMPORARY TABLE t (id int, text text)")
        cursor.copy_expert("COPY t FROM STDIN", io.BytesIO(data))
        result = io.BytesIO()
        cursor.copy_expert("COPY t TO STDOUT", result)
        return result.getvalue()


@pytest.mark.parametrize("copy", [copy_by_psycopg, copy_by_psycopg2])
def test_copy_passes_both_ways(proxied: Server, copy: Callable[[str, bytes], bytes]) -> None:
    """Some megabytes of COPY come back as they went."""
    data = lines(100_000)
    assert len(data) > 5 * MEGABYTE
    assert hashlib.sha256(copy(proxied.url, data)).digest() == hashlib.sha256(data).digest()


def test_large_and_binary_messages_pass(proxied: Server) -> None:
    """A message of many megabytes with every byte value comes back as it went, text and binary."""
    data = bytes(range(256)) * (32 * MEGABYTE // 256)
    with psycopg.connect(proxied.url) as connection:
        for binary in (False, True):
            row = connection.execute("SELECT %b::bytea", (data,), binary=binary).fetchone()
            assert row[0] == data


def test_pipelines_and_prepared_statements_pass(proxied: Server) -> None:
    """Many statements in flight at once, and named statements, are answered in order."""
    with psycopg.connect(proxied.url, prepare_threshold=0) as connection:
        with connection.pipeline():
            cursors = [connection.execute("SELECT %s::int", (number,)) for number in range(500)]
        assert [cursor.fetchone() for cursor in cursors] == [(number,) for number in range(500)]
        with pytest.raises(psycopg.errors.DivisionByZero), connection.pipeline():
            connection.execute("SELECT %s::int / 0", (1,))
        connection.rollback()
        assert connection.execute("SELECT %s::int", (7,)).fetchone() == (7,)


def test_hundreds_of_clients_at_once(proxied: Server) -> None:
    """Two hundred clients, all connected at the same time, each have a session and a key of their own."""
    everybody = threading.Barrier(200)

    def client(number: int) -> tuple[int, int]:
        with psycopg.connect(proxied.url) as connection:
            everybody.wait(PATIENCE * 3)
            return connection.info.backend_pid, connection.execute("SELECT %s::int", (number,)).fetchone()[0]

    with ThreadPoolExecutor(200) as threads:
        results = list(threads.map(client, range(200)))
    assert [number for _, number in results] == list(range(200))
    assert len({pid for pid, _ in results}) == 200
    assert sessions_close(proxied)


def rows_when_still(proxied: Server) -> int:
    """Ask the proxy until no more rows come; give how many it has seen."""
    counts = [-1]
    while len(counts) < 20 or counts[-20] != counts[-1]:
        counts.append(proxied.wire_log().to_client["DataRow"])
    return counts[-1]


def memory_of(pid: int) -> int:
    """Give the resident memory of a process in bytes."""
    status = Path(f"/proc/{pid}/status").read_text()
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux' /proc")
def test_a_client_that_does_not_read_holds_the_server_back(
    proxied: Server, watcher: psycopg.Connection[Any]
) -> None:
    """What a slow client has not read waits in the server, not in the proxy's memory."""
    proxied.wire_log(clear=True)
    before = memory_of(proxied.pids[0])
    with psycopg.connect(proxied.url, application_name="slow") as connection:
        connection.pgconn.send_query(b"SELECT repeat('x', 1000000) FROM generate_series(1, 300)")
        backend_waiting(watcher, "slow", "ClientWrite")
        assert rows_when_still(proxied) < 150
        assert memory_of(proxied.pids[0]) - before < 50 * MEGABYTE
        rows = connection.pgconn.get_result()
        assert rows.ntuples == 300
        assert connection.pgconn.get_result() is None


# --- that no session outlives its client -------------------------------------------------------------------


@needs_pidfd
def test_a_client_killed_in_a_query_leaves_no_session(
    proxied: Server, watcher: psycopg.Connection[Any]
) -> None:
    """The query of a client that vanishes is cancelled, and its session in the server ends."""
    code = "import psycopg, sys; psycopg.connect(sys.argv[1]).execute('SELECT pg_sleep(600)')"
    with subprocess.Popen([sys.executable, "-c", code, f"{proxied.url}?application_name=doomed"]) as client:
        backend = backend_waiting(watcher, "doomed", "PgSleep")
        client.send_signal(signal.SIGKILL)
        assert gone(backend)
    assert sessions_close(proxied)


@needs_pidfd
def test_a_half_closed_client_leaves_no_session(proxied: Server, watcher: psycopg.Connection[Any]) -> None:
    """A client that will send no more is gone, as for CockroachDB, even in the midst of a transaction."""
    connection = psycopg.connect(proxied.url, application_name="half")
    connection.execute("SELECT 1")
    backend = backend_waiting(watcher, "half", "ClientRead")
    with socket.socket(fileno=os.dup(connection.fileno())) as link:
        link.settimeout(10)
        link.shutdown(socket.SHUT_WR)
        assert gone(backend)
        assert link.recv(1) == b""
    connection.close()
    assert sessions_close(proxied)


def test_the_end_of_the_server_session_reaches_the_client(
    proxied: Server, watcher: psycopg.Connection[Any]
) -> None:
    """A session ended by the server gives the client the error and the end of the connection."""
    with closing(psycopg.connect(proxied.url, application_name="ended")) as connection:
        connection.execute("SELECT 1")
        backend = backend_waiting(watcher, "ended", "ClientRead")
        watcher.execute("SELECT pg_terminate_backend(%s)", (backend,))
        with pytest.raises(psycopg.errors.AdminShutdown):
            connection.execute("SELECT 1")
    assert sessions_close(proxied)


@pytest.mark.parametrize(
    "nonsense",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01",
        b"\0\0\0\x04\0\0\0\0",
        b"\0\0",
    ],
)
def test_nonsense_ends_the_connection_only(proxied: Server, nonsense: bytes) -> None:
    """Bytes that are no start-up packet end their own connection, and the next client is served."""
    with socket.create_connection((proxied.host, proxied.port), PATIENCE) as link:
        link.sendall(nonsense)
        link.shutdown(socket.SHUT_WR)
        assert link.recv(1) == b""
    with psycopg.connect(proxied.url) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)


# --- the log -----------------------------------------------------------------------------------------------


def test_the_log_tells_what_passed(proxied: Server) -> None:
    """Statements, command tags and errors stand in the log in their order, by either protocol."""
    proxied.wire_log(clear=True)
    with closing(psycopg.connect(proxied.url)) as connection:
        connection.execute("CREATE TEMPORARY TABLE t (id int)")
        connection.execute("INSERT INTO t VALUES (%s)", (1,))
        with pytest.raises(psycopg.errors.UndefinedTable):
            connection.execute("SELECT * FROM nothing")
        connection.commit()
    log = proxied.wire_log()
    assert [(event.kind, event.text) for event in log.events] == [
        ("statement", "BEGIN"),
        ("tag", "BEGIN"),
        ("statement", "CREATE TEMPORARY TABLE t (id int)"),
        ("tag", "CREATE TABLE"),
        ("statement", "INSERT INTO t VALUES ($1)"),
        ("tag", "INSERT 0 1"),
        ("statement", "SELECT * FROM nothing"),
        ("error", "42P01"),
        ("statement", "COMMIT"),
        ("tag", "ROLLBACK"),
    ]
    assert len({event.session for event in log.events}) == 1
    assert log.sessions == 1
    assert (log.to_server["Query"], log.to_server["Bind"], log.to_server["Terminate"]) == (4, 1, 1)
    assert log.to_client["ErrorResponse"] == 1


def test_a_setting_that_postgres_lacks_is_taken(proxied: Server) -> None:
    """The one session variable that django-cockroachdb sets is taken as CockroachDB takes it."""
    with psycopg.connect(proxied.url) as connection:
        setting = connection.execute("SET enable_experimental_alter_column_type_general = true")
        assert setting.statusmessage == "SET"


def test_the_log_begins_anew_when_cleared(proxied: Server) -> None:
    """Clearing gives what was there and keeps only the count of open sessions."""
    with psycopg.connect(proxied.url) as connection:
        connection.execute("SELECT 'before'")
        assert "SELECT 'before'" in proxied.wire_log(clear=True).texts("statement")
        log = proxied.wire_log()
        assert (log.sessions, log.open_sessions, list(log.events), dict(log.to_server)) == (0, 1, [], {})


# --- cutting messages --------------------------------------------------------------------------------------


@given(
    bodies=st.lists(st.binary(max_size=40), max_size=8),
    cuts=st.lists(st.integers(min_value=0, max_value=400), max_size=8),
)
def test_messages_are_whole_however_the_stream_is_cut(bodies: list[bytes], cuts: list[int]) -> None:
    """Whatever pieces the stream comes in, the messages are the same, and joined they are the stream."""
    stream = b"".join(message("d", body) for body in bodies)
    borders = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]

    async def read_all() -> list[bytes]:
        source = asyncio.StreamReader()
        reader, frames = FrameReader(source), []

        async def feed() -> None:
            for start, end in pairwise(borders):
                source.feed_data(stream[start:end])
                await asyncio.sleep(0)  # let the reader have it
            source.feed_eof()

        feeding = asyncio.create_task(feed())
        while more := await reader.read():
            frames += more
        await feeding
        return [frame.data for frame in frames]

    assert asyncio.run(read_all()) == [message("d", body) for body in bodies]


def test_a_length_that_cannot_be_is_an_error() -> None:
    """A message shorter than its own length field ends the session instead of going round forever."""

    async def read() -> None:
        source = asyncio.StreamReader()
        source.feed_data(b"Q\0\0\0\x03")
        await FrameReader(source).read()

    with pytest.raises(ProtocolError):
        asyncio.run(read())


@pytest.mark.parametrize(
    ("foreign", "known"),
    [
        (b"SELECT 1", b"SELECT 1"),
        (b"SET TRANSACTION PRIORITY HIGH", b"SET LOCAL cockroachdb.transaction_priority TO HIGH"),
        (
            b'CREATE TABLE "t" ("a" integer, INDEX "i" ("a"), INDEX "j" ("a"))',
            b'CREATE TABLE "t" ("a" integer); CREATE INDEX "i" ON "t" ("a"); CREATE INDEX "j" ON "t" ("a")',
        ),
    ],
)
def test_foreign_words_are_translated(foreign, known):
    """What only CockroachDB understands of django-cockroachdb's statements reaches PostgreSQL in its words."""
    from otel_crdb.testing.dialect import translated

    assert translated(foreign) == known
