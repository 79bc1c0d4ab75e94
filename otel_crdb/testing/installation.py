# SPDX-License-Identifier: Apache-2.0
"""Where PostgreSQL's programs and data lie, and under which account they run.

PostgreSQL refuses to run as root. Root therefore hands it to `nobody`, an account every system has, with all
its files in one temporary directory. Nothing is made readable for that account that was not: programs that
it cannot read are copied.
"""

from __future__ import annotations

import os
import pwd
import shutil
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .processes import StartError

if TYPE_CHECKING:
    from collections.abc import Iterator

ACCOUNT = "nobody"
SOCKET_NAME = ".s.PGSQL.5432"
# sockaddr_un of macOS holds 104 bytes, that of Linux 108; both count the final zero.
SOCKET_PATH_LIMIT = 103


@dataclass(frozen=True)
class Account:
    """Whom PostgreSQL runs as. `switched` tells whether that is somebody else than us."""

    uid: int
    gid: int
    switched: bool

    @classmethod
    def ourselves(cls) -> Account:
        """Take whoever we are."""
        return cls(os.geteuid(), os.getegid(), switched=False)

    @classmethod
    def unprivileged(cls) -> Account:
        """Take ourselves, or `nobody` for root. Raises StartError when there is no such account."""
        if os.geteuid() != 0:
            return cls.ourselves()
        try:
            entry = pwd.getpwnam(ACCOUNT)
        except KeyError:
            raise StartError(f"PostgreSQL cannot run as root, and there is no account {ACCOUNT!r}") from None
        return cls(entry.pw_uid, entry.pw_gid, switched=True)

    def popen_options(self) -> dict[str, Any]:
        """Give the arguments that make `subprocess.Popen` run a child as this account."""
        if not self.switched:
            return {}
        return {"user": self.uid, "group": self.gid, "extra_groups": []}

    def own(self, path: Path) -> None:
        """Hand one file or directory over to this account."""
        if self.switched:
            os.chown(path, self.uid, self.gid, follow_symlinks=False)

    @contextmanager
    def eyes(self) -> Iterator[None]:
        """See the file system as this account does."""
        if not self.switched:
            yield
            return
        groups = os.getgroups()
        os.setgroups([])
        os.setegid(self.gid)
        os.seteuid(self.uid)
        try:
            yield
        finally:
            os.seteuid(0)
            os.setegid(0)
            os.setgroups(groups)


def make_directory(account: Account) -> Path:
    """Make the temporary directory: the account's own, in its reach, its path short enough for a socket."""
    for parent in (tempfile.gettempdir(), "/tmp", "/var/tmp"):  # noqa: S108 - mkdtemp chooses the name
        directory = Path(tempfile.mkdtemp(prefix="otel_crdb-", dir=parent))
        account.own(directory)
        if len(os.fsencode(directory / SOCKET_NAME)) <= SOCKET_PATH_LIMIT:
            with account.eyes():
                if os.access(directory, os.W_OK | os.X_OK, effective_ids=True):
                    return directory
        directory.rmdir()
    raise StartError("found no temporary directory that PostgreSQL can use: let TMPDIR name one")


def programs(package: Path, account: Account, directory: Path) -> Path:
    """Give the folder of PostgreSQL's programs, in the wheel's `package` or copied into `directory`."""
    installed = package / "pginstall" / "bin"
    with account.eyes():
        if _usable(package):
            return installed
    copy = directory / "programs"
    _copy(package, copy, account)
    return copy / package.name / "pginstall" / "bin"


def _usable(package: Path) -> bool:
    libraries = package.parent / f"{package.name}.libs"
    readable = (package / "pginstall" / "share" / "postgres.bki", package / "pginstall" / "lib", libraries)
    executable = (package / "pginstall" / "bin" / name for name in ("initdb", "postgres", "psql"))
    return all(os.access(path, os.X_OK, effective_ids=True) for path in executable) and all(
        # macOS wheels have no folder of libraries beside the package.
        os.access(path, os.R_OK, effective_ids=True) or not os.path.lexists(path)
        for path in readable
    )


def _copy(package: Path, target: Path, account: Account) -> None:
    """Copy the programs with the libraries they find by their relative position, beside or in the package."""
    folders = [Path(package.name, "pginstall", name) for name in ("bin", "lib", "share")]
    folders += [Path(package.name, ".dylibs"), Path(f"{package.name}.libs")]
    for folder in folders:
        if (package.parent / folder).is_dir():
            shutil.copytree(package.parent / folder, target / folder, symlinks=True)
    for path in (target, *target.rglob("*")):
        account.own(path)
