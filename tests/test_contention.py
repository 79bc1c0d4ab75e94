# SPDX-License-Identifier: Apache-2.0
"""Real serialization conflicts: each transfer exactly once, and telemetry equal to the truth on the wire."""

import logging
import multiprocessing
import threading
from collections import Counter

import pytest
from django.db import connection

from otel_crdb import database_log

from .contention import ROUNDS, WORKERS, in_tasks, in_threads, process, told
from .project.models import Account

pytestmark = pytest.mark.usefixtures("accounts")


@pytest.fixture
def ledger(accounts, crdb):
    """A ledger on the server: the truth of what was applied."""
    with connection.cursor() as cursor:
        cursor.execute("CREATE TABLE ledger (name text PRIMARY KEY)")
    connection.close()
    if crdb.kind == "embedded":
        crdb.wire_log(clear=True)

    def names():
        with connection.cursor() as cursor:
            cursor.execute("SELECT name FROM ledger")
            return sorted(name for (name,) in cursor.fetchall())

    yield names
    with connection.cursor() as cursor:
        cursor.execute("DROP TABLE ledger")


def on_the_wire(crdb):
    """Return what passed the proxy: transactions begun, committed and refused."""
    if crdb.kind != "embedded":
        pytest.skip("only the embedded server has a proxy that counts")
    log = crdb.wire_log()
    statements = Counter(text.partition(" ")[0] for text in log.texts("statement"))
    return {
        "begun": statements["BEGIN"],
        "committed": Counter(log.texts("tag"))["COMMIT"],
        "refused": Counter(log.texts("error"))["40001"],
    }


def check(done, told_of, ledger, wire, lines):
    """Hold what was returned, what is on the server, and what was told against the wire."""
    transfers = WORKERS * ROUNDS
    assert len(done) == len(set(done)) == transfers
    assert ledger() == sorted(done)
    balances = dict(Account.objects.values_list("email", "balance"))
    assert balances == {"a@example.com": 100 - transfers, "b@example.com": 100 + transfers}
    assert wire["committed"] == transfers
    assert wire["refused"] >= ROUNDS * (WORKERS - 1)
    assert told_of["logical"] == told_of["logical committed"] == told_of["committed"] == transfers
    attempts = {told_of[f"attempts by {source}"] for source in ("spans", "attribute", "metric")}
    assert attempts == {wire["begun"]}
    refused = {told_of["retryable"], told_of["errors by metric"]}
    retried = {told_of[f"retries by {source}"] for source in ("events", "metric", "logs")}
    assert refused | retried | ({lines} if lines is not None else set()) == {wire["refused"]}


@pytest.mark.parametrize("way", [in_threads, in_tasks])
def test_transfers_that_meet_are_made_exactly_once(telemetry, crdb, ledger, caplog, way):
    """Threads and asynchronous tasks that meet: each transfer once, all counts equal to the wire's."""
    database_log.flush()  # what tests before this one have left
    caplog.clear()
    with caplog.at_level(logging.WARNING, "otel_crdb.db"):
        done = way([f"w{number}" for number in range(WORKERS)], threading.Barrier(WORKERS).wait)
    wire = on_the_wire(crdb)
    database_log.flush()
    lines = [record for record in caplog.records if record.name == "otel_crdb.db"]
    said = sum(getattr(record, "held_back", 1) for record in lines)
    check(done, told(telemetry), ledger, wire, said)


def test_transfers_of_processes_that_meet_are_made_exactly_once(crdb, ledger):
    """Processes that meet: each transfer once, and what all of them told adds up to the wire's counts."""
    spawn = multiprocessing.get_context("spawn")
    barrier, answers = spawn.Barrier(WORKERS), spawn.Queue()
    workers = [spawn.Process(target=process, args=(f"p{n}", barrier.wait, answers)) for n in range(WORKERS)]
    for worker in workers:
        worker.start()
    gathered = [answers.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join()
    wire = on_the_wire(crdb)
    told_of = sum((counts for _, counts in gathered), Counter())
    check([name for done, _ in gathered for name in done], told_of, ledger, wire, None)
