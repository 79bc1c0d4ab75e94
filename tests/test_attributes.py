# SPDX-License-Identifier: Apache-2.0
"""docs/attributes.md and what is told, compared both ways: a day of an application is played for it."""

import importlib
import logging
import pkgutil
import re
from pathlib import Path

import django
import opentelemetry.semconv._incubating.attributes as development_attributes
import opentelemetry.semconv._incubating.metrics as development_metrics
import opentelemetry.semconv.attributes as stable_attributes
import opentelemetry.semconv.metrics as stable_metrics
import pytest
from django.db import connections
from django.db.backends.postgresql.psycopg_any import is_psycopg3

from otel_crdb import delivery, guidance, hooks, metrics, outcomes, retry, semconv, sqlstates

from .docs import attribute_page as page
from .docs import scenario, told
from .project.models import Account
from .telemetry import Telemetry

DROPPED = "Points of `otel_crdb.telemetry.dropped`"
WAITED = "Points of `db.client.connection.wait_time`"
FAILED_CONNECT = "Points of `db.client.connection.create_time`"
#: What the page has and the day has not, by kind, and why; None: none of that kind.
UNTOLD = {
    DROPPED: (None, "nothing is lost here; tests/test_delivery.py loses some"),
    "Connect span": ({"db.response.status_code"}, "libpq's error of a connect has none; a pool's has none"),
    FAILED_CONNECT: ({"db.response.status_code"}, "libpq's error of a connect has none"),
    WAITED: ({"error.type", "cockroachdb.error.class"}, "tests/test_connections.py exhausts a pool"),
}
if not scenario.HAS_POOLS:
    UNTOLD[WAITED] = (None, "there is no pool")
#: On the embedded server, always: what it announces, a port that is not 26257, one host that the settings name.
SEMCONV_VALUES = {semconv.COCKROACHDB, semconv.SCHEMA_URL}


@pytest.fixture(scope="module")
def day(crdb, _tables):
    """All that is told in a day of the application."""
    Account.objects.all().delete()
    Account.objects.bulk_create([Account(email=f"{name}@example.com", balance=100) for name in "ab"])
    requests_log = logging.getLogger("django.request")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_SEMCONV_STABILITY_OPT_IN", "http")
        patch.setenv("OTEL_SEMCONV_EXCEPTION_SIGNAL_OPT_IN", "logs/dup")
        patch.setattr(hooks, "faults", type(hooks.faults)())
        patch.setattr(requests_log, "disabled", True)
        patch.setattr(retry, "sleep", lambda seconds: None)
        with Telemetry(request_hook=scenario.failing_hook) as telemetry:
            scenario.play(crdb, telemetry)
            telemetry.metrics = told.metrics(telemetry)
            telemetry.by_kind = told.attributes_by_kind(telemetry)
    yield telemetry
    for each in connections.all():
        each.close()


def unseen(kind):
    """Return the attributes of a kind that the day need not have."""
    names, _ = UNTOLD.get(kind, ((), ""))
    return set(page.attributes_of(kind) if names is None else names)


# --- both ways -------------------------------------------------------------------------------------------------


def test_every_kind_that_was_told_has_its_table(day):
    """No span, event, log record or metric is told that the page has no table for, nor the other way round."""
    nothing = {kind for kind, (names, _) in UNTOLD.items() if names is None}
    assert set(day.by_kind) == set(page.KINDS) - nothing


@pytest.mark.parametrize("kind", page.KINDS)
def test_attributes_told_are_those_of_the_page(day, kind):
    """Each kind has had all the attributes of its table and no other; the exceptions are still ones."""
    seen = {name for attributes in day.by_kind.get(kind, ()) for name in attributes}
    on_page = set(page.attributes_of(kind))
    assert seen - on_page == set(), "told, and not on the page"
    assert on_page - seen == unseen(kind), "on the page, and not told (but for the exceptions)"


@pytest.mark.parametrize("kind", page.KINDS)
def test_always_is_always(day, kind):
    """What the page says is always there has never been missing."""
    always = {name for name, when in page.attributes_of(kind).items() if when == "always"}
    for attributes in day.by_kind.get(kind, ()):
        assert always <= set(attributes)


def test_types_are_those_of_the_page(day):
    """Every value that was told has the type that the page gives its attribute."""
    types = {name: kind.partition(",")[0] for name, (kind, _) in page.attributes().items()}
    for kind, all_attributes in day.by_kind.items():
        for attributes in all_attributes:
            seen = {name: told.type_of(value) for name, value in attributes.items()}
            assert seen == {name: types[name] for name in attributes}, kind


def test_words_are_those_of_the_page(day):
    """Attributes of a few words have had no other; these words are those of the code."""
    listed = page.values()
    for all_attributes in day.by_kind.values():
        for attributes in all_attributes:
            for name in listed.keys() & attributes.keys():
                assert attributes[name] in listed[name]
    assert listed == {
        semconv.TXN_OUTCOME: {
            outcomes.COMMITTED,
            outcomes.ROLLED_BACK,
            outcomes.RETRYABLE,
            outcomes.AMBIGUOUS,
            outcomes.FAILED,
        },
        semconv.ERROR_CLASS: set(guidance.GUIDANCE),
        semconv.RETRY_CAUSE: set(sqlstates.Cause.__args__),
        semconv.TELEMETRY_DROP_REASON: {
            delivery.QUEUE_FULL,
            delivery.EXPORT_FAILED,
            delivery.REJECTED,
            delivery.AFTER_SHUTDOWN,
            delivery.AT_EXIT,
        },
    }


def test_statuses_are_as_the_page_says(day):
    """ERROR is the status of what failed, and of nothing else; nothing is OK by our word."""
    failures = {*outcomes.FAILURES}
    for span in day.spans:
        kind, attributes = told.kind_of(span), span.attributes
        if kind in ("Run span", "Transaction span"):
            silent = any(event.name == semconv.SILENT_ABORT_EVENT for event in span.events)
            failed = attributes[semconv.TXN_OUTCOME] in failures or silent
        else:
            failed = "error.type" in attributes
        assert span.status.status_code.name == ("ERROR" if failed else "UNSET"), span.name


def test_a_run_is_never_called_retryable(day):
    """Of a run whose attempts are over the outcome is `failed`, as the page says."""
    of_runs = {attributes[semconv.TXN_OUTCOME] for attributes in day.by_kind["Run span"]}
    of_blocks = {attributes[semconv.TXN_OUTCOME] for attributes in day.by_kind["Transaction span"]}
    assert of_runs == {"committed", "ambiguous", "failed"}
    assert of_blocks == page.values()[semconv.TXN_OUTCOME]


def test_spans_are_named_as_the_page_says(day):
    """Each kind of span has the OpenTelemetry kind of its row, and begins as the row's example does."""
    rows = {cells[0]: cells[1:3] for cells in page.rows("Spans")}
    for span in day.spans:
        heading = told.kind_of(span)
        ((names, kind),) = [
            cells for name, cells in rows.items() if name.startswith(f"[{heading.removesuffix(' span')}")
        ] or [cells for name, cells in rows.items() if f"({_anchor(heading)})" in name]
        assert span.kind.name == kind
        starts = {name.split()[0] for name in re.findall(r"`([^`]+)`", names)}
        if heading not in ("Request span", "Statement span"):
            assert span.name.split()[0] in starts


def _anchor(heading):
    return "#" + re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


# --- metrics and log records -----------------------------------------------------------------------------------


def test_instruments_are_those_of_the_page(day):
    """Every metric has the instrument, the unit and the bounds of its row."""
    on_page = page.metrics()
    for metric in day.metrics:
        instrument, unit, bounds, _ = on_page[metric.name]
        assert told.described(metric) == (instrument, unit, bounds), metric.name


def test_log_records_are_those_of_the_page(day):
    """Every event name of a log record has its row, and all have a severity, a body and a trace."""
    assert {record.event_name for record in day.log_records} == {
        page.name_in(cells[0]) for cells in page.rows("Log records")
    }
    for record in day.log_records:
        assert record.severity_text in {"WARNING", "ERROR"}
        assert record.body
        assert record.trace_id


def test_caps_are_those_of_the_page():
    """The numbers that the page gives as bounds are the code's."""
    caps = {page.name_in(cells[0]): int(cells[0].split()[0]) for cells in page.rows("Metrics", 2)}
    assert caps == {
        semconv.DB_QUERY_SUMMARY: metrics.SUMMARY_LIMIT,
        semconv.TXN_NAME: metrics.NAME_LIMIT,
        semconv.ERROR_TYPE: metrics.ERROR_LIMIT,
    }


# --- names -----------------------------------------------------------------------------------------------------


def test_names_of_semconv_are_those_of_the_page():
    """Every name in otel_crdb/semconv.py stands on the page, and every name of ours on the page in it."""
    names = {value for name, value in vars(semconv).items() if name.isupper() and isinstance(value, str)}
    names -= SEMCONV_VALUES
    on_page = {*page.attributes(), *page.metrics()}
    on_page |= {page.name_in(cells[0]) for cells in (*page.rows("Events"), *page.rows("Log records"))}
    on_page |= {name for cells in page.rows("Log records", 1) for name in page.names_in(cells[0])}
    assert names <= on_page
    assert {name for name in on_page if name.startswith(("cockroachdb.", "otel_crdb."))} <= names


def test_every_attribute_is_explained_once():
    """The attributes of all the tables are those of the table that gives type and meaning, each in one row."""
    used = {name for kind in page.KINDS for name in page.attributes_of(kind)}
    rows = [page.name_in(cells[0]) for cells in page.rows("Attributes")]
    assert sorted(used) == rows


def test_origins_are_opentelemetrys_own():
    """Stable, in development, or ours: as OpenTelemetry's package of names has it."""
    stable, development = _constants(stable_attributes), _constants(development_attributes)
    for name, (_, origin) in page.attributes().items():
        assert origin == _origin(name, stable, development), name
    stable, development = _constants(stable_metrics), _constants(development_metrics)
    for name, (*_, origin) in page.metrics().items():
        assert origin == _origin(name, stable, development), name


def _origin(name, stable, development):
    return "stable" if name in stable else "development" if name in development else "ours"


def _constants(package):
    modules = [
        importlib.import_module(f"{package.__name__}.{each.name}")
        for each in pkgutil.iter_modules(package.__path__)
    ]
    return {
        value
        for module in modules
        for name, value in vars(module).items()
        if name.isupper() and _is_name(value)
    }


def _is_name(value):
    return isinstance(value, str)


def test_resource_is_that_of_the_page(monkeypatch):
    """Where the variables say nothing, a process is told by the attributes of the page's table."""
    for variable in ("OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES", "OTEL_EXPERIMENTAL_RESOURCE_DETECTORS"):
        monkeypatch.delenv(variable, raising=False)
    attributes = scenario.resource().attributes
    assert set(attributes) == {page.name_in(cells[0]) for cells in page.rows("Resource")}
    assert attributes["service.name"] == "tests"


def test_the_reasons_for_what_is_not_told_still_hold():
    """The tests that are named as telling the rest do name it; Django and driver are those of the exceptions."""
    tests = Path(__file__).parent
    assert semconv.TELEMETRY_DROPPED in (tests / "test_delivery.py").read_text()
    assert "overload" in (tests / "test_connections.py").read_text()
    assert scenario.HAS_POOLS is (is_psycopg3 and django.VERSION >= (5, 1))
