# SPDX-License-Identifier: Apache-2.0
"""Beside others that observe the database: one span a statement, and nobody is disturbed.

Each scene is a process of its own that answers the same request three times: beside the neighbour alone, beside both,
and after ``uninstrument()``.
"""

import re
import shlex
import sys
from collections import Counter
from pathlib import Path

import django
import pytest
from django.db.backends.postgresql.psycopg_any import is_psycopg3

from otel_crdb import neighbours

from .beside.stage import Stage, assert_ours_whole, assert_undisturbed, by_word

pytestmark = pytest.mark.usefixtures("accounts")

ANY_DRIVER_ONCE = pytest.mark.skipif(not is_psycopg3, reason="does not depend on the driver: run once")
DRIVER_INSTRUMENTATION = f"opentelemetry-instrumentation-{'psycopg' if is_psycopg3 else 'psycopg2'}"
#: Rows of ddtrace's that are calls of the driver.
DATADOG_COMMIT = "psycopg.connection.commit" if is_psycopg3 else "psycopg2.connection.commit"


@pytest.fixture(scope="module")
def stage(crdb):
    """Where the scenes are played, each once."""
    return Stage(crdb)


@pytest.fixture
def nobody(stage):
    """A process without neighbours."""
    return stage.play("nobody")


def test_nothing_is_said_where_there_is_nobody(nobody):
    """Without neighbours nothing is found, nothing is said, and every statement has one span."""
    assert nobody.said == []
    assert nobody.found == {}
    assert_undisturbed(nobody)
    assert nobody.both["spans"] != []
    assert nobody.both["answer"]["came"]["retried"] == 16, (
        "the second attempt has read what the other session wrote"
    )


def beside_python(command):
    """Return the path of a command that stands beside the interpreter."""
    return str(Path(sys.executable).with_name(command))


# --- OpenTelemetry's own -----------------------------------------------------------------------


@pytest.mark.parametrize("first", ["theirs", "ours"])
def test_driver_instrumentation_yields(stage, nobody, first):
    """Beside contrib's driver instrumentation, before or after it, ours are the only spans; it is said once."""
    told = stage.play("contrib", first)
    assert_ours_whole(told, nobody)
    assert_undisturbed(told, stage.play("contrib").alone)
    (line,) = told.said
    assert "another instrumentation of the driver" in line
    assert "stays ours" in line
    assert list(told.found) == [DRIVER_INSTRUMENTATION]


def test_statements_are_left_to_the_driver_instrumentation(stage, nobody):
    """``statement_owner="driver"``: each statement has one span, at its place, also where contrib makes none."""
    told = stage.play("contrib", statement_owner="driver")
    assert told.statements() == nobody.statements()
    assert by_word(told.both["tree"]) == by_word(nobody.both["tree"])
    assert any("psycopg" in span["scope"] for span in told.both["spans"])
    assert_undisturbed(told)
    (line,) = told.said
    assert "left to it" in line


def test_application_that_only_retries_keeps_their_spans(stage, nobody):
    """Without ``instrument()`` a retried transaction suppresses nobody's spans."""
    told = stage.play("contrib")
    unseen = Counter({"connect": 2, "COPY": 1, "COMMIT": 3, "ROLLBACK": 2})
    assert told.statements("alone") == nobody.statements() - unseen
    assert told.statements("after") == told.statements("alone")


def test_single_connection_that_is_instrumented_later(stage, nobody):
    """A connection that contrib instruments when it has run statements already is seen from then on."""
    told = stage.play("contrib-connection")
    assert_ours_whole(told, nobody)
    assert_undisturbed(told)


@pytest.mark.skipif(not is_psycopg3, reason="psycopg2's register_type() refuses the proxies, also without us")
@pytest.mark.parametrize("owner", ["otel_crdb", "driver"])
def test_generic_instrumentation(stage, nobody, owner):
    """Where the connection and its cursors are proxies (trace_integration), there is one span a statement too."""
    told = stage.play("dbapi", statement_owner=owner)
    assert_undisturbed(told)
    assert list(told.found) == ["opentelemetry-instrumentation-dbapi"]
    assert len(told.said) == 1
    assert len(told.both["spans"]) == len(nobody.both["spans"])
    if owner == "otel_crdb":
        assert_ours_whole(told, nobody)


def test_zero_code(stage, nobody):
    """Under ``opentelemetry-instrument``, which loads contrib's instrumentations too, every statement has one span, ours."""
    exporters = dict.fromkeys(("OTEL_TRACES_EXPORTER", "OTEL_METRICS_EXPORTER", "OTEL_LOGS_EXPORTER"), "none")
    told = stage.play(
        "zero-code", "ours", by=[beside_python("opentelemetry-instrument")], environment=exporters
    )
    assert_ours_whole(told, nobody)
    assert told.both["answer"] == told.after["answer"] == nobody.alone["answer"]
    assert told.statements("after")["SELECT"] > 5, "theirs goes on"
    assert DRIVER_INSTRUMENTATION in told.found
    assert len(told.said) == 1


@ANY_DRIVER_ONCE
def test_django_instrumentation_of_the_application(stage, nobody):
    """Where the application has instrumented Django itself, its request span is ours, and is left to it afterwards."""
    told = stage.play("contrib-django")
    assert_ours_whole(told, nobody)
    assert_undisturbed(told)
    assert told.said == []
    assert [span["kind"] for span in told.after["spans"]] == ["SERVER"]
    if django.VERSION >= (5, 2):  # Django 4.2 notes its statements without the comments
        assert told.both["answer"]["commented"] > 15, "its comments in the statements go on"


@ANY_DRIVER_ONCE
def test_django_instrumentation_that_comes_later(stage, nobody):
    """Where the application instruments Django after us, there is still one request span."""
    assert_ours_whole(stage.play("contrib-django", "ours"), nobody)


# --- Datadog -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("first", "options"), [("theirs", {}), ("ours", {"statement_owner": "driver"})])
def test_datadog(stage, nobody, first, options):
    """Beside ddtrace, imported before or after us, each has its own spans, and nothing is to be said.

    Nor is it an owner that ``statement_owner`` could mean: OpenTelemetry would be left without spans.
    Imported after us it puts a new ``threading`` in the place of the one that we know.
    """
    told = stage.play("ddtrace", first, **options)
    assert_ours_whole(told, nobody, threads=first == "theirs")
    assert_datadog_undisturbed(told, stage.play("ddtrace").alone)
    assert told.said == []
    assert told.found["ddtrace"][1] == "its spans go to its own agent, beside ours"


@ANY_DRIVER_ONCE
def test_datadog_by_its_command(stage, nobody):
    """Under ``ddtrace-run`` it is as with ``import ddtrace.auto``."""
    told = stage.play("ddtrace", by=[beside_python("ddtrace-run")])
    assert_ours_whole(told, nobody)
    assert_datadog_undisturbed(told, told.alone)


def test_datadog_as_tracer_provider_keeps_its_spans_of_the_driver(stage, nobody):
    """With DD_TRACE_OTEL_ENABLED all spans are Datadog's: one a statement and a COMMIT, its own; said once."""
    told = stage.play("ddtrace-otel", environment={"DD_TRACE_OTEL_ENABLED": "true"})
    assert told.both["answer"] == nobody.both["answer"]
    assert told.faults == {}
    rows = told.both["theirs"]
    assert [row for row in rows if row[0] == "postgres.query"] == [
        row for row in told.alone["theirs"] if row[0] == "postgres.query"
    ]
    ours = Counter(name.partition(" ")[0] for kind, name, *_ in rows if kind in {"client", "internal"})
    # What ddtrace makes no span of, and what nobody else knows: connects, COPY, transactions, the request.
    assert ours == {"connect": 2, "COPY": 1, "transaction": 5, "run_transaction": 1, "GET": 1}
    (line,) = told.said
    assert "DD_TRACE_PSYCOPG_ENABLED=false" in line
    assert "it is the tracer provider" in told.found["ddtrace"][1]


@ANY_DRIVER_ONCE
def test_datadog_as_tracer_provider_without_its_spans_of_the_driver(stage, nobody):
    """What the log line says brings our statement spans back: one each, in Datadog."""
    switches = ("DD_TRACE_PSYCOPG_ENABLED", "DD_DJANGO_INSTRUMENT_DATABASES")
    told = stage.play(
        "ddtrace-otel", environment={"DD_TRACE_OTEL_ENABLED": "true", **dict.fromkeys(switches, "false")}
    )
    ours = [name for kind, name, *_ in told.both["theirs"] if kind in {"client", "internal"}]
    assert sorted(ours) == sorted(span["name"] for span in nobody.both["spans"])
    assert told.said == []


def assert_datadog_undisturbed(told, alone):
    """Assert what is asked of all; its span of our middleware comes and goes with that."""
    for phase in (told.both, told.after):
        phase["theirs"] = [row for row in phase["theirs"] if "RequestMiddleware" not in row[1]]
    assert_undisturbed(told, alone)
    assert told.held("postgres.query") > 15


# --- Sentry ------------------------------------------------------------------------------------


@ANY_DRIVER_ONCE
@pytest.mark.parametrize("first", ["theirs", "ours"])
def test_sentry(stage, nobody, first):
    """Beside Sentry, initialised before or after us, its transaction holds what it held: COMMIT and ROLLBACK too."""
    told = stage.play("sentry", first)
    assert_ours_whole(told, nobody)
    assert_undisturbed(told, stage.play("sentry").alone)
    assert told.said == []
    ((name, spans),) = told.both["theirs"]
    assert name == "/work/"
    assert [what for _, what in spans].count("COMMIT") == 2
    assert list(told.found) == ["sentry-sdk"]


@ANY_DRIVER_ONCE
def test_sentry_fed_by_opentelemetry(stage, nobody):
    """Where Sentry takes OpenTelemetry's spans (its span processor), it gets ours, each once."""
    told = stage.play("sentry-otel")
    assert_ours_whole(told, nobody)
    got = Counter(what for name, spans in told.both["theirs"] for _, what in [(None, name), *spans])
    assert got == Counter(span["name"] for span in nobody.both["spans"])


# --- Django's ----------------------------------------------------------------------------------

TOOLBAR = {
    "DEBUG": True,
    "STATIC_URL": "/static/",
    "INSTALLED_APPS": ["django.contrib.staticfiles", "tests.project", "debug_toolbar"],
    "MIDDLEWARE": [
        "debug_toolbar.middleware.DebugToolbarMiddleware",
        "django.middleware.common.CommonMiddleware",
    ],
}
SILK = {"INSTALLED_APPS": ["tests.project", "silk"], "MIDDLEWARE": ["silk.middleware.SilkyMiddleware"]}
PROMETHEUS = {
    "INSTALLED_APPS": ["tests.project", "django_prometheus"],
    "MIDDLEWARE": [
        "django_prometheus.middleware.PrometheusBeforeMiddleware",
        "django.middleware.common.CommonMiddleware",
        "django_prometheus.middleware.PrometheusAfterMiddleware",
    ],
}


@ANY_DRIVER_ONCE
def test_debug_toolbar(stage, nobody):
    """The toolbar's SQL panel lists the same statements with our cursors as without."""
    told = stage.play("toolbar", settings=TOOLBAR)
    assert_ours_whole(told, nobody)
    assert_undisturbed(told)
    assert len(told.both["theirs"]) > 15
    assert told.said == []
    assert list(told.found) == ["django-debug-toolbar"]


@ANY_DRIVER_ONCE
def test_silk(stage, nobody):
    """Silk writes down the same statements; what it writes is told as well, and none of ours is lost or doubled."""
    told = stage.play("silk", settings=SILK)
    assert_undisturbed(told)
    assert len(told.both["theirs"]) > 5
    assert told.said == []
    names = Counter(span["name"] for span in told.both["spans"])
    own = {name for name in names if "silk" in name or name.startswith("EXPLAIN")}
    assert own
    missing = Counter(span["name"] for span in nobody.both["spans"]) - names
    assert missing == Counter()
    assert list(told.found) == ["django-silk"]


def test_prometheus(stage, nobody):
    """django-prometheus, mixed into django-cockroachdb by a backend of the application's, counts what it counted."""
    told = stage.play(
        "prometheus", settings=PROMETHEUS, database={"ENGINE": "tests.beside.prometheus_cockroachdb"}
    )
    assert_ours_whole(told, nobody)
    assert_undisturbed(told)
    assert any(name.startswith("django_db_errors_total") for name in told.both["theirs"])
    assert told.said == []
    assert list(told.found) == ["django-prometheus"]


# --- the page ----------------------------------------------------------------------------------

PAGE = (Path(__file__).parents[1] / "docs" / "beside.md").read_text()


@ANY_DRIVER_ONCE
def test_page_names_every_neighbour():
    """The page's table has each neighbour that the package knows."""
    table = PAGE.partition("## Who makes")[0].replace("psycopg, -psycopg2, -dbapi", "psycopg")
    for neighbour in neighbours.NEIGHBOURS:
        name = neighbour.name.replace("-psycopg2", "-psycopg").replace("-dbapi", "-psycopg")
        assert {name, name.removesuffix("-sdk").capitalize(), name.replace("-pool", "'s pool")} & set(
            re.findall(r"[\w'-]+(?: pool)?", table)
        ), name


@ANY_DRIVER_ONCE
def test_page_shows_the_backend_that_is_tested():
    """The backend that the page shows for django-prometheus is the one that the scene runs on."""
    (shown,) = re.findall(r"```python\n# bank/cockroachdb/base.py.*?\n(.*?)```", PAGE, re.DOTALL)
    tested = (Path(__file__).parent / "beside" / "prometheus_cockroachdb" / "base.py").read_text()
    assert shown.split() == re.sub(r'#.*|""".*?"""', "", tested).split()


@ANY_DRIVER_ONCE
def test_page_verifies_what_is_found(stage):
    """The command with which the page ends prints the list of what is found."""
    *_, command = re.findall(r"```\n(python -c .*?)\n```", PAGE)
    printed = stage.run(shlex.split(command), {"INSTALLED_APPS": ["tests.project", "django_prometheus"]})
    assert "Finding(name='django-prometheus'" in printed
