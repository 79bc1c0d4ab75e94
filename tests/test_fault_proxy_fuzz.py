# SPDX-License-Identifier: Apache-2.0
"""Nothing brings the fault proxy down: nonsense from either side, peers that vanish, crowds, huge messages.

After each test nothing is left of it, in the proxy, on the server or in this process, and the proxy serves.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import hashlib
import itertools
import logging
import os
import resource
import socket
import struct
import threading
import tracemalloc
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from otel_crdb.testing import FaultProxy, Server, faults, frames, server
from otel_crdb.testing.frames import READ_SIZE, Frame, FrameReader, message, query
from otel_crdb.testing.wire import CANCEL_REQUEST, GSSENC_REQUEST, SSL_REQUEST, STARTUP_LIMIT
from otel_crdb.testing.wire_log import CONTROL_REQUEST

from .wire_client import PATIENCE, SYNC, Onlooker, WireClient, eventually, execute, parse, step

if TYPE_CHECKING:
    from collections.abc import Iterator

    from typing_extensions import Self

MEGABYTE = 1024 * 1024
FILES = Path("/proc/self/fd")
PROTOCOL_3 = 3 << 16
ROWS = "SELECT repeat('x', 10000) FROM generate_series(1, 10000)"  # 100 MB: more than buffers hold

pytestmark = pytest.mark.skipif(
    os.environ.get("OTEL_CRDB_TEST_DRIVER") == "psycopg2", reason="nothing of Django's: the same on both runs"
)

fuzzed = settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


@pytest.fixture(scope="module")
def behind() -> Iterator[Server]:
    """Give an embedded server."""
    with server("embedded") as running:
        yield running


@pytest.fixture(scope="module")
def onlooker(behind: Server) -> Iterator[Onlooker]:
    """Give a connection past the proxies."""
    looking = Onlooker(behind)
    with looking.connection:
        yield looking


@pytest.fixture(scope="module")
def proxy(behind: Server) -> Iterator[FaultProxy]:
    """Give a fault proxy before it."""
    with FaultProxy(behind) as running:
        yield running


def open_files() -> int:
    """Count what this process has open, where it can be counted."""
    return len(list(FILES.iterdir())) if FILES.exists() else 0


def tasks_of(proxy: FaultProxy) -> int:
    """Count what is under way in the proxy's loop."""

    async def count() -> int:
        return len(asyncio.all_tasks()) - 1

    return asyncio.run_coroutine_threadsafe(count(), proxy._loop).result(PATIENCE)


def sessions_of(onlooker: Onlooker) -> int:
    """Count the server's sessions but the onlooker's own."""
    row = onlooker.execute(
        "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
    ).fetchone()
    return int(row[0])


@contextlib.contextmanager
def no_complaints() -> Iterator[None]:
    """Have the log empty at the end: asyncio tells there of tasks that failed, and the proxy of its own faults."""
    told: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: told.append(handler.format(record))
    logging.getLogger().addHandler(handler)
    try:
        yield
        gc.collect()
    finally:
        logging.getLogger().removeHandler(handler)
    assert told == []


@contextlib.contextmanager
def nothing_left(proxy: FaultProxy, onlooker: Onlooker | None = None) -> Iterator[None]:
    """Demand that all is gone at the end of the block."""
    before = open_files()
    with no_complaints():
        yield
        assert eventually(lambda: proxy.wire_log().open_sessions == 0)
        assert eventually(lambda: tasks_of(proxy) == 0)
        assert proxy._node.serving == set()
        assert proxy._node._server_keys == {}
        assert proxy._node._by_key == {}
        assert onlooker is None or eventually(lambda: sessions_of(onlooker) == 0)
        assert eventually(lambda: open_files() <= before)


@pytest.fixture(autouse=True)
def unharmed(proxy: FaultProxy, onlooker: Onlooker) -> Iterator[None]:
    """After every test nothing is left, and the proxy serves."""
    with nothing_left(proxy, onlooker):
        yield
        proxy.clear()
        with WireClient.connected(proxy) as client:
            assert client.extended("SELECT 1") == "1 2 T D SELECT 1 Z(I)"


# --- nonsense from clients ---------------------------------------------------------------------------------


def packet(length: int, code: int, body: bytes = b"") -> bytes:
    """Give a message without a type byte, as long as it says or not."""
    return struct.pack("!II", length, code) + body


def heard_to_the_end(link: socket.socket) -> bytes:
    """Say no more, and give all that is heard until the connection ends."""
    heard = bytearray()
    with contextlib.suppress(OSError):  # it may be reset already
        link.shutdown(socket.SHUT_WR)
    with contextlib.suppress(ConnectionError):
        while more := link.recv(READ_SIZE):
            heard += more
    return bytes(heard)


def ends(proxy: FaultProxy, *pieces: bytes) -> bytes:
    """Send this on a new connection, and no more; give all that is heard until the connection ends."""
    with socket.create_connection((proxy.host, proxy.port), PATIENCE) as link:
        with contextlib.suppress(ConnectionError):
            for piece in pieces:
                link.sendall(piece)
        return heard_to_the_end(link)


STARTS = [
    *(packet(length, PROTOCOL_3, bytes(40)) for length in (*range(12), STARTUP_LIMIT, 10_001, 1 << 31, 2**32 - 1)),
    *(packet(8, code) for code in (0, 1 << 16, 2 << 16, PROTOCOL_3, PROTOCOL_3 + 2, 4 << 16, 2**32 - 1)),
    *(packet(8 + len(key), CANCEL_REQUEST, key) for key in (b"", b"\0", bytes(8), bytes(256))),
    *(packet(8 + len(body), CONTROL_REQUEST, body) for body in (b"", b"{", b"[]", b"null", b"\xff", b'{"clear": 1}')),
    packet(12, PROTOCOL_3, b"user"),
    packet(17, PROTOCOL_3, b"user\0root"),
    packet(20, PROTOCOL_3, b"user\0nobody\0"),
    packet(SSL_REQUEST, SSL_REQUEST),
    *(packet(8, PROTOCOL_3)[:cut] for cut in range(8)),
    b"GET / HTTP/1.1\r\n\r\n",
]  # fmt: skip


@pytest.mark.parametrize("start", STARTS, ids=lambda start: start[:12].hex())
def test_a_start_that_is_none_ends_its_own_connection(proxy: FaultProxy, start: bytes) -> None:
    """Whatever the first packet says, its connection ends."""
    ends(proxy, start)


@fuzzed
@given(st.lists(st.binary(max_size=60), max_size=3))
def test_any_bytes_at_the_start_end_the_connection(proxy: FaultProxy, pieces: list[bytes]) -> None:
    """Whatever bytes come first, their connection ends."""
    ends(proxy, *pieces)


def test_encryption_is_refused_as_often_as_it_is_asked_for(proxy: FaultProxy) -> None:
    """Requests for TLS and GSS are answered by N, each, and then the session starts."""
    asked = [packet(8, code) for code in (SSL_REQUEST, GSSENC_REQUEST)] * 200
    body = b"user\0root\0database\0defaultdb\0\0"
    heard = ends(proxy, *asked, packet(8 + len(body), PROTOCOL_3, body), message("X", b""))
    assert heard[:400] == b"N" * 400


NAMES = st.sampled_from([b"", b"a", b"b", b"cursor"])
TEXTS = st.sampled_from(
    [
        *(
            "",
            ";",
            "BEGIN",
            "COMMIT",
            "ROLLBACK",
            "SAVEPOINT s",
            "ROLLBACK TO s",
            "RELEASE s",
            "COMMIT; BEGIN",
        ),
        *("SAVEPOINT cockroach_restart", "RELEASE cockroach_restart", "ROLLBACK TO cockroach_restart"),
        *(
            "SELECT 1",
            "SELECT 1/0",
            "SELECT FROM nothing",
            "SELECT 1; SELECT 1/0; SELECT 2",
            "SELECT $1",
            "SET a",
        ),
        *(
            "CREATE TEMPORARY TABLE IF NOT EXISTS t (a text)",
            "COPY t FROM STDIN",
            "COPY t TO STDOUT",
            "\xff'",
        ),
    ]
).map(lambda text: text.encode("latin-1"))
NO_VALUES = b"\0\0" * 3
MESSAGES = st.one_of(
    TEXTS.map(query),
    st.builds(lambda name, text: message("P", name + b"\0" + text + b"\0\0\0"), NAMES, TEXTS),
    st.builds(lambda one, other: message("B", one + b"\0" + other + b"\0" + NO_VALUES), NAMES, NAMES),
    st.builds(lambda kind, of, name: message(kind, of + name + b"\0"), st.sampled_from("DC"),
              st.sampled_from([b"S", b"P", b"?"]), NAMES),
    st.builds(lambda name, rows: message("E", name + b"\0" + struct.pack("!I", rows)), NAMES, st.integers(0, 1)),
    st.sampled_from("SHc").map(lambda kind: message(kind, b"")),
    st.sampled_from([message("d", b"x\n"), message("f", b"no\0"), message("F", bytes(12)), message("p", b"x\0")]),
)  # fmt: skip
LENGTHS = st.sampled_from([0, 1, 2, 3, 4, 5, 10_000, 1 << 20, 1 << 30, 1 << 31, 2**32 - 1])
WRONG = st.one_of(
    st.builds(lambda whole, cut: whole[: cut % len(whole)], MESSAGES, st.integers(0, 99)),
    st.builds(lambda whole, length: whole[:1] + struct.pack("!I", length) + whole[5:], MESSAGES, LENGTHS),
    st.builds(
        lambda kind, body: bytes([kind]) + message("Q", body)[1:], st.integers(0, 255), st.binary(max_size=12)
    ),
    st.binary(max_size=12),
)
RULES = [
    "serialization_failure.injected",
    "ambiguous_commit.propagate.applied",
    "lost_commit",
    "server_closed",
]


@settings(fuzzed, max_examples=200)
@given(
    messages=st.lists(st.one_of(MESSAGES, MESSAGES, MESSAGES, WRONG), max_size=12),
    rule=st.one_of(st.none(), st.sampled_from(RULES)),
    seed=st.integers(0, 9),
    cut=st.integers(0, 400),
)
@example(messages=[message("P", b"abc"), SYNC], rule=None, seed=0, cut=0)
@example(messages=[message("B", b"abc"), SYNC], rule=None, seed=0, cut=0)
@example(messages=[message("E", b""), message("E", b"a"), SYNC], rule=RULES[0], seed=0, cut=0)
@example(messages=[message("Q", b""), message("Q", b"SELECT 1")], rule=RULES[0], seed=0, cut=0)
def test_any_messages_end_with_the_connection(
    proxy: FaultProxy, messages: list[bytes], rule: str | None, seed: int, cut: int
) -> None:
    """Whatever is said in whatever pieces, with or without a fault: the connection ends when the client ends it."""
    if rule is not None:
        proxy.inject(rule, times=None, probability=0.3, seed=seed)
    said = b"".join(messages)
    with WireClient.connected(proxy) as client:
        with contextlib.suppress(ConnectionError):
            client.send(said[:cut])
            client.send(said[cut:])
        heard_to_the_end(client._socket)
    proxy.clear()


def test_a_claim_costs_nothing(proxy: FaultProxy) -> None:
    """A gigabyte that is announced and does not come takes no memory, whatever message announces it."""
    with contextlib.ExitStack() as clients, peak_below(16 * MEGABYTE):
        for kind in "QPBEdDFxy":
            client = clients.enter_context(WireClient.connected(proxy))
            client.send(kind.encode() + struct.pack("!I", 1 << 30 - 1) + b"SELECT 1\0" * 30_000)
        assert eventually(lambda: tasks_of(proxy) > 0)
        with WireClient.connected(proxy) as client:
            assert client.query("SELECT 1") == "T D SELECT 1 Z(I)"


# --- nonsense from servers ---------------------------------------------------------------------------------


class FakeServer:
    """A server that says what it was told to whoever connects, and goes."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"postgresql://root@127.0.0.1:{self._listener.getsockname()[1]}/defaultdb"
        self.says: list[bytes] = []
        self.resets = False
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):  # the listener is shut down
            while True:
                link, _ = self._listener.accept()
                with link, contextlib.suppress(ConnectionError):
                    link.recv(READ_SIZE)
                    for piece in self.says:
                        link.sendall(piece)
                    if self.resets:
                        link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@pytest.fixture(scope="module")
def fake() -> Iterator[FakeServer]:
    """Give a server that talks nonsense."""
    with FakeServer() as running:
        yield running


@pytest.fixture(scope="module")
def before_fake(fake: FakeServer) -> Iterator[FaultProxy]:
    """Give a fault proxy before it."""
    with FaultProxy(f"{fake.url}?sslmode=disable") as running:
        yield running


GREETING = [
    message("R", bytes(4)),
    message("S", b"server_version\x0018\0"),
    message("K", bytes(8)),
    message("Z", b"I"),
]
OF_SERVERS = st.one_of(
    st.sampled_from([message("Z", status) for status in (b"I", b"T", b"E", b"", b"?", b"II")]),
    st.sampled_from([message("C", tag) for tag in (b"SELECT 1\0", b"COMMIT\0", b"ROLLBACK\0", b"", b"\xff")]),
    st.sampled_from([message("E", body) for body in (b"", b"\0", b"C40001\0M?\0\0", b"C", b"C25P02\0\0")]),
    st.sampled_from(
        [message("S", body) for body in (b"", b"a", b"a\0b\0", b"crdb_version\0v\0", b"\xff\0\xff\0")]
    ),
    st.sampled_from([message("K", body) for body in (b"", bytes(8), bytes(256))]),
    st.builds(message, st.sampled_from("123ADGHINRTVWcdnstv"), st.binary(max_size=8)),
)
WRONG_OF_SERVERS = st.one_of(
    st.builds(lambda whole, cut: whole[: cut % len(whole)], OF_SERVERS, st.integers(0, 99)),
    st.builds(lambda whole, length: whole[:1] + struct.pack("!I", length) + whole[5:], OF_SERVERS, LENGTHS),
    st.binary(max_size=12),
)


@fuzzed
@given(
    greeting=st.sampled_from([[], GREETING[:1], GREETING[:2], GREETING]),
    says=st.lists(st.one_of(OF_SERVERS, OF_SERVERS, WRONG_OF_SERVERS), max_size=12),
    resets=st.booleans(),
    rule=st.one_of(st.none(), st.sampled_from(RULES)),
)
@example(greeting=GREETING, says=[message("Z", b"")], resets=False, rule=None)
@example(greeting=GREETING[:1], says=[message("S", b"server_version")], resets=False, rule=None)
def test_any_answer_ends_with_the_connection(
    fake: FakeServer,
    before_fake: FaultProxy,
    greeting: list[bytes],
    says: list[bytes],
    resets: bool,
    rule: str | None,
) -> None:
    """Whatever a server says before it goes: the client's connection ends too."""
    fake.says, fake.resets = [*greeting, *says], resets
    if rule is not None:
        before_fake.inject(rule, times=None, probability=0.5)
    with WireClient(before_fake) as client, contextlib.suppress(ConnectionError):
        client.send(query(b"BEGIN"), step("SELECT 1"), SYNC, query(b"COMMIT"))
        while client._socket.recv(READ_SIZE):
            pass
    before_fake.clear()


def test_nothing_is_left_of_servers_that_talk_nonsense(before_fake: FaultProxy) -> None:
    """After all that nothing is left of it."""
    with nothing_left(before_fake):
        pass


@pytest.mark.parametrize("answer", [b"", b"S", b"N", b"X", b"S" + bytes(100)], ids=repr)
@pytest.mark.parametrize("mode", ["prefer", "require"])
def test_tls_that_does_not_come_about_ends_the_connection(fake: FakeServer, answer: bytes, mode: str) -> None:
    """A server that answers the request for TLS by nonsense, or goes, leaves nothing behind."""
    fake.says, fake.resets = [answer], False
    files = open_files()
    with FaultProxy(f"{fake.url}?sslmode={mode}") as proxy:
        with nothing_left(proxy), WireClient(proxy) as client:
            assert client.greet().split()[-1] in ("FIN", "RST")
    assert open_files() <= files


def test_a_server_that_is_not_there_ends_the_connection() -> None:
    """Where nobody listens upstream, clients are closed, and asked again the same happens."""
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    with FaultProxy(f"postgresql://root@127.0.0.1:{port}/defaultdb") as proxy:
        with nothing_left(proxy):
            for _ in range(3):
                with WireClient(proxy) as client:
                    assert client.greet() == "08001 FIN"


# --- cutting messages --------------------------------------------------------------------------------------

PIECE = 64


@fuzzed
@given(
    sizes=st.lists(
        st.tuples(st.sampled_from("QPBDd"), st.integers(0, 3 * PIECE), st.booleans()), max_size=12
    ),
    cuts=st.lists(st.integers(1, 4 * PIECE), min_size=1),
)
def test_whatever_is_cut_or_joined_the_stream_is_the_same(
    sizes: list[tuple[str, int, bool]], cuts: list[int]
) -> None:
    """Messages in pieces or in runs: joined they are the stream, counted right, and whole where they have to be."""
    sent = [message(kind, (b"\0\0" if named else b"..") + bytes([46]) * size) for kind, size, named in sizes]
    stream = b"".join(sent)

    async def read_all() -> list[Frame]:
        source = asyncio.StreamReader()
        reader, found = FrameReader(source, in_runs="Dd"), []

        async def feed() -> None:
            at = 0
            for cut in itertools.cycle(cuts):
                source.feed_data(stream[at : at + cut])
                at += cut
                await asyncio.sleep(0)  # let the reader have it
                if at >= len(stream):
                    break
            source.feed_eof()

        feeding = asyncio.ensure_future(feed())
        while more := await reader.read():
            found += more
        await feeding
        assert not reader.amid
        return found

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(frames, "READ_SIZE", PIECE)
        found = asyncio.run(read_all())
    assert b"".join(frame.data for frame in found) == stream
    assert sum(frame.begins for frame in found) == len(sent)
    assert [frame.data for frame in found if frame.kind in "QP"] == [
        each for each in sent if each[0] in b"QP"
    ]
    for frame in found:
        assert frame.rest or frame.kind != "B" or frame.data.count(b"\0", 5) >= 2 or frame.data in sent


# --- huge messages -----------------------------------------------------------------------------------------


@contextlib.contextmanager
def peak_below(limit: int) -> Iterator[None]:
    """Demand that no more memory was in use at any time, by Python's count."""
    gc.collect()
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < limit, f"{peak / MEGABYTE:.1f} MB"


VAST = 64 * MEGABYTE


@pytest.fixture(scope="module")
def vast(onlooker: Onlooker) -> Iterator[str]:
    """Give the SHA-256 of 64 MB of text, which are the one row of a table."""
    onlooker.execute("CREATE TABLE vast (text text STORAGE EXTERNAL)")
    onlooker.execute(
        f"INSERT INTO vast SELECT string_agg(md5(i::text), '') FROM generate_series(1, {VAST // 32}) AS i"
    )
    yield digest_in(onlooker, "vast")
    onlooker.execute("DROP TABLE vast")


def digest_in(onlooker: Onlooker, table: str) -> str:
    """Give the SHA-256 of the one text in a table, by the server's own reckoning."""
    row = onlooker.execute(f"SELECT encode(sha256(convert_to(text, 'UTF8')), 'hex') FROM {table}").fetchone()
    return str(row[0])


def hear_digest(client: WireClient, kind: str, skipped: int) -> str:
    """Hear all up to ReadyForQuery; give the SHA-256 of the 64 MB that stand so far within a message of that kind."""
    digest = hashlib.sha256()
    while (head := client._answers.read(5))[:1] != b"Z":
        left = int.from_bytes(head[1:], "big") - 4
        wanted = VAST if head[:1] == kind.encode() else 0
        if wanted:
            left -= len(client._answers.read(skipped))
        while left:
            block = client._answers.read(min(left, 65_536))
            left -= len(block)
            digest.update(block[:wanted])
            wanted -= min(wanted, len(block))
    client._answers.read(1)
    return digest.hexdigest()


def send_vast(client: WireClient, kind: str, before: bytes, after: bytes) -> str:
    """Send a message with 64 MB between two parts, block by block; give the SHA-256 of what is between."""
    client.send(kind.encode() + struct.pack("!I", 4 + len(before) + VAST + len(after)) + before)
    digest = hashlib.sha256()
    for number in range(VAST // 65_536):
        block = hashlib.sha256(b"%d" % number).hexdigest().encode() * 1024
        digest.update(block)
        client.send(block)
    client.send(after)
    return digest.hexdigest()


@pytest.mark.parametrize(
    ("asked", "kind", "skipped"),
    [
        (query(b"SELECT text FROM vast"), "D", 6),
        (step("SELECT text FROM vast") + SYNC, "D", 6),
        (query(b"COPY vast TO STDOUT"), "d", 0),
        (step("COPY vast TO STDOUT") + SYNC, "d", 0),
    ],
    ids=["row, simple", "row, extended", "COPY, simple", "COPY, extended"],
)
def test_a_vast_answer_passes_in_pieces(
    proxy: FaultProxy, onlooker: Onlooker, vast: str, asked: bytes, kind: str, skipped: int
) -> None:
    """64 MB in one message come byte for byte, and the proxy holds a few pieces of them at most, read or not."""
    with WireClient.connected(proxy) as client:
        with peak_below(8 * MEGABYTE):
            client.send(asked)
            assert eventually(lambda: onlooker_sees(onlooker, "ClientWrite"))  # nothing more fits in between
            assert hear_digest(client, kind, skipped) == vast
        assert client.query("SELECT 1") == "T D SELECT 1 Z(I)"


def onlooker_sees(onlooker: Onlooker, event: str) -> bool:
    """Tell whether a session of the server waits for that."""
    return bool(
        onlooker.execute(
            f"SELECT FROM pg_stat_activity WHERE wait_event = '{event}' AND pid <> pg_backend_pid()"
        ).rowcount
    )


@pytest.mark.parametrize("protocol", ["simple", "extended"])
def test_vast_copy_data_passes_in_pieces(proxy: FaultProxy, onlooker: Onlooker, protocol: str) -> None:
    """64 MB in one CopyData reach the server byte for byte, and the proxy holds a few pieces at most."""
    with WireClient.connected(proxy) as client:
        assert client.query("DROP TABLE IF EXISTS taken") in ("DROP TABLE Z(I)", "N DROP TABLE Z(I)")
        assert client.query("CREATE TABLE taken (text text)") == "CREATE TABLE Z(I)"
        with peak_below(8 * MEGABYTE):
            copy = "COPY taken FROM STDIN"
            client.send(query(copy.encode()) if protocol == "simple" else step(copy) + SYNC)
            while client.word() != "G":
                pass
            digest = send_vast(client, "d", b"", b"\n")
            client.send(message("c", b""), *([] if protocol == "simple" else [SYNC]))
            assert client.hear() == "COPY 1 Z(I)"
        assert digest_in(onlooker, "taken") == digest
        proxy.inject(
            "serialization_failure.injected", matching="SELECT"
        )  # it knows what it waits for after COPY
        assert client.run("SELECT 1", protocol) == ("40001 Z(I)" if protocol == "simple" else "T 40001 Z(I)")
        assert client.query("DROP TABLE taken") == "DROP TABLE Z(I)"


def test_a_vast_parameter_passes_in_pieces(proxy: FaultProxy) -> None:
    """64 MB in one Bind reach the server byte for byte as one message, and what follows is struck as ever."""
    proxy.inject("serialization_failure.injected", matching="pg_sleep")
    with WireClient.connected(proxy) as client:
        assert client.query("BEGIN") == "BEGIN Z(T)"
        proxy.wire_log(clear=True)
        with peak_below(8 * MEGABYTE):
            client.send(parse("SELECT encode(sha256(convert_to($1::text, 'UTF8')), 'hex')"))
            one_value = b"\0\0" + b"\0\0" + b"\0\1" + struct.pack("!I", VAST)
            digest = send_vast(client, "B", one_value, b"\0\0")
            client.send(execute(), SYNC)
            assert client.hear() == "1 2 T D SELECT 1 Z(T)"
        assert client.rows[-1] == [digest]
        assert proxy.wire_log().to_server["Bind"] == 1
        assert client.extended("SELECT pg_sleep(0)") == "1 2 T 40001 Z(E)"


def test_a_vast_parameter_after_an_error_is_skipped_whole(proxy: FaultProxy) -> None:
    """After a fault that let its statement take effect, a Bind of 64 MB is skipped up to the Sync."""
    proxy.inject("ambiguous_commit.propagate.applied", on="statement")
    with WireClient.connected(proxy) as client, peak_below(8 * MEGABYTE):
        client.send(step("SELECT 1"), parse("SELECT $1::text"))
        send_vast(client, "B", b"\0\0" + b"\0\0" + b"\0\1" + struct.pack("!I", VAST), b"\0\0")
        client.send(execute(), SYNC)
        assert client.hear() == "1 2 T 40003 Z(I)"
        assert client.extended("SELECT 2") == "1 2 T D SELECT 1 Z(I)"
        assert client.rows[-1] == ["2"]


@pytest.mark.parametrize("protocol", ["simple", "extended"])
def test_a_statement_of_20_megabytes_passes_and_is_looked_through(proxy: FaultProxy, protocol: str) -> None:
    """A long text reaches the server as it is, and a rule finds what stands at its end."""
    literal = os.urandom(10 * MEGABYTE).hex()
    with WireClient.connected(proxy) as client:
        text = f"SELECT encode(sha256('{literal}'), 'hex') /* to the end */"
        with peak_below(200 * MEGABYTE):
            client.run(text, protocol)
        assert client.rows[-1] == [hashlib.sha256(literal.encode()).hexdigest()]
        proxy.inject("serialization_failure.injected", matching=r"to the end \*/\Z")
        assert "40001" in client.run(text, protocol)


def test_a_drain_never_speaks_within_a_message(proxy: FaultProxy, onlooker: Onlooker, vast: str) -> None:
    """A session that drain ends amid a long row hears nothing of it that could pass for the row."""
    with WireClient.connected(proxy) as client:
        client.send(query(b"SELECT text FROM vast"))
        client._socket.recv(50, socket.MSG_PEEK | socket.MSG_WAITALL)  # the row has begun to come
        assert eventually(lambda: onlooker_sees(onlooker, "ClientWrite"))
        with proxy.inject(faults.drain().after(0)):
            heard = bytearray()
            with contextlib.suppress(ConnectionError):
                while block := client._socket.recv(READ_SIZE):
                    heard += block
        row = heard[heard.index(b"D") + 11 :][:VAST]
        assert set(row) <= set(b"0123456789abcdef")


# --- peers that vanish -------------------------------------------------------------------------------------


class Silent(WireClient):
    """A client that does not begin by itself."""

    def send_start(self, code: int, body: bytes = b"") -> None:
        """Leave the beginning to the test."""


Stage = "Callable[[FaultProxy, Onlooker], WireClient]"


def said(*messages: bytes, heard: str = "") -> Stage:
    """Give the stage at which a client has said this and heard that."""

    def stage(proxy: FaultProxy, _: Onlooker) -> WireClient:
        client = WireClient.connected(proxy)
        client.send(*messages)
        while heard and client.word() != heard:
            pass
        return client

    return stage


def said_first(*pieces: bytes) -> Stage:
    """Give the stage at which a client has said just this."""

    def stage(proxy: FaultProxy, _: Onlooker) -> WireClient:
        client = Silent(proxy)
        client.send(*pieces)
        return client

    return stage


def server_waits(event: str, *messages: bytes) -> Stage:
    """Give the stage at which a client has said this and the server waits for that."""

    def stage(proxy: FaultProxy, onlooker: Onlooker) -> WireClient:
        client = said(*messages)(proxy, onlooker)
        assert eventually(lambda: onlooker_sees(onlooker, event))
        return client

    return stage


def delayed(proxy: FaultProxy, _: Onlooker) -> WireClient:
    """A statement of the client's is under way for long, by a fault's doing."""
    proxy.inject(faults.slow_statement(600))
    client = WireClient.connected(proxy)
    client.send(query(b"SELECT 1"))
    assert eventually(lambda: all(session.waits is None for session in proxy._node.serving))
    return client


def delayed_at_connect(proxy: FaultProxy, _: Onlooker) -> WireClient:
    """The client's connection is to be refused after long."""
    rule = proxy.inject(faults.too_many_clients().after(600))
    client = WireClient(proxy)
    assert eventually(lambda: rule.hits)
    return client


def partitioned(proxy: FaultProxy, _: Onlooker) -> WireClient:
    """A partition keeps a statement from the server."""
    client = WireClient.connected(proxy)
    proxy.inject("partition")
    client.send(query(b"SELECT 1"))
    return client


def partitioned_at_connect(proxy: FaultProxy, _: Onlooker) -> WireClient:
    """A partition keeps the client from its start."""
    proxy.inject("partition")
    return WireClient(proxy)


def half_open(proxy: FaultProxy, _: Onlooker) -> WireClient:
    """Nothing will be heard again."""
    client = WireClient.connected(proxy)
    proxy.inject("half_open")
    client.send(query(b"SELECT 1"))
    return client


def told_goodbye(proxy: FaultProxy, _: Onlooker) -> WireClient:
    """The server has said goodbye, and the client has not moved since."""
    proxy.inject("shutting_down")
    client = WireClient(proxy)
    assert client.greet().endswith("Z(I)")
    assert client.hear() == "57P01 FIN"
    return client


START = b"user\0root\0database\0defaultdb\0\0"
COPY_IN = query(b"CREATE TEMPORARY TABLE t (a text)") + query(b"COPY t FROM STDIN")
STAGES = {
    "silent": said_first(),
    "amid the start": said_first(packet(8 + len(START), PROTOCOL_3, START)[:11]),
    "start said": said_first(packet(8 + len(START), PROTOCOL_3, START)),
    "asked for encryption": said_first(packet(8, SSL_REQUEST)),
    "amid a cancel request": said_first(packet(16, CANCEL_REQUEST)),
    "idle": said(),
    "amid a message": said(query(b"SELECT 1")[:7]),
    "in a transaction": said(query(b"BEGIN"), heard="Z(T)"),
    "statement under way": server_waits("PgSleep", query(b"SELECT pg_sleep(600)")),
    "statement under way, more said": server_waits("PgSleep", query(b"SELECT pg_sleep(600)"), step("SELECT 1") * 100),
    "statement under way, much said": server_waits("PgSleep", query(b"SELECT pg_sleep(600)"), SYNC * 200_000),
    "amid an answer": server_waits("ClientWrite", query(ROWS.encode())),
    "amid a pipeline": said(step("SELECT 1") * 1000),
    "amid a pipeline's answers": server_waits("ClientWrite", (step("SELECT repeat('x', 9999)") + SYNC) * 3000),
    "COPY in": said(COPY_IN, heard="G"),
    "COPY in, amid a message": said(COPY_IN, b"d" + struct.pack("!I", 1 << 29), bytes(MEGABYTE), heard="G"),
    "COPY out": server_waits("ClientWrite", query(f"COPY ({ROWS}) TO STDOUT".encode())),
    "delayed": delayed,
    "delayed at connect": delayed_at_connect,
    "partitioned": partitioned,
    "partitioned at connect": partitioned_at_connect,
    "half open": half_open,
    "told goodbye": told_goodbye,
}  # fmt: skip
each_stage = pytest.mark.parametrize("stage", STAGES.values(), ids=STAGES)


@each_stage
@pytest.mark.parametrize("how", ["close", "vanish"])
def test_clients_that_go_leave_nothing(proxy: FaultProxy, onlooker: Onlooker, stage: Stage, how: str) -> None:
    """A client that goes, with or without a reset, at whatever point, leaves nothing behind."""
    getattr(stage(proxy, onlooker), how)()


@each_stage
def test_stop_ends_everything(behind: Server, onlooker: Onlooker, stage: Stage) -> None:
    """Whatever its clients are at, a proxy that stops leaves no thread and no file, and they hear the end."""
    files, threads = open_files(), threading.active_count()
    with no_complaints():
        with FaultProxy(behind) as other:
            client = stage(other, onlooker)
        assert threading.active_count() == threads
        with client, contextlib.suppress(ConnectionError):
            while client._socket.recv(READ_SIZE):
                pass
        assert eventually(lambda: sessions_of(onlooker) == 0)
        del client, other
    assert open_files() == files


END_SESSIONS = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"


@pytest.mark.parametrize("stage", ["idle", "in a transaction", "statement under way", "COPY in", "delayed"])
def test_servers_that_go_are_told_of(proxy: FaultProxy, onlooker: Onlooker, stage: str) -> None:
    """Where the server ends a session, its client hears the server's last words and the end."""
    with STAGES[stage](proxy, onlooker) as client:
        onlooker.execute(END_SESSIONS)
        assert client.hear().endswith("57P01 FIN")


@pytest.mark.parametrize("stage", ["amid an answer", "amid a pipeline's answers", "COPY out"])
def test_servers_that_go_amid_an_answer_are_told_of(
    proxy: FaultProxy, onlooker: Onlooker, stage: str
) -> None:
    """Where a server goes that its client does not listen to, the client finds the end when it does."""
    with STAGES[stage](proxy, onlooker) as client:
        onlooker.execute(END_SESSIONS)
        while (word := client.word()) != "FIN":
            assert word in "12nTDHd" or word in ("SELECT 1", "Z(I)", "57P01")


def test_a_client_that_speaks_finds_the_end(proxy: FaultProxy, onlooker: Onlooker) -> None:
    """A client amid COPY whose server goes finds the end, mostly with the server's last words before it.

    Not always: what is unread when a server closes has the kernel reset the link, without a proxy as well.
    """
    with STAGES["COPY in"](proxy, onlooker) as client:
        pumping = threading.Thread(target=pump, args=(client,))
        pumping.start()
        assert eventually(lambda: proxy.wire_log().to_server["CopyData"] > 100)
        onlooker.execute(END_SESSIONS)
        heard = client.hear()
        pumping.join()
        assert heard in ("57P01 FIN", "57P01 RST", "FIN", "RST")


def pump(client: WireClient) -> None:
    """Send COPY data for as long as they are taken."""
    with contextlib.suppress(ConnectionError):
        while True:
            client.send(message("d", b"x" * 10_000 + b"\n"))


def test_a_proxy_starts_and_stops_many_times(behind: Server) -> None:
    """Thirty proxies one after the other leave no thread and no file."""
    files, threads = open_files(), threading.active_count()
    for _ in range(30):
        with FaultProxy(behind) as one, WireClient.connected(one) as client:
            assert client.query("SELECT 1") == "T D SELECT 1 Z(I)"
    assert (open_files(), threading.active_count()) == (files, threads)


# --- crowds ------------------------------------------------------------------------------------------------

CROWD = 490  # the embedded server has 500 places
PAYMENTS = 4
AT_RANDOM = {
    "too_many_clients": 0.1,
    "serialization_failure.RETRY_SERIALIZABLE": 0.03,
    "serialization_failure.ABORT_REASON_ABORT_SPAN": 0.03,
    "serialization_failure.injected.on_commit": 0.05,
    "ambiguous_commit.propagate": 0.03,
    "ambiguous_commit.propagate.applied": 0.03,
    "lost_commit": 0.02,
    "lost_commit.applied": 0.02,
    "connection_reset": 0.02,
    "server_closed": 0.02,
    "black_hole": 0.005,
    "idle_in_transaction_timeout.timeout": 0.02,
}


class Payer:
    """One of a crowd: pays again and again, each time in a transaction, and knows what became of it."""

    def __init__(self, proxy: FaultProxy, number: int) -> None:
        self._proxy = proxy
        self._number = number
        self.kept: set[tuple[int, int]] = set()
        self.in_doubt: set[tuple[int, int]] = set()

    async def connect(self) -> None:
        """Connect, as often as it takes."""
        while True:
            with contextlib.suppress(OSError, EOFError):
                self._reader, self._writer = await asyncio.open_connection(self._proxy.host, self._proxy.port)
                self._writer.write(packet(8 + len(START), PROTOCOL_3, START))
                await self._hear()
                return
            self._writer.close()

    async def _hear(self) -> list[tuple[str, bytes]]:
        heard = []
        while not heard or heard[-1][0] != "Z":
            head = await asyncio.wait_for(self._reader.readexactly(5), 3.0)  # a black hole says nothing
            heard.append((chr(head[0]), await self._reader.readexactly(int.from_bytes(head[1:], "big") - 4)))
        return heard

    async def _run(self, text: str) -> bool:
        """Run a statement, by either protocol; tell whether it went well."""
        simple = self._number % 2
        self._writer.write(query(text.encode()) if simple else step(text) + SYNC)
        return all(kind != "E" for kind, _ in await self._hear())

    async def pay(self, payment: int) -> None:
        """Insert a row in a transaction."""
        row, committing = (self._number, payment), False
        try:
            if await self._run("BEGIN") and await self._run(f"INSERT INTO payment VALUES {row}"):
                committing = True
                self._writer.write(query(b"COMMIT"))
                errors = [body for kind, body in await self._hear() if kind == "E"]
                if not errors:
                    self.kept.add(row)
                elif b"\0C40001\0" not in errors[0]:
                    self.in_doubt.add(row)
            else:
                await self._run("ROLLBACK")
        except (OSError, EOFError, asyncio.TimeoutError):
            if committing:
                self.in_doubt.add(row)
            self._writer.close()
            await self.connect()

    async def pay_all(self, everybody: asyncio.Semaphore, gate: asyncio.Event) -> None:
        """Wait until all are connected; then pay, and go."""
        await self.connect()
        everybody.release()
        await gate.wait()
        for payment in range(PAYMENTS):
            await self.pay(payment)
        self._writer.close()


@pytest.fixture
def files_enough() -> Iterator[None]:
    """Let this process open three files for each of the crowd."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 4 * CROWD
    if before[1] != resource.RLIM_INFINITY and before[1] < wanted:
        pytest.skip(f"not allowed to open {wanted} files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(before[0], wanted), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.usefixtures("files_enough")
def test_a_crowd_amid_faults(proxy: FaultProxy, onlooker: Onlooker) -> None:
    """Of hundreds of clients at once, struck at random, each is told the truth about each of its transactions."""
    onlooker.execute("CREATE TABLE payment (payer int, number int, PRIMARY KEY (payer, number))")
    payers = [Payer(proxy, number) for number in range(CROWD)]

    async def everybody_pays() -> None:
        connected, gate = asyncio.Semaphore(0), asyncio.Event()
        tasks = [asyncio.ensure_future(payer.pay_all(connected, gate)) for payer in payers]
        for _ in payers:
            await connected.acquire()
        rules = [
            proxy.inject(name, times=None, probability=probability, seed=number)
            for number, (name, probability) in enumerate(AT_RANDOM.items())
        ]
        gate.set()
        await asyncio.gather(*tasks)
        assert {rule.fault.name for rule in rules if not rule.hits} == set()

    try:
        asyncio.run(everybody_pays())
        assert eventually(lambda: sessions_of(onlooker) == 0)
        rows = set(onlooker.execute("SELECT payer, number FROM payment").fetchall())
    finally:
        onlooker.execute("DROP TABLE payment")
    kept = set().union(*(payer.kept for payer in payers))
    in_doubt = set().union(*(payer.in_doubt for payer in payers))
    assert kept - rows == set()
    assert rows - kept - in_doubt == set()
    assert len(kept) > CROWD * PAYMENTS / 2
    assert in_doubt & rows
    assert in_doubt - rows
