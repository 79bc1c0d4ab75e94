# SPDX-License-Identifier: Apache-2.0
"""Django's system checks of this package: each wrong made in truth, its identifier and its hint."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from django.conf import settings
from django.core.checks import Error
from django.test import override_settings

from otel_crdb import checks
from otel_crdb.doctor import source, static

ROOT = Path(__file__).resolve().parent.parent

WSGI = """
import otel_crdb
from django.core.wsgi import get_wsgi_application
otel_crdb.instrument()
application = get_wsgi_application()
"""
PLAIN = WSGI.replace("otel_crdb.instrument()\n", "").replace("import otel_crdb\n", "")
LATE = f"{PLAIN}import otel_crdb\notel_crdb.instrument()\n"


@pytest.fixture(autouse=True)
def quiet_environment(monkeypatch):
    """Nothing of OpenTelemetry's is set, but what a test sets."""
    for name in list(os.environ):
        if name.startswith("OTEL_") and not name.startswith("OTEL_CRDB_TEST"):
            monkeypatch.delenv(name)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A function that makes a package with these modules, which settings can name."""
    monkeypatch.syspath_prepend(tmp_path)
    name = f"checked_{tmp_path.name.replace('-', '_')}"

    def make(**modules):
        (tmp_path / name).mkdir()
        for module, text in {"__init__": "", **modules}.items():
            (tmp_path / name / f"{module}.py").write_text(text)
        return name

    return make


def found():
    """The identifiers of what is wrong, and all that is said of it."""
    messages = checks.check()
    return [message.id for message in messages], "\n".join(
        f"{message.msg} {message.hint}" for message in messages
    )


def test_nothing_is_wrong_here():
    """The tests' own project is clean."""
    assert checks.check() == []


@pytest.mark.parametrize(
    ("variables", "identifier", "hint"),
    [
        ({"OTEL_SDK_DISABLED": "TRUE"}, "W003", "unset OTEL_SDK_DISABLED"),
        ({"OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "redis,otel_crdb"}, "W004", "take otel_crdb out"),
        ({"OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "django"}, "W004", "take django out"),
        ({"OTEL_TRACES_EXPORTER": "none"}, "W005", "OTEL_CRDB_TRACES=false"),
        ({"OTEL_METRICS_EXPORTER": " none "}, "W005", "OTEL_CRDB_METRICS=false"),
        ({"OTEL_TRACES_SAMPLER": "parentbased_always_off"}, "W006", "unset OTEL_TRACES_SAMPLER"),
        ({"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0"}, "W006", "unset"),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4317"},
            "W007",
            "OTEL_EXPORTER_OTLP_PROTOCOL=grpc",
        ),
        (
            {
                "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT": "http://collector:4318",
                "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
            },
            "W007",
            "port 4317 in OTEL_EXPORTER_OTLP_LOGS_ENDPOINT",
        ),
        ({"OTEL_CRDB_NODE_IDS": "false"}, "E001", "call it OTEL_CRDB_NODE_ID"),
        ({"OTEL_CRDB_QUERY_TEXT_LIMIT": "plenty"}, "E001", "docs/options.md"),
    ],
)
def test_variables(monkeypatch, variables, identifier, hint):
    """A variable that switches something off, or contradicts another, is one message with the way out."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    identifiers, told = found()
    assert identifiers == [f"otel_crdb.{identifier}"]
    assert hint in told


@pytest.mark.parametrize(
    "variables",
    [
        {"OTEL_TRACES_SAMPLER": "parentbased_always_on"},
        {"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.01"},
        {"OTEL_TRACES_EXPORTER": "otlp,console"},
        {"OTEL_METRICS_EXPORTER": "none", "OTEL_CRDB_METRICS": "false"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4317", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "https://[::1"},
    ],
)
def test_variables_that_are_meant(monkeypatch, variables):
    """What is right, or says itself that it is meant, is not complained of."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert checks.check() == []


def test_option_of_the_setting():
    """An option that does not exist is an error, since instrument() would raise; the hint is its right name."""
    with override_settings(OTEL_CRDB={"excluded_url": ["/health"]}):
        (message,) = checks.check()
    assert isinstance(message, Error)
    assert message.id == "otel_crdb.E001"
    assert message.hint == "call it 'excluded_urls'"


def test_no_alias_is_on_the_backend():
    """Without an alias on django_cockroachdb, or a backend built upon it, no statement would be seen."""
    databases = {"default": {**settings.DATABASES["default"], "ENGINE": "django.db.backends.postgresql"}}
    (finding,) = static.of_settings(
        SimpleNamespace(DATABASES=databases, WSGI_APPLICATION="shop.wsgi.application")
    )
    assert checks.IDS[finding.code] == "otel_crdb.W008"
    assert finding.mend == 'DATABASES["default"]["ENGINE"] = "django_cockroachdb"'


def test_backend_built_upon_ours(project):
    """A backend of the application's whose DatabaseWrapper derives from django_cockroachdb's is one."""
    name = project(base="from django_cockroachdb.base import DatabaseWrapper\n")
    assert static.is_cockroachdb(name)
    assert not static.is_cockroachdb("django.db.backends.postgresql")
    assert not static.is_cockroachdb("no_such_backend")


@pytest.mark.parametrize(
    ("wsgi", "identifiers"),
    [(WSGI, []), (PLAIN, ["otel_crdb.W001"]), (LATE, ["otel_crdb.W002"]), ("application = None", [])],
)
def test_source_of_wsgi(project, wsgi, identifiers):
    """By its text, wsgi.py calls instrument() before the handler, after it, or not at all."""
    name = project(wsgi=wsgi)
    with override_settings(WSGI_APPLICATION=f"{name}.wsgi.application"):
        assert found()[0] == identifiers


def test_source_that_instruments_by_importing(project):
    """A module of the project that instruments counts where it is imported; others are not followed."""
    relative = PLAIN.replace("\nfrom django", "\nfrom . import telemetry\nfrom django", 1)
    name = project(telemetry="import otel_crdb\notel_crdb.instrument()\n", wsgi=relative, asgi=PLAIN)
    with override_settings(WSGI_APPLICATION=f"{name}.wsgi.application"):
        assert checks.check() == []
    assert source.read(f"{name}.wsgi").instruments == 2
    assert source.read(f"{name}.asgi").instruments == 0


def test_source_that_cannot_be_read(project):
    """What is no module, or no Python, is nothing that a check could speak of."""
    name = project(wsgi="def (:")
    assert source.read(f"{name}.wsgi") is None
    assert source.read(f"{name}.asgi") is None
    assert source.read("no_such_package.wsgi") is None
    assert source.read("math") is None
    with override_settings(WSGI_APPLICATION=f"{name}.wsgi.application"):
        assert checks.check() == []


def test_runserver_that_never_loads_wsgi(project):
    """A wsgi.py beside the settings that instruments is of no use to runserver without WSGI_APPLICATION."""
    name = project(wsgi=WSGI, settings="")
    with override_settings(SETTINGS_MODULE=f"{name}.settings"):
        identifiers, told = found()
        assert identifiers == ["otel_crdb.W009"]
        assert f'WSGI_APPLICATION = "{name}.wsgi.application"' in told
        with override_settings(WSGI_APPLICATION=f"{name}.wsgi.application"):
            assert checks.check() == []


def test_versions_that_were_not_tried(monkeypatch):
    """A Python or Django that is not among the tested, or a backend of another Django, is pointed at."""
    installed = {"django": "5.1.4", "django-cockroachdb": "5.2.0"}
    monkeypatch.setattr(static, "version_of", installed.get)
    monkeypatch.setattr(static.sys, "version_info", (3, 9, 1))
    told = {finding.code: finding.mend for finding in static.of_versions()}
    assert set(told) == {"python-untested", "django-untested", "backend-of-other-django"}
    assert told["backend-of-other-django"] == 'pip install "django-cockroachdb~=5.1.0"'
    installed["django-cockroachdb"] = ""
    assert "no-backend" in {finding.code for finding in static.of_versions()}


def test_instrumented_process(telemetry):
    """In a process that is instrumented, what stands in the settings counts and not the source."""
    assert checks.check() == []
    with override_settings(MIDDLEWARE=[]):
        identifiers, told = found()
    assert identifiers == ["otel_crdb.W010"]
    assert "settings.MIDDLEWARE was replaced" in told


def test_second_instrumentation(telemetry):
    """A driver instrumentation beside ours is a warning that names both ways out."""
    from opentelemetry.instrumentation.psycopg2 import Psycopg2Instrumentor

    second = Psycopg2Instrumentor()
    second.instrument(skip_dep_check=True)
    try:
        identifiers, told = found()
    finally:
        second.uninstrument()
    assert identifiers == ["otel_crdb.W013"]
    assert "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS=psycopg2" in told


def test_every_finding_has_an_identifier():
    """The identifiers are of one form, and an error is what stops the application."""
    for identifier in checks.IDS.values():
        package, _, number = identifier.rpartition(".")
        assert package == "otel_crdb"
        assert number[0] in "WE"
        assert number[1:].isdecimal()


def run_check(folder, text, **variables):
    """Run ``manage.py check`` on settings; return exit status and what it said."""
    (folder / "checked_settings.py").write_text(text)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    done = subprocess.run(
        [sys.executable, "-m", "django", "check", "--fail-level", "WARNING", "--tag", "compatibility"],
        cwd=folder,
        env={
            **kept,
            "DJANGO_SETTINGS_MODULE": "checked_settings",
            "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "demo", folder))),
            "BANK_DATABASE": json.dumps(settings.DATABASES["default"], default=str),
            **variables,
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("module", ["bank.settings", "tests.project.settings"])
def test_manage_py_check(tmp_path, module):
    """With ``otel_crdb`` in INSTALLED_APPS the checks run: the demo's bank and the tests' project are clean."""
    text = f'from {module} import *\nINSTALLED_APPS = [*INSTALLED_APPS, "otel_crdb"]\n'
    assert run_check(tmp_path, text) == (0, "System check identified no issues (0 silenced).\n")
    status, told = run_check(tmp_path, text, OTEL_SDK_DISABLED="true")
    assert status == 1
    assert "(otel_crdb.W003) OTEL_SDK_DISABLED=true" in told
    assert "HINT: unset OTEL_SDK_DISABLED" in told
    silenced = f'{text}SILENCED_SYSTEM_CHECKS = ["otel_crdb.W003"]\n'
    assert run_check(tmp_path, silenced, OTEL_SDK_DISABLED="true")[0] == 0


@pytest.mark.parametrize(("wsgi", "identifiers"), [(WSGI, []), (PLAIN, ["otel_crdb.W001"] * 2)])
def test_one_entry_that_instruments_is_enough(project, wsgi, identifiers):
    """``startproject`` makes wsgi.py and asgi.py: where one instruments, the other is not held against it."""
    name = project(wsgi=wsgi, asgi=PLAIN.replace("wsgi", "asgi"))
    with override_settings(
        WSGI_APPLICATION=f"{name}.wsgi.application", ASGI_APPLICATION=f"{name}.asgi.application"
    ):
        assert found()[0] == identifiers
