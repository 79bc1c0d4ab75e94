# SPDX-License-Identifier: Apache-2.0
"""A real PgBouncer in front of the test server, with transaction pooling.

From ``OTEL_CRDB_TEST_PGBOUNCER``, from the PATH, or, on Debian and its kin, from the distribution's package: fetched by apt
and unpacked into a folder of the user's cache, without being installed.
"""

import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

VARIABLE = "OTEL_CRDB_TEST_PGBOUNCER"
#: The program, and the one library of it that is often missing.
PACKAGES = ("pgbouncer", "libc-ares2")
CONFIGURATION = """\
[databases]
{database} = host={host} port={port} user={user} password={password}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {own_port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = 4
server_tls_sslmode = disable
logfile = {directory}/log
{more}
"""


class NotToBeHadError(Exception):
    """There is no PgBouncer here; the text says why."""


def program():
    """Return the path of PgBouncer, and the folder of libraries that it needs besides, or None."""
    named = os.environ.get(VARIABLE) or shutil.which("pgbouncer")
    if named:
        return Path(named), None
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise NotToBeHadError(
            f"no PgBouncer: neither {VARIABLE} nor the PATH names one, and this is no Debian"
        )
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "otel-crdb-tests" / "pgbouncer"
    if not (cache / "usr/sbin/pgbouncer").exists():
        _fetch(cache)
    (library,) = {path.parent for path in cache.glob("usr/lib/*/libcares.so.2")}
    return cache / "usr/sbin/pgbouncer", library


def _fetch(cache):
    cache.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache.parent) as folder:
        unpacked = Path(folder) / "unpacked"
        try:
            _run("apt-get", "download", *PACKAGES, cwd=folder)
            for package in Path(folder).glob("*.deb"):
                _run("dpkg-deb", "--extract", str(package), str(unpacked), cwd=folder)
        except (OSError, subprocess.SubprocessError) as error:
            raise NotToBeHadError(f"no PgBouncer: apt could not fetch it ({error})") from None
        with contextlib.suppress(OSError):  # somebody else was faster
            unpacked.rename(cache)


def _run(*command, cwd):
    subprocess.run(command, cwd=cwd, check=True, capture_output=True, timeout=60)


@contextlib.contextmanager
def running(server, more=""):
    """Run one in front of a server; give its port. ``more``: further lines of its configuration."""
    found, library = program()
    with tempfile.TemporaryDirectory() as name, _free_port() as own_port:
        directory = Path(name)
        directory.chmod(0o755)
        # It refuses to run as root, and another account may not read root's cache.
        executable = Path(shutil.copy(found, directory / "pgbouncer"))
        for file in library.glob("libcares.so.2*") if library else ():
            shutil.copy(file, directory / file.name)
        text = CONFIGURATION.format(
            database=server.database,
            host=server.host,
            port=server.port,
            user=server.user,
            password=server.password or "none",
            own_port=own_port,
            directory=directory,
            more=more,
        )
        (directory / "ini").write_text(text)
        (directory / "log").touch(mode=0o666)
        (directory / "log").chmod(0o666)
        process = subprocess.Popen(
            [str(executable), "-q", str(directory / "ini")],
            cwd=directory,
            env={**os.environ, "LD_LIBRARY_PATH": str(directory)},
            stderr=subprocess.DEVNULL,
            **({"user": pwd.getpwnam("nobody").pw_uid} if os.geteuid() == 0 else {}),
        )
        try:
            _wait_for(own_port, process, directory / "log")
            yield own_port
        finally:
            process.terminate()
            process.wait(30)


@contextlib.contextmanager
def _free_port():
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
    yield port


def _wait_for(port, process, log, deadline=30.0):
    end = time.monotonic() + deadline
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.02)
    raise NotToBeHadError(f"PgBouncer did not start: {log.read_text()[-500:]}")
