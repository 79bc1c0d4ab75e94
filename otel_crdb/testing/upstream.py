# SPDX-License-Identifier: Apache-2.0
"""How the fault proxy reaches the server behind it: its socket, or TCP with or without TLS."""

from __future__ import annotations

import asyncio
import socket
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
    mode = server.options.get("sslmode", "prefer")
    context = _context(server, mode)  # first: what is wrong with it is known without a connection
    link = await _dialled(server.host, server.port)
    try:
        if mode not in ("disable", "allow") and not await _offers_tls(link):
            if mode != "prefer":
                raise OSError(f"sslmode={mode}, and the server has no TLS")
            context = None
    except BaseException:
        link.close()
        raise
    name = server.host if context is not None else None
    return await asyncio.open_connection(sock=link, ssl=context, server_hostname=name, limit=READ_SIZE)


async def _dialled(host: str, port: int) -> socket.socket:
    """Give a connected socket: TLS has to be asked for before anything takes it over."""
    loop = asyncio.get_running_loop()
    failure = OSError(f"{host} has no address")
    for family, kind, protocol, _, address in await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        link = socket.socket(family, kind, protocol)
        link.setblocking(False)
        try:
            await asyncio.wait_for(loop.sock_connect(link, address), CONNECT_TIMEOUT)
        except asyncio.TimeoutError:  # no OSError before Python 3.11
            link.close()
            failure = OSError(f"no answer from {host}:{port} in {CONNECT_TIMEOUT:.0f} s")
        except OSError as error:
            link.close()
            failure = error
        except BaseException:
            link.close()
            raise
        else:
            return link
    raise failure


async def _offers_tls(link: socket.socket) -> bool:
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(link, (8).to_bytes(4, "big") + SSL_REQUEST.to_bytes(4, "big"))
    answer = await loop.sock_recv(link, 1)
    if not answer:
        raise OSError("the server closed the connection where it was asked for TLS")
    return answer == b"S"


def _context(server: Server, mode: str) -> ssl.SSLContext | None:
    """Give what is demanded of the server's certificate, as libpq reads `sslmode`; None: no TLS."""
    if mode in ("disable", "allow"):
        return None
    options = server.options
    context = ssl.create_default_context(cafile=options.get("sslrootcert"))
    context.check_hostname = mode == "verify-full"
    if mode not in ("verify-ca", "verify-full") and not (mode == "require" and "sslrootcert" in options):
        context.verify_mode = ssl.CERT_NONE
    if "sslcert" in options:
        context.load_cert_chain(options["sslcert"], options.get("sslkey"), options.get("sslpassword"))
    return context
