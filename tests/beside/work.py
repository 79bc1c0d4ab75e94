# SPDX-License-Identifier: Apache-2.0
"""One request's work: every way in which Django sends a statement, and what came of each as plain values.

It is the same in every process, so that what a neighbour holds of it can be compared.
"""

import io
import itertools
import re
import threading

from django.db import IntegrityError, ProgrammingError, connection, transaction
from django.db.models import F
from django.http import JsonResponse

import otel_crdb
from tests.project.models import Account

#: Savepoints by their thread, and comments that name a trace.
NUMBERED = re.compile(r' ?"s\d+_x\d+"| ?s\d+_x\d+| */\*.*?\*/')


def answer(request):
    """Do the work, and tell what came of it."""
    connection.force_debug_cursor = True
    connection.queries_log.clear()
    came = work()
    connection.force_debug_cursor = False
    commented = sum("/*" in noted["sql"] for noted in connection.queries_log)
    return JsonResponse({"came": came, "queries": queries(), "commented": commented})


def work():
    """Read, write, fail and retry; return what came of each."""
    return {step.__name__: step() for step in (read, write, cursors, copies, failures, retried)}


def queries():
    """Return what Django has noted of this connection's statements, without numbers and comments of the moment."""
    return [NUMBERED.sub("", noted["sql"]) for noted in connection.queries_log]


def read():
    """Read at once, one, and by a cursor of the server's."""
    rows = list(Account.objects.order_by("email").values_list("email", "balance"))
    return [
        rows,
        Account.objects.get(email="a@example.com").balance,
        sum(1 for _ in Account.objects.iterator(1)),
    ]


def write():
    """Write in a transaction, with a savepoint that is gone back to."""
    with transaction.atomic():
        changed = Account.objects.filter(email="a@example.com").update(balance=F("balance") + 1)
        try:
            with transaction.atomic():
                Account.objects.create(email="b@example.com", balance=0)
        except IntegrityError as error:
            refused = [type(error).__name__, sqlstate(error)]
        return [changed, refused, Account.objects.count()]


def cursors():
    """Use the cursor by hand: parameters, a batch, a text that the driver composes."""
    from django.db.backends.postgresql.psycopg_any import sql

    with connection.cursor() as cursor:
        cursor.execute("SELECT %s::int8 + 1", [41])
        first = cursor.fetchone()[0]
        cursor.executemany(
            "UPDATE account SET balance = %s WHERE email = %s", [[7, "a@example.com"], [8, "b@example.com"]]
        )
        cursor.execute(sql.SQL("SELECT balance FROM {} ORDER BY email").format(sql.Identifier("account")))
        return [first, cursor.fetchall(), cursor.rowcount]


def copies():
    """Copy rows out, by the driver's own way."""
    with connection.cursor() as cursor:
        text = "COPY (SELECT balance FROM account ORDER BY email) TO STDOUT"
        if hasattr(cursor.cursor, "copy_expert"):
            out = io.StringIO()
            cursor.copy_expert(text, out)
            return out.getvalue()
        with cursor.copy(text) as copy:
            return b"".join(bytes(part) for part in copy).decode()


def failures():
    """Fail: refused by the server, and by Django before anything is sent."""
    told = []
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT nothing FROM nowhere")
    except ProgrammingError as error:
        told.append([type(error).__name__, sqlstate(error), type(error.__cause__).__name__])
    try:
        with transaction.atomic():
            Account.objects.count()
            raise KeyError("the application's own")
    except KeyError as error:
        told.append(str(error))
    return told


def retried():
    """Pay where another session interferes with the first attempt."""
    left = itertools.count(1, -1)

    def pay():
        total = sum(account.balance for account in Account.objects.order_by("email"))
        if next(left) > 0:
            elsewhere(interfere)
        Account.objects.filter(email="a@example.com").update(balance=F("balance") + 1)
        return total

    return otel_crdb.run_transaction(pay)


def interfere():
    """Read all and write one, so that of two who did so one must be refused."""
    with transaction.atomic():
        list(Account.objects.all())
        Account.objects.filter(email="b@example.com").update(balance=F("balance") + 1)


def elsewhere(call):
    """Run a function on a connection of its own."""

    def run():
        try:
            call()
        finally:
            connection.close()

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()


def sqlstate(error):
    """Return the SQLSTATE that a driver's error holds."""
    cause = error.__cause__
    return getattr(cause, "sqlstate", None) or getattr(cause, "pgcode", None)
