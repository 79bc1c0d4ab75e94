# SPDX-License-Identifier: Apache-2.0
"""What an error costs, counted in calls: no stack trace, and at most twice what a success costs."""

import sys
import traceback
from collections import Counter

import pytest
from django.db import DatabaseError, connection, transaction
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider

import otel_crdb

from .errors_of_cockroachdb import CASES
from .servers import driver_connect

#: The longest text that CockroachDB 23.2 and later send: two transactions, the conflict's key, an anchor each.
CONFLICT = next(case for case in CASES if case.name == "40001-locks-v26")
SELECT = "SELECT answer(%s, %s, %s)"


@pytest.fixture(scope="module", autouse=True)
def _answer():
    """Make the function that answers, with an error where it is given one."""
    connection.close()
    other = driver_connect(connection)
    other.autocommit = True
    other.cursor().execute(
        """
        CREATE FUNCTION answer(code text, message text, detail text) RETURNS int LANGUAGE plpgsql AS $$ BEGIN
            IF code <> '' THEN
                RAISE EXCEPTION USING ERRCODE = code, MESSAGE = message, DETAIL = detail;
            END IF;
            RETURN 1;
        END $$
        """
    )
    yield
    connection.close()
    other.cursor().execute("DROP FUNCTION answer(text, text, text)")
    other.close()


@pytest.fixture
def instrument():
    """Return what instruments, with the SDK's providers and no exporter."""

    def put_in():
        otel_crdb.instrument(
            tracer_provider=TracerProvider(shutdown_on_exit=False),
            meter_provider=MeterProvider([InMemoryMetricReader()], shutdown_on_exit=False),
            logger_provider=LoggerProvider(shutdown_on_exit=False),
        )

    connection.ensure_connection()
    yield put_in
    otel_crdb.uninstrument()


class Calls:
    """Counts the calls of Python and C functions in its block, by module and name."""

    def __init__(self):
        self.by_name = Counter()

    def __enter__(self):
        sys.setprofile(self._count)
        return self

    def __exit__(self, *_):
        sys.setprofile(None)

    def _count(self, frame, event, arg):
        if event == "call":
            name = getattr(frame.f_code, "co_qualname", frame.f_code.co_name)
            self.by_name[frame.f_globals.get("__name__", ""), name] += 1
        elif event == "c_call" and arg is not sys.setprofile:
            self.by_name[arg.__module__ or "", arg.__qualname__] += 1


def success():
    """Count the calls of a statement that succeeds in a block."""
    with transaction.atomic(), connection.cursor() as cursor:
        with Calls() as calls:
            cursor.execute(SELECT, ["", "", ""])
    return calls.by_name


def failure():
    """Count the calls of a statement that fails with a real 40001, up to where the caller has it."""
    with pytest.raises(DatabaseError), transaction.atomic(), connection.cursor() as cursor:
        with Calls() as calls:
            cursor.execute(SELECT, [CONFLICT.code, CONFLICT.message, CONFLICT.detail])
    return calls.by_name


def least(count):
    """Return the lowest of several counts: the first works out what stays, the driver waits now and then."""
    return min((count() for _ in range(20)), key=Counter.total)


def test_retried_error_costs_at_most_twice_a_success(instrument):
    """What the instrumentation calls for a statement that fails with a 40001 is at most twice that of a success."""
    bare = {count: least(count) for count in (success, failure)}
    instrument()
    ours = {count: least(count) - bare[count] for count in (success, failure)}
    ratio = ours[failure].total() / ours[success].total()
    extra = (ours[failure] - ours[success]).most_common(25)
    lines = [f"{calls:4} {module}.{name}" for (module, name), calls in extra]
    assert ratio <= 2.0, "\n".join(
        [f"{ours[failure].total()} calls for a failure, {ours[success].total()} for a success", *lines]
    )


@pytest.mark.parametrize("signal", ["", "logs", "logs/dup"], ids=["spans", "logs", "both"])
def test_retried_error_has_no_stack_trace(telemetry, monkeypatch, signal):
    """Nothing of ``traceback`` is called for a 40001, and no signal holds a stack trace."""
    monkeypatch.setenv("OTEL_SEMCONV_EXCEPTION_SIGNAL_OPT_IN", signal)
    otel_crdb.uninstrument()
    telemetry.instrument()
    called = failure()
    assert [name for module, name in called if module == traceback.__name__] == []
    assert called["otel_crdb.events", "database_error"] == 1
    assert CONFLICT.code in telemetry.everything()
    assert "stacktrace" not in telemetry.everything()
    assert "Traceback" not in telemetry.everything()
