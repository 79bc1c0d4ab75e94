# SPDX-License-Identifier: Apache-2.0
"""``instrument()`` and ``uninstrument()``: twice, back and forth, beside others."""

import importlib.metadata
import logging
import os
import subprocess
import sys

import pytest
from django.conf import settings
from django.core.handlers.base import BaseHandler
from django.core.signals import got_request_exception
from django.db import connection, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.postgresql.base import DatabaseWrapper as PostgresWrapper
from django.db.backends.postgresql.psycopg_any import is_psycopg3
from django.db.backends.utils import CursorDebugWrapper, CursorWrapper
from django.db.transaction import Atomic
from django.test import Client
from django_cockroachdb.base import DatabaseWrapper
from opentelemetry.instrumentation.django import DjangoInstrumentor
from opentelemetry.trace import SpanKind

import otel_crdb
from otel_crdb.requests import RequestMiddleware

from .project.models import Account
from .telemetry import Telemetry

pytestmark = pytest.mark.usefixtures("accounts")

TOUCHABLE = [
    DatabaseWrapper,
    PostgresWrapper,
    BaseDatabaseWrapper,
    CursorWrapper,
    CursorDebugWrapper,
    Atomic,
    BaseHandler,
]


def anatomy():
    """Return every attribute of the classes that could be touched, and what else could be."""
    parts = {(owner, name): value for owner in TOUCHABLE for name, value in vars(owner).items()}
    parts["MIDDLEWARE"] = settings.MIDDLEWARE
    parts["receivers"] = len(got_request_exception.receivers)
    parts["contrib"] = DjangoInstrumentor().is_instrumented_by_opentelemetry
    return parts


def test_uninstrument_leaves_no_trace():
    """After ``uninstrument()`` every attribute of Django's classes is the very object that it was."""
    before = anatomy()
    with Telemetry():
        during = anatomy()
    after = anatomy()
    assert during != before
    assert after.keys() == before.keys()
    assert all(after[part] is before[part] for part in before if part != "receivers")
    assert after["receivers"] == before["receivers"]


def test_nothing_is_told_after_uninstrument(telemetry):
    """Cursors and handlers that were made while instrumented work on and tell nothing."""
    client = Client()
    client.get("/transfer/1/")
    with connection.cursor() as cursor, transaction.atomic():
        cursor.execute("SELECT 1")
        otel_crdb.uninstrument()
        telemetry.clear()
        cursor.execute("SELECT id FROM account")
        assert len(cursor.fetchall()) == 2
    assert client.get("/transfer/1/").content == b"paid"
    assert telemetry.names() == []


def test_second_instrument_after_uninstrument_works(telemetry):
    """Instrumented again, everything is told once, and what an earlier time left open is forgotten."""
    with transaction.atomic():
        Account.objects.count()
        otel_crdb.uninstrument()
        telemetry.instrument()
        telemetry.clear()
        Account.objects.count()
    assert telemetry.names() == ["SELECT account", "COMMIT"]
    assert all("cockroachdb.txn.id" not in span.attributes for span in telemetry.spans)
    telemetry.clear()
    with transaction.atomic():
        Account.objects.count()
    assert len(telemetry.names()) == 3


def test_calling_twice_is_safe(telemetry, caplog):
    """A second ``instrument()`` and a second ``uninstrument()`` do nothing and say nothing."""
    otel_crdb.instrument()
    Account.objects.count()
    assert telemetry.names().count("SELECT account") == 1
    otel_crdb.uninstrument()
    otel_crdb.uninstrument()
    assert caplog.records == []


def test_unknown_option_names_the_nearest():
    """An option that does not exist is refused with the right name, and nothing is changed."""
    before = anatomy()
    with pytest.raises(TypeError, match="did you mean 'statement_owner'"):
        otel_crdb.instrument(statement_owners="driver")
    with pytest.raises(ValueError, match="statement_owner is one of"):
        otel_crdb.instrument(statement_owner="nobody")
    assert anatomy() == before


def test_contrib_that_was_there_first_is_taken_over_and_given_back(accounts):
    """Where contrib instruments Django already, its middleware makes way for ours and comes back."""
    telemetry = Telemetry()
    theirs = DjangoInstrumentor()._opentelemetry_middleware
    before = settings.MIDDLEWARE
    settings.MIDDLEWARE = list(before)
    DjangoInstrumentor().instrument(tracer_provider=telemetry.tracer_provider)
    try:
        with telemetry:
            ours = f"{RequestMiddleware.__module__}.{RequestMiddleware.__qualname__}"
            assert theirs not in settings.MIDDLEWARE
            assert settings.MIDDLEWARE.count(ours) == 1
            Client().get("/nothing/")
        assert settings.MIDDLEWARE.count(theirs) == 1
        assert len([span for span in telemetry.spans if span.kind is SpanKind.SERVER]) == 1
    finally:
        DjangoInstrumentor().uninstrument()
        settings.MIDDLEWARE = before


def test_sdk_disabled_means_nothing_is_done(monkeypatch):
    """``OTEL_SDK_DISABLED=true`` leaves Django as it is."""
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    before = anatomy()
    with Telemetry():
        assert anatomy() == before


def test_opt_in_is_merged_and_said_when_too_late(monkeypatch, caplog):
    """Our ``http`` joins what the process has opted in to; where contrib has read it before, a note says so."""
    monkeypatch.setenv("OTEL_SEMCONV_STABILITY_OPT_IN", "database")
    with caplog.at_level(logging.WARNING), Telemetry():
        assert os.environ["OTEL_SEMCONV_STABILITY_OPT_IN"] == "database,http"
    assert "was read before instrument()" in caplog.text
    monkeypatch.setenv("OTEL_SEMCONV_STABILITY_OPT_IN", "http/dup")
    with Telemetry():
        assert os.environ["OTEL_SEMCONV_STABILITY_OPT_IN"] == "http/dup"


def test_entry_point_of_opentelemetry_instrument():
    """``opentelemetry-instrument`` finds the instrumentor by its entry point."""
    (entry,) = [
        entry
        for entry in importlib.metadata.entry_points(group="opentelemetry_instrumentor")
        if entry.name == "otel_crdb"
    ]
    assert entry.load() is otel_crdb.CockroachDBInstrumentor


@pytest.fixture
def driver_instrumentation(accounts):
    """The contrib instrumentation of the driver, on: its tracer provider's telemetry."""
    if is_psycopg3:
        instrumentor = pytest.importorskip("opentelemetry.instrumentation.psycopg").PsycopgInstrumentor()
    else:
        instrumentor = pytest.importorskip("opentelemetry.instrumentation.psycopg2").Psycopg2Instrumentor()
    theirs = Telemetry()
    connection.close()
    instrumentor.instrument(tracer_provider=theirs.tracer_provider, skip_dep_check=True)
    yield theirs
    instrumentor.uninstrument()
    connection.close()


def test_statement_span_has_one_owner(driver_instrumentation, caplog):
    """Beside contrib's driver instrumentation the span is ours, theirs is suppressed, and it is said once."""
    from otel_crdb import neighbours

    neighbours.forget_what_was_said()
    with Telemetry() as telemetry, caplog.at_level(logging.WARNING, "otel_crdb"):
        for _ in range(2):
            Account.objects.count()
            connection.close()
        assert telemetry.names().count("SELECT account") == 2
        assert [span.name for span in driver_instrumentation.spans if span.name == "SELECT"] == []
        said = [record for record in caplog.records if "another instrumentation" in record.getMessage()]
        assert len(said) == 1


def test_statement_span_yields_to_the_driver_on_demand(driver_instrumentation):
    """With ``statement_owner="driver"`` theirs is made and ours is not; the transaction around it is ours."""
    with Telemetry(statement_owner="driver") as telemetry:
        with transaction.atomic():
            Account.objects.count()
        assert "SELECT account" not in telemetry.names()
        assert [name.split()[0] for name in telemetry.names()[-2:]] == ["transaction", "COMMIT"]
        assert "SELECT" in [span.name for span in driver_instrumentation.spans]


def test_instrument_that_fails_leaves_nothing_behind(monkeypatch):
    """Where instrumenting fails half-way, every hook is out again and the next call works."""
    before = anatomy()

    def fail(self, **_):
        raise RuntimeError("contrib failed")

    with monkeypatch.context() as patched, pytest.raises(RuntimeError, match="contrib failed"):
        patched.setattr(DjangoInstrumentor, "_instrument", fail)
        Telemetry().instrument()
    assert anatomy() == before
    with Telemetry() as telemetry:
        Account.objects.count()
        assert telemetry.names().count("SELECT account") == 1


def test_middleware_of_an_overridden_setting(accounts):
    """Uninstrumented within other settings, the next ``instrument()`` still puts in one middleware."""
    from django.test import override_settings

    before = settings.MIDDLEWARE
    try:
        telemetry = Telemetry().__enter__()
        with override_settings(MIDDLEWARE=[]):
            otel_crdb.uninstrument()
        telemetry.instrument()
        ours = f"{RequestMiddleware.__module__}.{RequestMiddleware.__qualname__}"
        assert settings.MIDDLEWARE.count(ours) == 1
        Client().get("/transfer/1/")
        assert len([span for span in telemetry.spans if span.kind is SpanKind.SERVER]) == 1
    finally:
        otel_crdb.uninstrument()
        settings.MIDDLEWARE = before


def test_called_while_the_settings_are_loaded(tmp_path):
    """Called by the settings module itself, it refuses: Django would keep the half of them that there is yet."""
    (tmp_path / "half.py").write_text("import otel_crdb\notel_crdb.instrument()\nDATABASES = {}\n")
    program = "from django.conf import settings; settings.DATABASES"
    environment = {**os.environ, "DJANGO_SETTINGS_MODULE": "half", "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert (
        "ImproperlyConfigured: otel_crdb.instrument() was called while the settings are loaded" in done.stderr
    )
