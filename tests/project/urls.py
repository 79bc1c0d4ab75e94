# SPDX-License-Identifier: Apache-2.0
"""Where the tests' views stand."""

from django.urls import path

from . import views

urlpatterns = [
    path("transfer/<int:amount>/", views.transfer),
    path("read/", views.read),
    path("read-freely/", views.read_freely),
    path("retried/", views.retried),
    path("conflict/", views.conflict),
    path("broken/", views.broken),
    path("leak/", views.leak),
    path("stream/", views.stream),
    path("async/", views.async_read),
    path("async-stream/", views.async_stream),
    path("wait/", views.wait),
    path("nothing/", views.nothing),
]
