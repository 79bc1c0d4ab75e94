# SPDX-License-Identifier: Apache-2.0
"""Views that log `SAID`: each in a place where a line easily loses the request that it belongs to."""

import asyncio
import logging
import threading
from concurrent.futures import ThreadPoolExecutor

from asgiref.sync import sync_to_async
from django.db import IntegrityError, connection, transaction
from django.http import HttpResponse, StreamingHttpResponse
from django.test import AsyncClient, Client
from django.views.decorators.cache import cache_page

from otel_crdb import run_transaction
from tests.project.models import Account
from tests.servers import conflicting, earn

SAID = "said"
logger = logging.getLogger("bank")


def say():
    """Log the line."""
    logger.warning(SAID)


def done():
    """Answer."""
    return HttpResponse("done")


def plain(request):
    """Say it in the view."""
    say()
    return done()


def fails(request):
    """Become a 500."""
    raise ValueError("broken")


def refuses(request):
    """Answer with a 503: Django logs what is answered so when the request's span has ended."""
    return HttpResponse(status=503)


def declined(request):
    """Become a 409, by an error of the database that nobody raised further."""
    try:
        Account.objects.create(email=Account.objects.first().email)
    except IntegrityError:
        return HttpResponse(status=409)


def swallowed(request):
    """Say it after an error of the database that nobody raised further, and once more after a success."""
    try:
        with transaction.atomic():
            Account.objects.create(email=Account.objects.first().email)
    except IntegrityError:
        say()
    Account.objects.count()
    logger.warning("all is well")
    return done()


# --- threads -------------------------------------------------------------------------------------


def in_thread(request):
    """Say it in a thread."""
    thread = threading.Thread(target=say)
    thread.start()
    thread.join()
    return done()


def in_own_thread(request):
    """Say it in a thread with a `run` of its own."""

    class Saying(threading.Thread):
        def run(self):
            say()

    thread = Saying(daemon=True)
    thread.start()
    thread.join()
    return done()


def in_timer(request):
    """Say it in a timer's thread."""
    timer = threading.Timer(0, say)
    timer.start()
    timer.join()
    return done()


def in_submitted_call(request):
    """Say it in an executor's thread."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(say).result()
    return done()


def in_mapped_calls(request):
    """Say it in two executor's threads."""
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: say(), range(4)))
    return done()


async def in_loops_executor(request):
    """Say it in the event loop's executor, and in the thread of Django's synchronous code."""
    await asyncio.get_running_loop().run_in_executor(None, say)
    await sync_to_async(say)()
    return done()


# --- transactions ------------------------------------------------------------------------------------


def on_commit(request):
    """Say it in the transaction, and when it has been committed; then in another one, and in none."""
    with transaction.atomic():
        earn()
        say()
        transaction.on_commit(lambda: logger.warning("committed"))
    with transaction.atomic():
        earn()
        logger.warning("another")
    logger.warning("none")
    return done()


def retried(request):
    """Say it in each attempt of a transaction that meets one real conflict."""
    pay = conflicting(1)

    def attempt():
        say()
        return pay()

    return HttpResponse(run_transaction(attempt, backoff_base=0))


# --- bodies, tasks -----------------------------------------------------------------------------------


def streamed(request):
    """Say it while the body is sent."""

    def parts():
        say()
        yield str(Account.objects.count())
        say()

    return StreamingHttpResponse(parts())


def streamed_by_thread(request):
    """Say it in a thread that makes a part of the body."""

    def parts():
        with ThreadPoolExecutor(1) as pool:
            pool.submit(say).result()
        yield "done"

    return StreamingHttpResponse(parts())


async def streamed_async(request):
    """Say it while an asynchronous body is sent."""

    async def parts():
        say()
        yield str(await Account.objects.acount())
        say()

    return StreamingHttpResponse(parts())


async def in_tasks(request):
    """Say it in the asynchronous view, and in tasks that it gathers or makes."""

    async def say_so():
        say()

    say()
    await asyncio.gather(say_so(), say_so())
    await asyncio.create_task(say_so())
    return done()


# --- requests within and beside ------------------------------------------------------------------------


def nested(request):
    """Say it after a request within this one, which was not found, and become a 410."""
    inner = Client().get("/nowhere-within/")
    assert inner.status_code == 404
    say()
    return HttpResponse(status=410)


async def nested_async(request):
    """Do the same asynchronously."""
    inner = await AsyncClient().get("/nowhere-within/")
    assert inner.status_code == 404
    say()
    return HttpResponse(status=410)


@cache_page(60)
def cached(request):
    """Answer from the cache, where that has it."""
    return HttpResponse("cached")


def on_the_connection(request):
    """Say it in a hook that Django runs around each statement."""

    def wrapper(execute, sql, params, many, context):
        say()
        return execute(sql, params, many, context)

    with connection.execute_wrapper(wrapper):
        Account.objects.count()
    return done()


VIEWS = [
    plain,
    fails,
    refuses,
    declined,
    swallowed,
    in_thread,
    in_own_thread,
    in_timer,
    in_submitted_call,
    in_mapped_calls,
    in_loops_executor,
    on_commit,
    retried,
    streamed,
    streamed_by_thread,
    streamed_async,
    in_tasks,
    nested,
    nested_async,
    cached,
    on_the_connection,
]
