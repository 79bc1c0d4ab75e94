# SPDX-License-Identifier: Apache-2.0
"""How the tests have Django's handler answer with a view of theirs, behind a fault proxy."""

import contextlib

import pytest
from django.db import connections
from django.http import HttpResponse
from django.test import AsyncClient, Client, override_settings
from django.urls import path

from .project.models import Account
from .servers import earn

SERIALIZATION = "serialization_failure.RETRY_SERIALIZABLE"


class Urls:
    """A URLconf that is made on the spot."""

    def __init__(self, *patterns):
        self.urlpatterns = list(patterns)


@contextlib.contextmanager
def answering(view, *middleware, **settings):
    """Have Django answer at ``/view/`` with this view, below this middleware."""
    with override_settings(
        ROOT_URLCONF=Urls(path("view/", view)), MIDDLEWARE=[*_installed(), *middleware], **settings
    ):
        yield


def _installed():
    from django.conf import settings

    return list(settings.MIDDLEWARE)


def post(view, data=None, middleware=(), settings=None, **request):
    """Send a POST to the view through Django's handler; return the response."""
    with answering(view, *middleware, **(settings or {})):
        client = request.pop("client", None) or Client(raise_request_exception=False)
        return client.post("/view/", data or {}, **request)


async def apost(view, middleware=(), **request):
    """Send a POST to the view through Django's asynchronous handler; return the response."""
    with answering(view, *middleware):
        return await AsyncClient(raise_request_exception=False).post("/view/", {}, **request)


@contextlib.contextmanager
def atomic_requests(*aliases):
    """Have Django make views atomic on these aliases."""
    with pytest.MonkeyPatch.context() as patch:
        for alias in aliases:
            patch.setitem(connections.settings[alias], "ATOMIC_REQUESTS", True)
        yield


def paying(request):
    """Pay one in."""
    earn()
    return HttpResponse("paid")


def balance():
    return Account.objects.get(email="a@example.com").balance


def counting(view):
    """Return the view, and the list of the requests that it was called with."""
    calls = []

    def counted(request, *args, **kwargs):
        calls.append(request)
        return view(request, *args, **kwargs)

    return counted, calls
