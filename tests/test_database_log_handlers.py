# SPDX-License-Identifier: Apache-2.0
"""Handlers of the database's log that write to that very database, as django-db-logger does, harm no transaction."""

import contextlib
import logging

import pytest
from django.db import DatabaseError, connection, transaction

from otel_crdb import database_log, facts, run_transaction

from .database_lines import database_lines
from .project.models import Account
from .telemetry import Telemetry

pytestmark = pytest.mark.usefixtures("accounts")


class IntoTheDatabase(logging.Handler):
    """Writes a row for each line, by whatever connection Django has in this thread."""

    def emit(self, record):
        with connection.cursor() as cursor:
            cursor.execute(
                "INSERT INTO account (email, balance) VALUES (%s, 0)", [f"{record.db_event} {record.created}"]
            )


@pytest.fixture
def written():
    """Instrumented, with each call slow and each line in the database; the kinds of line that are there."""
    logger, handler = logging.getLogger(database_log.LOGGER), IntoTheDatabase()
    with Telemetry(slow_statement=1e-9), database_lines():
        logger.addHandler(handler)
        try:
            yield lambda: {
                email.partition(" ")[0] for email in Account.objects.values_list("email", flat=True)
            }
        finally:
            logger.removeHandler(handler)


def pay():
    with transaction.atomic():
        Account.objects.filter(email="a@example.com").update(balance=1)


def swallow_an_error():
    with transaction.atomic():
        Account.objects.filter(email="a@example.com").update(balance=1)
        with contextlib.suppress(DatabaseError), connection.cursor() as cursor:
            cursor.execute("SELECT * FROM nowhere")


def fail():
    with contextlib.suppress(ZeroDivisionError), transaction.atomic():
        Account.objects.filter(email="a@example.com").update(balance=1)
        raise ZeroDivisionError


def connect():
    connection.close()
    pay()


def run():
    run_transaction(lambda: Account.objects.filter(email="a@example.com").update(balance=1))


@pytest.mark.parametrize("work", [pay, swallow_an_error, fail, connect, run])
def test_handler_that_writes_to_the_database_harms_no_transaction(written, work):
    """What was committed is, nothing raises, the connection is idle and in autocommit, and the line is there."""
    work()
    assert connection.get_autocommit()
    assert facts.transaction_status(connection.connection) == facts.IDLE
    paid = Account.objects.get(email="a@example.com").balance == 1
    assert paid == (work not in {swallow_an_error, fail})
    assert "slow" in written()
    if work is swallow_an_error:
        assert "silent_abort" in written()


def test_lines_of_a_commit_are_said_before_the_block_is_left(written):
    """They wait for ``set_autocommit(True)`` and no longer."""
    with database_lines() as lines:
        pay()
        assert "COMMIT" in " ".join(record.getMessage() for record in lines)
