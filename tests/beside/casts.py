# SPDX-License-Identifier: Apache-2.0
"""The neighbours of a scene: how each is set to work, and what it holds of the last request."""

import os
import re


class Nobody:
    """No neighbour: what a request does and gives by itself."""

    #: Who begins: ``theirs`` or ``ours``.
    first = "theirs"

    def before_setup(self):
        """Act before Django is set up."""

    def begin(self, scene):
        """Set to work."""

    def clear(self):
        """Forget what is held."""

    def held(self):
        """Return what is held of the last request, without times and numbers of its own."""


class Contrib(Nobody):
    """OpenTelemetry's instrumentation of the driver, on the tracer provider of ours."""

    def begin(self, scene):
        from django.db import connection
        from django.db.backends.postgresql.psycopg_any import is_psycopg3

        if is_psycopg3:
            from opentelemetry.instrumentation.psycopg import PsycopgInstrumentor as Instrumentor
        else:
            from opentelemetry.instrumentation.psycopg2 import Psycopg2Instrumentor as Instrumentor
        connection.close()
        Instrumentor().instrument(tracer_provider=scene.telemetry.tracer_provider, skip_dep_check=True)


class ContribConnection(Nobody):
    """The same for one connection only, which is open by then."""

    def begin(self, scene):
        from django.db.backends.postgresql.psycopg_any import is_psycopg3
        from django.db.backends.signals import connection_created

        if is_psycopg3:
            from opentelemetry.instrumentation.psycopg import PsycopgInstrumentor as Instrumentor
        else:
            from opentelemetry.instrumentation.psycopg2 import Psycopg2Instrumentor as Instrumentor

        def receive(connection, **_):
            Instrumentor().instrument_connection(connection.connection, scene.telemetry.tracer_provider)

        connection_created.connect(receive, weak=False)


class ZeroCode(Nobody):
    """``opentelemetry-instrument``: all that is installed, ours among it; the spans of all, ours too, are kept."""

    first = "ours"

    def begin(self, scene):
        from opentelemetry import trace
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor

        trace.get_tracer_provider().add_span_processor(SimpleSpanProcessor(scene.telemetry.span_exporter))


class DbApi(Nobody):
    """OpenTelemetry's generic instrumentation: connections and cursors are proxies."""

    def begin(self, scene):
        from django.db import connection
        from opentelemetry.instrumentation.dbapi import trace_integration

        connection.close()
        trace_integration(
            connection.Database,
            "connect",
            "postgresql",
            {"database": "info.dbname"},
            tracer_provider=scene.telemetry.tracer_provider,
        )


class ContribDjango(Nobody):
    """OpenTelemetry's instrumentation of Django by itself, with comments in the statements."""

    def begin(self, scene):
        from opentelemetry.instrumentation.django import DjangoInstrumentor

        os.environ.setdefault("OTEL_SEMCONV_STABILITY_OPT_IN", "http")
        if not DjangoInstrumentor().is_instrumented_by_opentelemetry:
            DjangoInstrumentor().instrument(
                tracer_provider=scene.telemetry.tracer_provider, is_sql_commentor_enabled=True
            )


class Sentry(Nobody):
    """Sentry with Django's integration and traces; its envelopes stay here."""

    options = {}

    def begin(self, scene):
        import sentry_sdk
        from sentry_sdk.integrations.django import DjangoIntegration
        from sentry_sdk.transport import Transport

        envelopes = self.envelopes = []

        class Kept(Transport):
            def capture_envelope(self, envelope):
                envelopes.append(envelope)

        sentry_sdk.init(
            dsn="http://key@127.0.0.1:9/1",
            transport=Kept,
            integrations=[DjangoIntegration(db_transaction_spans=True)],
            default_integrations=False,
            traces_sample_rate=1.0,
            **self.options,
        )

    def clear(self):
        if hasattr(self, "envelopes"):
            import sentry_sdk

            sentry_sdk.flush()
            self.envelopes.clear()

    def held(self):
        import sentry_sdk

        sentry_sdk.flush()
        return [
            [
                event.get("transaction"),
                [[span.get("op"), plain(span.get("description"))] for span in event.get("spans", ())],
            ]
            for event in (envelope.get_transaction_event() for envelope in self.envelopes)
            if event
        ]


class SentryOpenTelemetry(Sentry):
    """Sentry fed by OpenTelemetry: its span processor on our provider, its own tracing off."""

    options = {"instrumenter": "otel"}

    def begin(self, scene):
        super().begin(scene)
        from sentry_sdk.integrations.opentelemetry import SentrySpanProcessor

        scene.telemetry.tracer_provider.add_span_processor(SentrySpanProcessor())


class Toolbar(Nobody):
    """django-debug-toolbar: its SQL panel's rows."""

    def before_setup(self):
        import sys

        sys.argv = ["manage.py", "runserver"]

    def held(self):
        from debug_toolbar.store import get_store

        store = get_store()
        *_, last = store.request_ids()
        panel = store.panel(last, "SQLPanel")
        return [[plain(query["sql"]), query["alias"]] for query in panel["queries"]]


class Silk(Nobody):
    """django-silk: the statements that it has written down."""

    def begin(self, scene):
        from django.core.management import call_command

        call_command("migrate", "silk", verbosity=0)

    def held(self):
        from silk.models import Request

        last = Request.objects.order_by("start_time").last()
        held = [plain(query.query) for query in last.queries.order_by("start_time")]
        last.delete()
        return held


class Prometheus(Nobody):
    """django-prometheus: its counters, by a backend of its own that mixes it into django-cockroachdb."""

    def clear(self):
        self.before = self.read()

    def held(self):
        before, now = self.before, self.read()
        return {name: now[name] - before.get(name, 0) for name in now if now[name] != before.get(name, 0)}

    @staticmethod
    def read():
        """Return the counters of the database and of requests."""
        from prometheus_client import REGISTRY

        return {
            f"{sample.name}{sorted(sample.labels.items())}": sample.value
            for family in REGISTRY.collect()
            for sample in family.samples
            if sample.name.startswith(("django_db_", "django_http_requests_total"))
            and sample.name.endswith(("_total", "_count"))
        }


class Pool(Nobody):
    """psycopg's pool under Django: what it has counted."""

    def clear(self):
        from django.db import connection

        connection.pool.pop_stats()

    def held(self):
        from django.db import connection

        stats = connection.pool.pop_stats()
        return {name: stats.get(name, 0) for name in ("requests_num", "requests_errors", "returns_bad")}


class Datadog(Nobody):
    """ddtrace: its finished traces, kept instead of sent to an agent."""

    def before_setup(self):
        if self.first == "theirs":
            import ddtrace.auto  # noqa: F401

    def begin(self, scene):
        import ddtrace.auto  # noqa: F401
        from ddtrace.trace import TraceFilter, tracer

        finished = self.finished = []

        class Keep(TraceFilter):
            def process_trace(self, trace):
                finished.extend(trace)

        tracer.configure(trace_processors=[Keep()])

    def clear(self):
        if hasattr(self, "finished"):
            self.finished.clear()

    def held(self):
        spans = sorted(self.finished, key=lambda span: span.start_ns)
        return [[span.name, plain(span.resource), span.error] for span in spans]


class DatadogProvider(Datadog):
    """ddtrace as OpenTelemetry's tracer provider (DD_TRACE_OTEL_ENABLED): ours go there too."""

    def begin(self, scene):
        super().begin(scene)
        scene.telemetry.tracer_provider = None


def plain(text):
    """Return a text without what differs from run to run: numbers of savepoints and of threads."""
    return re.sub(r"s\d+_x\d+|_django_curs_\w+|\"?s\d{6,}_\w+\"?", "N", text) if text else text


CASTS = {
    "nobody": Nobody,
    "contrib": Contrib,
    "contrib-connection": ContribConnection,
    "zero-code": ZeroCode,
    "dbapi": DbApi,
    "contrib-django": ContribDjango,
    "sentry": Sentry,
    "sentry-otel": SentryOpenTelemetry,
    "toolbar": Toolbar,
    "silk": Silk,
    "prometheus": Prometheus,
    "pool": Pool,
    "ddtrace": Datadog,
    "ddtrace-otel": DatadogProvider,
}
