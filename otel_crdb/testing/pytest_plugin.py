# SPDX-License-Identifier: Apache-2.0
"""The fixture `crdb_server`, and one line at the end of the run that says which server it was.

pytest loads this in every project that has the package installed. Nothing is looked for, and nothing heavy
imported, before a test asks for the server.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .servers import Server

_used = pytest.StashKey[str]()


@pytest.fixture(scope="session")
def crdb_server(pytestconfig: pytest.Config) -> Iterator[Server]:
    """Give one `otel_crdb.testing.Server` for the whole run: see `otel_crdb.testing.server` for which one."""
    from . import server

    with server() as running:
        pytestconfig.stash[_used] = running.description
        yield running


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say which server the tests ran on, where one did."""
    if _used in config.stash:
        terminalreporter.write_line(f"otel_crdb: ran on {config.stash[_used]}")
