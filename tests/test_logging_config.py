# SPDX-License-Identifier: Apache-2.0
"""logging_config(): what it gives, what it refuses, and that Django's own logging goes on working with it."""

import contextlib
import http.client
import json
import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest
from django.core.exceptions import ImproperlyConfigured

from otel_crdb.logs import logging_config

from .processes import environment_of, free_port, until

pytestmark = pytest.mark.skipif(
    os.environ.get("OTEL_CRDB_TEST_DRIVER") == "psycopg2", reason="does not depend on the driver"
)
#: A project of one file. Its LOGGING is that of its arguments; what it logs is spans' and nobody's.
PROJECT = """
import json, logging, os, sys
from pathlib import Path

from django.conf import settings
from django.http import HttpResponse
from django.urls import path

from otel_crdb.logs import logging_config

HERE = Path(__file__).parent


def fine(request):
    return HttpResponse("fine")


def fails(request):
    raise ValueError("the view has failed")


urlpatterns = [path("fine/", fine), path("fails/", fails)]


def mail(version):
    backend = "django.core.mail.backends.locmem.EmailBackend"
    return {
        "ADMINS": [("Ann", "ann@example.com")] if version < (6, 0) else ["ann@example.com"],
        **({"EMAIL_BACKEND": backend} if version < (6, 1) else {"MAILERS": {"default": {"BACKEND": backend}}}),
    }


def set_up(instrumented=True, change=None, settings_besides=None, **arguments):
    import django

    config = logging_config(**arguments)
    if change is not None:
        change(config)
    settings.configure(
        **{
            "ALLOWED_HOSTS": ["*"],
            "DATABASES": {},
            "LOGGING": config,
            "ROOT_URLCONF": __name__,
            "SECRET_KEY": "tests",
            "USE_TZ": True,
            **mail(django.VERSION),
            **(settings_besides or {}),
        }
    )
    if instrumented:
        global telemetry
        from tests.telemetry import Telemetry

        telemetry = Telemetry(python_logs=True)
        telemetry.instrument()
    django.setup()


def span():
    return telemetry.tracer_provider.get_tracer("bank").start_as_current_span("a request")


def trace_id(span):
    return format(span.get_span_context().trace_id, "032x")
"""
IDS = r"trace_id=([0-9a-f]{32})"


class Application:
    """The project in a folder, and the processes that were run there."""

    def __init__(self, folder):
        self.folder = folder
        self.log = folder / "bank.log"
        self.printed = self.console = ""
        (folder / "bank.py").write_text(PROJECT)

    def run(self, text, **variables):
        """Run a script that has the project's names; return what it printed, a value of JSON's."""
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", f"from bank import *\nimport bank\n{dedent(text)}"],
            cwd=self.folder,
            env=environment_of(**{"PYTHONPATH": f"{self.folder}{os.pathsep}{ROOT}", **variables}),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        self.console = done.stderr
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout) if done.stdout else None

    def lines(self):
        """Return the lines of the file."""
        return self.log.read_text().splitlines()


ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def application(tmp_path):
    """Give the project."""
    return Application(tmp_path)


# --- what it gives ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("environment", ["development", "production"])
@pytest.mark.parametrize("arguments", [{}, {"file": "bank.log", "json": True, "sql": True, "otlp": False}])
def test_every_handler_gives_records_their_ids(arguments, environment):
    """The filter is on every handler, and a record passes no two handlers of the console."""
    config = logging_config(environment=environment, **arguments)
    assert all("cockroach_txn" in handler["filters"] for handler in config["handlers"].values())
    assert config["root"]["handlers"] == ["console", *(["file"] if arguments else ["otlp"])]
    assert [name for name, each in config["loggers"].items() if "console" in each.get("handlers", ())] == []


def test_it_can_be_changed_and_the_next_one_is_new():
    """The result is plain values, of one's own."""
    config = logging_config(file=Path("bank.log"))
    assert json.loads(json.dumps(config)) == config
    config["root"]["handlers"].clear()
    assert logging_config(file=Path("bank.log"))["root"]["handlers"] == ["console", "file", "otlp"]


def test_level_is_the_arguments_then_the_variables_then_info(monkeypatch):
    """DJANGO_LOG_LEVEL says the level where no argument does, in either case; an empty one says none."""

    def level(**arguments):
        config = logging_config(**arguments)
        names = ("django", "django.request", "otel_crdb")
        assert {config["loggers"][name]["level"] for name in names} == {config["root"]["level"]}
        return config["root"]["level"]

    monkeypatch.delenv("DJANGO_LOG_LEVEL", raising=False)
    assert level() == "INFO"
    monkeypatch.setenv("DJANGO_LOG_LEVEL", "")
    assert level() == "INFO"
    monkeypatch.setenv("DJANGO_LOG_LEVEL", "warning")
    assert level() == "WARNING"
    assert level(level="ERROR") == "ERROR"
    assert level(level=15) == 15


@pytest.mark.parametrize(
    ("arguments", "level"),
    [
        ({}, "INFO"),
        ({"level": "DEBUG"}, "INFO"),
        ({"level": "ERROR"}, "ERROR"),
        ({"level": 35}, 35),
        ({"sql": True}, "DEBUG"),
    ],
)
def test_statements_are_logged_only_where_they_are_asked_for(arguments, level):
    """No level but ``sql`` has Django log its statements."""
    assert logging_config(**arguments)["loggers"]["django.db.backends"]["level"] == level


def test_development_is_readable_and_tells_more_of_the_package():
    """In development the console is text also where the file is JSON, and the package's own logger is at DEBUG."""
    config = logging_config(environment="development", json=True, file="bank.log")
    assert [config["handlers"][name]["formatter"] for name in ("console", "file")] == ["verbose", "json"]
    assert config["loggers"]["otel_crdb"] == {"level": "DEBUG"}
    assert config["root"]["level"] == "INFO"


def test_loggers_are_added_and_changed():
    """A logger is given as a level or an entry; what is there already is kept where nothing else is said."""
    loggers = {
        "bank": "debug",
        "django": {"level": "ERROR"},
        "noise": {"handlers": ["file"], "propagate": False},
    }
    found = logging_config(file="bank.log", loggers=loggers)["loggers"]
    assert found["bank"] == {"level": "DEBUG"}
    assert found["django"] == {"handlers": ["mail_admins"], "level": "ERROR"}
    assert found["noise"] == {"handlers": ["file"], "propagate": False}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"json": "yes"}, "json is a bool, not 'yes'"),
        ({"mail_admins": None}, "mail_admins is a bool, not None"),
        ({"environment": "prod"}, "environment is one of 'development', 'production', not 'prod'"),
        ({"level": "warn1"}, "level is the name of a level, not 'warn1'; did you mean 'WARNING'?"),
        ({"level": True}, "level is the name of a level or a number, not True"),
        ({"file": ""}, "file is a file that can be rotated, not ''"),
        ({"file": "/"}, "file is a file that can be rotated, not '/'"),
        ({"file": "/dev/null"}, "file is a file that can be rotated, not '/dev/null'"),
        ({"file": b"bank.log"}, "file is a path, as str or Path, not b'bank.log'"),
        ({"file": "a\0b"}, r"file is no path: 'a\x00b'"),
        ({"file": "x", "max_bytes": 10}, "max_bytes is a number of bytes, at least 4096, not 10"),
        ({"file": "x", "max_bytes": 1e7}, "max_bytes is a number of bytes, at least 4096, not 10000000.0"),
        ({"file": "x", "backups": 0}, "backups is how many rotated files are kept, at least 1, not 0"),
        ({"loggers": ["bank"]}, "loggers is a dict of levels or entries by logger, not ['bank']"),
        ({"loggers": {"": "INFO"}}, "loggers is by names of loggers, not ''; level is the root's"),
        (
            {"loggers": {"bank": "DEBG"}},
            "loggers['bank'] is the name of a level, not 'DEBG'; did you mean 'DEBUG'?",
        ),
        ({"loggers": {"bank": {"levle": 10}}}, "loggers['bank'] has 'levle'; did you mean 'level'?"),
        ({"loggers": {"bank": {"handlers": "file"}}}, "loggers['bank']['handlers'] is a list, not 'file'"),
        (
            {"loggers": {"bank": {"handlers": ["fiel"]}}, "file": "x"},
            "has the handler 'fiel'; did you mean 'file'?",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused_with_the_right_word(arguments, words):
    """A wrong value raises where the settings are read, and the message has the argument, the value, what is right."""
    with pytest.raises(ImproperlyConfigured, match=re.escape(words)) as raised:
        logging_config(**arguments)
    assert str(raised.value).startswith("logging_config(): ")


def test_a_wrong_variable_is_refused_by_its_name(monkeypatch):
    """DJANGO_LOG_LEVEL is named where it is wrong."""
    monkeypatch.setenv("DJANGO_LOG_LEVEL", "CHATTY")
    with pytest.raises(
        ImproperlyConfigured, match="DJANGO_LOG_LEVEL is the name of a level, not 'CHATTY'; there are"
    ):
        logging_config()


# --- where a line goes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("debug", [True, False])
def test_a_line_stands_once_on_the_console_once_in_the_file_and_is_sent_once(application, debug):
    """One record, of Django's loggers or the application's, is one line here and there, with the ids of its trace."""
    trace, sent = application.run(
        f"""
        set_up(file=HERE / "bank.log", settings_besides={{"DEBUG": {debug}}})
        with span() as one:
            for name in ("django.request", "django.security", "django", "bank.transfers", "otel_crdb.db"):
                logging.getLogger(name).warning("money was moved")
        print(json.dumps([trace_id(one), [log.log_record.body for log in bank.telemetry.log_exporter.get_finished_logs()]]))
        """
    )
    assert re.findall(IDS, application.console) == re.findall(IDS, application.log.read_text()) == 5 * [trace]
    assert (
        application.console.count("money was moved")
        == application.log.read_text().count("money was moved")
        == 5
    )
    assert sent == 5 * ["money was moved"]


@pytest.mark.parametrize(
    "arguments", [{}, {"json": True}, {"otlp": False}, {"environment": "development", "sql": True}]
)
def test_it_works_without_instrument(application, arguments):
    """Where nothing is instrumented, lines are written, with empty fields."""
    application.run(
        f"""
        set_up(instrumented=False, file=HERE / "bank.log", **{arguments})
        logging.getLogger("bank").info("money was moved")
        """
    )
    (line,) = application.lines()
    assert "money was moved" in line
    assert not re.search(r"trace_id\W+[0-9a-f]{32}", line)
    assert application.console.count("money was moved") == 1


def test_the_settings_may_use_it(application):
    """A settings module takes it from the package itself, before there are settings."""
    (application.folder / "bank_settings.py").write_text(
        "import otel_crdb\nLOGGING = otel_crdb.logging_config(json=True)\nSECRET_KEY = 'tests'\nUSE_TZ = True\n"
    )
    application.run(
        """
        import django
        django.setup()
        logging.getLogger("bank").info("money was moved")
        """,
        DJANGO_SETTINGS_MODULE="bank_settings",
    )
    assert json.loads(application.console)["body"] == "money was moved"


# --- Django's own ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("debug", "mails"), [(True, 0), (False, 1)])
def test_admins_get_a_mail_of_an_error_where_debug_is_off(application, debug, mails):
    """A view that fails is mailed as Django does it; 404 is not."""
    sent = application.run(
        f"""
        set_up(settings_besides={{"DEBUG": {debug}}})
        from django.core import mail
        from django.test import Client
        mail.outbox = []
        client = Client(raise_request_exception=False)
        client.get("/fails/"), client.get("/not there/"), client.get("/fine/")
        print(json.dumps([[message.subject, message.body] for message in mail.outbox]))
        """
    )
    assert len(sent) == mails
    for subject, body in sent:
        assert subject == "[Django] ERROR (EXTERNAL IP): Internal Server Error: /fails/"
        assert "ValueError" in body
        assert "the view has failed" in body


def test_admins_get_none_where_that_is_off(application):
    """``mail_admins=False`` leaves Django's handler out, and the line is on the console."""
    sent = application.run(
        """
        set_up(mail_admins=False)
        from django.core import mail
        from django.test import Client
        mail.outbox = []
        Client(raise_request_exception=False).get("/fails/")
        print(len(mail.outbox))
        """
    )
    assert sent == 0
    assert "Internal Server Error: /fails/" in application.console


def test_loggers_that_were_there_before_log_on(application):
    """disable_existing_loggers is off: what a module made at its import is not silenced."""
    application.run(
        """
        early = logging.getLogger("bank.early")
        set_up()
        early.info("still here")
        """
    )
    assert application.console.count("still here") == 1


def test_assertlogs_sees_what_it_is_to_see(application):
    """What assertLogs of unittest is asked to see it sees, and keeps from the console, as ever."""
    application.run(
        """
        set_up()
        from django.test import SimpleTestCase
        test = SimpleTestCase()
        with test.assertLogs("bank", "INFO") as seen:
            logging.getLogger("bank").info("moved %d", 5)
        assert seen.output == ["INFO:bank:moved 5"], seen.output
        with test.assertLogs("django.request", "WARNING") as seen:
            test.client_class().get("/not there/")
        assert [record.status_code for record in seen.records] == [404]
        with test.assertLogs(level="INFO") as seen:
            logging.getLogger("bank").info("at the root")
        assert len(seen.records) == 1
        """
    )
    assert "moved" not in application.console


def test_a_queue_keeps_the_ids_of_the_thread_that_logged(application):
    """Behind a QueueHandler a line has the trace of the thread that logged it, not of the one that writes it."""
    trace = application.run(
        """
        import logging.handlers, queue

        lines = queue.SimpleQueue()

        def through_queue(config):
            config["handlers"]["queue"] = {
                "()": "logging.handlers.QueueHandler", "queue": lines, "filters": ["cockroach_txn"]
            }
            config["loggers"]["bank"] = {"handlers": ["queue"], "propagate": False}

        set_up(change=through_queue, file=HERE / "bank.log")
        root = logging.getLogger()
        with span() as one:
            logging.getLogger("bank").info("money was moved")
        with span() as another:
            listener = logging.handlers.QueueListener(lines, *root.handlers, respect_handler_level=True)
            listener.start()
            listener.stop()
        print(json.dumps(trace_id(one)))
        """
    )
    assert re.findall(IDS, application.log.read_text()) == [trace]


# --- runserver -------------------------------------------------------------------------------------------------

MANAGE = """
import sys
from bank import HERE, set_up

if __name__ == "__main__":
    set_up(file=HERE / "bank.log", settings_besides={"DEBUG": True, "WSGI_APPLICATION": None})
    from django.core.management import execute_from_command_line

    execute_from_command_line(sys.argv)
"""


@contextlib.contextmanager
def runserver(application):
    """Run Django's server on a terminal; give its port and what stands on the terminal."""
    (application.folder / "manage.py").write_text(MANAGE)
    port = free_port()
    ours, theirs = pty.openpty()
    variables = {
        "PYTHONPATH": f"{application.folder}{os.pathsep}{ROOT}",
        "TERM": "xterm",
        "DJANGO_COLORS": "dark",
    }
    process = subprocess.Popen(
        [sys.executable, "manage.py", "runserver", "--noreload", str(port)],
        cwd=application.folder,
        env=environment_of(**variables),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    os.set_blocking(ours, False)
    seen = bytearray()

    def screen():
        with contextlib.suppress(BlockingIOError, OSError):
            while some := os.read(ours, 65536):
                seen.extend(some)
        return seen.decode(errors="replace")

    try:
        until(lambda: "Quit the server" in screen(), "the server starts", screen)
        yield port, screen
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)
        os.close(ours)


def ask(port, path):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    with contextlib.closing(connection):
        connection.request("GET", path)
        return connection.getresponse().status


def test_runserver_has_its_colours_and_its_lines_are_in_the_file(application):
    """On a terminal each request is one line in Django's colours; the file has the same line, plain, with its trace."""
    with runserver(application) as (port, screen):
        assert [ask(port, path) for path in ("/fine/", "/missing/", "/fails/")] == [200, 404, 500]
        until(lambda: "GET /fails/ HTTP/1.1" in screen(), "the line of the last request", screen)
        until(lambda: "GET /fails/ HTTP/1.1" in application.log.read_text(), "its line in the file", screen)
    shown = [line for line in screen().splitlines() if '"GET /' in line]
    assert [line.count("\x1b[0m") for line in shown] == [1, 1, 1]
    assert re.match(r"\[[^]]+\] \x1b\[33m\"GET /missing/ HTTP/1.1\" 404 \d+\x1b\[0m$", shown[1]), shown[1]
    assert re.match(r"\[[^]]+\] \x1b\[35;1m\"GET /fails/ HTTP/1.1\" 500 \d+\x1b\[0m$", shown[2]), shown[2]
    kept = [line for line in application.lines() if '"GET /' in line or '\\"GET /' in line]
    assert len(kept) == 3
    assert len({re.search(IDS, line)[1] for line in kept}) == 3
    assert "\x1b" not in application.log.read_text()
