# SPDX-License-Identifier: Apache-2.0
"""Messages of PostgreSQL's wire protocol, cut out of a stream and put together."""

from __future__ import annotations

import asyncio
import struct
from typing import NamedTuple

READ_SIZE = 256 * 1024

# Messages by their type byte (PostgreSQL documentation, "Message Formats").
TO_SERVER = {
    "B": "Bind",
    "C": "Close",
    "D": "Describe",
    "E": "Execute",
    "F": "FunctionCall",
    "H": "Flush",
    "P": "Parse",
    "Q": "Query",
    "S": "Sync",
    "X": "Terminate",
    "c": "CopyDone",
    "d": "CopyData",
    "f": "CopyFail",
    "p": "PasswordMessage",
}
TO_CLIENT = {
    "1": "ParseComplete",
    "2": "BindComplete",
    "3": "CloseComplete",
    "A": "NotificationResponse",
    "C": "CommandComplete",
    "D": "DataRow",
    "E": "ErrorResponse",
    "G": "CopyInResponse",
    "H": "CopyOutResponse",
    "I": "EmptyQueryResponse",
    "K": "BackendKeyData",
    "N": "NoticeResponse",
    "R": "Authentication",
    "S": "ParameterStatus",
    "T": "RowDescription",
    "V": "FunctionCallResponse",
    "W": "CopyBothResponse",
    "Z": "ReadyForQuery",
    "c": "CopyDone",
    "d": "CopyData",
    "n": "NoData",
    "s": "PortalSuspended",
    "t": "ParameterDescription",
    "v": "NegotiateProtocolVersion",
}


#: What somebody looks into beyond its beginning, and so has to be whole, whichever side says it.
LOOKED_INTO = frozenset("CEKPQRSZ")
#: No message is longer: PostgreSQL neither takes nor sends it (its MaxAllocSize).
LONGEST = 0x3FFFFFFF
_HEAD = struct.Struct("!BI")


class ProtocolError(Exception):
    """A peer sent bytes that are no message of the protocol."""


class Frame(NamedTuple):
    """One message: its type byte as a character, and all its bytes, type and length included.

    A long message that nobody looks into comes in pieces: the first begins it, and of those after it each is
    a `rest`, of the same kind, with the bytes that go on. A run of short ones can come as one. `begins` tells
    how many messages begin here.
    """

    kind: str
    data: bytes
    begins: int = 1

    @property
    def rest(self) -> bool:
        """Whether the message began in a frame before this."""
        return not self.begins

    def strings(self, count: int) -> list[str]:
        """Give the first `count` zero-terminated strings of the body; those that are missing are empty."""
        found = self.data[5:].split(b"\0", count)[:count]
        return [part.decode(errors="replace") for part in found] + [""] * (count - len(found))


def message(kind: str, body: bytes) -> bytes:
    """Give the bytes of one message."""
    return kind.encode() + (len(body) + 4).to_bytes(4, "big") + body


def query(text: bytes) -> bytes:
    """Give a Query."""
    return message("Q", text + b"\0")


class FrameReader:
    """Cuts a stream into messages.

    What is held at a time is bounded: by `READ_SIZE`, or by the one message that has to be whole. Of kinds
    `in_runs`, messages that follow each other are given as one frame.
    """

    def __init__(self, stream: asyncio.StreamReader, *, in_runs: str = "") -> None:
        self._stream = stream
        self._in_runs = in_runs
        self._buffer = bytearray()  # the beginning of a message
        self._wanted = 0  # how long it has to be before it is of use
        self._kind = ""  # of the message that is given in pieces
        self._missing = 0  # how much of it is to come
        self._ahead = bytearray()  # read by those who waited for the end

    @property
    def amid(self) -> bool:
        """Whether the message last given has an end that is still to come."""
        return self._missing > 0

    async def read(self) -> list[Frame]:
        """Wait for at least one message or piece and give all that have come; an empty list is the end.

        Raises ProtocolError for a length that no message has.
        """
        while chunk := self._taken_ahead() or await self._stream.read(READ_SIZE):
            if self._buffer:
                self._buffer += chunk
                if len(self._buffer) < self._wanted:
                    continue
                chunk = bytes(self._buffer)
            if frames := self._cut(chunk):
                return frames
        return []

    async def until_end(self) -> None:
        """Wait until the peer says no more; what it says till then is kept for `read`."""
        while chunk := await self._stream.read(READ_SIZE):
            self._ahead += chunk
            if len(self._ahead) > READ_SIZE:
                await asyncio.Event().wait()  # it talks: its end is nothing to look for

    def _taken_ahead(self) -> bytes:
        taken = bytes(self._ahead)
        self._ahead.clear()
        return taken

    def _cut(self, data: bytes) -> list[Frame]:
        """Give the messages and pieces at the beginning of `data`, and keep what is left."""
        frames: list[Frame] = []
        start, size = min(self._missing, len(data)), len(data)
        if start:
            self._missing -= start
            frames.append(Frame(self._kind, data[:start], 0))
        self._wanted = 5
        while size - start >= 5:
            code, length = _HEAD.unpack_from(data, start)
            if not 4 <= length <= LONGEST:
                raise ProtocolError(f"a message of length {length}")
            kind, end, count = chr(code), start + 1 + length, 1
            if end > size:
                self._wanted = READ_SIZE if _may_be_cut(kind, length) else end - start
                if size - start < self._wanted:
                    break
                if kind == "B" and data.count(b"\0", start + 5) < 2:  # its names are looked into
                    self._wanted = end - start
                    break
                self._kind, self._missing, end = kind, end - size, size
            elif kind in self._in_runs:
                end, count = _run(data, start)
            frames.append(Frame(kind, data[start:end], count))
            start = end
        self._buffer = bytearray(data[start:])
        return frames


def _run(data: bytes, start: int) -> tuple[int, int]:
    """Give the end of the whole messages of one kind that follow each other, and how many they are."""
    end, count, wanted = start, 0, data[start]
    while len(data) - end >= 5:
        code, length = _HEAD.unpack_from(data, end)
        if code != wanted or not 4 <= length < len(data) - end:
            break
        end, count = end + 1 + length, count + 1
    return end, count


def _may_be_cut(kind: str, length: int) -> bool:
    return length >= READ_SIZE and kind not in LOOKED_INTO


def sqlstate(fields: bytes) -> bytes:
    """Give the SQLSTATE among the fields of an ErrorResponse, b"" where there is none."""
    return next((part[1:] for part in fields.split(b"\0") if part.startswith(b"C")), b"")
