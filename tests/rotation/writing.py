# SPDX-License-Identifier: Apache-2.0
"""The processes that write: half are forked from one that has the file open, half are new interpreters."""

import json
import logging
import os
import subprocess
import sys
import threading
from importlib import import_module
from pathlib import Path

from .lines import line

ROOT = Path(__file__).resolve().parents[2]
#: More than any run fills.
BACKUPS = 10_000


def write(path, handler, processes, threads, records, full):
    """Have processes write that many records together, through the rotation of a file at so many bytes."""
    each = records // (processes * threads)
    forked = list(range(processes // 2))
    new = range(processes // 2, processes)
    # The first starts its children by fork when it has written itself, as a server's master does.
    jobs = [forked, *([number] for number in new)]
    started = [_start(path, handler, job, threads, each, full) for job in jobs if job]
    failed = [process.wait() for process in started]
    assert not any(failed), f"a process ended with status {failed}"


def _start(path, handler, job, threads, each, full):
    told = json.dumps([str(path), handler, job, threads, each, full])
    return subprocess.Popen([sys.executable, "-m", "tests.rotation.writing", told], cwd=ROOT)


def main():
    """Write as one process, or as several forks of one."""
    path, handler, numbers, threads, each, full = json.loads(sys.argv[1])
    module, _, name = handler.rpartition(".")
    logger = logging.getLogger("rotation")
    logger.setLevel(logging.INFO)
    logger.addHandler(
        getattr(import_module(module), name)(path, maxBytes=full, backupCount=BACKUPS, encoding="utf-8")
    )
    if len(numbers) == 1:
        run(logger, numbers[0], threads, each)
        return 0
    logger.info(line(numbers[0], 0, 0))
    children = []
    for number in numbers:
        child = os.fork()
        if not child:
            run(logger, number, threads, each, first=number == numbers[0])
            os._exit(0)
        children.append(child)
    return max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children)


def run(logger, process, threads, each, *, first=False):
    """Write a process's lines, by its threads, all at once; ``first``: its very first line is there already."""
    ready = threading.Barrier(threads)

    def write_all(thread):
        ready.wait()
        for number in range(1 if first and not thread else 0, each):
            logger.info(line(process, thread, number))

    writers = [threading.Thread(target=write_all, args=(thread,)) for thread in range(threads)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()


if __name__ == "__main__":
    sys.exit(main())
