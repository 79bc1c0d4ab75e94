# SPDX-License-Identifier: Apache-2.0
"""A server to test on, without Docker: CockroachDB where there is one, else a PostgreSQL that plays it."""

from .lease import ServerError
from .servers import Server, server

__all__ = ["Server", "ServerError", "server"]
