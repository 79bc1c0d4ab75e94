# SPDX-License-Identifier: Apache-2.0
"""The comparison of suites finds what it is there to find: a small suite of Django's runner, run both ways."""

import pytest

from .suites import comparing, running

TESTS = """
import sys
from django.db import connection, transaction
from django.test import Client, TransactionTestCase

class Small(TransactionTestCase):
    def select(self):
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")

    def test_passes(self):
        with transaction.atomic():
            self.select()

    def test_fails_alike(self):
        self.select()
        self.fail(f"{object()} of {id(self)}")

    def test_fails_in_subtests(self):
        for number in range(3):
            with self.subTest(number):
                self.assertEqual(number, 1)
"""
TELLING = """
    def test_sees_the_hook(self):
        self.assertFalse(hasattr(connection.get_new_connection, "hook"), "there is a hook")
"""
HARMFUL = """
    def test_breaks_a_hook(self):
        cursors = sys.modules.get("otel_crdb.cursors")
        if cursors is not None:
            cursors.MAKE_CURSOR.begin = None
        self.select()

    def test_leaves_a_span(self):
        from opentelemetry import context, trace
        context.attach(trace.set_span_in_context(trace.NonRecordingSpan(trace.SpanContext(1, 1, False))))
"""
SILENT = """
from unittest import TestCase

class Small(TestCase):
    def test_nothing(self):
        pass
"""
SET_UP = """
from django.db import connection
from django.test import TransactionTestCase

class Small(TransactionTestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")

    def test_nothing(self):
        pass
"""
LOGGING = """
import logging
from unittest import TestCase

class Small(TestCase):
    def test_logs(self):
        with self.assertLogs("bank", "INFO") as seen:
            logging.getLogger("bank").info("moved")
        self.assertEqual(len(seen.records), 1)
        logging.getLogger("bank").info("said")
"""
SETTINGS = """
INSTALLED_APPS = []
SECRET_KEY = "of no use"
"""


@pytest.fixture(scope="module")
def both_ways(crdb, tmp_path_factory):
    """Give a function that runs tests both ways."""

    def run(tests, kinds=frozenset({"statement"}), logs=False):
        folder = tmp_path_factory.mktemp("suite")
        (folder / "test_small.py").write_text(tests)
        command = ["-m", "django", "test", *running.RUNNER]
        settings = running.COMMON_SETTINGS + SETTINGS
        suite = running.Suite("small", command, folder, kinds, settings, ("default",), logs=logs)
        return suite, *running.pair(suite, crdb)

    return run


@pytest.fixture(scope="module")
def small(both_ways):
    """Give the runs of a suite that comes out the same."""
    return both_ways(TESTS)


def test_a_suite_that_comes_out_the_same_is_found_so_and_its_spans_are_counted(small):
    """Tests that pass, fail and fail in part alike do not differ, and what was told of them is counted by kind."""
    suite, without, with_it = small
    assert comparing.differing(without.outcomes, with_it.outcomes) == []
    assert comparing.faults_of(suite.kinds, without, with_it) == []
    assert len([word for word in without.outcomes.values() if word.startswith("failed")]) == 3
    assert comparing.by_kind(with_it.telemetry)["transaction"] == 1
    assert with_it.telemetry["spans"]["test_small"]["statement"] == 2


def test_without_the_package_nothing_of_it_is_there(small):
    """The run to compare with neither imports the package nor counts anything."""
    _, without, with_it = small
    assert (without.imported, without.telemetry) == (False, None)
    assert with_it.imported


def test_a_test_that_notices_the_package_is_found_out(both_ways):
    """A test whose outcome hangs on the package differs, by its name."""
    _, without, with_it = both_ways(TESTS + TELLING)
    assert comparing.differing(without.outcomes, with_it.outcomes) == ["test_small.Small.test_sees_the_hook"]


def test_a_failing_hook_and_a_span_left_in_force_are_faults_where_all_tests_pass(both_ways):
    """What does the application no harm fails the comparison all the same."""
    suite, without, with_it = both_ways(TESTS + HARMFUL, frozenset())
    assert comparing.differing(without.outcomes, with_it.outcomes) == []
    hook, traceback, span = comparing.faults_of(suite.kinds, without, with_it)
    assert hook.startswith("the hook DatabaseWrapper.make_cursor failed")
    assert traceback.startswith("in test_small.Small.test_breaks_a_hook: ")
    assert "TypeError: 'NoneType' object is not callable" in traceback
    assert span.startswith("test_small.Small.test_leaves_a_span left the span")


def test_a_suite_of_which_nothing_is_told_fails(both_ways):
    """No span at all, and none of a kind that must be there, is a fault."""
    suite, without, with_it = both_ways(SILENT, frozenset({"request"}))
    faults = comparing.faults_of(suite.kinds, without, with_it)
    assert faults == ["no span was made", "no test made a span of the kind 'request'"]


def test_what_only_set_up_tells_is_not_what_the_tests_tell(both_ways):
    """A span that set-up made does not stand for one that the tests must make."""
    suite, without, with_it = both_ways(SET_UP)
    assert comparing.by_kind(with_it.telemetry)["statement"] >= 1
    assert comparing.faults_of(suite.kinds, without, with_it) == [
        "no test made a span of the kind 'statement'"
    ]


def test_logging_config_is_in_force_in_the_run_with_the_package(both_ways):
    """Where a suite is to have it, what its tests log is in the file, in that run alone, and without it is a fault."""
    suite, without, with_it = both_ways(LOGGING, frozenset(), logs=True)
    assert comparing.differing(without.outcomes, with_it.outcomes) == []
    assert (without.log_lines, with_it.log_lines) == (None, 1)
    assert comparing.faults_of(suite.kinds, without, with_it) == []
    with_it.log_lines = 0
    assert comparing.faults_of(suite.kinds, without, with_it) == [comparing.NO_LINES]


def test_the_runs_cannot_be_mistaken_for_each_other(small):
    """Compared the wrong way round, or with no test in it, a pair of runs fails."""
    suite, without, with_it = small
    assert comparing.faults_of(suite.kinds, with_it, without) == [
        comparing.NOT_ALONE,
        comparing.NOT_INSTRUMENTED,
    ]
    assert comparing.NOTHING_RAN in comparing.faults_of(suite.kinds, running.Run({}), with_it)


def test_what_differs_counts_where_it_differs_again():
    """Tests that come out the same the second time are flaky and told apart from those that do not."""
    again = {"a": "passed", "b": "passed"}, {"a": "failed", "b": "passed"}
    assert comparing.confirmed(["a", "b"], lambda: again) == (["a"], ["b"])
    assert comparing.confirmed([], None) == ([], [])
