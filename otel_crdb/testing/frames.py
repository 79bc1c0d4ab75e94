# SPDX-License-Identifier: Apache-2.0
"""Messages of PostgreSQL's wire protocol, cut out of a stream and put together."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import asyncio

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


class ProtocolError(Exception):
    """A peer sent bytes that are no message of the protocol."""


class Frame(NamedTuple):
    """One whole message: its type byte as a character, and all its bytes, type and length included."""

    kind: str
    data: bytes

    def strings(self, count: int) -> list[str]:
        """Give the first `count` zero-terminated strings of the body."""
        return [part.decode(errors="replace") for part in self.data[5:].split(b"\0", count)[:count]]


def message(kind: str, body: bytes) -> bytes:
    """Give the bytes of one message."""
    return kind.encode() + (len(body) + 4).to_bytes(4, "big") + body


class FrameReader:
    """Cuts a stream into messages."""

    def __init__(self, stream: asyncio.StreamReader) -> None:
        self._stream = stream
        self._buffer = bytearray()

    async def read(self) -> list[Frame]:
        """Wait for at least one whole message and give all that have come; an empty list is the end."""
        while not (frames := self._whole_frames()):
            chunk = await self._stream.read(READ_SIZE)
            if not chunk:
                return []
            self._buffer += chunk
        return frames

    def _whole_frames(self) -> list[Frame]:
        frames, start, buffer = [], 0, self._buffer
        while len(buffer) >= start + 5:
            length = int.from_bytes(buffer[start + 1 : start + 5], "big")
            if length < 4:
                raise ProtocolError(f"a message of length {length}")
            end = start + 1 + length
            if len(buffer) < end:
                break
            frames.append(Frame(chr(buffer[start]), bytes(buffer[start:end])))
            start = end
        del buffer[:start]
        return frames


def sqlstate(fields: bytes) -> bytes:
    """Give the SQLSTATE among the fields of an ErrorResponse, b"" where there is none."""
    return next((part[1:] for part in fields.split(b"\0") if part.startswith(b"C")), b"")
