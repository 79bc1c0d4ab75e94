# SPDX-License-Identifier: Apache-2.0
"""The one page, and what the toolbar needs."""

import contextlib

from django.conf import settings
from django.urls import include, path

from .work import answer

urlpatterns = [path("work/", answer)]

with contextlib.suppress(ImportError):
    if "debug_toolbar" in settings.INSTALLED_APPS:
        urlpatterns.append(path("__debug__/", include("debug_toolbar.urls")))
    if "silk" in settings.INSTALLED_APPS:
        urlpatterns.append(path("silk/", include("silk.urls")))
