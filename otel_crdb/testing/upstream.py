# SPDX-License-Identifier: Apache-2.0
"""How the fault proxy reaches the server behind it: its socket, or TCP with or without TLS."""

from __future__ import annotations

import asyncio
import ssl
from typing import TYPE_CHECKING

from .frames import READ_SIZE
from .wire import SSL_REQUEST

if TYPE_CHECKING:
    from .servers import Server
    from .wire import Connection

#: Options of libpq that speak of TLS: the proxy obeys them towards the server, and offers none to its
#: clients.
TLS_OPTIONS = (
    "sslmode",
    "sslrootcert",
    "sslcert",
    "sslkey",
    "sslpassword",
    "sslnegotiation",
    "channel_binding",
)
CONNECT_TIMEOUT = 30.0


async def connect(server: Server) -> Connection:
    """Open a connection to a server, to PostgreSQL itself where a wire proxy of ours stands before it.

    Raises OSError where there is none to be had, with TLS as `sslmode` demands it (default: `prefer`).
    """
    if server.direct_host is not None:
        path = f"{server.direct_host}/.s.PGSQL.{server.direct_port}"
        return await asyncio.open_unix_connection(path, limit=READ_SIZE)
    opening = asyncio.open_connection(server.host, server.port, limit=READ_SIZE)
    try:
        reader, writer = await asyncio.wait_for(opening, CONNECT_TIMEOUT)
    except asyncio.TimeoutError as error:  # no OSError before Python 3.11
        raise OSError(f"no answer from {server.host}:{server.port} in {CONNECT_TIMEOUT:.0f} s") from error
    try:
        return await _secured(reader, writer, server)
    except BaseException:
        writer.close()
        raise


async def _secured(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, server: Server) -> Connection:
    """Go on in TLS where `sslmode` has it so and the server can."""
    mode = server.options.get("sslmode", "prefer")
    if mode in ("disable", "allow"):
        return reader, writer
    writer.write((8).to_bytes(4, "big") + SSL_REQUEST.to_bytes(4, "big"))
    if await reader.readexactly(1) == b"S":
        return await _encrypted(writer, server, mode)
    if mode != "prefer":
        raise OSError(f"sslmode={mode}, and the server has no TLS")
    return reader, writer


async def _encrypted(plain: asyncio.StreamWriter, server: Server, mode: str) -> Connection:
    """Go on in TLS on a connection over which nothing else has been said."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=READ_SIZE, loop=loop)
    protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
    transport = await loop.start_tls(
        plain.transport, protocol, _context(server, mode), server_hostname=server.host
    )
    assert transport is not None
    protocol.connection_made(transport)
    return reader, asyncio.StreamWriter(transport, protocol, reader, loop)


def _context(server: Server, mode: str) -> ssl.SSLContext:
    options = server.options
    context = ssl.create_default_context(cafile=options.get("sslrootcert"))
    context.check_hostname = mode == "verify-full"
    if mode not in ("verify-ca", "verify-full"):
        context.verify_mode = ssl.CERT_NONE
    if "sslcert" in options:
        context.load_cert_chain(options["sslcert"], options.get("sslkey"), options.get("sslpassword"))
    return context
