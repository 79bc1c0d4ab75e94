# SPDX-License-Identifier: Apache-2.0
"""The bank's addresses."""

from django.urls import path

from . import views

urlpatterns = [
    path("transfer/", views.transfer),
    path("accounts/", views.accounts),
    path("health/", views.health),
]
