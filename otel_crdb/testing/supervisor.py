# SPDX-License-Identifier: Apache-2.0
"""The process that owns a test server: it starts it, watches its users, and takes it away after the last.

Users hold the write end of a pipe, the lease, which forked children inherit. Its end of file means that the
last of them is gone, however it went. A second link, a socket to the process that asked for the server, says
when it is ready and, being held open by the database too, when all is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import select
import shutil
import signal
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from .cockroach import CockroachServer
from .embedded import EmbeddedServer
from .installation import Account, make_directory
from .lease import HELD
from .processes import StartError
from .wire import Announcement

if TYPE_CHECKING:
    from collections.abc import Coroutine

T = TypeVar("T")


def main() -> None:
    """Run the supervisor on the JSON order in the first argument. It leaves when the lease ends."""
    os.umask(0o077)
    os.chdir("/")
    _allow_many_files()
    asyncio.run(Supervisor(json.loads(sys.argv[1])).run())


def _allow_many_files() -> None:
    """Two files a session: the usual 1,024 would not do for the server's 500 sessions."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 4096 if hard == resource.RLIM_INFINITY else min(4096, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class Supervisor:
    """One server's life. The order names the kind of server, its parameters and the two file descriptors."""

    def __init__(self, order: dict[str, Any]) -> None:
        self._order = order
        self._lease: int = order["lease"]
        self._asker = socket.socket(fileno=order["asker"])
        self._over = asyncio.Event()

    async def run(self) -> None:
        """Start the server, wait for the end, and leave nothing."""
        loop = asyncio.get_running_loop()
        loop.add_reader(self._lease, self._on_lease)
        for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.add_signal_handler(signum, self._over.set)
        directory = None
        try:
            account = Account.unprivileged() if self._order["kind"] == "embedded" else Account.ourselves()
            directory = make_directory(account)
            self._tell({"directory": str(directory)})  # first, for the user to remove should we be killed
            await self._serve(self._server(directory, account))
        except (StartError, OSError, ValueError, asyncio.TimeoutError) as error:
            self._tell({"error": str(error) or f"the server was not ready in {self._order['timeout']} s"})
        finally:
            if directory is not None:
                shutil.rmtree(directory)

    def _server(self, directory: Path, account: Account) -> EmbeddedServer | CockroachServer:
        order = self._order
        if order["kind"] == "cockroach":
            return CockroachServer(directory, order["binary"])
        announcement = Announcement(order["crdb_version"], order["node_id"])
        return EmbeddedServer(directory, account, Path(order["package"]), announcement)

    async def _serve(self, server: EmbeddedServer | CockroachServer) -> None:
        try:
            starting = asyncio.wait_for(server.start(self._asker.fileno()), self._order["timeout"])
            ready = await self._unless_over(starting)
            if ready is not None:
                self._tell(ready | {"pids": [os.getpid(), *server.pids()]})
                asyncio.get_running_loop().add_reader(self._asker, self._on_question)
                last_words = await self._unless_over(server.ended())
                if last_words is not None:
                    sys.stderr.write(f"otel_crdb: the test server ended by itself: {last_words}\n")
        finally:
            await server.stop()

    async def _unless_over(self, work: Coroutine[Any, Any, T]) -> T | None:
        """Wait for the work, but no longer than until the last user has gone: None then."""
        task, over = asyncio.ensure_future(work), asyncio.ensure_future(self._over.wait())
        await asyncio.wait({task, over}, return_when=asyncio.FIRST_COMPLETED)
        over.cancel()
        if task.done():
            return task.result()
        task.cancel()
        await asyncio.wait({task})
        return None

    def _on_lease(self) -> None:
        if not os.read(self._lease, 1):
            asyncio.get_running_loop().remove_reader(self._lease)
            self._over.set()

    def _on_question(self) -> None:
        """Answer the asker, who has left: it need not wait for the end while others hold the lease."""
        if not self._asker.recv(1):
            asyncio.get_running_loop().remove_reader(self._asker)
        elif not _ended(self._lease):
            self._asker.send(HELD)

    def _tell(self, message: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):  # the asker is gone: the lease will tell who else is
            self._asker.sendall(json.dumps(message).encode() + b"\n")


def _ended(pipe: int) -> bool:
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    return any(event & select.POLLHUP for _, event in poll.poll(0))
