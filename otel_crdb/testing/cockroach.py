# SPDX-License-Identifier: Apache-2.0
"""A single CockroachDB node in memory, from a `cockroach` binary."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from .processes import Daemon

if TYPE_CHECKING:
    from pathlib import Path

STORE_SIZE = "1GiB"  # CockroachDB wants 640 MiB at least


class CockroachServer:
    """A node of its own on free ports of the loopback, its files in `directory`, its data in memory.

    Written from CockroachDB's documentation and its container's entry point, and never run on the real thing:
    no binary could be had where it was written.
    """

    def __init__(self, directory: Path, binary: str) -> None:
        self._directory = directory
        self._binary = binary
        self._node: Daemon | None = None

    async def start(self, held_open: int) -> dict[str, Any]:
        """Start the node and give the fields of `Server`. Raises StartError.

        The node keeps the file descriptor `held_open` as long as it runs.
        """
        # The node writes its address there as soon as it accepts clients; the entry point of the official
        # container (build/deploy/cockroach.sh) waits on a FIFO too. We keep it open for writing as well: else
        # it would be at its end before it has begun.
        url_file = self._directory / "url"
        os.mkfifo(url_file)
        with os.fdopen(os.open(url_file, os.O_RDWR | os.O_NONBLOCK), "rb", buffering=0) as fifo:
            self._node = await Daemon.start(
                self._command(url_file),
                [signal.SIGTERM],
                pass_fds=[held_open],
                cwd=self._directory,
                env=os.environ | {"COCKROACH_SKIP_ENABLING_DIAGNOSTIC_REPORTING": "true"},
            )
            reader = asyncio.StreamReader()
            transport, _ = await asyncio.get_running_loop().connect_read_pipe(
                lambda: asyncio.StreamReaderProtocol(reader), fifo
            )
            try:
                url = await self._node.while_running(reader.readline())
            finally:
                transport.close()
        address = urlsplit(url.decode().strip())
        return {
            "description": f"CockroachDB, one node in memory, from {self._binary}",
            "host": address.hostname or "127.0.0.1",
            "port": address.port or 26257,
            "user": "root",
            "database": "defaultdb",
        }

    def _command(self, url_file: Path) -> list[str]:
        return [
            self._binary,
            "start-single-node",
            "--insecure",
            f"--store=type=mem,size={STORE_SIZE}",
            "--cache=128MiB",
            "--max-sql-memory=256MiB",
            "--listen-addr=127.0.0.1:0",
            "--http-addr=127.0.0.1:0",
            f"--listening-url-file={url_file}",
            "--logtostderr=WARNING",
        ]

    async def ended(self) -> str:
        """Wait until the node ends by itself and give its last words."""
        assert self._node is not None
        await asyncio.wait({self._node.ended})
        return self._node.last_words()

    def pids(self) -> list[int]:
        """Give the process id of the node."""
        return [self._node.pid] if self._node is not None else []

    async def stop(self) -> None:
        """Stop the node; one that has not been started is left alone."""
        if self._node is not None:
            await self._node.stop()
