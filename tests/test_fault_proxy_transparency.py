# SPDX-License-Identifier: Apache-2.0
"""Without rules that strike, drivers and PostgreSQL say to each other through a proxy what they say without it.

Each scenario runs on PostgreSQL itself, behind the wire proxy, behind the fault proxy, and behind one with rules
that never match. What the driver told must be the same, and so must be the bytes in both directions, from the end
of the start-up on.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import select
import socket
import struct
import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import psycopg
import psycopg2
import psycopg2.extensions
import psycopg2.extras
import pytest
from psycopg import generators, pq
from psycopg.rows import dict_row

from otel_crdb.testing import FaultProxy, Server, server
from otel_crdb.testing.frames import message, query
from otel_crdb.testing.installation import SOCKET_NAME
from otel_crdb.testing.wire import CANCEL_REQUEST, REPORTED

from .wire_client import PATIENCE, SYNC, Onlooker, WireClient, bind, eventually, execute, parse, step

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from typing_extensions import Self

pytestmark = pytest.mark.skipif(
    os.environ.get("OTEL_CRDB_TEST_DRIVER") == "psycopg2", reason="nothing of Django's: the same on both runs"
)

DIAGNOSTICS = (
    *("severity", "severity_nonlocalized", "sqlstate", "message_primary", "message_detail", "message_hint"),
    *("statement_position", "internal_position", "internal_query", "context", "schema_name", "table_name"),
    *("column_name", "datatype_name", "constraint_name", "source_file", "source_line", "source_function"),
)


# --- the relay, and what it heard --------------------------------------------------------------------------


class Recording:
    """What was said on one connection."""

    def __init__(self) -> None:
        self.to_server = bytearray()
        self.to_client = bytearray()

    @property
    def is_cancel_request(self) -> bool:
        """Whether it only asked for a cancellation."""
        return int.from_bytes(self.to_server[4:8], "big") == CANCEL_REQUEST


class Relay:
    """Passes on every byte between its clients and a server, and keeps them all."""

    def __init__(self, connect: Callable[[], socket.socket]) -> None:
        self._connect = connect
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.host, self.port = self._listener.getsockname()
        self.recordings: list[Recording] = []
        self._threads = [threading.Thread(target=self._accept)]

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(PATIENCE)
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # the listener is shut down
            while True:
                client, _ = self._listener.accept()
                self.recordings.append(Recording())
                thread = threading.Thread(target=_relay, args=(client, self._connect(), self.recordings[-1]))
                self._threads.append(thread)
                thread.start()


def _relay(client: socket.socket, upstream: socket.socket, recording: Recording) -> None:
    """Pass on in both directions until either ends; what the server said before that still reaches the client."""
    ways = {client: (upstream, recording.to_server), upstream: (client, recording.to_client)}
    with client, upstream, contextlib.suppress(ConnectionError):
        while True:
            for source in select.select(list(ways), [], [])[0]:
                target, heard = ways[source]
                if not (data := source.recv(65_536)):
                    return
                heard += data
                target.sendall(data)


def messages(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Cut a recording into messages."""
    start = 0
    while start < len(data):
        end = start + 1 + int.from_bytes(data[start + 1 : start + 5], "big")
        yield chr(data[start]), bytes(data[start + 5 : end])
        start = end


def said_by_client(recording: Recording) -> list[tuple[str, bytes]]:
    """Give the messages after the start-up packet, but Flush: a driver asks for it when no answer has come yet."""
    start = int.from_bytes(recording.to_server[:4], "big")
    return [said for said in messages(recording.to_server[start:]) if said != ("H", b"")]


def heard_by_client(recording: Recording, way: str) -> list[tuple[str, bytes]]:
    """Give the messages after the first ReadyForQuery, without process ids, and what a proxy must not pass on."""
    heard = list(messages(recording.to_client))
    started = [kind for kind, _ in heard].index("Z")
    return [
        (kind, b"pid" + body[4:] if kind == "A" else body)
        for kind, body in heard[started + 1 :]
        if way != NO_PROXY or kind != "S" or body.split(b"\0")[0].decode() in REPORTED
    ]


# --- where it goes -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def running() -> Iterator[Server]:
    """Give an embedded server with a table of three rows."""
    with server("embedded") as embedded:
        with psycopg.connect(embedded.url) as connection:
            connection.execute("CREATE TABLE thing (id int PRIMARY KEY, name text UNIQUE, data bytea)")
            connection.execute(
                "INSERT INTO thing VALUES (1, 'one', NULL), (2, 'two', ''), (3, 'drei', '\\x00ff')"
            )
            connection.execute("CREATE TABLE part (id int REFERENCES thing DEFERRABLE INITIALLY DEFERRED)")
        yield embedded


NO_PROXY = "no proxy"
RULES_THAT_NEVER_STRIKE = ("serialization_failure.injected", "lost_commit", "slow_statement", "black_hole")


@pytest.fixture(scope="module")
def addresses(running: Server) -> Iterator[dict[str, Callable[[], socket.socket]]]:
    """Give the ways to the server; the first is that without a proxy."""

    def past_proxies() -> socket.socket:
        link = socket.socket(socket.AF_UNIX)
        link.connect(str(running.directory / SOCKET_NAME))
        return link

    def through(place: Server | FaultProxy) -> Callable[[], socket.socket]:
        return lambda: socket.create_connection((place.host, place.port), PATIENCE)

    with FaultProxy(running) as proxy, FaultProxy(running) as ruled:
        for name in RULES_THAT_NEVER_STRIKE:
            ruled.inject(name, matching="never said", times=None)
        yield {
            NO_PROXY: past_proxies,
            "the wire proxy": through(running),
            "the fault proxy": through(proxy),
            "the fault proxy, with rules": through(ruled),
        }


@pytest.fixture(scope="module")
def onlooker(running: Server) -> Iterator[Onlooker]:
    """Give a connection past the proxies."""
    looking = Onlooker(running)
    with looking.connection:
        yield looking


class Told(list[Any]):
    """What a driver told, step by step; `status` gives the state of the transaction after each."""

    def __init__(self, status: Callable[[], Any]) -> None:
        super().__init__()
        self._status = status

    def step(self, act: Callable[[], Any]) -> None:
        """Act, and write down what came of it."""
        try:
            outcome = act()
        except (psycopg.Error, psycopg2.Error) as error:
            outcome = (type(error).__name__, str(error), diagnosis(error))
        self.append((outcome, self._status()))


def diagnosis(error: Any) -> dict[str, str | None]:
    """Give all fields of an error or notice."""
    diag = getattr(error, "diag", error)
    return {name: getattr(diag, name) for name in DIAGNOSTICS}


def run_everywhere(
    addresses: dict[str, Callable[[], socket.socket]],
    play: Callable[[dict[str, Any]], Any],
) -> None:
    """Play a scenario on every way to the server, and compare with the first."""
    seen: dict[str, Any] = {}
    for way, connect in addresses.items():
        with Relay(connect) as relay:
            address = {"host": relay.host, "port": relay.port, "user": "root", "dbname": "defaultdb"}
            told = play(address)
        sessions = [recording for recording in relay.recordings if not recording.is_cancel_request]
        cancels = len(relay.recordings) - len(sessions)
        heard = [heard_by_client(session, way) for session in sessions]
        seen[way] = told, cancels, *map(said_by_client, sessions), *heard
    reference = seen.pop(NO_PROXY)
    assert reference[0]
    for way, found in seen.items():
        assert found[:2] == reference[:2], way
        assert found == reference, way


# --- psycopg 3 ---------------------------------------------------------------------------------------------


def rows_of(cursor: Any) -> Any:
    """Give all results of a cursor: rows, types, tags, and the rows' formats."""
    results = []
    while True:
        types = [(column.name, column.type_code) for column in cursor.description or ()]
        results.append((types, cursor.fetchall() if types else None, cursor.statusmessage, cursor.rowcount))
        if not cursor.nextset():
            return results


class Three:
    """psycopg 3, telling what it does."""

    def __init__(self, connection: psycopg.Connection[Any], onlooker: Onlooker) -> None:
        self.connection = connection
        self.onlooker = onlooker
        self.told = Told(
            lambda: (connection.info.transaction_status.name, connection.closed, connection.broken)
        )
        self.step = self.told.step

    def run(self, text: str, *values: Any, **options: Any) -> None:
        """Run a statement."""
        self.step(lambda: rows_of(self.connection.execute(text, values or None, **options)))

    def libpq(self, call: str, *values: Any, **options: Any) -> None:
        """Send by a call of libpq's own, and wait for the results; its calls that wait would keep the proxy waiting."""
        pgconn = self.connection.pgconn

        def results() -> list[Any]:
            getattr(pgconn, call)(*values, **options)
            return [described(result) for result in self.connection.wait(generators.execute(pgconn))]

        self.step(results)


def simple_protocol(three: Three) -> None:
    """Statements without parameters, several in one text, empty ones, an error amid them."""
    for text in ("SELECT 1", "", ";", "-- nothing", "SELECT 1; SELECT 2 WHERE false; SET work_mem = '5MB'"):
        three.run(text)
    three.run("SELECT 1; SELECT 1/0; SELECT 2")
    three.run("SELECT 3")
    three.step(three.connection.rollback)
    three.connection.autocommit = True
    three.run("INSERT INTO thing VALUES (9, 'nine'); SELECT 1/0")
    three.run("SELECT count(*) FROM thing")
    three.run("BEGIN; SELECT 1; COMMIT; SELECT 2; ROLLBACK")


def transactions(three: Three) -> None:
    """Savepoints, errors, what is refused after them, and constraints that fail at COMMIT."""
    three.run("INSERT INTO thing VALUES (%s, %s)", 1, "again")
    three.run("SELECT 1")
    three.step(three.connection.commit)
    with three.connection.transaction(force_rollback=True):
        three.run("SAVEPOINT one")
        three.run("SELECT FROM nothing")
        three.run("ROLLBACK TO one")
        three.run("RELEASE one")
        three.run("RELEASE one")
        three.run("ROLLBACK TO one")
    three.run("INSERT INTO part VALUES (77)")
    three.step(three.connection.commit)
    three.run("INSERT INTO part VALUES (77)")
    three.run("PREPARE TRANSACTION 'there are none'")
    three.step(three.connection.rollback)
    three.step(lambda: three.connection.tpc_begin("one"))
    three.run("SELECT 1")
    three.step(three.connection.tpc_prepare)
    three.step(three.connection.tpc_rollback)
    three.step(lambda: three.connection.tpc_recover())


def parameters(three: Three) -> None:
    """Values of many types in text and binary format, both ways; errors at every stage of a statement."""
    for binary in (False, True):
        three.run("SELECT %s, %s::text, %s::bytea, %s::int[]", 1, "ü\n", b"\0\xff", [1, None], binary=binary)
        three.run("SELECT %b::int8, %t::numeric", 2**40, 10**30, binary=binary)
        three.run("SELECT * FROM thing WHERE id > %s", 1, binary=binary)
        three.run("UPDATE thing SET data = %s WHERE id = %s RETURNING data", None, 1, binary=binary)
        for wrong in ("SELECT %s::int / 0", "SELECT %s FROM nothing", "SELECT %s +", "SELECT %s::int + 'x'"):
            three.run(wrong, 1, binary=binary)
            three.step(three.connection.rollback)
    three.step(lambda: three.connection.cursor().executemany("SELECT %s", [(1,), (2,)], returning=True))


def prepared_statements(three: Three) -> None:
    """Statements prepared at once, after a while, given up again, and out of date."""
    for number in range(4):
        three.run("SELECT %s::int", number, prepare=True)
    three.connection.prepare_threshold = 2
    three.connection.prepared_max = 2
    for number, kind in itertools.product(range(5), ("int", "text", "float8")):
        three.run(f"SELECT %s::{kind}", str(number))
    three.run("DEALLOCATE ALL")
    three.run("SELECT %s::int", 1, prepare=True)
    three.connection.rollback()
    three.run("DISCARD ALL")
    three.run("SELECT %s::int", 1, prepare=True)
    three.libpq("send_describe_prepared", b"never made")


def pipelines(three: Three) -> None:
    """Many statements in flight, several syncs, errors amid them."""
    three.connection.autocommit = True
    three.connection.prepare_threshold = None  # what is prepared in a pipeline depends on when answers come

    def several_syncs() -> Any:
        with three.connection.pipeline() as pipeline:
            first = [three.connection.execute("SELECT %s::int", (number,)) for number in range(50)]
            pipeline.sync()
            second = three.connection.execute("SELECT 'after the sync'")
            return [cursor.fetchall() for cursor in (*first, second)]

    def error_amid() -> Any:
        with three.connection.pipeline() as pipeline:
            three.connection.execute("INSERT INTO thing VALUES (10)")
            for text in ("SELECT 1/0", "INSERT INTO thing VALUES (11)"):
                with contextlib.suppress(psycopg.Error):  # told by whichever call finds it come
                    three.connection.execute(text)
            with contextlib.suppress(psycopg.Error):
                pipeline.sync()
            return three.connection.execute("SELECT count(*) FROM thing").fetchall()

    def error_in_savepoint() -> Any:
        with three.connection.transaction(force_rollback=True), three.connection.pipeline():
            three.connection.execute("INSERT INTO thing VALUES (12)")
            with contextlib.suppress(psycopg.Error), three.connection.transaction():
                three.connection.execute("SELECT 1/0").fetchall()
            return three.connection.execute("SELECT count(*) FROM thing").fetchall()

    for act in (several_syncs, error_amid, error_in_savepoint):
        three.step(act)  # amid a pipeline the state depends on how many answers have come
        three.run("SELECT count(*) FROM thing")


def cursors(three: Three) -> None:
    """Named cursors, rows one by one and in chunks, large results."""
    with three.connection.cursor("named", scrollable=True) as cursor:
        three.step(lambda: cursor.execute("SELECT generate_series(1, %s)", (1000,)) and None)
        three.step(lambda: (cursor.fetchmany(10), cursor.scroll(100), cursor.fetchone(), cursor.scroll(-5)))
        three.step(cursor.fetchall)
    with three.connection.cursor(row_factory=dict_row) as cursor:
        three.step(lambda: list(cursor.stream("SELECT generate_series(1, %s) AS n", (300,))))
        three.step(lambda: list(cursor.stream("SELECT 1/(%s - n) FROM generate_series(1, 5) n", (3,))))
        three.step(three.connection.rollback)
        if pq.version() >= 170000:
            three.step(lambda: list(cursor.stream("SELECT generate_series(1, 300)", size=50)))
    three.run("SELECT n, repeat('x', 100) FROM generate_series(1, 20000) n")
    three.run("SELECT repeat('x', 3000000), %s", 1)


def copies(three: Three) -> None:
    """COPY in both directions, text and binary, with values put in by psycopg, failing on either side."""

    def copy_in(text: str, *blocks: Any, fail: bool = False) -> None:
        with three.connection.cursor() as cursor, cursor.copy(text) as copy:
            for block in blocks:
                copy.write(block) if isinstance(block, (bytes, str)) else copy.write_row(block)
            if fail:
                raise psycopg.Error("the client has had enough")

    def copy_out(text: str, values: Any = None) -> list[bytes]:
        with three.connection.cursor() as cursor, cursor.copy(text, values) as copy:
            return [bytes(block) for block in copy]

    three.step(
        lambda: copy_in(
            "COPY thing FROM STDIN", "20\ttwenty\t\\N\n21\t", "twenty-one\t\\N\n", (22, "x", b"\0")
        )
    )
    three.step(lambda: copy_in("COPY thing (id, name) FROM STDIN (FORMAT binary)", *binary_rows(30, 40)))
    three.step(lambda: copy_out("COPY (SELECT * FROM thing ORDER BY id) TO STDOUT"))
    three.step(
        lambda: copy_out(
            "COPY (SELECT * FROM thing WHERE id > %s ORDER BY id) TO STDOUT (FORMAT binary)", (20,)
        )
    )
    for block, fail in (("no number\n", False), ("1\tone\t\\N\n", False), ("50\tfifty\t\\N\n", True)):
        three.step(lambda block=block, fail=fail: copy_in("COPY thing FROM STDIN", block, fail=fail))
        three.step(three.connection.rollback)
    three.step(lambda: copy_out("COPY (SELECT 1/(3 - n) FROM generate_series(1, 5) n) TO STDOUT"))
    three.step(three.connection.rollback)


def binary_rows(*numbers: int) -> list[bytes]:
    """Give rows as COPY's binary format has them, a piece each."""
    rows = [struct.pack("!hiii", 2, 4, number, 2) + b"%d" % number for number in numbers]
    return [b"PGCOPY\n\xff\r\n\0" + bytes(8), *rows, b"\xff\xff"]


def notices_and_settings(three: Three) -> None:
    """What a server says unasked: notices, notifications, parameters that have changed."""
    three.connection.autocommit = True
    notices: list[Any] = []
    three.connection.add_notice_handler(lambda notice: notices.append(diagnosis(notice)))
    three.run(
        "DO $$ BEGIN RAISE NOTICE 'one'; RAISE WARNING 'two' USING HINT = 'a hint', ERRCODE = '01234'; END $$"
    )
    three.run("DROP TABLE IF EXISTS nothing")
    three.run("COMMIT")
    three.told.append(notices)
    for setting in (
        "timezone = 'Europe/Madrid'",
        "client_encoding = latin1",
        "search_path = public",
        "datestyle = 'ISO, DMY'",
    ):
        three.run(f"SET {setting}")
        three.run("SELECT %s::timestamptz, 'ü'", "2020-02-02 02:02+00")
    reported = three.connection.info.parameter_status
    three.told.append(
        [reported(name) for name in ("TimeZone", "client_encoding", "DateStyle", "application_name")]
    )
    three.run("LISTEN here")
    three.run("NOTIFY here, 'with a word'")
    three.run("SELECT pg_notify('here', %s)", "x" * 7000)
    heard = three.connection.notifies(timeout=PATIENCE, stop_after=2)
    three.step(lambda: [(notify.channel, notify.payload) for notify in heard])


SLEEPS = "wait_event = 'PgSleep'"
ASLEEP = f"SELECT FROM pg_stat_activity WHERE {SLEEPS}"


def cancellation(three: Three) -> None:
    """A statement that is cancelled by its client, and one by its own timeout."""
    three.connection.pgconn.send_query(b"SELECT pg_sleep(600)")
    assert eventually(lambda: three.onlooker.execute(ASLEEP).rowcount)
    three.connection.cancel_safe(timeout=PATIENCE)
    three.libpq("flush")
    three.step(three.connection.rollback)
    three.run("SET statement_timeout = '10ms'")
    three.run("SELECT pg_sleep(600)")


def end_of_session(three: Three) -> None:
    """A session that the server ends, and a client that goes on all the same."""
    three.run("SELECT pg_terminate_backend(pg_backend_pid())")
    three.run("SELECT 1")


def below_psycopg(three: Three) -> None:
    """Statements by libpq's own calls: descriptions, formats, COPY by the extended protocol."""
    pgconn = three.connection.pgconn
    three.libpq("send_prepare", b"mine", b"SELECT $1::int, * FROM thing ORDER BY id")
    three.libpq("send_describe_prepared", b"mine")
    three.libpq("send_query_prepared", b"mine", [b"4"], result_format=1)
    three.libpq("send_describe_portal", b"")
    three.libpq("send_query", b"BEGIN; DECLARE c CURSOR FOR SELECT 1")
    three.libpq("send_describe_portal", b"c")
    three.libpq("send_query_params", b"SELECT 1; SELECT 2", None)
    three.libpq("send_query", b"ROLLBACK")
    for end in (None, b"not after all"):
        three.libpq("send_query_params", b"COPY thing FROM STDIN", None)
        pgconn.put_copy_data(b"60\tsixty\t\\N\n")
        three.libpq("put_copy_end", end)
    three.libpq("send_query_params", b"COPY thing TO STDOUT", None)
    three.step(lambda: list(copied(three)))
    three.libpq("send_query_params", b"DELETE FROM thing WHERE id = 60", None)


def copied(three: Three) -> Iterator[bytes]:
    """Yield what COPY sends."""
    while isinstance(
        block := three.connection.wait(generators.copy_from(three.connection.pgconn)), memoryview
    ):
        yield bytes(block)


def described(result: Any) -> Any:
    """Give what a result of libpq's tells."""
    columns = range(result.nfields)
    return (
        (result.status, result.error_field(pq.DiagnosticField.SQLSTATE), result.command_status),
        [result.param_type(number) for number in range(result.nparams)],
        [(result.fname(column), result.ftable(column), result.ftype(column)) for column in columns],
        [[result.get_value(row, column) for column in columns] for row in range(result.ntuples)],
    )


THREE = [simple_protocol, transactions, parameters, prepared_statements, pipelines, cursors, copies,
         notices_and_settings, cancellation, end_of_session, below_psycopg]  # fmt: skip


@pytest.mark.parametrize(
    ("scenario", "cursor"),
    [(scenario, psycopg.Cursor) for scenario in THREE]
    + [(scenario, psycopg.ClientCursor) for scenario in (transactions, parameters, pipelines, cursors)],
    ids=lambda part: part.__name__,
)
def test_psycopg_sees_no_difference(
    addresses: dict[str, Any],
    onlooker: Onlooker,
    scenario: Callable[[Three], None],
    cursor: type[psycopg.Cursor[Any]],
) -> None:
    """The driver psycopg 3 tells the same of every proxy as of none, and the bytes are the same."""

    def play(address: dict[str, Any]) -> Told:
        options = {"cursor_factory": cursor, "sslmode": "disable", "gssencmode": "disable"}
        with contextlib.closing(psycopg.connect(**address, **options)) as connection:
            three = Three(connection, onlooker)
            scenario(three)
            return three.told

    run_everywhere(addresses, play)


# --- psycopg2 ----------------------------------------------------------------------------------------------


class Two:
    """psycopg2, telling what it does."""

    def __init__(self, connection: Any, onlooker: Onlooker) -> None:
        self.connection = connection
        self.onlooker = onlooker
        self.cursor = connection.cursor()
        self.told = Told(lambda: (connection.get_transaction_status(), connection.status, connection.closed))
        self.step = self.told.step

    def run(self, text: str, *values: Any) -> None:
        """Run a statement."""

        def outcome() -> Any:
            self.cursor.execute(text, values or None)
            described = self.cursor.description
            return self.cursor.statusmessage, self.cursor.rowcount, described and self.cursor.fetchall()

        self.step(outcome)


def statements_by_two(two: Two) -> None:
    """Statements with and without values, several in one text, large results, errors."""
    for text in ("SELECT 1", ";", "SELECT 1; SELECT 1/0; SELECT 2", "SELECT 3"):
        two.run(text)
    two.step(two.connection.rollback)
    two.run("SELECT %s, %s, %s", "ü", psycopg2.Binary(b"\0\xff"), [1, 2])
    two.run("SELECT n, repeat('x', 100) FROM generate_series(1, 20000) n")
    two.run("INSERT INTO thing VALUES (%s)", 1)
    two.run("SELECT 1")
    two.step(two.connection.commit)
    two.step(lambda: two.cursor.executemany("INSERT INTO part VALUES (%s)", [(77,), (78,)]))
    two.step(two.connection.commit)
    rows = "INSERT INTO thing VALUES %s RETURNING id"
    two.step(lambda: psycopg2.extras.execute_values(two.cursor, rows, [(70,), (71,)], fetch=True))
    two.step(lambda: psycopg2.extras.execute_batch(two.cursor, "SELECT 1/%s", [(1,), (0,), (2,)]))
    two.step(two.connection.rollback)
    two.step(lambda: two.cursor.callproc("pg_sleep", [0]))


def transactions_by_two(two: Two) -> None:
    """Autocommit, isolation levels, savepoints, what is read only, two-phase commit that is not to be had."""
    two.run("SAVEPOINT one")
    two.run("SELECT FROM nothing")
    two.run("ROLLBACK TO one")
    two.step(two.connection.commit)
    two.step(
        lambda: two.connection.set_session(isolation_level="SERIALIZABLE", readonly=True, deferrable=True)
    )
    two.run("DELETE FROM thing")
    two.step(two.connection.rollback)
    two.step(lambda: two.connection.tpc_begin(two.connection.xid(1, "one", "two")))
    two.run("SELECT 1")
    two.step(two.connection.tpc_prepare)
    two.step(two.connection.tpc_rollback)
    two.step(two.connection.reset)
    two.connection.autocommit = True
    two.run("INSERT INTO part VALUES (77)")


def copies_by_two(two: Two) -> None:
    """COPY in both directions, failing on either side."""

    def copy_out(text: str) -> str:
        two.cursor.copy_expert(text, target := io.StringIO())
        return target.getvalue()

    two.step(lambda: two.cursor.copy_expert("COPY thing FROM STDIN", io.StringIO("80\teighty\t\\N\n")))
    two.step(lambda: copy_out("COPY thing TO STDOUT"))
    two.step(lambda: two.cursor.copy_expert("COPY thing FROM STDIN", io.StringIO("no number")))
    two.step(two.connection.rollback)
    two.step(lambda: copy_out("COPY (SELECT 1/(3 - n) FROM generate_series(1, 5) n) TO STDOUT"))
    two.step(two.connection.rollback)
    two.step(lambda: two.cursor.copy_expert("COPY thing FROM STDIN", FailingFile()))
    two.step(two.connection.rollback)


class FailingFile(io.StringIO):
    """A file that cannot be read."""

    def read(self, size: int | None = -1) -> str:
        """Fail."""
        raise KeyError


def unasked_by_two(two: Two) -> None:
    """Notices, notifications, encodings; a statement that is cancelled, and a session that the server ends."""
    two.connection.autocommit = True
    two.run("DO $$ BEGIN RAISE NOTICE 'one'; RAISE WARNING 'two'; END $$")
    two.run("DROP TABLE IF EXISTS nothing")
    two.told.append(list(two.connection.notices))
    two.run("LISTEN here")
    two.run("NOTIFY here, 'with a word'")
    two.connection.poll()
    two.told.append([(notify.channel, notify.payload) for notify in two.connection.notifies])
    two.step(lambda: two.connection.set_client_encoding("LATIN1"))
    two.run("SELECT 'ü'")
    two.told.append(two.connection.get_parameter_status("client_encoding"))
    sleeping = threading.Thread(target=two.run, args=("SELECT pg_sleep(600)",))
    sleeping.start()
    assert eventually(lambda: two.onlooker.execute(ASLEEP).rowcount)
    two.onlooker.execute(f"SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE {SLEEPS}")
    sleeping.join()
    two.run("SELECT pg_terminate_backend(pg_backend_pid())")
    two.run("SELECT 1")


def named_cursors_by_two(two: Two) -> None:
    """Cursors of the server's."""
    cursor = two.connection.cursor("named", scrollable=True)
    two.step(lambda: cursor.execute("SELECT generate_series(1, %s)", (1000,)))
    two.step(lambda: (cursor.fetchmany(10), cursor.scroll(100), cursor.fetchone(), len(cursor.fetchall())))
    two.step(two.connection.commit)
    two.step(cursor.fetchone)
    two.step(cursor.close)


TWO = [statements_by_two, transactions_by_two, copies_by_two, unasked_by_two, named_cursors_by_two]


@pytest.mark.parametrize("scenario", TWO, ids=lambda scenario: scenario.__name__)
def test_psycopg2_sees_no_difference(
    addresses: dict[str, Any], onlooker: Onlooker, scenario: Callable[[Two], None]
) -> None:
    """psycopg2 tells the same of every proxy as of none, and the bytes are the same."""

    def play(address: dict[str, Any]) -> Told:
        connected = psycopg2.connect(**address, sslmode="disable", gssencmode="disable")
        with contextlib.closing(connected) as connection:
            two = Two(connection, onlooker)
            scenario(two)
            return two.told

    run_everywhere(addresses, play)


# --- what no driver says -----------------------------------------------------------------------------------


def value(text: bytes) -> bytes:
    """Give a Bind of the unnamed statement with one value."""
    return message("B", b"\0\0" + struct.pack("!hhi", 0, 1, len(text)) + text + b"\0\0")


SELECT_3 = parse("SELECT generate_series(1, 3)")
COPY_IN = "COPY thing (id) FROM STDIN"
SAID = {
    "portals": [
        (SELECT_3 + bind(portal=b"p") + (message("E", b"p\0\0\0\0\1")) * 5 + SYNC, 1),
        (message("E", b"p\0\0\0\0\1") + SYNC, 1),
    ],
    "portals in a transaction": [
        (query(b"BEGIN") + SELECT_3 + bind(portal=b"p") + message("E", b"p\0\0\0\0\1") + SYNC, 2),
        (execute(b"p") + message("C", b"Pp\0") + execute(b"p") + SYNC + query(b"COMMIT"), 2),
    ],
    "errors amid a batch": [
        (step("SELECT 1") + step("SELECT 1/0") + step("SELECT 2") + SYNC + step("SELECT 3") + SYNC, 2)
    ],
    "a Query amid a batch": [(step("SELECT 1") + query(b"SELECT 2") + step("SELECT 3") + SYNC, 2)],
    "a Query after an error": [(step("SELECT 1/0") + query(b"SELECT 2") + SYNC + query(b"SELECT 3"), 2)],
    "an implicit transaction": [
        (
            step("INSERT INTO thing VALUES (90)")
            + step("SELECT 1/0")
            + SYNC
            + query(b"SELECT count(*) FROM thing"),
            2,
        )
    ],
    "closing and describing": [
        (parse("SELECT $1::int", b"s") + message("D", b"Ss\0") + message("C", b"Ss\0") * 2 + SYNC, 1),
        (message("D", b"Ss\0") + SYNC + message("D", b"Pno\0") + SYNC + message("D", b"?\0") + SYNC, 3),
    ],
    "wrong values": [(parse("SELECT $1::int") + value(b"1") + execute() + value(b"x") + execute() + SYNC, 1)],
    "an empty batch": [(SYNC * 3 + step("") + SYNC + message("H", b"") + SYNC, 5)],
    "function calls": [
        (message("F", struct.pack("!ihhhiih", 1397, 1, 1, 1, 4, -5, 1)), 1),  # int4abs
        (message("F", struct.pack("!ihhhh", 4711, 0, 0, 0, 0)), 1),
    ],
    "COPY with a Sync amid it": [
        (
            query(COPY_IN.encode())
            + message("d", b"91\n")
            + SYNC
            + message("H", b"")
            + message("f", b"no\0"),
            1,
        ),
        (query(b"SELECT 1"), 1),
    ],
    "COPY by the extended protocol": [
        (step(COPY_IN) + SYNC + message("d", b"92\n") + message("f", b"no\0") + SYNC, 1),
        (step(COPY_IN) + SYNC + message("d", b"x\n") + message("c", b"") + SYNC, 1),
        (step("COPY thing TO STDOUT") + SYNC, 1),
        (step("SELECT 1") + SYNC, 1),
    ],
    "COPY left for a statement": [(query(COPY_IN.encode()) + message("d", b"93\n") + query(b"SELECT 1"), 1)],
    "texts without an end": [
        (message("Q", b"SELECT 12"), 1),
        (message("P", b"\0SELECT 1") + SYNC + message("B", b"x") + SYNC + message("E", b"") + SYNC, 3),
        (message("Q", b""), 1),
        (message("Q", b"SELECT 1\0more\0"), 1),
        (query(b"SELECT '\xff'") + query(b"SELECT 1"), 2),
    ],
    "an unknown message": [(message("y", b"?"), 1)],
    "goodbye": [(message("X", b""), 1)],
    "goodbye amid a batch": [(step("SELECT 1") + message("X", b""), 1)],
}


@pytest.mark.parametrize("conversation", SAID)
def test_the_wire_sees_no_difference(addresses: dict[str, Any], conversation: str) -> None:
    """What the protocol allows and no driver says, and what it does not allow, is answered as without a proxy."""

    def play(address: dict[str, Any]) -> list[str]:
        with WireClient.connected(SimpleNamespace(**address)) as client:
            told = []
            for said, ready in SAID[conversation]:
                client.send(said)
                told.append(client.hear(ready=ready))
            return told

    run_everywhere(addresses, play)
