# SPDX-License-Identifier: Apache-2.0
"""Views that log, and answer with the trace that they run in."""

import logging
import threading
from concurrent.futures import ThreadPoolExecutor

from django.http import HttpResponse, StreamingHttpResponse
from django.views.decorators.cache import cache_page
from opentelemetry import trace

logger = logging.getLogger("logged")


def say():
    """Log the line."""
    logger.info("said")


def answer():
    """Tell the trace."""
    return HttpResponse(format(trace.get_current_span().get_span_context().trace_id, "032x"))


def plain(request):
    """Say it."""
    say()
    return answer()


def fails(request):
    """Become a 500."""
    raise ValueError("broken")


def in_threads(request):
    """Say it in a thread and in an executor's."""
    thread = threading.Thread(target=say)
    thread.start()
    thread.join()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(say).result()
    return answer()


def streamed(request):
    """Say it while the body is sent."""

    def parts():
        say()
        yield answer().content

    return StreamingHttpResponse(parts())


@cache_page(60)
def cached(request):
    """Answer from the cache, where that has it."""
    return answer()


def later(request):
    """Say it here, and have a task say it."""
    from .tasks import say_later

    say()
    say_later.delay()
    return answer()


VIEWS = [plain, fails, in_threads, streamed, cached, later]
