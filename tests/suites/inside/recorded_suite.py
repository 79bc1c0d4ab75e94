# SPDX-License-Identifier: Apache-2.0
"""In the process of a suite: writes down what became of each test, and what was told of it.

It is Django's test runner, by ``TEST_RUNNER``, and a pytest plugin, by ``-p``. The variables are set by
``running.py``.
"""

import json
import os
import sys
import unittest
from pathlib import Path

from counted_telemetry import BETWEEN_TESTS, CountedTelemetry

if os.environ.get("OTEL_CRDB_TEST_DRIVER") == "psycopg2":
    sys.modules["psycopg"] = None  # Django takes it whenever it can be imported

#: Names the file to write, and is taken out of the environment: processes that tests start leave it alone.
REPORT = os.environ.pop("OTEL_CRDB_TEST_SUITE_REPORT")
#: The file of logging_config(), where that is to be in force.
LOG = Path(REPORT).with_name("suite.log") if os.environ.pop("OTEL_CRDB_TEST_SUITE_LOGS") == "yes" else None
TELEMETRY = CountedTelemetry() if os.environ.pop("OTEL_CRDB_TEST_SUITE_INSTRUMENTED") == "yes" else None


class Outcomes(dict):
    """What became of each test: one word, and what it raised."""

    def keep(self, name, word, said=""):
        """Add what is known of a test: subtests and teardown have a word of their own."""
        word = f"{word} {said}".strip()
        self[name] = f"{self[name]}; {word}" if name in self else word


OUTCOMES = Outcomes()


def before_test(name, package):
    """Count what follows for this test's package."""
    if TELEMETRY is not None:
        TELEMETRY.test, TELEMETRY.package = name, package


def after_test(name):
    """Look whether the test has left the process as it was."""
    if TELEMETRY is not None:
        TELEMETRY.after_test(name)
        TELEMETRY.test = TELEMETRY.package = BETWEEN_TESTS


def put_logging_in_force():
    """Configure logging as a project does that has it by logging_config(), and nothing else."""
    if LOG is None:
        return
    from django.conf import settings
    from django.utils.log import configure_logging

    from otel_crdb.logs import logging_config

    settings.LOGGING = logging_config(file=LOG)
    configure_logging(settings.LOGGING_CONFIG, settings.LOGGING)


def lines_of_log():
    """Give how many lines the file of logging_config() has, or None where there is to be none."""
    if LOG is None:
        return None
    return len(LOG.read_text().splitlines()) if LOG.exists() else 0


def write_report():
    """Write down what was seen, at the end of everything."""
    report = {"outcomes": OUTCOMES, "telemetry": TELEMETRY.report() if TELEMETRY is not None else None}
    # Whoever compares with the package compares with nothing of it.
    report["imported"] = "otel_crdb.instrumentor" in sys.modules
    report["log_lines"] = lines_of_log()
    Path(REPORT).write_text(json.dumps(report))


class RecordingResult(unittest.TextTestResult):
    """unittest's result, which keeps the outcomes."""

    def startTest(self, test):  # noqa: N802 - unittest's name
        before_test(test.id(), test.id().partition(".")[0])
        super().startTest(test)

    def stopTest(self, test):  # noqa: N802
        super().stopTest(test)
        after_test(test.id())

    def _keep(self, test, word, error=None):
        said = "" if error is None else f"{error[0].__name__}: {str(error[1]).strip()}"
        OUTCOMES.keep(test.id(), word, said)

    def addSuccess(self, test):  # noqa: N802
        super().addSuccess(test)
        self._keep(test, "passed")

    def addError(self, test, err):  # noqa: N802
        super().addError(test, err)
        self._keep(test, "error", err)

    def addFailure(self, test, err):  # noqa: N802
        super().addFailure(test, err)
        self._keep(test, "failed", err)

    def addSkip(self, test, reason):  # noqa: N802
        super().addSkip(test, reason)
        self._keep(test, f"skipped: {reason}")

    def addExpectedFailure(self, test, err):  # noqa: N802
        super().addExpectedFailure(test, err)
        self._keep(test, "failed as expected", err)

    def addUnexpectedSuccess(self, test):  # noqa: N802
        super().addUnexpectedSuccess(test)
        self._keep(test, "passed unexpectedly")

    def addSubTest(self, test, subtest, err):  # noqa: N802
        super().addSubTest(test, subtest, err)
        if err is not None:
            self._keep(subtest, "failed", err)


def __getattr__(name):
    """Make the runner when Django asks for it: to import Django's needs its settings."""
    if name != "RecordingRunner":
        raise AttributeError(name)
    from django.test.runner import DiscoverRunner

    class RecordingRunner(DiscoverRunner):
        """Instruments before the first table is made, and writes the report after the last is gone."""

        def get_resultclass(self):
            return RecordingResult

        def run_tests(self, *args, **options):
            if TELEMETRY is not None:
                TELEMETRY.instrument()
            put_logging_in_force()
            failures = super().run_tests(*args, **options)
            write_report()
            return failures

    return RecordingRunner


# --- pytest ---


def pytest_sessionstart():
    """Instrument: the settings are there by now, of the project's own ``pytest_configure``."""
    if TELEMETRY is not None:
        TELEMETRY.instrument()


def pytest_runtest_logstart(nodeid):
    before_test(nodeid, nodeid.partition("::")[0])


def pytest_runtest_logfinish(nodeid):
    after_test(nodeid)


def pytest_runtest_logreport(report):
    """Keep the call's outcome, and set-up and teardown where they do not pass."""
    if report.when != "call" and report.passed:
        return
    crash = getattr(report.longrepr, "reprcrash", None)
    said = crash.message if crash is not None else str(report.longrepr or "")
    expected = " as expected" if hasattr(report, "wasxfail") else ""
    OUTCOMES.keep(report.nodeid, report.outcome + expected, said)


def pytest_sessionfinish():
    write_report()
