# SPDX-License-Identifier: Apache-2.0
"""Workers that transfer money between the same two accounts at once, each meeting the others half-way.

All have read before any writes, so that of those who meet at most one can be committed.
"""

import asyncio
import os
import sys
import threading
from collections import Counter

from asgiref.sync import ThreadSensitiveContext

ROUNDS, WORKERS = 5, 3


def transfer_of(name, meet):
    """Return a transfer of 1 from a to b, which meets the others in its first attempt."""
    from django.db import connection

    from .project.models import Account

    met = []

    def transfer():
        source, target = Account.objects.filter(email__in=["a@example.com", "b@example.com"]).order_by(
            "email"
        )
        if not met:
            met.append(name)
            meet(30)
        Account.objects.filter(pk=source.pk).update(balance=source.balance - 1)
        Account.objects.filter(pk=target.pk).update(balance=target.balance + 1)
        with connection.cursor() as cursor:
            cursor.execute("INSERT INTO ledger (name) VALUES (%s)", [name])
        return name

    return transfer


OPTIONS = {"name": "transfer", "max_attempts": 30, "backoff_base": 0.002, "backoff_cap": 0.05}


def work(worker, meet, done):
    """Make this worker's transfers, one a round."""
    from django.db import connection

    from otel_crdb import run_transaction

    try:
        for number in range(ROUNDS):
            done.append(run_transaction(transfer_of(f"{worker}-{number}", meet), **OPTIONS))
    finally:
        connection.close()


def in_threads(workers, meet):
    """Work in threads; return the names of the transfers that were said to be done."""
    done = []
    threads = [threading.Thread(target=work, args=(worker, meet, done)) for worker in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return done


def in_tasks(workers, meet):
    """Work in asyncio's tasks, each with a thread of its own for synchronous code, as requests have."""
    from asgiref.sync import sync_to_async
    from django.db import connection

    from otel_crdb import arun_transaction

    async def run(worker):
        done = []
        async with ThreadSensitiveContext():
            for number in range(ROUNDS):
                transfer = transfer_of(f"{worker}-{number}", meet)
                done.append(await arun_transaction(transfer, **OPTIONS))
            await sync_to_async(lambda: connection.close())()
        return done

    async def run_all():
        return await asyncio.gather(*(run(worker) for worker in workers))

    return [name for done in asyncio.run(run_all()) for name in done]


def told(telemetry):
    """Return what spans, metrics and log records say of the transfers."""
    spans = telemetry.spans
    logical = [span for span in spans if span.name == "run_transaction transfer"]
    outcomes = Counter(
        span.attributes["cockroachdb.txn.outcome"] for span in spans if span.name[:12] == "transaction "
    )
    spread = telemetry.points("cockroachdb.client.txn.attempts")
    return Counter(
        {
            "logical": len(logical),
            "logical committed": sum(s.attributes["cockroachdb.txn.outcome"] == "committed" for s in logical),
            "attempts by spans": sum(outcomes.values()),
            "attempts by attribute": sum(span.attributes["cockroachdb.txn.attempts"] for span in logical),
            "attempts by metric": int(sum(point.sum for point in spread)),
            "committed": outcomes["committed"],
            "retryable": outcomes["retryable"],
            "retries by events": sum(len(span.events) for span in logical),
            "retries by metric": sum(
                point.value for point in telemetry.points("cockroachdb.client.txn.retries")
            ),
            "retries by logs": sum(r.event_name == "cockroachdb.txn.retry" for r in telemetry.log_records),
            "errors by metric": sum(point.value for point in telemetry.points("cockroachdb.client.errors")),
        }
    )


def process(worker, meet, answers):
    """Be one worker in a process of its own."""
    if os.environ.get("OTEL_CRDB_TEST_DRIVER") == "psycopg2":
        sys.modules["psycopg"] = None
    import django

    django.setup()
    from .telemetry import Telemetry

    done = []
    with Telemetry() as telemetry:
        work(worker, meet, done)
        answers.put((done, told(telemetry)))
