# SPDX-License-Identifier: Apache-2.0
"""The log file that several processes rotate: no line is torn or lost, and nothing that goes wrong is noticed."""

import fcntl
import logging
import os
import re
import shutil
import subprocess
import sys
from textwrap import dedent

import pytest

from otel_crdb.logs import rotation

from .processes import environment_of
from .rotation import lines, writing

pytestmark = pytest.mark.skipif(
    os.environ.get("OTEL_CRDB_TEST_DRIVER") == "psycopg2", reason="does not depend on the driver"
)
HANDLER = "otel_crdb.logs.rotation.SharedRotatingFileHandler"
FULL = 4096


class Log:
    """A logger of its own with a file, at which a line is full of its number."""

    def __init__(self, path, **options):
        self.path = path
        self.handler = rotation.SharedRotatingFileHandler(path, **{"maxBytes": FULL, **options})
        self.logger = logging.Logger("bank")  # noqa: LOG001 - of its own: it is not in force elsewhere
        self.logger.addHandler(self.handler)

    def write(self, *numbers):
        for number in numbers:
            self.logger.warning("%d %s", number, "x" * 90)

    def numbers(self, path=None):
        """Return the numbers of the lines in a file, each of which is whole."""
        text = (path or self.path).read_text()
        assert re.fullmatch(r"(\d+ x{90}\n)*", text), text
        return [int(number) for number in re.findall(r"^\d+", text, re.MULTILINE)]

    def all_numbers(self):
        return [number for each in lines.files_of(self.path) for number in self.numbers(each)]


@pytest.fixture
def log(tmp_path):
    """Give a log that is closed in the end."""
    opened = Log(tmp_path / "bank.log")
    yield opened
    opened.handler.close()


def said(caplog):
    """Return what was said of the file."""
    return [f"{record.levelname} {record.getMessage()}" for record in caplog.records]


def script(text, *arguments, **variables):
    """Run a script in a process of its own; return what it printed."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", dedent(text), *map(str, arguments)],
        cwd=writing.ROOT,
        env=environment_of(**variables),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


# --- many writers ----------------------------------------------------------------------------------------------


def test_no_line_is_torn_or_lost_when_threads_and_processes_write_through_rotation(tmp_path):
    """Fifty threads in each of four processes, two of them forks, write 20,000 records through rotation."""
    path = tmp_path / "bank.log"
    writing.write(path, HANDLER, 4, 50, 20_000, 64 * 1024)
    found = lines.search(path, 4, 50, 20_000)
    assert (found.wrong, found.lines, found.late) == ("", 20_000, 0)
    assert found.files > 10


def test_the_search_finds_what_is_wrong(tmp_path):
    """A torn line, one that is there twice and one that is not there are found, each as what it is."""
    (tmp_path / "bank.log.1").write_text(
        f"{lines.line(0, 0, 0)}\n{lines.line(0, 0, 1)}\n{lines.line(0, 0, 1)}\n"
    )
    (tmp_path / "bank.log").write_text(
        f"{lines.line(0, 0, 3)}\n{lines.line(0, 0, 4)[:-3]}{lines.line(0, 0, 5)}\n"
    )
    found = lines.search(tmp_path / "bank.log", 1, 1, 4)
    assert (len(found.torn), found.twice, found.lost) == (1, ["0 0 1"], ["0 0 2"])


def test_a_signal_handler_may_log_amid_a_line(tmp_path):
    """Lines of a signal handler, which strikes amid writing and rotating, are there, and so are the others."""
    numbers = script(
        """
        import logging, signal, sys
        from otel_crdb.logs.rotation import SharedRotatingFileHandler

        logger = logging.Logger("bank")
        logger.addHandler(SharedRotatingFileHandler(sys.argv[1], 4096, 1000))
        struck = []

        def strike(*_):
            struck.append(None)
            logger.warning("struck %d", len(struck))

        signal.signal(signal.SIGALRM, strike)
        signal.setitimer(signal.ITIMER_REAL, 0.002, 0.002)
        for number in range(10_000):
            logger.warning("line %d", number)
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(len(struck))
        """,
        tmp_path / "bank.log",
    )
    written = "".join(each.read_text() for each in lines.files_of(tmp_path / "bank.log")).splitlines()
    struck = [f"struck {number + 1}" for number in range(int(numbers))]
    assert sorted(written) == sorted([*struck, *(f"line {number}" for number in range(10_000))])
    assert struck


def test_a_process_that_stands_still_while_it_rotates_holds_nobody_up(log):
    """Where another process has the lock of the rotation, lines are written all the same, and rotated later."""
    log.write(0)
    with log.path.open() as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        log.write(*range(1, 100))
        assert log.numbers() == list(range(100))
        assert log.path.stat().st_size > FULL
    log.write(100)
    assert log.numbers() == [100]
    assert log.all_numbers() == list(range(101))


def test_a_fork_amid_a_rotation_does_not_keep_its_lock(tmp_path):
    """A child that was forked while the file was locked has the lock's descriptor, and lives on: rotation goes on."""
    files = script(
        """
        import logging, os, signal, sys, time
        from otel_crdb.logs import rotation

        logger = logging.Logger("bank")
        logger.addHandler(rotation.SharedRotatingFileHandler(sys.argv[1], 4096, 5))
        shift, rotation.PAUSE_SECONDS, children = rotation._shift, 0, []

        def fork_and_fail(*_):
            rotation._shift = shift
            child = os.fork()
            if not child:
                signal.pause()
            children.append(child)
            raise OSError("not this time")

        rotation._shift = fork_and_fail
        logging.getLogger("otel_crdb").disabled = logging.getLogger(rotation.__name__).disabled = True
        for number in range(100):
            logger.warning("%d %s", number, "x" * 90)
        os.kill(children[0], signal.SIGKILL)
        os.waitpid(children[0], 0)
        print(len(os.listdir(os.path.dirname(sys.argv[1]))))
        """,
        tmp_path / "bank.log",
    )
    assert int(files) == 3


def test_who_gets_the_lock_when_the_file_is_rotated_already_does_not_rotate_again(log, monkeypatch):
    """Between a look at the file and its lock another process may rotate: its new file is not rotated too."""
    flock = fcntl.flock

    def rotated_meanwhile(descriptor, how):
        monkeypatch.setattr(rotation.fcntl, "flock", flock)
        rotation._shift(str(log.path), 5)
        Log(log.path).write(1000)
        return flock(descriptor, how)

    monkeypatch.setattr(rotation.fcntl, "flock", rotated_meanwhile)
    log.write(*range(44))
    assert [len(log.numbers(each)) for each in lines.files_of(log.path)] == [43, 2]


def test_who_finds_the_file_renamed_takes_the_new_one(log, monkeypatch, caplog):
    """Between the last rename of another process and the first line of its new file there is no file: no trouble."""
    realpath = os.path.realpath

    def renamed_meanwhile(path):
        monkeypatch.setattr(rotation.os.path, "realpath", realpath)
        rotation._shift(path, 5)
        return path

    monkeypatch.setattr(rotation.os.path, "realpath", renamed_meanwhile)
    log.write(*range(44))
    assert [len(log.numbers(each)) for each in lines.files_of(log.path)] == [43, 1]
    assert said(caplog) == []


# --- the files -------------------------------------------------------------------------------------------------


def test_files_are_as_many_and_as_large_as_was_said(tmp_path):
    """No file is larger than its limit, so many are kept, and .1 is the youngest of the rotated ones."""
    log = Log(tmp_path / "bank.log", backupCount=2)
    log.write(*range(200))
    log.handler.close()
    assert sorted(each.name for each in tmp_path.iterdir()) == ["bank.log", "bank.log.1", "bank.log.2"]
    assert all(each.stat().st_size <= FULL for each in tmp_path.iterdir())
    kept = log.all_numbers()
    assert kept == list(range(kept[0], 200))


def test_without_a_limit_nothing_is_rotated(tmp_path):
    """A limit of 0, of bytes or of files, has the file grow."""
    for name, options in {"a": {"maxBytes": 0}, "b": {"backupCount": 0}}.items():
        log = Log(tmp_path / f"{name}.log", **options)
        log.write(*range(100))
        log.handler.close()
        assert log.numbers() == list(range(100))


def test_a_line_longer_than_the_limit_is_written_whole(log):
    """A line that no file can hold has a file to itself."""
    log.write(0)
    log.logger.warning("y" * 2 * FULL)
    log.write(1)
    assert [each.stat().st_size > FULL for each in lines.files_of(log.path)] == [False, True, False]


def test_a_gap_that_a_crash_left_is_filled(log):
    """Where a process died amid a rotation, files are moved up to the gap, and none is overwritten."""
    for number, suffix in enumerate(("log.1", "log.3")):
        (log.path.parent / f"bank.{suffix}").write_text(f"{number} {'x' * 90}\n")
    log.write(*range(2, 45))
    assert log.all_numbers() == [1, 0, *range(2, 45)]


def test_a_file_that_a_link_names_is_rotated_where_it_is(tmp_path):
    """A link stays one; the files lie beside what it names."""
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "bank.log"
    link.symlink_to(tmp_path / "elsewhere" / "real.log")
    log = Log(link)
    log.write(*range(60))
    log.handler.close()
    assert link.is_symlink()
    assert sorted(each.name for each in (tmp_path / "elsewhere").iterdir()) == ["real.log", "real.log.1"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_the_next_file_belongs_to_whom_the_last_one_did(log):
    """A command of root's that rotates the servers' file leaves them one that they can write, and nothing else."""
    log.write(0)
    os.chown(log.path, 65534, 65534)
    log.path.chmod(0o640)
    log.write(*range(1, 60))
    made = log.path.stat()
    assert (made.st_uid, made.st_gid, made.st_mode & 0o777) == (65534, 65534, 0o640)
    assert log.all_numbers() == list(range(60))
    assert sorted(each.name for each in log.path.parent.iterdir()) == ["bank.log", "bank.log.1"]


def test_a_file_that_somebody_else_moved_is_left_to_him(log):
    """After a move by logrotate lines stand in a new file, none in the one that was moved."""
    log.write(0, 1)
    log.path.rename(log.path.parent / "moved")
    log.write(2)
    assert (log.numbers(log.path.parent / "moved"), log.numbers()) == ([0, 1], [2])


# --- what goes wrong -------------------------------------------------------------------------------------------


def test_a_folder_that_is_gone_is_said_once_and_so_is_its_end(log, caplog, monkeypatch):
    """Lines that cannot be written raise nothing and are counted; when the folder is back they are written again."""
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(rotation, "CALM_SECONDS", 0)
    log.write(0)
    shutil.rmtree(log.path.parent)
    log.write(1, 2, 3)
    log.path.parent.mkdir()
    log.write(4, 5)
    assert log.numbers() == [4, 5]
    trouble = f"{log.path}: FileNotFoundError: No such file or directory"
    assert said(caplog) == [
        f"WARNING otel_crdb: log lines are being lost: {trouble}. The application is not affected.",
        f"INFO otel_crdb: log lines are written again, after 0 s; 3 were lost: {log.path}",
    ]


def test_a_spell_of_trouble_is_not_over_with_one_line(log, caplog):
    """What fails every other time is one spell, and said once."""
    for number in range(5):
        shutil.rmtree(log.path.parent)
        log.write(number)
        log.path.parent.mkdir()
        log.write(number)
    assert len(said(caplog)) == 1


def test_of_a_line_that_the_disk_cannot_hold_nothing_is_left(tmp_path):
    """Where only a part of a line could be written it is taken back; then whole lines follow."""
    path = tmp_path / "bank.log"
    script(
        """
        import logging, resource, sys
        from otel_crdb.logs.rotation import SharedRotatingFileHandler

        handler = SharedRotatingFileHandler(sys.argv[1], 0)
        logger = logging.Logger("bank")
        logger.addHandler(handler)
        logging.getLogger("otel_crdb").addHandler(logging.NullHandler())
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
        for number in range(20):
            logger.warning("%d %s", number, "x" * 90)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        logger.warning("%d %s", 20, "x" * 90)
        """,
        path,
    )
    numbers = [int(line.split()[0]) for line in path.read_text().splitlines()]
    assert numbers == [*range(10), 20]
    assert re.fullmatch(r"(\d+ x{90}\n)*", path.read_text())


def test_a_rotation_that_fails_is_said_once_and_the_file_grows(log, caplog, monkeypatch):
    """Where the files cannot be renamed no line is lost."""
    monkeypatch.setattr(rotation, "PAUSE_SECONDS", 0)
    (log.path.parent / "bank.log.1").mkdir()
    log.handler.backupCount = 1
    log.write(*range(100))
    assert log.numbers() == list(range(100))
    assert said(caplog) == [
        f"WARNING otel_crdb: the log file grows, for it cannot be rotated: {log.path}: Is a directory"
    ]


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_file_is_not_waited_for(tmp_path, caplog, make):
    """A pipe that nobody reads, and a folder, are said to be none."""
    make(tmp_path / "bank.log")
    log = Log(tmp_path / "bank.log")
    log.write(0, 1)
    (line,) = said(caplog)
    assert line.startswith("WARNING otel_crdb: log lines are being lost")


def test_a_descriptor_that_has_become_somebody_elses_is_left_alone(log, tmp_path):
    """Where all descriptors were closed, and the number is another file's now, nothing is written there."""
    log.write(0)
    number = log.handler._descriptor
    with (tmp_path / "stranger").open("wb") as stranger:
        os.dup2(stranger.fileno(), number)
        log.write(1)
        assert os.fstat(number).st_size == 0
    os.close(number)
    assert log.numbers() == [0, 1]


def test_a_record_after_the_end_opens_the_file_again(log):
    """logging.shutdown() closes handlers, and what is logged after it is written."""
    log.write(0)
    log.handler.close()
    log.write(1)
    assert log.numbers() == [0, 1]


def test_a_record_that_cannot_be_formatted_is_shown_on_stderr(log, capsys):
    """A wrong call of the application's is told as by every other handler, and the next record is written."""
    log.logger.warning("%d", "no number")
    assert "--- Logging error ---" in capsys.readouterr().err
    log.logger.warning("a lone surrogate: \ud800")
    assert log.path.read_text() == "a lone surrogate: \\ud800\n"
