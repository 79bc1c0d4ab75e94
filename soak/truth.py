# SPDX-License-Identifier: Apache-2.0
"""The server itself, past the nodes: the bank is opened on it, and at the end it is read."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from .evidence import Row, Truth

if TYPE_CHECKING:
    from otel_crdb.testing import Server

#: Seconds that the server has for ending the sessions of clients that have gone.
PATIENCE = 15.0
SESSIONS = """
    SELECT application_name || ': ' || coalesce(state, '') || ', ' || query
    FROM pg_stat_activity WHERE application_name LIKE 'soak-%'
"""
LOCKS = """
    SELECT l.locktype || ' ' || l.mode || ' of ' || coalesce(a.application_name, 'nobody')
    FROM pg_locks l LEFT JOIN pg_stat_activity a ON a.pid = l.pid
    WHERE l.pid IS NULL OR a.application_name LIKE 'soak-%' OR l.relation IN
        (SELECT oid FROM pg_class WHERE relname LIKE 'soak_%') AND l.pid <> pg_backend_pid()
"""


def open_bank(server: Server) -> None:
    """Make the tables anew and open the accounts. Sets up Django in this process."""
    from . import settings

    settings.set_up(server.django_settings(direct=server.direct_host is not None))
    from django.db import connection

    from .models import Account, Movement, Note
    from .operations import ACCOUNTS, OPENING

    with connection.cursor() as cursor:
        for model in (Movement, Note, Account):
            cursor.execute(f"DROP TABLE IF EXISTS {model._meta.db_table}")
        if server.kind == "embedded":
            # PostgreSQL reads small tables whole, and so finds every pair of transactions in conflict.
            cursor.execute(
                f"ALTER DATABASE {connection.ops.quote_name(server.database)} SET enable_seqscan = off"
            )
    with connection.schema_editor() as editor:
        for model in (Account, Movement, Note):
            editor.create_model(model)
    Account.objects.bulk_create([Account(pk=number, balance=OPENING) for number in range(1, ACCOUNTS + 1)])
    connection.close()


def read() -> Truth:
    """Read what the server has. What clients have left behind is waited for, but not for long."""
    from django.db import connection

    from .models import Account, Movement

    deadline = time.monotonic() + PATIENCE
    while True:
        sessions, locks = _told(connection, SESSIONS), _told(connection, LOCKS)
        if not (sessions or locks) or time.monotonic() > deadline:
            break
        time.sleep(0.2)
    found = Movement.objects.values_list("operation", "source_id", "target_id", "amount")
    rows = [Row(*values) for values in found.iterator()]
    balances = dict(Account.objects.values_list("pk", "balance"))
    connection.close()
    return Truth(rows, balances, sessions, locks)


def _told(connection: Any, query: str) -> list[str]:
    with connection.cursor() as cursor:
        cursor.execute(query)
        return [line for (line,) in cursor.fetchall()]
