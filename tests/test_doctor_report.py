# SPDX-License-Identifier: Apache-2.0
"""The doctor's report as text and data, what is hidden in it, and findings that no server here can bring about."""

import json
from types import SimpleNamespace

import pytest
from django.db import connections
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased, Sampler, TraceIdRatioBased

from otel_crdb.config import Config
from otel_crdb.doctor import databases, exporters, exports, render, secrets
from otel_crdb.doctor.findings import FINE, WRONG, Finding, Report, Section
from otel_crdb.scrubbing import ScrubbingSpanExporter

REPORT = Report(
    "otel_crdb on shop.settings",
    (
        Section(
            "Databases",
            (
                Finding("ok", "default", "fine " * 30),
                Finding("note", "default", "more of it"),
                Finding("fail", "an-alias-with-a-long-name", "bad", "first line\nsecond line", "bad"),
            ),
        ),
        Section("Empty", ()),
    ),
)


def as_it_is(text):
    """Hide nothing."""
    return text


def test_report_for_a_reader():
    """Aligned, wrapped at 100 columns, a label once, each mend below what it mends, a verdict at the end."""
    lines = render.as_text(REPORT, as_it_is).splitlines()
    assert lines[:4] == ["otel_crdb on shop.settings", "", "Databases", lines[3]]
    assert lines[3].startswith("  ok    default          fine fine")
    assert lines[4].startswith(" " * 25 + "fine")
    assert lines[5:] == [
        "  note                   more of it",
        "  FAIL  an-alias-with-a-long-name  bad",
        " " * 25 + "mend: first line",
        " " * 25 + "      second line",
        "",
        "1 wrong.",
    ]
    assert max(map(len, lines)) <= 100


def test_report_for_a_program():
    """The same findings by section, with codes and the exit status."""
    told = json.loads(render.as_json(REPORT, as_it_is))
    assert told["status"] == WRONG
    assert [section["title"] for section in told["sections"]] == ["Databases", "Empty"]
    assert told["sections"][0]["findings"][2] == {
        "level": "fail",
        "about": "an-alias-with-a-long-name",
        "what": "bad",
        "mend": "first line\nsecond line",
        "code": "bad",
    }


def test_warnings_do_not_change_the_exit_status():
    """Only what is wrong does."""
    doubtful = Report("", (Section("", (Finding("warn", "", "hm"), Finding("note", "", "so"))),))
    assert doubtful.status == FINE
    assert render.as_text(doubtful, as_it_is).endswith("Nothing is wrong, 1 to look at.\n")


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("to http://ann:pw@collector:4318/v1", "to http://collector:4318/v1"),
        ("postgresql://root:p%40ss@db/x", "postgresql://db/x"),
        ("postgresql://root:pa/s3cret@db/x", "postgresql://db/x"),
        ("header b'Bearer s3cret!\\nx'", "header b'***'"),
        ("conninfo password='a b' host=db", "conninfo password='…' host=db"),
        ("?api_key=abc&x=1", "?api_key=…&x=1"),
        ("it says s3cret%21 and s3cret!", "it says *** and ***"),
        ("nothing to hide at 10:20, root@db:26257", "nothing to hide at 10:20, root@db:26257"),
    ],
)
def test_what_is_hidden(text, hidden):
    """Who stands in a URL, what is called a password or key, and known values in whatever encoding."""
    known = {"s3cret!", *secrets._header_values("Bearer%20s3cret!%0Ax")}
    assert secrets.hider(known)(text) == hidden


def test_secrets_that_are_known(monkeypatch):
    """Those of DATABASES and its OPTIONS, SECRET_KEY, PGPASSWORD and the OTLP headers."""
    monkeypatch.setenv("PGPASSWORD", "of-libpq")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_LOGS_HEADERS", "authorization=Bearer%20of-header,x=other")
    assert {"of-libpq", "of-header", "Bearer of-header", "other"} <= secrets.of_process()
    alias = {
        "PASSWORD": "of-alias",
        "USER": "ann",
        "OPTIONS": {"sslpassword": "of-tls", "sslmode": "require"},
    }
    settings = SimpleNamespace(SECRET_KEY="of-django", DATABASES={"default": alias})
    assert secrets.of_settings(settings) == {"of-alias", "of-tls", "of-django"}


def answer(**changes):
    """What a node of CockroachDB would tell of itself."""
    told = {
        "host": "db",
        "port": 26257,
        "version": "CockroachDB CCL v25.4.0",
        "announced": "CockroachDB CCL v25.4.0",
        "node": 3,
        "node_of_server": 3,
        "isolation": "serializable",
        "connect": 0.01,
        "round_trip": 0.001,
    }
    return databases.Answer(**{**told, **changes})


def test_poolers():
    """A node that is another than its key says, or a version that was not passed on, is a pooler's doing."""
    assert list(databases._pooler("default", answer(), Config())) == []
    (invented,) = databases._pooler("default", answer(node=77), Config())
    assert (invented.level, invented.code) == ("warn", "pooler-invents-node")
    assert invented.mend == 'OTEL_CRDB = {"node_id": False}'
    (meant,) = databases._pooler("default", answer(node=77), Config(node_id=False))
    assert meant.level == "note"
    (silent,) = databases._pooler("default", answer(announced="", node=0), Config())
    assert "does not pass crdb_version on" in silent.what
    (cloud,) = databases._pooler("default", answer(host="x.aws.cockroachlabs.cloud"), Config())
    assert "CockroachDB Cloud" in cloud.what


def test_methods_that_a_backend_overrides():
    """Hooked methods that a DatabaseWrapper of the application's has of its own are named."""
    kind = type(connections["default"])
    special = type("DatabaseWrapper", (kind,), {"_commit": lambda self: None, "unheard": None})
    assert databases._overridden(kind) == []
    assert databases._overridden(special) == ["_commit"]


def test_alias_is_asked_by_either_driver():
    """The server's own words: version, isolation, node, and what a round trip takes."""
    (server, told) = databases.of_databases(connections, ["default"], Config(), 10)[:2]
    assert server.level == "ok"
    assert server.what.startswith("CockroachDB v")
    assert "isolation " in told.what


def sampled_by(sampler):
    """What is said of a sampler."""
    (found,) = exports._sampler(Config(tracer_provider=TracerProvider(sampler, shutdown_on_exit=False)))
    return found


def test_samplers():
    """One that takes nothing is wrong, a ratio is told as such, one that needs a request is only named."""

    class NeedsRequest(Sampler):
        def should_sample(self, *args, **kwargs):
            raise LookupError("no request")

        def get_description(self):
            return "mine"

    assert sampled_by(ParentBased(ALWAYS_OFF)).code == "sampler-drops-all"
    assert "% of traces" in sampled_by(TraceIdRatioBased(0.5)).what
    assert sampled_by(NeedsRequest()) == Finding("note", "sampler", "mine")


def test_exporters_are_found_whatever_wraps_them():
    """The outermost exporter is what is called, the innermost is what is described."""
    inner = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    assert exporters.find("traces", provider) == []
    provider.add_span_processor(SimpleSpanProcessor(ScrubbingSpanExporter(inner)))
    (way,) = exporters.find("traces", provider)
    assert way.carrier is not inner
    assert way.sender is inner
    assert way.described == "InMemorySpanExporter"
    (finding,) = [
        each
        for each in exports.of_exports(Config(tracer_provider=provider, metrics=False, logs=False), 5)
        if each.about == "traces"
    ]
    assert finding.level == "ok"
    assert [span.name for span in inner.get_finished_spans()] == ["otel_crdb.doctor"]
