# SPDX-License-Identifier: Apache-2.0
"""Where the bank's views stand."""

from django.urls import path

from . import views

urlpatterns = [
    path("pay/", views.pay),
    path("later/", views.later),
    path("fork/", views.fork),
]
