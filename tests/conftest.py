# SPDX-License-Identifier: Apache-2.0
"""One server for the session, one Django, and fresh telemetry for each test.

``OTEL_CRDB_TEST_DRIVER=psycopg2`` runs the suite on psycopg2 where psycopg 3 is installed too (Django
takes psycopg 3 whenever it can be imported).
"""

import contextlib
import json
import os
import signal
import sys

import pytest

from otel_crdb.testing import server

_running = contextlib.ExitStack()


def pytest_configure(config):
    """Start the server and Django before anything imports a model."""
    # A shell ignores Ctrl-C for what it starts in the background, and the processes of the tests would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    running = _running.enter_context(server())
    config.stash[_SERVER] = running
    default = running.django_settings()
    os.environ["TEST_DATABASES"] = json.dumps(
        {
            "default": default,
            "other": {**default},
            "sqlite": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"},
        }
    )
    os.environ["DJANGO_SETTINGS_MODULE"] = "tests.project.settings"
    with _driver_of_the_run():
        import django
        from django.db import connections

        django.setup()
        connections["default"]  # loads the backend, and with it the driver


@contextlib.contextmanager
def _driver_of_the_run():
    """Keep psycopg 3 from Django where the run is psycopg2's; the tests themselves may import it."""
    if os.environ.get("OTEL_CRDB_TEST_DRIVER") != "psycopg2":
        yield
        return
    sys.modules["psycopg"] = None
    yield
    del sys.modules["psycopg"]


#: What other versions of Python and Django are spared with ``OTEL_CRDB_TEST_SHORT=1``: processes, pages,
#: other people, hostile input; it takes long, and one version of each is run on every change.
LONG = [
    "beside",
    "beside_poolers",
    "bounds",
    "correlation_servers",
    "delivery",
    "docs",
    "doctor",
    "doctor_collector",
    "doctor_report",
    "hostile_input",
    "hostile_requests",
    "logging_config",
    "logs_page",
    "starts",
    "suites",
    "tutorial",
    "variables",
]
#: What the driver has no part in: run on psycopg 3.
ANY_DRIVER = [
    "bounds",
    "checks",
    "correlation_servers",
    "delivery",
    "doctor",
    "doctor_collector",
    "doctor_report",
    "fast_exporter",
    "fork",
    "hostile_requests",
    "log_formatters",
    "logging_config",
    "logs_page",
    "options",
    "rotation",
    "suites",
    "threads",
    "variables",
]


def pytest_collection_modifyitems(config, items):
    """Leave out what this run is spared, unless the command line names its module."""
    spared = set(LONG) if os.environ.get("OTEL_CRDB_TEST_SHORT") else set()
    if os.environ.get("OTEL_CRDB_TEST_DRIVER") == "psycopg2":
        spared.update(ANY_DRIVER)
    spared = {f"test_{name}" for name in spared if not any(f"test_{name}.py" in told for told in config.args)}
    left_out = [item for item in items if item.path.stem in spared]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item.path.stem not in spared]


@pytest.fixture(autouse=True)
def _no_error_of_another_test():
    """Forget the last database error: log lines of the next test would tell of it."""
    from otel_crdb.state import last_error

    last_error.set(None)


_SERVER = pytest.StashKey()


def pytest_unconfigure(config):
    """Let the server go."""
    _running.close()


def pytest_report_header(config):
    """Say which server, which driver and which Django."""
    import django
    from django.db.backends.postgresql.psycopg_any import is_psycopg3

    driver = "psycopg 3" if is_psycopg3 else "psycopg2"
    return f"server: {config.stash[_SERVER].description}; driver: {driver}; Django {django.__version__}"


@pytest.fixture(scope="session")
def crdb(request):
    """The running test server."""
    return request.config.stash[_SERVER]


@pytest.fixture(scope="session")
def _tables(crdb):
    from django.db import connection

    from .project.models import Account

    with connection.schema_editor() as editor:
        editor.create_model(Account)
    yield
    with connection.schema_editor() as editor:
        editor.delete_model(Account)
    connection.close()


@pytest.fixture
def accounts(_tables):
    """Two accounts of 100 each: ``a@example.com`` and ``b@example.com``."""
    from .project.models import Account

    Account.objects.all().delete()
    Account.objects.bulk_create([Account(email=f"{name}@example.com", balance=100) for name in "ab"])
    yield Account.objects
    from django.db import connections

    for connection in connections.all():
        connection.close()


@pytest.fixture(autouse=True)
def _nothing_stays_behind():
    """No test leaves a span current behind it, nor sets the providers of the whole process."""
    from opentelemetry import trace

    yield
    assert trace.get_current_span() is trace.INVALID_SPAN
    assert isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)


@pytest.fixture
def telemetry(monkeypatch):
    """Instrument for one test, with everything kept in memory."""
    from .telemetry import Telemetry

    monkeypatch.setenv("OTEL_SEMCONV_STABILITY_OPT_IN", "http")
    with Telemetry() as recorded:
        yield recorded


@pytest.fixture
def naps(monkeypatch):
    """The back-offs that were asked for; none of them is slept."""
    from otel_crdb import retry

    asked = []
    monkeypatch.setattr(retry, "sleep", asked.append)

    async def nap(seconds):
        asked.append(seconds)

    monkeypatch.setattr(retry, "asleep", nap)
    return asked


@pytest.fixture
def quiet_requests():
    """Django does not log what it answers."""
    import logging

    logging.getLogger("django.request").setLevel(logging.CRITICAL)
    yield
    logging.getLogger("django.request").setLevel(logging.NOTSET)


@pytest.fixture
def wsgi(telemetry):
    """A real WSGI server on the instrumented application: its port."""
    from .http_servers import wsgi_server

    with wsgi_server() as port:
        yield port


@pytest.fixture
def asgi(telemetry):
    """A real ASGI server on the instrumented application: its port."""
    from .http_servers import asgi_server

    with asgi_server() as port:
        yield port
