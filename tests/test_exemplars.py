# SPDX-License-Identifier: Apache-2.0
"""From a data point to its trace: each exemplar names the span that was measured or counted."""

import pytest
from django.db import transaction
from opentelemetry.trace import SpanKind

from otel_crdb import run_transaction, semconv

from .project.models import Account
from .servers import conflicting

pytestmark = pytest.mark.usefixtures("accounts", "naps")


def exemplars(telemetry, metric, **attributes):
    """Return the span ids that a metric's exemplars name: those of its points that have these attributes."""
    return {
        exemplar.span_id
        for point in telemetry.points(metric)
        if attributes.items() <= dict(point.attributes).items()
        for exemplar in point.exemplars
    }


def test_the_duration_of_a_statement_names_the_statements_own_span(telemetry):
    """Not the transaction's, which is current around it."""
    with transaction.atomic():
        Account.objects.get(email="a@example.com")
    found = exemplars(
        telemetry, semconv.DB_OPERATION_DURATION, **{semconv.DB_QUERY_SUMMARY: "SELECT account"}
    )
    assert found == {telemetry.one("SELECT account").context.span_id}


def test_the_duration_of_a_transaction_names_its_span(telemetry):
    """The one that has its outcome."""
    with transaction.atomic():
        Account.objects.get(email="a@example.com")
    (span,) = (span for span in telemetry.spans if span.name.startswith("transaction "))
    assert exemplars(telemetry, semconv.TXN_DURATION) == {span.context.span_id}


def test_a_refusal_names_the_refused_call(telemetry):
    """From a count of 40001 to the statement that met it."""
    run_transaction(conflicting(1))
    (refused,) = (
        span
        for span in telemetry.spans
        if span.kind is SpanKind.CLIENT and span.attributes.get(semconv.ERROR_TYPE) == "40001"
    )
    assert exemplars(telemetry, semconv.CLIENT_ERRORS) == {refused.context.span_id}


@pytest.mark.parametrize("metric", [semconv.TXN_ATTEMPTS_METRIC, semconv.TXN_RETRIES])
def test_attempts_and_retries_name_the_logical_transaction(telemetry, metric):
    """From the histogram of attempts, and from the count of retries, to the span above all attempts."""
    run_transaction(conflicting(1), name="pay")
    logical = telemetry.one("run_transaction pay").context.span_id
    assert exemplars(telemetry, metric) == {logical}
