# SPDX-License-Identifier: Apache-2.0
"""How the tests have a real server fail."""

import contextlib
import itertools

import pytest
from django.db import connection, connections, transaction
from django.db.models import F

from otel_crdb.testing import FaultProxy

from .project.models import Account


def needs_postgresql():
    """Skip the test on a real CockroachDB: it has the server fail by PostgreSQL's own means."""
    connection.ensure_connection()
    if "played by otel_crdb" not in (connection.connection.info.parameter_status("crdb_version") or ""):
        pytest.skip("has PostgreSQL fail by means that CockroachDB has not")


def driver_connect(wrapper):
    """Open another connection to the same database, by the driver alone."""
    return wrapper.Database.connect(**wrapper.get_connection_params())


@contextlib.contextmanager
def commit_fails_with(sqlstate):
    """Have every COMMIT that wrote to an account answered by an error of that SQLSTATE.

    A deferred trigger raises it, so the server itself sends it, as the answer of COMMIT. With
    ``"terminate"`` the trigger ends the session instead: COMMIT has no answer.
    """
    needs_postgresql()
    action = (
        "PERFORM pg_terminate_backend(pg_backend_pid())"
        if sqlstate == "terminate"
        else f"RAISE EXCEPTION 'refused at commit' USING ERRCODE = '{sqlstate}'"
    )
    other = driver_connect(connection)
    other.autocommit = True
    cursor = other.cursor()
    cursor.execute(
        f"CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {action}; RETURN NULL; END $$"
    )
    cursor.execute(
        "CREATE CONSTRAINT TRIGGER refuse AFTER UPDATE ON account DEFERRABLE INITIALLY DEFERRED "
        "FOR EACH ROW EXECUTE FUNCTION refuse()"
    )
    try:
        yield
    finally:
        cursor.execute("DROP TRIGGER refuse ON account")
        cursor.execute("DROP FUNCTION refuse()")
        other.close()


def commit_elsewhere(sql):
    """Run one statement in a transaction of another session."""
    other = driver_connect(connection)
    try:
        other.cursor().execute(sql)
        other.commit()
    finally:
        other.close()


@contextlib.contextmanager
def serialization_conflict():
    """Have the block's end meet a real serialization failure: write skew with another session."""
    with transaction.atomic():
        sum(account.balance for account in Account.objects.all())
        interfere()
        Account.objects.filter(email="a@example.com").update(balance=1)
        yield


def interfere():
    """Read all accounts and write one, in another session, so that two readers wrote what each had read."""
    other = driver_connect(connection)
    try:
        cursor = other.cursor()
        cursor.execute("SELECT sum(balance) FROM account")
        cursor.execute("UPDATE account SET balance = balance + 1 WHERE email = 'b@example.com'")
        other.commit()
    finally:
        other.close()


def earn(amount=1, using="default"):
    """Pay into the first account; return the number of rows."""
    return Account.objects.using(using).filter(email="a@example.com").update(balance=F("balance") + amount)


def conflicting(times):
    """Return a payment that meets a real serialization conflict in its first ``times`` attempts."""
    left = itertools.count(times, -1)

    def pay():
        sum(account.balance for account in Account.objects.all())
        if next(left) > 0:
            interfere()
        earn()
        return "paid"

    return pay


def cut(wrapper):
    """End the wrapper's session from another one."""
    needs_postgresql()
    cursor = wrapper.connection.cursor()
    cursor.execute("SELECT pg_backend_pid()")
    (pid,) = cursor.fetchone()
    commit_elsewhere(f"SELECT pg_terminate_backend({pid}, 5000)")


@contextlib.contextmanager
def led_through_proxy(server, alias="other"):
    """Lead the connections of an alias through a fault proxy, and give the proxy."""
    wrapper = connections[alias]
    wrapper.close()
    kept = {name: wrapper.settings_dict[name] for name in ("HOST", "PORT", "OPTIONS")}
    with FaultProxy(server) as proxy:
        wrapper.settings_dict.update({name: proxy.django_settings()[name] for name in kept})
        try:
            yield proxy
        finally:
            wrapper.close()
            wrapper.settings_dict.update(kept)
