# SPDX-License-Identifier: Apache-2.0
"""One client's session with a server that fails as it is told to: its start, its relays, and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import struct
from typing import TYPE_CHECKING, Any

from . import faults
from .fault import Fault, Link, Upstream
from .frames import READ_SIZE, Frame, FrameReader, message
from .interception import Interception
from .wire import Session

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from .fault import Place
    from .fault_node import FaultNode
    from .wire import Connection

LATEST = (99, 0)  # where no version can be read
SASL = (10).to_bytes(4, "big")
AUTHENTICATED = (0).to_bytes(4, "big")


class LinkEnded(Exception):  # noqa: N818 - it is what was asked for
    """The client's connection is to end, in the way that `link` tells."""

    def __init__(self, link: Link) -> None:
        super().__init__(link)
        self.link = link


class FaultSession(Session):
    """A session in which every message is held against the rules before it goes on."""

    _proxy: FaultNode

    def __init__(self, proxy: FaultNode, client: Connection) -> None:
        super().__init__(proxy, client)
        self._interception = Interception(super().to_client, self._pass_on, self._strike)
        self._released = proxy.silence_broken  # as it was when a fault struck: a rule may be lifted at once
        self._starting = True
        self._reported: list[Frame] = []  # ParameterStatus, until all of it has come
        self._refusal: Fault | None = None  # by which the session ends when it is authenticated
        self._cancelled: asyncio.Event | None = None  # while a delay of ours is under way
        self._from_server: FrameReader | None = None
        self._heard = asyncio.Event()  # something of the server's
        self._interruption: asyncio.Future[Fault] = asyncio.get_running_loop().create_future()

    def _pass_on(self, frame: Frame) -> bytes:
        data = super().to_server(frame)
        return data if self._interception.emulates else frame.data  # CockroachDB knows its own dialect

    def _strike(self, place: Place, *args: Any, **kwargs: Any) -> Fault | None:
        fault = self._proxy.strike(place, *args, **kwargs)
        if fault is not None and fault.link is Link.SILENT and not self._interruption.done():
            self._released = self._proxy.silence_broken
        return fault

    # --- its life ------------------------------------------------------------------------------------------

    async def _serve(self, startup: bytes) -> None:
        try:
            await self._proxy.passage(delayed=True)
            if self._proxy.dead:
                raise LinkEnded(Link.RESET)
            await self._refused_at_connect()
            self._proxy.serving.add(self)
            await super()._serve(startup)
        except LinkEnded as end:
            self._proxy.serving.discard(self)  # no rule strikes it any more
            await self._end(end.link)
        finally:
            self._proxy.serving.discard(self)

    async def _refused_at_connect(self) -> None:
        """Refuse the connection where a rule has it so: now, or with an error once it is authenticated."""
        fault = self._proxy.refusal_of_new or self._strike("connect")
        if fault is None:
            return
        ended = asyncio.ensure_future(self.from_client.until_end())
        await asyncio.wait([ended], timeout=fault.delay)
        if ended.done():
            await ended
            raise EOFError
        ended.cancel()
        if fault.errors:
            self._refusal = fault
        elif fault.upstream is not Upstream.UNTOUCHED:
            raise LinkEnded(fault.link)

    def relays(
        self, reader: asyncio.StreamReader, server: asyncio.StreamWriter
    ) -> list[Coroutine[Any, Any, None]]:
        """Give what runs until the first of it ends: both directions, and the wait for an interruption."""
        return [*super().relays(reader, server), self._interrupted()]

    async def _interrupted(self) -> None:
        fault = await asyncio.shield(self._interruption)
        await self._proxy.passage()
        # Amid a message of the server's there is no room for an error.
        if self._from_server is None or not self._from_server.amid:
            self._client.write(self._interception.told(fault.errors))
        raise LinkEnded(fault.link)

    def interrupt(self, fault: Fault) -> None:
        """End it from outside: the client hears the errors, then its link ends as the fault has it."""
        if not self._interruption.done():
            self._released = self._proxy.silence_broken
            self._interruption.set_result(fault)

    @property
    def waits(self) -> Place | None:
        """Where it waits for its client; None: something is under way."""
        under_way = self._starting or self._cancelled is not None or self._interruption.done()
        return None if under_way else self._interception.waits

    async def _end(self, link: Link) -> None:
        with contextlib.suppress(OSError):
            if link is Link.RESET:
                handle = self._client.get_extra_info("socket")
                handle.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self._client.transport.abort()
            elif link is Link.CLOSED:
                # What the client may still be sending would have the kernel reset the link and lose our last
                # words: so the sending half goes first, and the rest when the client has moved.
                self._client.write_eof()
                await self._client_reader.read(1)
            elif link is Link.SILENT:
                await self._silence()

    async def _silence(self) -> None:
        """Say nothing more, until the client goes or the rule is lifted."""
        released = asyncio.ensure_future(self._released.wait())
        reading: asyncio.Future[bytes] | None = None
        try:
            while not released.done():
                reading = asyncio.ensure_future(self._client_reader.read(READ_SIZE))
                await asyncio.wait({reading, released}, return_when=asyncio.FIRST_COMPLETED)
                if not reading.done():
                    reading.cancel()
                elif not reading.result():
                    return
        finally:
            if reading is not None:
                reading.cancel()
            released.cancel()

    # --- from the client -----------------------------------------------------------------------------------

    async def relay_to_server(self, source: FrameReader, server: asyncio.StreamWriter) -> None:
        """Pass on what the client says, and strike where a rule has it so."""
        while frames := await source.read():
            await self._proxy.passage(delayed=True)
            passed = bytearray()
            for frame in frames:
                if self._interception.held:
                    server.write(bytes(passed))
                    passed.clear()
                    await self._settled()
                text = None if self._starting or frame.rest else self._text_of(frame)
                fault = self._interception.fault_for(frame.kind, text)
                if fault is not None and _interrupts(fault):
                    server.write(bytes(passed))
                    passed.clear()
                    fault = await self._delayed(fault, frame, source)
                passed += self._to_server(frame, text, fault)
            server.write(bytes(passed))
            await self.taken_by(server)
        await self._proxy.passage()  # nobody learns through a partition that the other is gone

    async def _settled(self) -> None:
        while self._interception.held:
            self._heard.clear()
            await self._heard.wait()

    def _text_of(self, frame: Frame) -> bytes | None:
        """Give the text that a message has the server plan or execute."""
        if frame.kind == "Q":
            return frame.data[5:].removesuffix(b"\0")
        if frame.kind == "P":
            return frame.data[5:].split(b"\0", 2)[1] if frame.data.count(b"\0", 5) > 1 else b""
        return self._portals.get(frame.strings(1)[0], b"") if frame.kind == "E" else None

    def _to_server(self, frame: Frame, text: bytes | None, fault: Fault | None) -> bytes:
        if self._starting:
            return super().to_server(frame)
        if text is None or fault is None:
            return self._interception.passed(frame, text)
        return self._interception.struck(frame, text, fault)

    async def _delayed(self, fault: Fault, frame: Frame, source: FrameReader) -> Fault | None:
        """Wait as long as a fault says; give what comes then, None where the statement simply runs.

        Raises LinkEnded where nothing more is heard. A cancel request ends the wait as it ends a statement,
        and so does a client that goes.
        """
        if fault.delay:
            self._cancelled = asyncio.Event()
            ends = [asyncio.ensure_future(self._cancelled.wait()), asyncio.ensure_future(source.until_end())]
            try:
                await asyncio.wait(ends, timeout=fault.delay, return_when=asyncio.FIRST_COMPLETED)
                if any(end.done() for end in ends):
                    return faults.query_canceled()
            finally:
                self._cancelled = None
                for end in ends:
                    end.cancel()
                await asyncio.gather(*ends, return_exceptions=True)
        if fault.errors or fault.upstream is Upstream.APPLIED:
            return fault
        if fault.link is Link.OPEN:
            return None
        self.note(frame)  # it was said, though the server never hears it
        raise LinkEnded(fault.link)

    def cancel(self) -> bool:
        """End a delay of ours as a cancel request ends a statement; False where none is under way."""
        if self._cancelled is None:
            return False
        self._cancelled.set()
        return True

    # --- from the server -----------------------------------------------------------------------------------

    async def relay_to_client(self, source: FrameReader, client: asyncio.StreamWriter) -> None:
        """Pass on what the server says, and end the link where a fault has it so."""
        self._from_server = source
        while frames := await source.read():
            await self._proxy.passage()
            told = bytearray()
            for frame in frames:
                told += self.to_client(frame)
                if self._interception.ending is not None:
                    break
            self._heard.set()
            client.write(bytes(told))
            if self._interception.ending is not None:
                raise LinkEnded(self._interception.ending)
            await client.drain()
        await self._proxy.passage()

    def to_client(self, frame: Frame) -> bytes:
        """Give what the client hears in place of a message of the server."""
        if self._starting:
            return self._at_start(frame)
        heard = self._interception.heard(frame)
        return heard + self._while_waiting() if frame.kind == "Z" else heard

    def _at_start(self, frame: Frame) -> bytes:
        """Hold back what the server reports of itself until it is known whether it is CockroachDB."""
        if frame.kind == "R" and frame.data[5:] == AUTHENTICATED and self._refusal is not None:
            self._interception.ending = self._refusal.link
            return super().to_client(frame) + self._interception.told(self._refusal.errors)
        if frame.kind == "R" and frame.data[5:9] == SASL:
            frame = _without_channel_binding(frame)
        if frame.kind == "S":
            self._reported.append(frame)
            return b""
        told = b""
        if frame.kind in "KZ" and self._reported:
            announced = any(each.strings(1) == ["crdb_version"] for each in self._reported)
            self._interception.emulates = not announced
            self._interception.version = self._version_of()
            told = b"".join(
                each.data if announced else super(FaultSession, self).to_client(each)
                for each in self._reported
            )
            self._reported.clear()
        told += self._key_told(frame) if frame.kind == "K" else super().to_client(frame)
        if frame.kind == "Z":
            self._starting = False
            told += self._while_waiting()
        return told

    def _version_of(self) -> tuple[int, int]:
        """Give the version of CockroachDB that is behind, or is played."""
        told = [each.strings(2)[1] for each in self._reported if each.strings(1) == ["crdb_version"]]
        found = re.search(r"v(\d+)\.(\d+)", told[0] if told else self._proxy.announcement.crdb_version)
        return (int(found[1]), int(found[2])) if found else LATEST

    def _key_told(self, frame: Frame) -> bytes:
        """Give the key by which the client may cancel: ours, but CockroachDB's own where that is behind."""
        told = super().to_client(frame)
        if not self._interception.emulates:
            self._proxy.forget(self._key)
            self._key, told = frame.data[5:], frame.data
            self._proxy.keep_key(self._key)
        assert self._key is not None
        self._proxy.keep_session(self, self._key)
        return told

    def _while_waiting(self) -> bytes:
        """Give what the client hears unasked, now that it has its answer."""
        place = self._interception.waits
        if place is None:
            return b""
        fault = self._proxy.farewell if place == "idle" else None
        fault = fault or self._strike(place)
        if fault is None:
            return b""
        self._interception.ending = fault.link
        return self._interception.told(fault.errors)


def _interrupts(fault: Fault) -> bool:
    """Whether what is under way has to go on before the fault comes."""
    return bool(fault.delay) or not (fault.errors or fault.upstream is Upstream.APPLIED)


def _without_channel_binding(frame: Frame) -> Frame:
    """Give what a server offers a client that has no TLS: such a one refuses an offer to bind to it."""
    offered = [name for name in frame.data[9:].split(b"\0") if name and not name.endswith(b"-PLUS")]
    return Frame("R", message("R", SASL + b"".join(name + b"\0" for name in offered) + b"\0"))
