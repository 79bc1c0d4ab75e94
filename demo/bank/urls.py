# SPDX-License-Identifier: Apache-2.0
"""The bank's addresses."""

from django.urls import path

from . import views

urlpatterns = [
    path("transfer/", views.transfer),
    path("deposit/", views.deposit),
    path("accounts/", views.accounts),
    path("report/", views.report),
    path("nodes/", views.nodes),
    path("health/", views.health),
]
