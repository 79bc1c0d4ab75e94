# SPDX-License-Identifier: Apache-2.0
"""The page on testing, run as it stands; and what the fixtures, the marker and the mixin do in other projects."""

import os
import re
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import django
import pytest

PAGE = (Path(__file__).parent.parent / "docs" / "testing.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
MANAGE = """
import os, sys
from django.core.management import execute_from_command_line
os.environ.setdefault("DJANGO_SETTINGS_MODULE", "bank.settings")
execute_from_command_line(sys.argv)
"""
PYTEST = ["-m", "pytest", "-p", "no:cacheprovider"]
#: Of our own run, which the project is not to know of.
OURS = re.compile("DJANGO_SETTINGS_MODULE|TEST_DATABASES|PYTEST_|OTEL_SEMCONV")


class Project:
    """Files in a folder, and processes that are run there on the driver of our own run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.write("manage.py", MANAGE)
        self.write("bank/__init__.py", "")
        if os.environ.get("OTEL_CRDB_TEST_DRIVER") == "psycopg2":
            self.write("sitecustomize.py", "import sys; sys.modules['psycopg'] = None")

    def write(self, path, text):
        """Write a file of the project."""
        (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
        (self.folder / path).write_text(dedent(text), encoding="utf-8")

    def change(self, path, old, new):
        """Put other words into a file."""
        text = (self.folder / path).read_text(encoding="utf-8")
        assert old in text
        self.write(path, text.replace(old, new))

    def run(self, *arguments, **environment):
        """Run Python in the folder; return its exit code and all that it printed."""
        inherited = {name: value for name, value in os.environ.items() if not OURS.match(name)}
        done = subprocess.run(
            [sys.executable, "-W", "error", *arguments],
            cwd=self.folder,
            env={**inherited, "PYTHONPATH": str(self.folder), **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
            check=False,
        )
        return done.returncode, done.stdout

    def test(self, text, *options, **environment):
        """Run pytest on a file of tests, with the bank and its settings."""
        self.write("tests/test_it.py", text)
        return self.run(*PYTEST, *options, "tests/test_it.py", **environment)


@pytest.fixture
def bank(tmp_path):
    """The page's project."""
    project = Project(tmp_path)
    for language, text in BLOCK.findall(PAGE):
        named = re.match(r"# (\S+)\n", text)
        if language and named:
            project.write(named[1], text)
    return project


@pytest.fixture
def bank_on_our_server(bank, crdb, monkeypatch):
    """The same, on the server of our own run: nothing has to be started."""
    monkeypatch.setenv("OTEL_CRDB_TEST_URL", crdb.url)
    return bank


def take_retries_out(project):
    """Do what the page says for its tests to be seen to fail."""
    old, new = re.search(r"write `(transaction\S+\()`\s+in place of `(run_transaction\(move, )`", PAGE).group(
        2, 1
    )
    project.change("bank/views.py", old, new)
    project.change(
        "bank/views.py", "from django.db.models", "from django.db import transaction\nfrom django.db.models"
    )


# --- the page ------------------------------------------------------------------------------------------------


def test_the_pages_tests_pass_under_pytest(bank):
    """pytest-django's and Django's test cases alike, on the server that the page says, warnings being errors."""
    status, said = bank.run(*PYTEST, "tests", "bank/tests.py")
    assert status == 0, said
    assert "7 passed" in said
    assert re.search("otel_crdb: ran on (?!the server of the alias)", said)


def test_the_pages_tests_pass_under_djangos_runner(bank):
    """`manage.py test` makes its test database through the same server, and removes it."""
    status, said = bank.run("manage.py", "test", "--settings=bank.testing_settings")
    assert status == 0, said
    assert "Ran 3 tests" in said
    assert "Destroying test database for alias 'default'" in said


def test_without_retries_the_pages_tests_fail_and_show_why(bank):
    """What they demand is the application's doing; the report shows what the page says it does."""
    take_retries_out(bank)
    status, said = bank.run(*PYTEST, "tests")
    assert status == 1, said
    assert "4 failed" in said
    (shown,) = [text for _, text in BLOCK.findall(PAGE) if "Captured telemetry" in text]
    said = re.sub(r"after \d+\.\d+ s", "after 0.001 s", said)
    assert shown.replace("-", "") in said.replace("-", "")
    status, said = bank.run("manage.py", "test", "--settings=bank.testing_settings")
    assert status == 1, said
    assert "FAILED (errors=3)" in said


# --- the marker and the fixtures -------------------------------------------------------------------------------

FAULTS = """
    import pytest
    from django.db import OperationalError, connection, transaction
    from bank.models import Account

    pytestmark = pytest.mark.django_db(transaction=True)
    FAULT = "serialization_failure.WriteTooOld"


    def count():
        return Account.objects.count()


    @pytest.mark.crdb_fault(FAULT)
    def test_strikes_once():
        with pytest.raises(OperationalError, match="WriteTooOldError"):
            count()
        assert count() == 0


    def test_has_no_rules_left(fault_proxy):
        assert fault_proxy.rules == ()
        assert connection.settings_dict["PORT"] == fault_proxy.port
        assert count() == 0
        assert fault_proxy.wire_log().sessions == 1


    def test_leads_past_the_proxy_again(crdb_server):
        assert connection.settings_dict["PORT"] == crdb_server.port
        assert count() == 0


    @pytest.mark.crdb_fault(FAULT, matching="INSERT")
    @pytest.mark.crdb_fault("statement_timeout", matching="SELECT", nth=2)
    def test_has_two_markers():
        count()
        with pytest.raises(OperationalError, match="timeout"):
            count()
        with pytest.raises(OperationalError, match="WriteTooOldError"):
            Account.objects.create(owner="ann", balance=0)


    @pytest.mark.crdb_fault(FAULT)
    def test_never_meets_it():
        pass


    @pytest.mark.crdb_fault(FAULT, must_strike=False)
    def test_need_not_meet_it():
        pass


    @pytest.mark.crdb_fault(FAULT)
    def test_fails_by_itself():
        assert 1 == 2


    @pytest.mark.crdb_fault(FAULT)
    def test_is_skipped():
        pytest.skip("not today")


    @pytest.mark.crdb_fault("serialisation_failure.WriteTooOld")
    def test_names_no_fault():
        pass


    @pytest.mark.django_db(transaction=False)
    @pytest.mark.crdb_fault(FAULT, on="commit")
    def test_commits_nothing():
        with transaction.atomic():
            count()


    @pytest.mark.django_db(transaction=False)
    @pytest.mark.crdb_fault(FAULT)
    def test_is_struck_within_djangos_own_transaction(telemetry):
        with pytest.raises(OperationalError), transaction.atomic():
            count()
        assert count() == 0
        assert telemetry.errors == ["40001"]


    @pytest.mark.parametrize("fault", ["connection_reset", "draining_statement", "server_closed"])
    def test_breaks_the_connection(fault_proxy, fault):
        fault_proxy.inject(fault, times=None)
        with pytest.raises(OperationalError):
            count()


    def test_finds_a_sound_database_afterwards():
        assert count() == 0
"""


def test_marked_faults_strike_and_are_gone_afterwards(bank_on_our_server):
    """A fault that was never met fails its test; the next one finds no rule, and a connection that works."""
    status, said = bank_on_our_server.test(FAULTS, "-rA")
    assert status == 1, said
    found = {
        name: word for word, name in re.findall(r"^(\w+) tests/test_it.py::test_(\S+)", said, re.MULTILINE)
    }
    assert {name for name, word in found.items() if word != "PASSED"} == {
        "never_meets_it",
        "fails_by_itself",
        "names_no_fault",
        "commits_nothing",
    }, said
    assert "1 skipped" in said
    assert "the fault serialization_failure.WriteTooOld on statement was never met." in said
    assert "on commit was never met. Django's TestCase, and pytest-django's `django_db` without" in said
    assert "did you mean" in said
    assert "assert 1 == 2" in said
    errors = re.findall(r"^E .*was never met", said, re.MULTILINE)
    assert len(errors) == 2  # not where the test fails by itself


SETUP_OF_THE_TEST = """
    import pytest
    from django.db import connection, transaction
    from django.test import Client
    from bank.models import Account


    @pytest.fixture
    def account(transactional_db):
        with transaction.atomic():
            Account.objects.create(owner="ann", balance=0)


    @pytest.mark.crdb_fault("serialization_failure.WriteTooOld", matching="INSERT")
    def test_fixtures_are_neither_struck_nor_seen(account, telemetry):
        assert telemetry.spans == []
        assert telemetry.metric("cockroachdb.client.txn.duration") == 0
        with pytest.raises(Exception, match="WriteTooOld"):
            Account.objects.create(owner="ben", balance=0)
        assert telemetry.errors == ["40001"]


    client = Client()

    @pytest.mark.parametrize("time", [1, 2])
    def test_a_handler_older_than_the_test_is_seen(transactional_db, telemetry, time):
        client.post("/transfer/", {"from": "ann", "to": "ben", "amount": 1})
        assert telemetry.outcome == "committed"
        assert telemetry.span("POST transfer/").kind == "SERVER"
"""


def test_a_test_sees_its_body_alone(bank_on_our_server):
    """What fixtures do is neither struck nor seen; where conftest.py instruments, older handlers are seen too."""
    bank_on_our_server.write("conftest.py", "import otel_crdb; otel_crdb.instrument()")
    none = {f"OTEL_{signal}_EXPORTER": "none" for signal in ("TRACES", "METRICS", "LOGS")}
    status, said = bank_on_our_server.test(SETUP_OF_THE_TEST, **none)
    assert status == 0, said
    assert "3 passed" in said


CASES = """
    import pytest
    from django.db import OperationalError, connection, transaction
    from django.test import TestCase, TransactionTestCase
    from otel_crdb.testing import FaultMixin
    from bank.models import Account

    FAULT = "statement_timeout"


    class MixedIn(FaultMixin, TestCase):
        @classmethod
        def setUpTestData(cls):
            Account.objects.create(owner="ann", balance=0)

        def setUp(self):
            with transaction.atomic():
                Account.objects.create(owner="ben", balance=0)

        def test_1_statement(self):
            rule = self.inject(FAULT)
            with self.assertRaises(OperationalError), transaction.atomic():
                Account.objects.count()
            self.assertEqual(rule.hits, 1)
            self.assertEqual(self.telemetry.errors, ["57014"])
            self.assertEqual(Account.objects.count(), 2)

        def test_2_nothing_is_left(self):
            self.assertEqual(self.fault_proxy.rules, ())
            self.assertEqual(self.telemetry.spans, [])
            self.assertEqual(Account.objects.count(), 2)

        @pytest.mark.crdb_fault(FAULT)
        def test_3_marked(self):
            with self.assertRaises(OperationalError), transaction.atomic():
                Account.objects.count()

        def test_4_never_met(self):
            self.inject(FAULT, on="commit")

        def test_5_need_not_be_met(self):
            self.inject(FAULT, must_strike=False)


    @pytest.mark.crdb_fault(FAULT)
    class Marked(FaultMixin, TransactionTestCase):
        def setUp(self):
            Account.objects.create(owner="ben", balance=0)

        def tearDown(self):
            Account.objects.get(owner="ben")

        def test_1(self):
            with self.assertRaises(OperationalError):
                Account.objects.count()

        async def test_2(self):
            with self.assertRaises(OperationalError):
                await Account.objects.acount()

        def test_3_never_met(self):
            pass

        @pytest.mark.crdb_fault("connection_reset")
        def test_4_loses_its_connection(self):
            for _ in range(2):
                with self.assertRaises(OperationalError):
                    Account.objects.count()


    @pytest.mark.crdb_fault(FAULT)
    class NotMixedIn(TestCase):
        def test_1(self):
            pass


    def test_everything_is_as_it_was(transactional_db, crdb_server):
        assert connection.settings_dict["PORT"] == crdb_server.port
"""


def test_djangos_cases_are_struck_too(bank_on_our_server):
    """In their method, not in what sets them up or cleans up after them; the marker needs the mixin."""
    status, said = bank_on_our_server.test(CASES, "-rA")
    assert status == 1, said
    assert re.findall(r"^(FAILED|ERROR) tests/test_it.py::(\S+)", said, re.MULTILINE) == [
        ("ERROR", "NotMixedIn::test_1"),
        ("FAILED", "MixedIn::test_4_never_met"),
        ("FAILED", "Marked::test_3_never_met"),
    ], said
    assert "8 passed" in said
    assert "NotMixedIn is a test case of its own set-up: mix in otel_crdb.testing.FaultMixin" in said


OTHER_ALIASES = """
    import pytest
    from django.db import OperationalError, connections
    from otel_crdb.testing import through_fault_proxy
    from bank.models import Account


    @pytest.mark.django_db(transaction=True, databases=["default", "same", "plain"])
    def test_all_aliases_of_one_server_lead_through(fault_proxy):
        fault_proxy.inject("statement_timeout", times=None)
        for alias in ("default", "same"):
            with pytest.raises(OperationalError, match="timeout"):
                Account.objects.using(alias).count()
        connections["plain"].cursor().execute("SELECT 1")
        assert connections["default"].settings_dict["OPTIONS"].get("sslmode") is None


    def test_everything_is_as_it_was(transactional_db):
        settings = connections["default"].settings_dict
        assert settings["OPTIONS"]["sslmode"] == "prefer"
        assert Account.objects.count() == 0


    @pytest.mark.django_db
    def test_within_a_transaction_it_is_too_late():
        with pytest.raises(RuntimeError, match="'default' is within a transaction"), through_fault_proxy():
            pass
"""
ALIASES = """
    from bank.settings import *

    SERVER = {server}
    SERVER["OPTIONS"] = {{"sslmode": "prefer", **{options}}}
    DATABASES = {{
        "default": {{**SERVER, "NAME": "bank"}},
        "same": {{**SERVER, "TEST": {{"MIRROR": "default"}}}},
        "plain": {{"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
    }}
"""


@pytest.mark.parametrize("pool", [False, True])
def test_a_server_of_the_projects_own_is_what_the_proxy_stands_before(bank, crdb, pool):
    """DATABASES is as the project has it: several aliases, TLS options, a pool of connections."""
    if pool and (os.environ.get("OTEL_CRDB_TEST_DRIVER") == "psycopg2" or django.VERSION < (5, 1)):
        pytest.skip("a pool needs psycopg 3 and Django 5.1")
    options = "{'pool': {'min_size': 1, 'max_size': 2}}" if pool else "{}"
    bank.write("bank/testing_settings.py", ALIASES.format(server=crdb.django_settings(), options=options))
    status, said = bank.test(OTHER_ALIASES)
    assert status == 0, said
    assert "3 passed" in said
    assert f"otel_crdb: ran on the server of the alias 'default' at {crdb.host}:{crdb.port}" in said


WITHOUT_PYTEST_DJANGO = """
    import pytest
    from django.db import OperationalError, connection


    @pytest.mark.crdb_fault("statement_timeout")
    def test_struck(telemetry):
        with pytest.raises(OperationalError, match="timeout"), connection.cursor() as cursor:
            cursor.execute("SELECT 1")
        assert telemetry.errors == ["57014"]


    def test_left_alone():
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
"""


def test_plain_pytest_with_django(bank_on_our_server):
    """Without pytest-django: a conftest that sets Django up is enough."""
    bank_on_our_server.write("conftest.py", "import django; django.setup()")
    bank_on_our_server.write("pytest.ini", "[pytest]")
    bank_on_our_server.change("bank/testing_settings.py", 'NAME="bank"', "")
    options = ("-p", "no:django")
    status, said = bank_on_our_server.test(
        WITHOUT_PYTEST_DJANGO, *options, DJANGO_SETTINGS_MODULE="bank.testing_settings"
    )
    assert status == 0, said
    assert "2 passed" in said


WITHOUT_DJANGO = """
    import pytest
    import psycopg2


    @pytest.mark.crdb_fault("statement_timeout", matching="SELECT")
    def test_struck(fault_proxy, crdb_server):
        assert fault_proxy.upstream is crdb_server
        connection = psycopg2.connect(fault_proxy.url)
        with pytest.raises(psycopg2.OperationalError, match="timeout"):
            connection.cursor().execute("SELECT 1")
        connection.close()
"""


def test_without_a_django_project_the_proxy_stands_before_the_fixtures_server(tmp_path, crdb):
    """An application that is no Django project connects to the proxy itself."""
    project = Project(tmp_path)
    status, said = project.test(WITHOUT_DJANGO, OTEL_CRDB_TEST_URL=crdb.url)
    assert status == 0, said


LIGHT = """
    import sys


    def test_light():
        heavy = {"django", "opentelemetry", "google", "asyncio", "psycopg", "psycopg2", "otel_crdb.testing.servers"}
        assert {name for name in heavy if sys.modules.get(name)} == set()
"""


def test_a_project_that_asks_for_nothing_pays_nothing(tmp_path):
    """The plugin is loaded everywhere, and imports nothing heavy before a fixture is asked for."""
    project = Project(tmp_path)
    others = [part for name in ("django", "hypothesispytest", "ddtrace") for part in ("-p", f"no:{name}")]
    status, said = project.test(LIGHT, *others, "--strict-markers")
    assert status == 0, said
    assert "otel_crdb: ran on" not in said
    status, said = project.run(*PYTEST, "--markers")
    assert "@pytest.mark.crdb_fault(fault, *, on=None" in said
