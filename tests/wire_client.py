# SPDX-License-Identifier: Apache-2.0
"""A client of the wire protocol that tells what it hears in the notation of recipes, and an onlooker past it.

An answer is a line of words: a SQLSTATE for an ErrorResponse, the tag for a CommandComplete, `Z(T)` for a
ReadyForQuery and its status, the type byte for any other message; `FIN` and `RST` for the end of the link.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import re
import socket
import struct
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from otel_crdb.testing import FaultProxy, Server, server
from otel_crdb.testing.frames import Frame, message, query, sqlstate
from otel_crdb.testing.wire import CANCEL_REQUEST, SSL_REQUEST

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Coroutine, Iterator

    from typing_extensions import Self

PAY_1, PAY_2 = (f"UPDATE purse SET balance = balance - 10 WHERE id = {number}" for number in (1, 2))
PATIENCE = 20.0  # seconds: a deadline for events, far beyond what they take
ADDED = re.compile("^(1 )?(2 )?(n )?")  # what the extended protocol alone answers


def eventually(holds: Callable[[], Any]) -> bool:
    """Ask until the answer is yes, or the deadline has passed."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if holds():
            return True
    return False


protocols = pytest.mark.parametrize("protocol", ["simple", "extended"])


# --- messages ----------------------------------------------------------------------------------------------


def parse(text: str, name: bytes = b"") -> bytes:
    """Give a Parse."""
    return message("P", name + b"\0" + text.encode() + b"\0\0\0")


def bind(statement: bytes = b"", portal: bytes = b"") -> bytes:
    """Give a Bind without parameters."""
    return message("B", portal + b"\0" + statement + b"\0" + b"\0\0" * 3)


def execute(portal: bytes = b"") -> bytes:
    """Give a Describe of a portal, and an Execute of all its rows."""
    return message("D", b"P" + portal + b"\0") + message("E", portal + b"\0" + b"\0\0\0\0")


SYNC = message("S", b"")


def step(text: str) -> bytes:
    """Give the messages that run a statement by the extended protocol, without the Sync."""
    return parse(text) + bind() + execute()


class Error:
    """An ErrorResponse: all its bytes, and its fields in the order they came."""

    def __init__(self, frame: Frame) -> None:
        self.data = frame.data
        parts = frame.data[5:].removesuffix(b"\0\0").split(b"\0")
        self.fields = [(part[:1].decode(), part[1:].decode()) for part in parts]

    def __getitem__(self, tag: str) -> str:
        return dict(self.fields)[tag]


# --- the client --------------------------------------------------------------------------------------------


class WireClient:
    """One connection, which reads no further than it is asked to. A context manager that closes it.

    `name` is the application's, and no other client's. `greeting` is what was heard at the start, `key` what BackendKeyData held, `reported` the parameters.
    `errors` are those that have been heard, `rows` the values of the rows, in their order.
    """

    _numbers = itertools.count()

    def __init__(self, place: FaultProxy | Server | Relay) -> None:
        self._socket = socket.create_connection((place.host, place.port), PATIENCE)
        self._answers = self._socket.makefile("rb")
        self.name = f"wire client {next(self._numbers)}"
        self.greeting = ""
        self.key = b""
        self.reported: dict[str, str] = {}
        self.errors: list[Error] = []
        self.rows: list[list[str | None]] = []
        pairs = {"user": "root", "database": "defaultdb", "application_name": self.name}
        body = b"".join(f"{key}\0{value}\0".encode() for key, value in pairs.items())
        self.send_start(3 << 16, body + b"\0")

    @classmethod
    def connected(cls, place: FaultProxy | Server) -> WireClient:
        """Give one that has heard the greeting."""
        client = cls(place)
        client.greet()
        return client

    def greet(self) -> str:
        """Hear what the server says at the start."""
        self.greeting = self.hear()
        return self.greeting

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Be gone without a word."""
        self._answers.close()
        self._socket.close()

    def vanish(self) -> None:
        """Be gone by a reset."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    # --- saying --------------------------------------------------------------------------------------------

    def send(self, *messages: bytes) -> None:
        """Say something, all of it at once."""
        self._socket.sendall(b"".join(messages))

    def send_start(self, code: int, body: bytes = b"") -> None:
        """Say one of the messages without a type byte."""
        self.send((len(body) + 8).to_bytes(4, "big") + code.to_bytes(4, "big") + body)

    def query(self, text: str) -> str:
        """Run a text by the simple protocol; give the answer."""
        self.send(query(text.encode()))
        return self.hear()

    def extended(self, *texts: str) -> str:
        """Run statements by the extended protocol, with one Sync at the end; give the answer."""
        self.send(*map(step, texts), SYNC)
        return self.hear()

    def run(self, text: str, protocol: str) -> str:
        """Run a statement; give the answer without what only the extended protocol adds to it."""
        if protocol == "simple":
            return self.query(text)
        return ADDED.sub("", self.extended(text))

    # --- hearing -------------------------------------------------------------------------------------------

    def frame(self) -> Frame | None:
        """Wait for the next message; None is the end. Raises ConnectionResetError for a reset."""
        head = self._answers.read(5)
        if not head:
            return None
        body = self._answers.read(int.from_bytes(head[1:], "big") - 4)
        return Frame(chr(head[0]), head + body)

    def hear(self, *, ready: int = 1) -> str:
        """Hear up to so many ReadyForQuery or the end of the link."""
        words = []
        while ready:
            words.append(self.word())
            if words[-1] in ("FIN", "RST"):
                break
            ready -= words[-1].startswith("Z(")
        return " ".join(words)

    def word(self) -> str:
        """Hear one message."""
        try:
            frame = self.frame()
        except ConnectionResetError:
            return "RST"
        return "FIN" if frame is None else self._word(frame)

    def _word(self, frame: Frame) -> str:
        if frame.kind == "E":
            self.errors.append(Error(frame))
            return sqlstate(frame.data[5:]).decode()
        if frame.kind == "C":
            return frame.data[5:-1].decode()
        if frame.kind == "Z":
            return f"Z({chr(frame.data[5])})"
        if frame.kind == "K":
            self.key = frame.data[5:]
        elif frame.kind == "S":
            name, value = frame.strings(2)
            self.reported[name] = value
        elif frame.kind == "D":
            self.rows.append(_values(frame.data))
        return frame.kind

    def hears_nothing(self) -> bool:
        """Tell whether nothing has come that was not heard yet, now."""
        self._socket.setblocking(False)
        try:
            return not self._answers.peek(1)[:1] and self._nothing_waits()
        finally:
            self._socket.settimeout(PATIENCE)

    def _nothing_waits(self) -> bool:
        try:
            self._socket.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        except ConnectionResetError:
            return False
        return False


def _values(data: bytes) -> list[str | None]:
    values, at = [], 7
    for _ in range(int.from_bytes(data[5:7], "big")):
        length = int.from_bytes(data[at : at + 4], "big", signed=True)
        at += 4
        values.append(None if length < 0 else data[at : at + length].decode())
        at += max(length, 0)
    return values


def cancel(place: FaultProxy | Server, key: bytes) -> None:
    """Ask for a cancellation, and wait until the request was taken."""
    with socket.create_connection((place.host, place.port), PATIENCE) as link:
        send_cancel(link, key)
        assert link.recv(1) == b""


def send_cancel(link: socket.socket, key: bytes) -> None:
    """Ask for a cancellation."""
    link.sendall((len(key) + 8).to_bytes(4, "big") + CANCEL_REQUEST.to_bytes(4, "big") + key)


# --- the onlooker ------------------------------------------------------------------------------------------


class Onlooker:
    """A second connection, past every proxy, that sees data, locks and sessions on the server itself."""

    def __init__(self, server: Server) -> None:
        self.connection = psycopg.connect(
            host=server.direct_host,
            port=server.direct_port,
            user=server.user,
            dbname=server.database,
            autocommit=True,
            options="-c default_transaction_isolation=read\\ committed",
        )

    def execute(self, text: str) -> psycopg.Cursor[Any]:
        """Run a statement."""
        return self.connection.execute(text)

    @property
    def balances(self) -> dict[int, int]:
        """What is committed."""
        return dict(self.execute("SELECT id, balance FROM purse ORDER BY id").fetchall())

    def locked(self, purse: int) -> bool:
        """Tell whether somebody holds a lock on that row."""
        try:
            self.execute(f"SELECT FROM purse WHERE id = {purse} FOR UPDATE NOWAIT")
        except psycopg.errors.LockNotAvailable:
            return True
        return False

    def sessions(self, name: str) -> int:
        """Count the server's sessions of an application's name."""
        return self._count(name, "true")

    def running(self, name: str) -> int:
        """Count those of them that have a statement under way."""
        return self._count(name, "state = 'active'")

    def in_transaction(self, name: str) -> int:
        """Count those of them that are in a transaction and wait."""
        return self._count(name, "state LIKE 'idle in transaction%%'")

    def _count(self, name: str, condition: str) -> int:
        # A transaction of our own would go on seeing what it saw first.
        self.execute("SELECT pg_stat_clear_snapshot()")
        text = f"SELECT count(*) FROM pg_stat_activity WHERE application_name = %s AND {condition}"
        row = self.connection.execute(text, (name,)).fetchone()
        assert row is not None
        return int(row[0])


@contextmanager
def onlooker_of(server: Server) -> Iterator[Onlooker]:
    """Give an onlooker, and two purses of 100 each, numbered 1 and 2, which are gone afterwards."""
    onlooker = Onlooker(server)
    with onlooker.connection:
        onlooker.execute("DROP TABLE IF EXISTS purse")
        onlooker.execute("CREATE TABLE purse (id integer PRIMARY KEY, balance integer NOT NULL)")
        onlooker.execute("INSERT INTO purse VALUES (1, 100), (2, 100)")
        try:
            yield onlooker
        finally:
            onlooker.execute("DROP TABLE purse")


# --- the relay -----------------------------------------------------------------------------------------


class Relay:
    """PostgreSQL by TCP, with or without TLS: it passes everything on to the server's socket.

    `encrypted` tells of each connection that went through whether it was. A context manager.
    """

    def __init__(self, server: Server, tls: ssl.SSLContext | None = None) -> None:
        self.encrypted: list[bool] = []
        self.host = "127.0.0.1"
        self.port = 0
        self._path = f"{server.direct_host}/.s.PGSQL.{server.direct_port}"
        self._tls = tls
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._serving: set[asyncio.Task[None]] = set()

    def __enter__(self) -> Self:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(PATIENCE)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(PATIENCE)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _start(self) -> None:
        listener = socket.create_server((self.host, 0))
        listener.setblocking(False)
        self.port = listener.getsockname()[1]
        self._accepting = asyncio.ensure_future(self._accept(listener))

    async def _stop(self) -> None:
        tasks = [self._accepting, *self._serving]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _accept(self, listener: socket.socket) -> None:
        with listener:
            while True:
                client, _ = await self._loop.sock_accept(listener)
                task = asyncio.ensure_future(self._serve(client))
                self._serving.add(task)
                task.add_done_callback(self._serving.discard)

    async def _serve(self, client: socket.socket) -> None:
        writers = []
        try:
            start = await self._loop.sock_recv(client, 8)
            asked = int.from_bytes(start[4:], "big") == SSL_REQUEST
            if asked:
                await self._loop.sock_sendall(client, b"S" if self._tls else b"N")
            reader = asyncio.StreamReader()
            protocol = asyncio.StreamReaderProtocol(reader)
            tls = self._tls if asked else None
            transport, _ = await self._loop.connect_accepted_socket(lambda: protocol, client, ssl=tls)
            writers.append(asyncio.StreamWriter(transport, protocol, reader, self._loop))
            answers, server = await asyncio.open_unix_connection(self._path)
            writers.append(server)
            self.encrypted.append(tls is not None)
            server.write(b"" if asked else start)
            await _first_of(_pass_on(reader, server), _pass_on(answers, writers[0]))
        except OSError:
            pass  # the client has gone, or did not trust us
        finally:
            for writer in writers:
                writer.close()
            client.close()


async def _first_of(*works: Coroutine[Any, Any, None]) -> None:
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _pass_on(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await source.read(65_536):
            target.write(data)
            await target.drain()


# --- for the tests ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def behind(crdb: Server) -> Iterator[Server]:
    """Give the embedded server: only past a proxy of its own can a test see what the server holds."""
    if crdb.kind == "embedded":
        yield crdb
    else:
        with server("embedded") as running:
            yield running


@pytest.fixture
def onlooker(behind: Server) -> Iterator[Onlooker]:
    """Give the second connection, and two purses of 100."""
    with onlooker_of(behind) as looking:
        yield looking


@pytest.fixture
def proxy(behind: Server, onlooker: Onlooker) -> Iterator[FaultProxy]:
    """Give a fault proxy without rules before the server; its sessions are gone before the purses are."""
    with FaultProxy(behind) as running:
        yield running


@pytest.fixture
def client(proxy: FaultProxy) -> Iterator[WireClient]:
    """Give a client that has been let in."""
    with WireClient.connected(proxy) as connected:
        yield connected
