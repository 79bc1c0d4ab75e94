# SPDX-License-Identifier: Apache-2.0
"""Views of the tests' project: each one thing that an application does with its database."""

import asyncio
from pathlib import Path

from asgiref.sync import sync_to_async
from django.db import IntegrityError, connection, transaction
from django.http import FileResponse, HttpResponse, StreamingHttpResponse

from .models import Account


def nothing(request):
    """Answer without the database."""
    return HttpResponse("nothing")


def read(request):
    """Read, in whatever transaction the settings put around a view."""
    return HttpResponse(str(Account.objects.count()))


@transaction.non_atomic_requests
def read_freely(request):
    """Read, outside the transaction that the settings put around views."""
    return HttpResponse(str(Account.objects.count()))


def transfer(request, amount):
    """Move money in one transaction."""
    with transaction.atomic():
        Account.objects.filter(email="a@example.com").update(balance=-amount)
        Account.objects.filter(email="b@example.com").update(balance=amount)
    return HttpResponse("paid")


#: Set by a test: called inside the transaction of :func:`conflict`, to make it conflict.
interfere = None


def conflict(request):
    """Do what a request may do in one transaction, and have COMMIT refused."""
    with transaction.atomic():
        total = sum(account.balance for account in Account.objects.all())
        try:
            with transaction.atomic():
                Account.objects.create(email="a@example.com", balance=1)
        except IntegrityError:
            pass
        with connection.cursor() as cursor:
            cursor.executemany(
                "INSERT INTO account (email, balance) VALUES (%s, %s)",
                [(f"new-{number}@example.com", total) for number in range(3)],
            )
            cursor.execute(
                "WITH rich AS (SELECT id FROM account WHERE balance > 1000000) "
                "UPDATE account SET balance = balance - 1 FROM rich WHERE account.id = rich.id"
            )
        interfere()
    return HttpResponse("committed")


def file(request):
    """Send a file."""
    return FileResponse(Path(__file__).open("rb"))


def retried(request):
    """Run what a test has put there."""
    return HttpResponse(interfere())


def broken(request):
    """Fail with an error of the application's own."""
    Account.objects.count()
    raise ValueError("broken")


def leak(request):
    """Fail with a database error whose text holds a row."""
    Account.objects.create(email=Account.objects.first().email)
    return HttpResponse("unreachable")


def stream(request):
    """Query while the body is being sent."""

    def rows():
        for account in Account.objects.order_by("email"):
            yield f"{account.email}\n"
        yield f"{Account.objects.count()}\n"

    return StreamingHttpResponse(rows())


async def async_read(request):
    """Read with the asynchronous ORM, and in a transaction of a thread."""
    first = await Account.objects.order_by("email").afirst()

    def read():
        with transaction.atomic():
            return Account.objects.count()

    await sync_to_async(read)()
    return HttpResponse(first.email)


async def async_stream(request):
    """Query asynchronously while the body is being sent."""

    async def rows():
        async for account in Account.objects.order_by("email"):
            yield f"{account.email}\n"

    return StreamingHttpResponse(rows())


#: Set by a test: told when :func:`wait` has begun.
waiting = None


async def wait(request):
    """Never answer."""
    await Account.objects.acount()
    waiting.set()
    await asyncio.Event().wait()
