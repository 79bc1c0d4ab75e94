# SPDX-License-Identifier: Apache-2.0
"""What is answered where a view that is retried came to nothing.

After the application's own ``process_exception``, and in place of the 500 that Django would make of it.
"""

from __future__ import annotations

import functools
import logging
import math
from typing import TYPE_CHECKING, Any

from django.core.handlers.base import BaseHandler
from django.http import HttpResponse
from django.template import TemplateDoesNotExist, loader
from django.utils.module_loading import import_string

from .policy import AmbiguousCommitError, RetriesExhaustedError

if TYPE_CHECKING:
    from django.http import HttpRequest

    from .policy import ViewPolicy

logger = logging.getLogger(__name__)

#: The template of the page; where there is none, the words below.
TEMPLATE = "503.html"
PAGE = """<!doctype html>
<html lang="en">
<head><title>Service Unavailable</title></head>
<body><h1>Service Unavailable</h1><p>The request could not be completed, and nothing was changed. \
Please try again.</p></body>
</html>
"""
#: The attribute of a request that holds what its view came to.
REFUSED = "_otel_crdb_refused"


def expect(request: HttpRequest, error: BaseException, policy: ViewPolicy) -> None:
    """Note that the error about to be raised is the last word of this request's retried view."""
    setattr(request, REFUSED, (error, policy))


def answer(request: HttpRequest, exception: BaseException) -> HttpResponse | None:
    """Return the response for an exception, None for one that is not a retried view's last word."""
    refused: tuple[BaseException, ViewPolicy] | None = vars(request).pop(REFUSED, None)
    if refused is None or refused[0] is not exception:
        return None
    error, policy = refused
    if isinstance(error, RetriesExhaustedError):
        return _unavailable(request, policy)
    if isinstance(error, AmbiguousCommitError) and policy.ambiguous_commit_page is not None:
        page = policy.ambiguous_commit_page
        if isinstance(page, str):
            page = import_string(page)
        return page(request, error)
    return None


def _unavailable(request: HttpRequest, policy: ViewPolicy) -> HttpResponse:
    """Return a 503: nothing was applied, and the same request may well go through a little later.

    ``Retry-After`` is the longest back-off, in whole seconds.
    """
    try:
        page = loader.get_template(TEMPLATE).render(None, request)
    except TemplateDoesNotExist:
        page = PAGE
    except Exception:
        logger.exception("otel_crdb: %s could not be rendered; plain words stand in for it.", TEMPLATE)
        page = PAGE
    seconds = max(1, math.ceil(policy.backoff_cap))
    return HttpResponse(page, status=503, headers={"Retry-After": str(seconds)})


def ensure() -> None:
    """Have Django's handler ask :func:`answer` where no ``process_exception`` has answered."""
    own = BaseHandler.process_exception_by_middleware
    if getattr(own, "asks_retried_views", False):
        return

    @functools.wraps(own)
    def process_exception_by_middleware(handler: Any, exception: BaseException, request: HttpRequest) -> Any:
        return own(handler, exception, request) or answer(request, exception)

    process_exception_by_middleware.asks_retried_views = True  # type: ignore[attr-defined]
    BaseHandler.process_exception_by_middleware = process_exception_by_middleware
