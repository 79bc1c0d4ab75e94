# SPDX-License-Identifier: Apache-2.0
"""The lines that are written, each known by its numbers, and the search for them in the files."""

import zlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

#: One line in so many is longer than a page of memory and than any buffer.
LONG_EVERY = 997


def line(process, thread, number):
    """Return one line: its numbers, and a text that follows from them, so that every character can be checked."""
    drawn = zlib.crc32(b"%d %d %d" % (process, thread, number))
    length = 20_000 + drawn % 5_000 if number % LONG_EVERY == LONG_EVERY - 1 else drawn % 160
    text = (f"{drawn:08x}äß€ " * (length // 12 + 1))[:length]
    return f"{process} {thread} {number} {text}|"


@dataclass
class Found:
    """What the files hold."""

    files: int = 0
    lines: int = 0
    torn: list[str] = field(default_factory=list)  # no line that anybody wrote
    twice: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    late: int = 0  # behind a later line of the same thread
    largest: int = 0  # bytes

    @property
    def wrong(self):
        """What is wrong, in a few words; empty where every line is there once and whole."""
        kinds = {"torn": self.torn, "twice": self.twice, "lost": self.lost}
        return ", ".join(f"{len(found)} {kind} {found[:3]}" for kind, found in kinds.items() if found)


def files_of(path):
    """Return the files of a rotation, the oldest first."""
    path = Path(path)
    backups = [each for each in path.parent.glob(f"{path.name}.*") if each.suffix[1:].isdigit()]
    return [*sorted(backups, key=lambda each: -int(each.suffix[1:])), path]


def search(path, processes, threads, records):
    """Look for every line that so many processes, each of so many threads, have written."""
    found = Found()
    seen = Counter()
    last = {}
    for each in files_of(path):
        found.files += 1
        found.largest = max(found.largest, each.stat().st_size)
        with each.open("rb") as opened:
            for raw in opened:
                found.lines += 1
                _take(raw, found, seen, last)
    for process in range(processes):
        for thread in range(threads):
            for number in range(records // (processes * threads)):
                times = seen[process, thread, number]
                if times != 1:
                    (found.twice if times else found.lost).append(f"{process} {thread} {number}")
    return found


def _take(raw, found, seen, last):
    try:
        numbers = tuple(map(int, raw.split(b" ", 3)[:3]))
        whole = raw == f"{line(*numbers)}\n".encode()
    except (TypeError, ValueError):
        whole = False
    if not whole:
        found.torn.append(repr(raw[:60]))
        return
    seen[numbers] += 1
    thread, number = numbers[:2], numbers[2]
    found.late += number < last.get(thread, -1)
    last[thread] = max(number, last.get(thread, -1))
