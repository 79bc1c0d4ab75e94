# SPDX-License-Identifier: Apache-2.0
"""Where the views stand, by their own names."""

from django.urls import path

from . import views

urlpatterns = [path(f"{view.__name__}/", view) for view in views.VIEWS]
