# SPDX-License-Identifier: Apache-2.0
"""A payment: one transaction of two statements. Its row in the ledger is what the telemetry is held against."""

import os

from django.db import connection, transaction
from opentelemetry import trace


def pay(way="request"):
    """Pay, slowly enough that a second worker gets its share, and return who did it and in which trace."""
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("INSERT INTO starts_ledger (run, way) VALUES (%s, %s)", [os.environ["BANK_RUN"], way])
        cursor.execute("SELECT pg_sleep(0.03)")
    context = trace.get_current_span().get_span_context()
    return {"pid": os.getpid(), "trace": format(context.trace_id, "032x")}
