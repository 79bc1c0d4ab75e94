# SPDX-License-Identifier: Apache-2.0
"""docs/logs.md: its settings are used as they stand, and its lines are those that are written."""

import json
import logging
import os
import re

import pytest

from otel_crdb.logs import JSONFormatter, VerboseFormatter, rotation

from .docs import pages
from .test_logging_config import IDS, Application

pytestmark = pytest.mark.skipif(
    os.environ.get("OTEL_CRDB_TEST_DRIVER") == "psycopg2", reason="does not depend on the driver"
)
PAGE = "docs/logs.md"
PYTHON = [each for each in pages.blocks(PAGE) if each.language == "python"]


def block(beginning):
    """Return the only block of the page that begins so."""
    (found,) = [each for each in pages.blocks(PAGE) if each.text.startswith(beginning)]
    return found.text


def as_pattern(shown):
    """Return a line of the page as a pattern: … is anything."""
    return ".*".join(map(re.escape, " ".join(shown.split()).split("…")))


@pytest.fixture
def application(tmp_path):
    """Give a project whose settings are a block of the page."""
    return Application(tmp_path)


def log(application, settings, script):
    """Run a script with these settings, instrumented, within a span; return its trace."""
    (application.folder / "bank_settings.py").write_text(
        f"import queue\nSECRET_KEY = 'tests'\nUSE_TZ = True\n{settings}"
    )
    return application.run(
        f"""
        import django
        from tests.telemetry import Telemetry
        bank.telemetry = Telemetry(python_logs=True)
        bank.telemetry.instrument()
        django.setup()
        with bank.span() as one:
            {script}
        print(json.dumps(trace_id(one)))
        """,
        DJANGO_SETTINGS_MODULE="bank_settings",
    )


SETTINGS = "# bank/settings.py\nimport otel_crdb"
MONEY = "logging.getLogger('bank').warning('not enough money')"


def test_the_whole_logging(application):
    """The page's settings write one object a line, to the console and to the file."""
    settings = block(SETTINGS).replace("/var/log/bank/bank.log", str(application.log))
    trace = log(application, settings, MONEY)
    for line in (application.console, application.log.read_text()):
        assert json.loads(line)["trace_id"] == trace
        assert json.loads(line)["body"] == "not enough money"


def test_the_logging_of_ones_own(application):
    """The page's LOGGING has every record in its format, of the application's, of Django's, within a span and without."""
    script = f"{MONEY}; logging.getLogger('django.request').warning('%s', 404)"
    trace = log(application, block("LOGGING = {"), script)
    lines = application.console.splitlines()
    assert [re.search(IDS, line)[1] for line in lines] == [trace, trace]
    end = 'txn_id= db= query="" params= error_code= '
    assert [line.partition(end)[2] for line in lines] == ["not enough money", "404"]


def test_the_queue(application):
    """With the page's handler, a line keeps the ids of the thread that has logged it."""
    settings = f"{block(SETTINGS)}\n{block('LOGGING[')}\nLOGGING['root']['handlers'] = ['queue']\n"
    settings = settings.replace("/var/log/bank/bank.log", str(application.log))
    trace = log(
        application,
        settings,
        f"{MONEY}; print(logging.getLogger().handlers[0].queue.get().trace_id, file=sys.stderr)",
    )
    assert application.console.split() == [trace]


def test_lines_of_the_page():
    """The two lines that the page shows are those that the formatters write."""
    record = logging.makeLogRecord(
        {
            "name": "bank.transfers",
            "levelname": "WARNING",
            "levelno": logging.WARNING,
            "msg": "not enough money",
            "trace_id": "4bf92f3577b34da6a3ce929d0e0e4736",
            "span_id": "00f067aa0ba902b7",
            "service": "bank",
            "process": 1234,
        }
    )
    for line, formatter in zip(
        block("2026-").splitlines(), (VerboseFormatter(), JSONFormatter()), strict=True
    ):
        written = re.sub(r"\d{4}-\d\d-\d\dT[\d:]+\.", "2026-11-23T17:00:00.", formatter.format(record))
        shown = re.sub(r"(?<=17:00:00\.)\d+", "…", line)
        assert re.fullmatch(as_pattern(shown), written), written


def test_lines_of_a_spell_of_trouble(caplog, monkeypatch):
    """What is said when a file cannot be written, and when it can again, has the words of the page."""
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(rotation, "CALM_SECONDS", 0)
    trouble = rotation.Trouble("/var/log/bank/bank.log")
    for _ in range(512):
        trouble.lost_one(OSError(28, "No space left on device"))
    trouble.went_well()
    trouble.say()
    said = [f"{record.levelname} {record.getMessage()}" for record in caplog.records]
    for line, shown in zip(said, block("WARNING otel_crdb").splitlines(), strict=True):
        assert re.fullmatch(as_pattern(re.sub(r"\b42 s\b", "… s", shown)), line), line


def test_every_block_of_python_is_one_of_these():
    """No settings stand on the page that nobody runs."""
    beginnings = (SETTINGS, "LOGGING = {", "LOGGING[")
    assert [each for each in PYTHON if not each.text.startswith(beginnings)] == []
    assert len(PYTHON) == len(beginnings)
