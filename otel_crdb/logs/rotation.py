# SPDX-License-Identifier: Apache-2.0
"""A log file that several processes write and rotate, none of which ever waits for another.

A line is one ``write()`` to a file opened with ``O_APPEND``: the kernel sets lines one behind another, so
that none is torn, and no lock is needed. Only who rotates takes a lock, on the file itself, and whoever does
not get it writes on. A line that is written while the file is renamed stands at the end of the renamed one.
(So it is on local file systems. NFS has no such ``write()``: give each host a file of its own there.)
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import stat
import time
from collections import deque
from pathlib import Path
from typing import Any

from otel_crdb.hooks import CarefulLogger

logger = CarefulLogger(__name__)

#: Seconds without trouble before a spell of it is over: a disk that is full every other time is one spell.
CALM_SECONDS = 10.0
#: Seconds before a rotation that failed is tried again.
PAUSE_SECONDS = 10.0
#: Not blocking: where the path leads to a pipe that nobody reads, opening it would wait.
_TO_APPEND = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOCTTY | os.O_NONBLOCK


class SharedRotatingFileHandler(logging.Handler):
    """Writes records to a file, and rotates it at a size, with any number of threads and processes.

    ``filename``: the file; it is opened at the first record. ``maxBytes``: the size that it does not exceed
    (but by what is written while somebody rotates). ``backupCount``: how many files are kept besides it, as
    ``filename.1``, the youngest, to ``filename.N``. Where either is 0 it is never rotated. All processes are
    to say the same. The names are those of :class:`logging.handlers.RotatingFileHandler`: it takes its place.

    What cannot be written (a full disk, a folder that is gone) is lost and counted; the application does not
    notice. One warning says so, to the other handlers, and one line says when it is over.
    """

    terminator = "\n"

    def __init__(
        self,
        filename: str | os.PathLike[str],
        maxBytes: int = 10 * 2**20,  # noqa: N803 - the standard library's name
        backupCount: int = 5,  # noqa: N803
        encoding: str = "utf-8",
        level: int | str = logging.NOTSET,
    ) -> None:
        super().__init__(level)
        self.baseFilename = str(Path(filename).absolute())
        self.maxBytes = maxBytes
        self.backupCount = backupCount
        self.encoding = encoding
        self.trouble = Trouble(self.baseFilename)
        self._descriptor: int | None = None
        self._opened = (0, 0)  # device and inode of what we have open
        self._torn = False  # a line of ours ends amid itself, and could not be taken back
        self._rotate_not_before = 0.0

    def handle(self, record: logging.LogRecord) -> bool | logging.LogRecord:  # type: ignore[override]
        """Write the record; then, with our lock free again, say what there is to say."""
        handled: bool | logging.LogRecord = super().handle(record)
        self.trouble.say()
        return handled

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record; what keeps it from being written stays here."""
        try:
            line = (self.format(record) + self.terminator).encode(self.encoding, "backslashreplace")
        except Exception:  # noqa: BLE001 - as every handler does: an error in the call that logs is shown on stderr
            with contextlib.suppress(Exception):
                self.handleError(record)
            return
        try:
            self._write(line)
        except Exception as error:  # noqa: BLE001 - the guard: a log file never breaks the application
            self.trouble.lost_one(error)
        else:
            self.trouble.went_well()

    def close(self) -> None:
        """Close the file; a record that comes later opens it again."""
        self.acquire()
        try:
            descriptor, self._descriptor = self._descriptor, None
            if descriptor is not None and self._is_ours(descriptor):
                os.close(descriptor)
        finally:
            self.release()
        super().close()

    # --- writing ---

    def _write(self, line: bytes) -> None:
        found = self._current()
        if found.st_size and self._is_full(found.st_size + len(line)) and self._rotate():
            found = self._current()
        if self._torn:
            line = b"\n" + line
        descriptor = self._descriptor
        assert descriptor is not None
        written = os.write(descriptor, line)
        self._torn = False
        if written < len(line):
            self._take_back(descriptor, found.st_size, written)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _take_back(self, descriptor: int, size: int, written: int) -> None:
        """Take half a line away, unless something has come behind it."""
        if os.fstat(descriptor).st_size == size + written:
            os.ftruncate(descriptor, size)
        else:
            self._torn = True

    def _current(self) -> os.stat_result:
        """Have open what the path leads to, and return its state; whoever has moved or removed it."""
        for _ in range(10):
            found = self._stat()
            if found is not None and self._has_open(found):
                return found
            self._open()
        raise OSError("the file is removed as soon as it is there")

    def _stat(self) -> os.stat_result | None:
        try:
            return os.stat(self.baseFilename)  # noqa: PTH116 - once a record: no detour by pathlib
        except FileNotFoundError:
            return None

    def _has_open(self, found: os.stat_result) -> bool:
        descriptor = self._descriptor
        return descriptor is not None and _identity(found) == self._opened and self._is_ours(descriptor)

    def _open(self) -> None:
        new = os.open(self.baseFilename, _TO_APPEND, 0o666)
        state = os.fstat(new)
        if not stat.S_ISREG(state.st_mode):
            os.close(new)
            raise OSError("it is no regular file")
        old = self._descriptor
        if old is not None and self._is_ours(old):
            # In one step: a signal handler may log amid its thread's write, and the number must stay right.
            os.dup2(new, old, inheritable=False)
            os.close(new)
        else:
            self._descriptor = new
        self._opened = _identity(state)

    def _is_ours(self, descriptor: int) -> bool:
        """Whether it leads to what we opened: a daemon in the making closes all, and numbers come again."""
        try:
            return _identity(os.fstat(descriptor)) == self._opened
        except OSError:
            return False

    # --- rotating ---

    def _is_full(self, size: int) -> bool:
        return 0 < self.maxBytes < size and self.backupCount > 0

    def _rotate(self) -> bool:
        """Rotate, unless somebody else does; whether the file is another one now."""
        if time.monotonic() < self._rotate_not_before:
            return False
        try:
            return self._rotate_alone()
        except OSError as error:  # the folder may not be written: the file grows
            self._rotate_not_before = time.monotonic() + PAUSE_SECONDS
            self.trouble.cannot_rotate(error)
            return False

    def _rotate_alone(self) -> bool:
        path = os.path.realpath(self.baseFilename)  # of a link, what is renamed is the file
        try:
            lock = os.open(path, os.O_WRONLY)  # not ours: its locks would be shared with every fork
        except FileNotFoundError:
            return True  # somebody is at it, and has renamed the last
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            locked, found = os.fstat(lock), self._stat()
            if found is None or _identity(locked) != _identity(found):
                return True  # it has been rotated since
            _shift(path, self.backupCount)
            _make_next(path, locked)
            return True
        finally:
            # Not by closing alone: a process that was forked just now has it too, and would hold the lock.
            fcntl.flock(lock, fcntl.LOCK_UN)
            os.close(lock)


class Trouble:
    """What could not be written: counted, and said once a spell, when the handler's lock is free again."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._lost = 0
        self._since: float | None = None  # None: no trouble
        self._latest = 0.0
        self._told_of_rotation = False
        self._to_say: deque[tuple[Any, ...]] = deque()

    def lost_one(self, error: Exception) -> None:
        """Count a line that could not be written."""
        self._latest = time.monotonic()
        if self._since is None:
            self._since, self._lost = self._latest, 0
            self._to_say.append(
                (
                    logging.WARNING,
                    "otel_crdb: log lines are being lost: %s: %s: %s. The application is not affected.",
                    self._path,
                    type(error).__name__,
                    error.strerror if isinstance(error, OSError) and error.strerror else error,
                )
            )
        self._lost += 1

    def went_well(self) -> None:
        """Note that a line was written: a spell of trouble may be over."""
        if self._since is None:
            return
        now = time.monotonic()
        if now - self._latest >= CALM_SECONDS:
            text = "otel_crdb: log lines are written again, after %.0f s; %d were lost: %s"
            self._to_say.append((logging.INFO, text, now - self._since, self._lost, self._path))
            self._since = None

    def cannot_rotate(self, error: OSError) -> None:
        """Note that the file grows."""
        if not self._told_of_rotation:
            self._told_of_rotation = True
            text = "otel_crdb: the log file grows, for it cannot be rotated: %s: %s"
            self._to_say.append((logging.WARNING, text, self._path, error.strerror or error))

    def say(self) -> None:
        """Log what there is to say."""
        while self._to_say:
            with contextlib.suppress(IndexError):  # another thread has said it
                level, text, *arguments = self._to_say.popleft()
                logger.log(level, text, *arguments)


def _shift(path: str, backups: int) -> None:
    """Rename the file to ``.1``, ``.1`` to ``.2`` and so on, up to the first gap, which a crash may leave."""
    last = 1
    while last < backups and os.path.exists(f"{path}.{last}"):  # noqa: PTH110 - as long as the lock is held
        last += 1
    for number in range(last, 1, -1):
        os.replace(f"{path}.{number - 1}", f"{path}.{number}")  # noqa: PTH105
    os.replace(path, f"{path}.1")  # noqa: PTH105


def _make_next(path: str, before: os.stat_result) -> None:
    """Make the next file, where root rotates one that is somebody else's: whose it is must write it too."""
    if os.geteuid() or not before.st_uid:
        return
    new_path = f"{path}.new.{os.getpid()}"
    with contextlib.suppress(OSError):  # then it is root's
        new = os.open(new_path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        try:
            os.fchown(new, before.st_uid, before.st_gid)
            os.fchmod(new, stat.S_IMODE(before.st_mode))
            os.link(new_path, path)  # not in place of one that another process has made meanwhile
        finally:
            os.close(new)
            os.unlink(new_path)  # noqa: PTH108


def _identity(state: os.stat_result) -> tuple[int, int]:
    return state.st_dev, state.st_ino
