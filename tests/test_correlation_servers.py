# SPDX-License-Identifier: Apache-2.0
"""The servers' own log lines, in the servers' own files: their ids are those of the request.

Each server is a real process; its configuration names the fields and nothing else of otel_crdb. Every request
brings a trace of its own, so that the line of each is known.
"""

import contextlib
import http.client
import json
import os
import secrets
import shutil
import signal
from pathlib import Path
from typing import NamedTuple

import pytest

from .processes import until
from .starts import page
from .starts.running import bank_in, ledger_table

SITE = Path(__file__).resolve().parent / "correlation" / "site"
FIELDS = ("trace_id", "span_id", "trace_flags", "txn_id")
FORMAT = "|".join(f"%({name})s" for name in ("name", *FIELDS, "message"))
LOGGERS = ("django", "django.server", "gunicorn.access", "gunicorn.error", "uvicorn", "uvicorn.access")
UNSAMPLED = "00"

pytestmark = pytest.mark.skipif(
    os.environ.get("OTEL_CRDB_TEST_DRIVER") == "psycopg2",
    reason="what a server logs is not the driver's matter",
)


class Line(NamedTuple):
    """A line of the file."""

    logger: str
    trace_id: str
    span_id: str
    trace_flags: str
    txn_id: str
    message: str


class Case(NamedTuple):
    """A request, and the lines that it is bound to leave besides the server's own."""

    path: str
    status: int = 200
    #: Loggers, once for each line.
    lines: tuple = ()
    headers: tuple = ()
    flags: str = "01"
    #: Whether the request is left untold.
    untold: bool = False


CASES = [
    Case("plain", lines=("logged",)),
    Case("plain", lines=("logged",), flags=UNSAMPLED),
    Case("nowhere", 404, ("django.request",)),
    Case("fails", 500, ("django.request",)),
    Case("plain", 400, ("django.security.DisallowedHost",), (("Host", "evil.example.com"),)),
    Case("in_threads", lines=("logged", "logged")),
    Case("streamed", lines=("logged",)),
    Case("cached"),
    Case("cached"),
    Case("healthz", 404, ("django.request",), untold=True),
    Case("plain", lines=("logged",)),
]


@pytest.fixture(scope="module")
def ledger(crdb):
    """The table of payments."""
    with ledger_table():
        yield


@pytest.fixture
def bank(crdb, tmp_path):
    """The bank that logs, not yet started."""
    with bank_in(tmp_path, crdb.django_settings()) as laid_out:
        shutil.copytree(SITE, laid_out.directory, dirs_exist_ok=True)
        configuration = laid_out.directory / "logging.json"
        laid_out.lines = laid_out.directory / "lines"
        configuration.write_text(json.dumps(logging_to(laid_out.lines)))
        laid_out.environment = {
            "DJANGO_SETTINGS_MODULE": "logged.settings",
            "LOGGED_CONFIGURATION": str(configuration),
        }
        yield laid_out


def logging_to(file):
    """Return a configuration of logging as the servers and Django take it: all to one file."""
    to_file = {"handlers": ["file"], "level": "INFO", "propagate": False}
    return {
        "version": 1,
        "disable_existing_loggers": False,
        # The defaults are for what is logged before `instrument()` was called.
        "formatters": {
            "ids": {"()": "logging.Formatter", "fmt": FORMAT, "defaults": dict.fromkeys(FIELDS, "")}
        },
        "handlers": {"file": {"class": "logging.FileHandler", "filename": str(file), "formatter": "ids"}},
        "root": {"handlers": ["file"], "level": "INFO"},
        "loggers": dict.fromkeys(LOGGERS, to_file),
    }


def lines_of(bank):
    """Return the lines so far; those of stack traces are not lines of their own."""
    parts = (text.split("|", len(FIELDS) + 1) for text in bank.lines.read_text().splitlines())
    return [Line(*split) for split in parts if len(split) == len(Line._fields)]


def ask(bank, case):
    """Send a request in a trace of its own; return that trace and the body."""
    trace_id = secrets.token_hex(16)
    parent = f"00-{trace_id}-{secrets.token_hex(8)}-{case.flags}"
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", bank.port, timeout=30)) as client:
        client.request("GET", f"/{case.path}/", headers={"traceparent": parent, **dict(case.headers)})
        response = client.getresponse()
        body = response.read().decode()
    assert response.status == case.status, body
    return trace_id, body


def check_cases(bank, access):
    """Send the requests one after the other, and hold the lines of each against its trace."""
    wait_until_it_listens(bank)
    bodies = [check_case(bank, case, access) for case in CASES]
    cached = [body for case, body in zip(CASES, bodies, strict=True) if case.path == "cached"]
    assert cached[0] == cached[1]  # the second was answered from the cache, and its line had its own trace


def check_case(bank, case, access):
    """Send one request, hold its lines against its trace, and return the body."""
    before = len(lines_of(bank))
    trace_id, body = ask(bank, case)
    if case.path != "cached" and case.status == 200:
        assert body == trace_id
    expected = sorted([*case.lines, access])
    until(lambda: len(lines_of(bank)) >= before + len(expected), f"{case}", bank.lines.read_text)
    lines = lines_of(bank)[before:]
    assert sorted(line.logger for line in lines) == expected, case
    (own,) = [line for line in lines if line.logger == access]
    assert f'"GET /{case.path}/ HTTP/1.1" {case.status}' in own.message
    wanted = ("", "") if case.untold else (trace_id, case.flags == UNSAMPLED)
    assert {ids_of(line) for line in lines} == {wanted}, (case, lines)
    return body


def ids_of(line):
    """Return a line's trace and whether its flags say that nobody records it; empty where it has none."""
    if not line.trace_id:
        assert (line.span_id, line.trace_flags) == ("", "")
        return "", ""
    assert len(line.span_id) == 16
    return line.trace_id, not int(line.trace_flags, 16) & 1


def wait_until_it_listens(bank):
    """Wait until it answers, and until the line of that is written."""

    def answers():
        assert bank.child.poll() is None, f"it ended by itself:\n{bank.written()}"
        with contextlib.suppress(ConnectionRefusedError):
            return ask(bank, Case("plain"))

    until(answers, "it listens", bank.written)
    until(
        lambda: any('"GET /plain/' in line.message for line in lines_of(bank)),
        "its access line",
        bank.written,
    )


@pytest.mark.parametrize("worker_class", ["sync", "gthread"])
def test_gunicorn(bank, worker_class):
    """Lines of `gunicorn.access`, which is written before the response is closed, have the request's ids."""
    words = ["--workers=1", "--worker-class", worker_class, "--log-config-json", "logging.json"]
    bank.start(
        page.command("gunicorn"), *words, "--bind", f"127.0.0.1:{bank.port}", variables=bank.environment
    )
    check_cases(bank, "gunicorn.access")
    assert bank.stop() == 0


def test_uvicorn(bank):
    """Lines of `uvicorn.access`, which is written when Django sends the head, have the request's ids."""
    words = ["--workers=1", "--log-config", "logging.json", "--port", str(bank.port)]
    bank.start(page.command("uvicorn"), *words, variables=bank.environment)
    check_cases(bank, "uvicorn.access")
    bank.stop()


def test_runserver(bank):
    """Lines of `django.server`, which is written in the server's own thread, have the request's ids."""
    words = ["--noreload", f"127.0.0.1:{bank.port}"]
    bank.start(page.command("runserver"), *words, variables=bank.environment)
    check_cases(bank, "django.server")
    bank.stop(signal.SIGINT)


def test_celery(bank, ledger):
    """A task's own lines, and Celery's line of its end, have the trace of the request that asked for it."""
    variables, words = page.command("gunicorn")
    words = ["bank.wsgi_with_tasks" if word == "bank.wsgi" else word for word in words]
    server_words = ["--log-config-json", "logging.json", "--bind", f"127.0.0.1:{bank.port}"]
    server = bank.start((variables, words), *server_words, variables=bank.environment)
    wait_until_it_listens(bank)
    worker = bank.start(page.command("Celery"), "--loglevel", "INFO", variables=bank.environment)
    before = len(lines_of(bank))
    trace_id, body = ask(bank, Case("later"))
    assert body == trace_id

    def told():
        return [
            line
            for line in lines_of(bank)[before:]
            if line.logger == "logged" or (line.logger == "celery.app.trace" and "succeeded" in line.message)
        ]

    until(lambda: len(told()) >= 3, "the request, the task and its end", bank.lines.read_text)
    assert [(line.logger, *ids_of(line)) for line in told()] == [
        ("logged", trace_id, False),
        ("logged", trace_id, False),
        ("celery.app.trace", trace_id, False),
    ]
    for child in (worker, server):
        bank.child = child
        bank.stop()
