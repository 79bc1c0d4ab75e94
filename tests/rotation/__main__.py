# SPDX-License-Identifier: Apache-2.0
"""Writes a million records through rotation, by 50 threads in each of 4 processes, and looks for every line.

    python -m tests.rotation                              # make rotation
    python -m tests.rotation --records 20000 --bytes 65536
    python -m tests.rotation --handler logging.handlers.RotatingFileHandler   # which loses lines

The exit status is 1 where a line is torn, lost or there twice.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from . import writing
from .lines import search

OURS = "otel_crdb.logs.rotation.SharedRotatingFileHandler"


def arguments():
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.rotation", description=__doc__.split("\n")[0])
    parser.add_argument("--records", type=int, default=1_000_000, help="of all processes together")
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--threads", type=int, default=50, help="of each process")
    parser.add_argument("--bytes", type=int, default=2**20, help="at which a file is full")
    parser.add_argument("--handler", default=OURS, help="the class that writes, with stdlib's arguments")
    return parser.parse_args()


def main():
    """Write, search, and give the exit status."""
    options = arguments()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "bank.log")
        began = time.monotonic()
        writing.write(
            path, options.handler, options.processes, options.threads, options.records, options.bytes
        )
        seconds = time.monotonic() - began
        found = search(path, options.processes, options.threads, options.records)
    sys.stdout.write(
        f"{options.handler}: {options.records:,} records by {options.processes} processes of {options.threads} "
        f"threads in {seconds:.1f} s; {found.files} files, the largest of {found.largest:,} bytes; "
        f"{found.lines:,} lines, {found.late} behind a later line of their thread; {found.wrong or 'none torn, none lost'}\n"
    )
    return 1 if found.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
