# SPDX-License-Identifier: Apache-2.0
"""Secrets of real programs, with the application's own redaction off, are in nothing that leaves the agent.

`plant` can be pointed at any agent. Two programs run in it: a Django shop under gunicorn, instrumented by
otel_crdb with `mask_secrets=False` and parameters told; and a script with nothing but OpenTelemetry's SDK, which
tells what any other language would: literals, error details, stack traces.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

from e2e.agent import Agent, BackEnds
from otel_crdb.testing import server
from otel_crdb.testing.otlp import attributes_of, value_of
from stack.servers import listens
from tests.processes import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

ROOT = Path(__file__).resolve().parent.parent
#: Seconds. What a program does takes two or three; the rest is for a busy machine.
WITHIN = 90.0
#: What nobody may see, by where it is planted. No value is known by its form where it is not said to be.
SECRETS = {
    "parameter": "Zwiebelkuchen",
    "header": "Apfelstrudel",
    "bearer": "Kirsch7michel.abc",
    "cookie": "Pflaumenmus",
    "error detail": "Rhabarber@Torte",
    "failing row": "Quittengelee",
    "log line": "Holunderblüte",
    "log argument": "Johannisbeer",
    "exception": "Mirabellengeist",
    "query of a URL": "Stachelbeere",
    "literal": "Sanddornsaft",
    "span name": "Schlehenfeuer",
    "status": "Brombeerwein",
    "metric": "Hagebuttentee",
    "left out of a point": "Preiselbeeren",
    "array": "Moosbeerenlikör",
    "card": "4111 1111 1111 1111",
    "jwt": "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl",
    "cloud key": "AKIAIOSFODNN7EXAMPLE",
    "address": "frieda.holle@example.com",
    "private key": "MIIEowIBAAKCAQEAxyz",
}
_SHOP = """
import json, logging, os
import django
from django.conf import settings

settings.configure(
    ALLOWED_HOSTS=["*"], DATABASES={"default": json.loads(os.environ["SHOP_DATABASE"])}, DEBUG=False,
    ROOT_URLCONF="shop", SECRET_KEY="k", USE_TZ=True, INSTALLED_APPS=[],
)
import otel_crdb
masked = os.environ["SHOP_MASKED"] == "true"
otel_crdb.instrument(mask_secrets=masked, query_parameters=not masked)
from django.core.wsgi import get_wsgi_application
from django.db import IntegrityError, connection, transaction
from django.http import HttpResponse
from django.urls import path

application = get_wsgi_application()
SECRETS = json.loads(os.environ["SHOP_SECRETS"])
log = logging.getLogger("shop")


def prepare(request):
    with connection.cursor() as cursor:
        cursor.execute("CREATE TABLE shop_customer (id INT8 PRIMARY KEY, mail TEXT UNIQUE, town TEXT NOT NULL)")
        cursor.execute("INSERT INTO shop_customer VALUES (1, %s, 'x')", [SECRETS["error detail"]])
    return HttpResponse("prepared")


def buy(request):
    with connection.cursor() as cursor:
        cursor.execute("SELECT id FROM shop_customer WHERE town = %s", [SECRETS["parameter"]])
        cursor.execute(f"SELECT id FROM shop_customer WHERE town = '{SECRETS['literal']}'")
    for row in ([2, SECRETS["error detail"], "x"], [3, SECRETS["failing row"], None]):
        try:
            with transaction.atomic(), connection.cursor() as cursor:
                cursor.execute("INSERT INTO shop_customer VALUES (%s, %s, %s)", row)
        except IntegrityError as error:
            log.exception("not stored: %s", error)
    log.warning(f"password={SECRETS['log line']} for {SECRETS['address']} paid by {SECRETS['card']}")
    log.warning("signed in", extra={"api_key": SECRETS["log argument"], "jwt": SECRETS["jwt"]})
    raise ValueError(f"token: {SECRETS['exception']} of {SECRETS['cloud key']}")


urlpatterns = [path("prepare/", prepare), path("buy/", buy)]
"""
_SCRIPT = """
import json, logging, os
import psycopg
from opentelemetry import metrics, trace
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.metrics.view import View
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, StatusCode

S = json.loads(os.environ["SHOP_SECRETS"])
resource = Resource.create({"service.name": "script", "process.command_args": ["run", f"--password={S['array']}"]})
traces = TracerProvider(resource=resource)
traces.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
views = [View(instrument_name="seen", attribute_keys={"kind", "token"})]
points = MeterProvider([PeriodicExportingMetricReader(OTLPMetricExporter())], resource=resource, views=views)
logs = LoggerProvider(resource=resource)
logs.add_log_record_processor(BatchLogRecordProcessor(OTLPLogExporter()))
tracer, logger = traces.get_tracer("script"), logs.get_logger("script")
told = {"db.system": "postgresql", "server.port": 26257, "enduser.email": S["address"], "authorization": S["bearer"]}
with psycopg.connect(os.environ["SHOP_URL"], autocommit=True) as connection:
    for statement, row in (
        ("INSERT INTO shop_customer VALUES (4, %s, 'x')", [S["error detail"]]),
        (f"INSERT INTO shop_customer VALUES (5, '{S['literal']}', %s)", [None]),
        (f"INSERT INTO shop_customer VALUES (6, '{S['failing row']}', NULL)", []),
    ):
        text = {"db.statement": statement, "db.query.text": statement, "db.query.parameter.0": str(row)}
        with contextlib_suppress(psycopg.Error), tracer.start_as_current_span(
            f"INSERT '{S['span name']}'", kind=SpanKind.CLIENT, attributes={**told, **text}
        ) as span:
            try:
                connection.execute(statement, row)
            except psycopg.Error as error:
                span.set_status(StatusCode.ERROR, f"{error}, with password: {S['status']}")
                span.add_event(f"refused, pin={S['span name']}", {"arguments": [S["card"], f"token={S['array']}"]})
                logger.emit(LogRecord(
                    body={"said": str(error), "secret": S["log argument"], "deep": [{"cookie": S["cookie"]}]},
                    severity_number=SeverityNumber.ERROR,
                    attributes={"exception.message": str(error), "jwt": S["jwt"]},
                ))
                raise
with tracer.start_as_current_span("measured") as span:
    span.set_attribute("url.full", f"https://user:{S['status']}@shop/?access_token={S['query of a URL']}")
    span.set_attribute("note", f"-----BEGIN PRIVATE KEY-----\\n{S['private key']}\\n-----END PRIVATE KEY-----")
    points.get_meter("script").create_histogram("seen").record(
        1, {"kind": f"secret={S['metric']}", "token": S["metric"], "left.out": S["left out of a point"]}
    )
for provider in (traces, points, logs):
    provider.shutdown()
""".replace("contextlib_suppress", "__import__('contextlib').suppress")


def plant(endpoint: str, folder: Path) -> dict[str, str]:
    """Run both programs, telling everything to the agent at `endpoint`, and return the secrets by their place."""
    with _surroundings(endpoint, folder, masked=False) as variables:
        _sell(folder, variables)
        script = folder / "script.py"
        script.write_text(_SCRIPT)
        _run([sys.executable, str(script)], folder, variables)
    return SECRETS


@contextlib.contextmanager
def _surroundings(endpoint: str, folder: Path, *, masked: bool) -> Iterator[dict[str, str]]:
    """Lay out a database and the programs' environment; `masked` as an application should be."""
    folder.mkdir(parents=True, exist_ok=True)
    with server() as database:
        variables = {
            "SHOP_MASKED": str(masked).lower(),
            "SHOP_DATABASE": json.dumps(database.django_settings()),
            "SHOP_URL": database.url,
            "SHOP_SECRETS": json.dumps(SECRETS),
            "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
            "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
            "OTEL_SERVICE_NAME": "shop",
            "OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SERVER_REQUEST": ".*",
            "OTEL_METRICS_EXEMPLAR_FILTER": "always_on",
            "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)]),
        }
        if masked:
            del variables["OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SERVER_REQUEST"]
        yield variables


def _sell(folder: Path, variables: Mapping[str, str]) -> None:
    """Serve the shop, buy there once, and stop it: a worker that ends well has sent what it had."""
    (folder / "shop.py").write_text(_SHOP)
    with _served(folder, variables) as address:
        _ask(f"{address}/prepare/", {}, 200)
        headers = {
            "X-Shop-Tenant": SECRETS["header"],
            "Authorization": f"Bearer {SECRETS['bearer']}",
            "Cookie": f"sessionid={SECRETS['cookie']}; lang=de",
        }
        _ask(f"{address}/buy/?code={SECRETS['query of a URL']}&n=1", headers, 500)


@contextlib.contextmanager
def _served(folder: Path, variables: Mapping[str, str]) -> Iterator[str]:
    port = free_port()
    log = folder / "shop.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "gunicorn", "shop:application", "--bind", f"127.0.0.1:{port}"],
            cwd=folder, env={**os.environ, **variables}, stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        end = time.monotonic() + WITHIN
        while not listens(port):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
        process.send_signal(signal.SIGTERM)
        assert process.wait(WITHIN) == 0, log.read_text()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def _ask(url: str, headers: Mapping[str, str], status: int) -> None:
    try:
        with urllib.request.urlopen(
            urllib.request.Request(url, headers=dict(headers)), timeout=WITHIN
        ) as answer:
            assert answer.status == status
    except urllib.error.HTTPError as error:
        assert error.code == status, error.read()  # noqa: PT017 - its status is what is looked at
        error.close()


def _run(command: list[str], folder: Path, variables: Mapping[str, str]) -> None:
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, **variables}, timeout=WITHIN, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def spellings(secret: str) -> set[bytes]:
    """Return how the secret may stand in what is sent: as it is, and as JSON and URLs write it."""
    return {
        secret.encode(),
        json.dumps(secret)[1:-1].encode(),
        urllib.parse.quote(secret).encode(),
        urllib.parse.quote_plus(secret).encode(),
    }


def found_in(sent: bytes, secrets: Mapping[str, str]) -> dict[str, str]:
    """Return the secrets that are there, with what is around the first place."""
    found = {}
    for place, secret in secrets.items():
        for spelling in spellings(secret):
            at = sent.find(spelling)
            if at >= 0:
                found[place] = repr(sent[max(0, at - 120) : at + 80])
    return found


def test_no_secret_leaves_the_agent(tmp_path):
    """What both programs tell arrives, and no secret is in any byte of it; without the agent each would be."""
    with BackEnds() as raw:
        # Straight to a back end: what the programs tell when nobody redacts.
        secrets = plant(raw.otlp_endpoint, tmp_path / "raw")
    untold = set(secrets) - set(found_in(bytes(raw.sent), secrets))
    assert untold == set(), "planted where nobody would see them"
    with (
        BackEnds() as back_ends,
        Agent(
            tmp_path / "agent", back_ends, {"AGENT_KEEP_PERCENT": 100, "AGENT_DECISION_WAIT": "1s"}
        ) as agent,
    ):
        plant(agent.endpoint, tmp_path / "told")
        back_ends.wait_for(
            lambda: len(back_ends.spans) >= len(raw.spans) and len(back_ends.records) >= len(raw.records),
            "as many spans and records as without the agent",
        )
        names = {metric.name for _, metric in raw.metrics}
        back_ends.wait_for(lambda: names <= {metric.name for _, metric in back_ends.metrics}, "all metrics")
    assert found_in(bytes(back_ends.sent), secrets) == {}
    # And what is no secret has come through.
    kept = [attributes_of(span.attributes) for _, span in back_ends.spans]
    assert {"23505", "23502"} <= {told.get("db.response.status_code") for told in kept}
    assert "constraint" in {told.get("cockroachdb.error.class") for told in kept}
    assert "signed in" in [value_of(record.body) for _, record in back_ends.records]


def test_what_was_masked_at_the_source_passes_unchanged(tmp_path):
    """Of the shop with its masking on the agent sends on each span, record and point as it came."""
    with BackEnds() as raw, _surroundings(raw.otlp_endpoint, tmp_path / "shop", masked=True) as variables:
        _sell(tmp_path / "shop", variables)
    with (
        BackEnds() as back_ends,
        Agent(tmp_path, back_ends, {"AGENT_KEEP_PERCENT": 100, "AGENT_DECISION_WAIT": "1s"}) as agent,
    ):
        for request in raw.requests:
            agent.send(request)
        sent = {kind: _without_filtered(items) for kind, items in _items(raw).items()}
        back_ends.wait_for(
            lambda: all(len(_items(back_ends)[kind]) >= len(sent[kind]) for kind in sent), "all"
        )
    came = _items(back_ends)
    for kind, items in sent.items():
        assert items, kind
        changed = difflib.unified_diff(_lines(items), _lines(_without_filtered(came[kind])), n=0, lineterm="")
        told = "\n".join(changed)
        assert not told, f"{kind}\n{told}"


def _items(back_ends: BackEnds) -> dict[str, list[str]]:
    """Return what came of the shop's, as text."""
    return {
        kind: [
            str(item)
            for resource, item in items
            if attributes_of(resource.attributes)["service.name"] == "shop"
        ]
        for kind, items in (
            ("spans", list(back_ends.spans)),
            ("records", list(back_ends.records)),
            ("metrics", list(back_ends.metrics)),
        )
    }


def _without_filtered(items: list[str]) -> list[str]:
    """Leave out what the agent takes from exemplars."""
    return [re.sub(r"(?m)^ *filtered_attributes \{\n(?:.*\n)*?^ {6}\}\n", "", item) for item in items]


def _lines(items: list[str]) -> list[str]:
    return "".join(sorted(items)).splitlines()
