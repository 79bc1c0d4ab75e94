# SPDX-License-Identifier: Apache-2.0
"""A proxy for PostgreSQL's wire protocol that introduces the server behind it as a CockroachDB node.

It changes the start-up: what a node says of itself there, and the process id that carries the node's number.
After that a few statements are put into words PostgreSQL knows, and every other message passes byte for byte.
`Session.to_server` and `Session.to_client` see each message before it goes on, and decide what goes on in its
place.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import logging
import secrets
import select
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .dialect import translated
from .frames import (
    READ_SIZE,
    TO_CLIENT,
    TO_SERVER,
    Frame,
    FrameReader,
    ProtocolError,
    message,
    query,
    sqlstate,
)
from .wire_log import CONTROL_REQUEST, WireLog

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

logger = logging.getLogger(__name__)

CANCEL_REQUEST = 1234 << 16 | 5678
SSL_REQUEST = 1234 << 16 | 5679
GSSENC_REQUEST = 1234 << 16 | 5680
STARTUP_LIMIT = 10_000  # PostgreSQL refuses longer start-up packets
LAST_WORDS = 1.0  # seconds
REST = 0.2  # seconds
ROWS, COPY_DATA = "D", "d"  # nobody looks into them, and there are many
MAX_NODE_ID = 2047  # eleven bits: the sign bit above them must stay zero

# What CockroachDB reports at start-up besides server_version and crdb_version
# (pkg/sql/pgwire/server.go, statusReportParams).
REPORTED = frozenset(
    {
        "server_encoding",
        "client_encoding",
        "application_name",
        "DateStyle",
        "IntervalStyle",
        "is_superuser",
        "TimeZone",
        "integer_datetimes",
        "standard_conforming_strings",
        "session_authorization",
    }
)

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass(frozen=True)
class Announcement:
    """How the server introduces itself.

    `crdb_version` is the text `version()` answers too. `node_id` is 1 to 2047, the ids that fit the upper
    twelve bits of a process id (CockroachDB's pkg/sql/pgwire/pgwirecancel/backend_key_data.go); others raise
    ValueError. `server_version` is the PostgreSQL version CockroachDB pretends to be.
    """

    crdb_version: str
    node_id: int = 1
    server_version: str = "13.0.0"

    def __post_init__(self) -> None:
        if not 1 <= self.node_id <= MAX_NODE_ID:
            raise ValueError(f"node_id must be from 1 to {MAX_NODE_ID}, not {self.node_id}")

    def parameter_status(self, frame: Frame) -> bytes:
        """Give the ParameterStatus messages that go to the client in place of this one: none, one or two."""
        name, value = frame.strings(2)
        if name == "server_version":
            pairs = [(name, self.server_version), ("crdb_version", self.crdb_version)]
        else:
            pairs = [(name, value)] if name in REPORTED else []
        return b"".join(message("S", f"{key}\0{text}\0".encode()) for key, text in pairs)


class Session:
    """One client and the server session that serves it, from the start-up packet to the end of either."""

    def __init__(self, proxy: WireProxy, client: Connection) -> None:
        self._proxy = proxy
        self._log = proxy.log
        self._client_reader, self._client = client
        self.from_client = FrameReader(self._client_reader, in_runs=COPY_DATA)
        self._number = 0
        self._key: bytes | None = None  # what we told the client in BackendKeyData
        self._prepared: dict[str, bytes] = {}
        self._portals: dict[str, bytes] = {}

    async def run(self) -> None:
        """Serve this client until it or the server goes."""
        try:
            code, packet = await self._startup()
            if code == CANCEL_REQUEST:
                await self._proxy.cancel(packet[8:])
            elif code == CONTROL_REQUEST:
                self._client.write(self._proxy.control(packet[8:]))
                await self._client.drain()
            else:
                await self._serve(packet)
        except (OSError, EOFError, ProtocolError):
            pass  # a peer that is gone or speaks nonsense: to close is all there is to do
        except Exception:  # ours: said here, for asyncio would say it late, and without a word of what it is
            logger.exception("a session of the wire proxy failed")

    async def _startup(self) -> tuple[int, bytes]:
        """Refuse encryption as often as it is asked for; give the first other packet and its code."""
        while True:
            head = await self._client_reader.readexactly(8)
            length, code = int.from_bytes(head[:4], "big"), int.from_bytes(head[4:], "big")
            if not 8 <= length <= STARTUP_LIMIT:
                raise ProtocolError(f"a start-up packet of length {length}")
            if code not in (SSL_REQUEST, GSSENC_REQUEST):
                return code, head + await self._client_reader.readexactly(length - 8)
            self._client.write(b"N")
            await self._client.drain()

    async def _serve(self, startup: bytes) -> None:
        try:
            reader, server = await self._proxy.connect_upstream()
        except OSError as error:
            # In words of our own: nothing that a server does.
            told = f"otel_crdb: the server behind the proxy cannot be reached: {error}"
            fields = f"SFATAL\0VFATAL\0C08001\0M{told}\0\0"
            self._client.write(message("E", fields.encode()))
            await self._client.drain()
            raise
        self._log.sessions += 1
        self._log.open_sessions += 1
        self._number = self._proxy.next_session_number()
        server.write(startup)
        relays = [asyncio.create_task(relay) for relay in self.relays(reader, server)]
        try:
            await asyncio.wait(relays, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            server.transport.abort()  # nobody waits until the server has taken its client's last words
            raise
        finally:
            # A client that closes its sending half is gone: CockroachDB ends the connection then and cancels
            # what runs on it (pkg/sql/pgwire/conn.go, the end of the reading loop). PostgreSQL notices our
            # closing within client_connection_check_interval and does the same.
            for relay in relays:
                relay.cancel()
            server.close()
            ended = False
            try:
                outcomes = await asyncio.gather(*relays, return_exceptions=True)
                ended = await _ended(server)
            finally:
                if not ended:
                    server.transport.abort()
                self._proxy.forget(self._key)
                self._log.open_sessions -= 1
        for outcome in outcomes:
            if isinstance(outcome, Exception):
                raise outcome

    def relays(
        self, reader: asyncio.StreamReader, server: asyncio.StreamWriter
    ) -> list[Coroutine[Any, Any, None]]:
        """Give what runs until the first of it ends: both directions."""
        return [
            self.relay_to_server(self.from_client, server),
            self.relay_to_client(FrameReader(reader, in_runs=ROWS + COPY_DATA), self._client),
        ]

    async def relay_to_server(self, source: FrameReader, server: asyncio.StreamWriter) -> None:
        """Pass on what the client says, until it says no more."""
        while frames := await source.read():
            server.write(b"".join([self.to_server(frame) for frame in frames]))
            await self.taken_by(server)

    async def taken_by(self, server: asyncio.StreamWriter) -> None:
        """Wait until the server takes what was said. Raises EOFError where the client goes before that."""
        if not server.transport.get_write_buffer_size():
            await server.drain()  # at once, but for an error
            return
        drained = asyncio.ensure_future(server.drain())
        try:
            while not drained.done():
                await asyncio.wait([drained], timeout=LAST_WORDS)
                if not drained.done() and _hung_up(self._client):
                    raise EOFError
            await drained
        finally:
            drained.cancel()

    async def relay_to_client(self, source: FrameReader, client: asyncio.StreamWriter) -> None:
        """Pass on what the server says, until it says no more."""
        while frames := await source.read():
            client.write(b"".join([self.to_client(frame) for frame in frames]))
            await client.drain()

    def to_server(self, frame: Frame) -> bytes:
        """Take note of a client's message; give the bytes that go to the server in its place."""
        if frame.rest:
            return frame.data
        self.note(frame)
        if frame.kind != "Q":
            return frame.data
        text = frame.data[5:-1]
        known = translated(text)
        return frame.data if known == text else query(known)

    def note(self, frame: Frame) -> None:
        """Take note of a client's message: in the log, and of what it prepares."""
        kind = frame.kind
        self._log.to_server[TO_SERVER.get(kind, kind)] += frame.begins
        if kind == "Q":
            self._log.add(self._number, "statement", frame.data[5:-1])
        elif kind == "P":
            name, text, *_ = [*frame.data[5:].split(b"\0", 2), b""]
            self._prepared[name.decode(errors="replace")] = text
        elif kind == "B":
            portal, statement = frame.strings(2)
            self._portals[portal] = self._prepared.get(statement, b"")
        elif kind == "E":
            self._log.add(self._number, "statement", self._portals.get(frame.strings(1)[0], b""))
        elif kind == "C":
            kept = self._prepared if frame.data[5:6] == b"S" else self._portals
            kept.pop(frame.strings(1)[0][1:], None)

    def to_client(self, frame: Frame) -> bytes:
        """Take note of the server's message; give the bytes that go to the client in its place."""
        if frame.rest:
            return frame.data
        kind = frame.kind
        self._log.to_client[TO_CLIENT.get(kind, kind)] += frame.begins
        if kind == "S":
            return self._proxy.announcement.parameter_status(frame)
        if kind == "K":
            self._proxy.forget(self._key)
            self._key = self._proxy.new_key(server_key=frame.data[5:])
            return message("K", self._key)
        if kind == "C":
            self._log.add(self._number, "tag", frame.data[5:-1])
        elif kind == "E":
            self._log.add(self._number, "error", sqlstate(frame.data[5:]))
        return frame.data


def _hung_up(peer: asyncio.StreamWriter) -> bool:
    """Tell whether a peer is gone, though not all it said was read (on Linux; else after a reset)."""
    if peer.is_closing():
        return True
    poll = select.poll()
    poll.register(peer.get_extra_info("socket").fileno(), getattr(select, "POLLRDHUP", 0))
    return bool(poll.poll(0))


async def _ended(server: asyncio.StreamWriter) -> bool:
    """Tell whether a connection that is closing ends soon: a server amid a statement has no ear for it."""
    try:
        await asyncio.wait_for(server.wait_closed(), LAST_WORDS)
    except asyncio.TimeoutError:  # an OSError too, since Python 3.11
        return False
    except OSError:
        pass  # otherwise than in good order
    return True


class WireProxy:
    """Accepts clients on a free port of 127.0.0.1 and gives each a session of the server behind.

    `connect_upstream` opens one connection to that server and may raise OSError. A subclass may name another
    class of sessions, to decide otherwise of what passes.
    """

    session: type[Session] = Session

    def __init__(
        self, announcement: Announcement, connect_upstream: Callable[[], Awaitable[Connection]]
    ) -> None:
        self.announcement = announcement
        self.connect_upstream = connect_upstream
        self.log = WireLog()
        self.port = 0
        self._numbers = 0
        self._server_keys: dict[bytes, bytes] = {}
        self._sessions: set[asyncio.Task[None]] = set()
        self._listener: socket.socket | None = None

    async def start(self) -> None:
        """Listen on `port`, which tells a free one where it was 0.

        Raises OSError when the machine lets us not.
        """
        await self.listen()

    async def listen(self) -> None:
        """Take clients, on the same port as before where there was one."""
        if self._listener is None:
            self._listener = socket.create_server(("127.0.0.1", self.port), backlog=512)
            self._listener.setblocking(False)
            self.port = self._listener.getsockname()[1]
            asyncio.get_running_loop().add_reader(self._listener, self._take, self._listener)

    def stop_listening(self) -> None:
        """Take no new clients: the operating system refuses them."""
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener)
            self._listener.close()
            self._listener = None

    async def stop(self) -> None:
        """Listen no more and end all sessions."""
        self.stop_listening()
        while self._sessions:  # Python 3.10 loses a cancellation that comes just as wait_for() ends
            for session in list(self._sessions):
                session.cancel()
            await asyncio.wait(list(self._sessions), timeout=LAST_WORDS)

    def _take(self, listener: socket.socket) -> None:
        """Take a client that waits.

        asyncio's own server loses the one that comes as it is closed, and leaves it waiting.
        """
        try:
            link, _ = listener.accept()
        except OSError as error:  # gone already, or no more files may be opened: then some have to go first
            if error.errno in (errno.EMFILE, errno.ENFILE):
                self._rest(listener)
            return
        link.setblocking(False)
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # asyncio does not see that it is TCP
        task = asyncio.ensure_future(self._serve(link))
        self._sessions.add(task)
        task.add_done_callback(self._sessions.discard)
        # A task that is cancelled before it has begun never knows of its client.
        task.add_done_callback(lambda ended: link.close() if ended.cancelled() else None)

    def _rest(self, listener: socket.socket) -> None:
        """Take nobody for a moment."""
        loop = asyncio.get_running_loop()
        loop.remove_reader(listener)
        loop.call_later(
            REST, lambda: self._listener is listener and loop.add_reader(listener, self._take, listener)
        )

    async def _serve(self, link: socket.socket) -> None:
        reader, writer = await asyncio.open_connection(sock=link, limit=READ_SIZE)
        try:
            await self.session(self, (reader, writer)).run()
        except asyncio.CancelledError:  # nobody waits until a client has read what it was told
            writer.transport.abort()
            raise
        finally:
            writer.close()

    def next_session_number(self) -> int:
        """Give the number of a new session."""
        self._numbers += 1
        return self._numbers

    def new_key(self, server_key: bytes) -> bytes:
        """Give a key such as the announced node would give: its id, 20 random bits, 32 bits of secret."""
        while True:
            pid = self.announcement.node_id << 20 | secrets.randbits(20)
            key = pid.to_bytes(4, "big") + secrets.token_bytes(4)
            # Of two hundred, two have the same bits in one case of fifty: drivers tell only the process id.
            if all(key[:4] != other[:4] for other in self._server_keys):
                self._server_keys[key] = server_key
                return key

    def forget(self, key: bytes | None) -> None:
        """Cancel nothing by this key any more."""
        if key is not None:
            self._server_keys.pop(key, None)

    async def cancel(self, key: bytes) -> None:
        """Pass a cancel request on under the server's own key and wait until the server has taken it."""
        self.log.cancels += 1
        server_key = self._server_keys.get(key)
        if server_key is None:
            return  # as a server does: no answer either way
        reader, writer = await self.connect_upstream()
        with contextlib.closing(writer):
            length = 8 + len(server_key)
            writer.write(length.to_bytes(4, "big") + CANCEL_REQUEST.to_bytes(4, "big") + server_key)
            await reader.read()

    def control(self, request: bytes) -> bytes:
        """Answer a request of the test harness: so far `{"command": "log", "clear": bool}`, in JSON as it is.

        Raises ProtocolError for anything else.
        """
        try:
            clear = bool(json.loads(request)["clear"])
        except (ValueError, LookupError, TypeError) as error:
            raise ProtocolError("no request of the test harness") from error
        answer = json.dumps(self.log.as_dict()).encode()
        if clear:
            self.log.clear()
        return answer
