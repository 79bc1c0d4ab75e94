# SPDX-License-Identifier: Apache-2.0
"""The bank on the server: led through a fault proxy for the application, read past it for the truth."""

from __future__ import annotations

import contextlib
import time

from django.db import connections

from otel_crdb import facts
from tests.servers import driver_connect, led_through_proxy

ALIAS = "other"
CLIENT = "otel_crdb_model"
ACCOUNTS = ("ann", "ben", "cat")
OPENING_BALANCE = 1000
#: Seconds for a session whose link is gone to be buried by the server.
PATIENCE = 10.0

CREATE = (
    "CREATE TABLE model_account (name text PRIMARY KEY, balance int NOT NULL)",
    "CREATE TABLE model_ledger (id bigserial PRIMARY KEY, operation text NOT NULL, attempt int NOT NULL, once text UNIQUE)",
    "CREATE TABLE model_audit (id int PRIMARY KEY, looks int NOT NULL)",
    "INSERT INTO model_audit VALUES (1, 0)",
)
DROP = "DROP TABLE IF EXISTS model_account, model_ledger, model_audit"
#: Predicate locks (SIReadLock) are left out: they outlive their transaction and keep nobody waiting.
HELD = """
    SELECT
        (SELECT count(*) FROM pg_stat_activity WHERE application_name = %(client)s AND xact_start IS NOT NULL),
        (SELECT count(*) FROM pg_locks JOIN pg_stat_activity USING (pid)
         WHERE application_name = %(client)s AND granted AND mode <> 'SIReadLock')
"""


class Bank:
    """Accounts, a ledger with one row for each applied run of an operation, and the way to them."""

    def __init__(self, server):
        self._server = server
        self._until_the_end = contextlib.ExitStack()

    def __enter__(self):
        with self._until_the_end as stack:
            self._past_the_proxy = driver_connect(connections["default"])
            stack.callback(self._past_the_proxy.close)
            self._past_the_proxy.autocommit = True
            # Else what is read here could itself conflict with what is under way.
            self._ask("SET default_transaction_isolation = 'read committed'")
            self._ask(DROP)
            stack.callback(self._ask, DROP)
            for statement in CREATE:
                self._ask(statement)
            self.proxy = stack.enter_context(led_through_proxy(self._server, ALIAS))
            self.wrapper = connections[ALIAS]
            options = self.wrapper.settings_dict["OPTIONS"]
            self.wrapper.settings_dict["OPTIONS"] = {**options, "application_name": CLIENT}
            self.wrapper.ensure_connection()  # django-cockroachdb's own statement, once a process
            self._until_the_end = stack.pop_all()
        return self

    def __exit__(self, *_):
        self._until_the_end.close()

    def _ask(self, sql, parameters=None):
        cursor = self._past_the_proxy.cursor()
        cursor.execute(sql, parameters)
        return cursor.fetchall() if cursor.description else []

    # --- the truth, past the proxy ---------------------------------------------------------------------------

    def open_anew(self):
        """Give every account its opening balance, and an empty ledger."""
        self._ask("DELETE FROM model_ledger")
        self._ask("DELETE FROM model_account")
        for name in ACCOUNTS:
            self._ask("INSERT INTO model_account VALUES (%s, %s)", (name, OPENING_BALANCE))

    def balances(self):
        """Read what each account holds."""
        return dict(self._ask("SELECT name, balance FROM model_account"))

    def touch(self, name):
        """Write an account in another session, without changing it."""
        self._ask("UPDATE model_account SET balance = balance WHERE name = %s", (name,))

    def rows_of(self, operation):
        """Read which attempts at an operation were applied."""
        rows = self._ask("SELECT attempt FROM model_ledger WHERE operation = %s ORDER BY id", (operation,))
        return [attempt for (attempt,) in rows]

    def held(self):
        """Tell how many transactions the application has open on the server, and how many locks it holds.

        A link that is gone is buried by the server a moment later: only what stays is told.
        """
        until = time.monotonic() + PATIENCE
        while True:
            (held,) = self._ask(HELD, {"client": CLIENT})
            if held == (0, 0) or not self.client_is_idle() or time.monotonic() > until:
                return held

    def kill_sessions(self):
        """End the application's sessions, as an administrator does."""
        self._ask(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name = %s",
            (CLIENT,),
        )

    # --- the application's side ------------------------------------------------------------------------------

    def client_is_idle(self):
        """Whether the application's own connection says that no transaction is open, or that it is gone."""
        connection = self.wrapper.connection
        return connection is None or facts.transaction_status(connection) in (facts.IDLE, facts.UNKNOWN)

    def client_has_failed(self):
        """Whether the application's own connection says that its transaction can only be rolled back."""
        connection = self.wrapper.connection
        return connection is not None and facts.transaction_status(connection) == facts.IN_ERROR
