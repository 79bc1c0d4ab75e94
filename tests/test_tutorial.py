# SPDX-License-Identifier: Apache-2.0
"""docs/tutorial.md, typed from its first line to its last: what it says is to be seen is seen."""

import contextlib
import os
import subprocess
import sys

import pytest

from .docs import pages
from .docs.typist import BIN, DEADLINE, Typist, listens

PAGE = "docs/tutorial.md"
ON_PSYCOPG2 = os.environ.get("OTEL_CRDB_TEST_DRIVER") == "psycopg2"


@pytest.mark.skipif(ON_PSYCOPG2, reason="the tutorial installs psycopg 3, and makes its own processes")
def test_the_tutorial_shows_what_it_says(tmp_path):
    """A reader who types the page sees what it shows; telemetry arrives at the collector; nothing is left running."""
    with contextlib.ExitStack() as stack:
        typist = Typist(tmp_path, stack)
        for block in pages.blocks(PAGE):
            typist.do(block)
            if typist.server is not None and block.text.startswith("kill $(cat"):
                typist.stop_server()
        arrived = typist.receiver.telemetry
        assert arrived.span("GET accounts/")["http.response.status_code"] == 200
        assert arrived.metric("http.server.request.duration", {"http.route": "accounts/"}) >= 1
        assert arrived.logs  # the doctor's
        typist._until(lambda: not listens(typist.ports["26257"]), "the proxy has ended")
    check_settings(tmp_path)


def check_settings(folder):
    """The settings for a CockroachDB, which the page ends with, are settings."""
    done = subprocess.run(
        [sys.executable, "manage.py", "check"],
        cwd=folder,
        env={"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "BANK_DATABASE_PASSWORD": "secret"},
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
