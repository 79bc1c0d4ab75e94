# SPDX-License-Identifier: Apache-2.0
"""The bank as its operator has it: started by a command of the page, asked over HTTP, stopped by a signal."""

import contextlib
import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from django.db import connection

from demo.receiver import SERVICES, Receiver
from otel_crdb.testing.otlp import spans_of
from tests.processes import DEADLINE, free_port, until

from . import page

BIN = Path(sys.executable).parent
#: The files that Django makes, or Celery's documentation, and that have lines of ours on the page.
STARTERS = ("bank/wsgi.py", "bank/asgi.py", "bank/celery.py", "manage.py", "nightly.py")


class Raw:
    """Spans as they came, each as often as it came: a receiver's `telemetry` keeps each once."""

    def __init__(self):
        self.spans = []

    def __call__(self, path, headers, body):
        """Take in an export request."""
        signal_name, kind, _ = SERVICES[path]
        if signal_name == "traces":
            request = kind()
            request.ParseFromString(body)
            self.spans.extend(spans_of(request))


class Bank:
    """A directory with the bank in it, a receiver, and the processes that were started there."""

    def __init__(self, directory, database, receiver, raw):
        self.directory = directory
        self.receiver = receiver
        self.raw = raw
        self.run = uuid.uuid4().hex
        self.port = 0
        self.answers = []
        self.log = directory / "log"
        self.child = None
        self.children = []
        self._environment = self._environment_with(database)

    def _environment_with(self, database):
        for folder in ("queue", "control"):
            (self.directory / folder).mkdir(exist_ok=True)
        kept = {name: os.environ[name] for name in ("HOME", "TMPDIR", "LANG") if name in os.environ}
        return {
            **kept,
            "PATH": f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}",
            "BANK_DATABASE": json.dumps(database),
            "BANK_DRIVER": os.environ.get("OTEL_CRDB_TEST_DRIVER", ""),
            "BANK_RUN": self.run,
            "BANK_QUEUE": str(self.directory / "queue"),
            "BANK_QUEUE_CONTROL": str(self.directory / "control"),
            "GUNICORN_CMD_ARGS": "--no-control-socket",
            "OTEL_SERVICE_NAME": "bank",
            "OTEL_EXPORTER_OTLP_ENDPOINT": self.receiver.endpoint,
            # Longer than any test: what comes was sent because a process ended, or by a flush.
            "OTEL_BSP_SCHEDULE_DELAY": "600000",
            "OTEL_METRIC_EXPORT_INTERVAL": "600000",
        }

    def start(self, command, *more, variables=None, **environment):
        """Start a command of the page, `more` of words and variables than the page has."""
        on_page, words = command
        environment = {**self._environment, **on_page, **(variables or {}), **environment}
        program = shutil.which(words[0], path=environment["PATH"])
        assert program, f"{words[0]} is not installed"
        with self.log.open("ab") as output:
            self.child = subprocess.Popen(
                [program, *words[1:], *more],
                env=environment,
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.children.append(self.child)
        return self.child

    def stop(self, how=signal.SIGTERM, *, group=False):
        """Stop it as an operator does, and return its exit status; nothing of it is left."""
        (os.killpg if group else os.kill)(self.child.pid, how)
        return self.end()

    def end(self):
        """Wait for its own end, and return its exit status; nothing of it is left."""
        try:
            status = self.child.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it hangs at its end:\n{self.written()}") from None
        until(lambda: not is_anybody_left(self.child.pid), "all its processes have ended", self.written)
        return status

    def kill(self):
        """Kill whatever is left."""
        for child in self.children:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()

    def written(self):
        """Return what its processes have written."""
        return self.log.read_text(errors="replace")

    def ask(self, path="/pay/"):
        """Send one request, patient until the server listens, and return the answer."""
        end = time.monotonic() + DEADLINE
        while True:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE)
            try:
                connection.connect()
            except ConnectionRefusedError:
                assert self.child.poll() is None, f"it ended by itself:\n{self.written()}"
                assert time.monotonic() < end, f"it does not listen:\n{self.written()}"
                time.sleep(0.02)
                continue
            with contextlib.closing(connection):
                connection.request("GET", path)
                response = connection.getresponse()
                body = response.read()
            assert response.status == 200, f"{response.status} {body[:2000]!r}\n{self.written()}"
            answer = json.loads(body)
            self.answers.append(answer)
            return answer

    def touch_until(self, words):
        """Say whether they have been written, else touch a file: the reloader may not have looked at it before."""
        if words in self.written():
            return True
        os.utime(self.directory / "bank" / "urls.py")
        return False

    def ask_until_served_by(self, workers):
        """Send requests, four at once, until that many processes have answered."""
        end = time.monotonic() + DEADLINE
        with ThreadPoolExecutor(4) as clients:
            while True:
                list(clients.map(self.ask, ["/pay/"] * 4))
                if len(self.pids()) >= workers:
                    return
                assert time.monotonic() < end, f"only {self.pids()} served"

    def pids(self):
        """Name the processes that answered."""
        return {answer["pid"] for answer in self.answers}


def is_anybody_left(group):
    """Whether a process group has a process."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@contextlib.contextmanager
def ledger_table():
    """Have the table of payments for a block."""
    with connection.cursor() as cursor:
        cursor.execute("DROP TABLE IF EXISTS starts_ledger")
        cursor.execute(
            "CREATE TABLE starts_ledger (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), run text, way text)"
        )
    yield
    with connection.cursor() as cursor:
        cursor.execute("DROP TABLE starts_ledger")
    connection.close()


@contextlib.contextmanager
def bank_in(directory, database, *, untouched=False):
    """Lay out the bank, with the files of the page or without our lines in them, and clear up in the end."""
    site = directory / "site"
    shutil.copytree(page.SITE, site, ignore=shutil.ignore_patterns("__pycache__"))
    for name, text in page.files().items():
        (site / name).write_text(_as_django_made_it(text) if untouched and name in STARTERS else text)
    raw = Raw()
    with Receiver(raw) as receiver:
        bank = Bank(site, database, receiver, raw)
        bank.port = free_port()
        try:
            yield bank
        finally:
            bank.kill()


def _as_django_made_it(text):
    ours = ("import otel_crdb", "otel_crdb.instrument()", "from celery.signals import worker_process_init")
    theirs, _, _ = text.partition("\n\n@worker_process_init")
    return "".join(line for line in theirs.splitlines(keepends=True) if line.strip() not in ours)
